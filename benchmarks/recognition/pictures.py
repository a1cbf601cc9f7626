"""The images that all are measured on: the demo's samples, repeated, in directories as users have them."""

from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from uworker.demo.samples import draw_samples

IMAGES_PER_DIRECTORY = 16


@dataclass(frozen=True)
class Pictures:
    """Directories below `root`, and all files in them, in the order in which they are recognised."""

    root: Path
    directories: list[str]
    files: list[Path]

    def first(self, number: int) -> "Pictures":
        """The directories of the first images, with all that lies in them: that many, or a few more."""
        names = {file.relative_to(self.root).parts[0] for file in self.files[:number]}
        files = [file for file in self.files if file.relative_to(self.root).parts[0] in names]
        return Pictures(self.root, [name for name in self.directories if name in names], files)


def lay_out(folder: Path, number: int, per_directory: int = IMAGES_PER_DIRECTORY) -> Pictures:
    """Draw images below `folder`: one in the first directory, for `worker.py` to tell the time by, and then many."""
    drawn = [sample.path for sample in draw_samples(folder / "drawn")]
    root = folder / "source"
    names = []
    files = []
    for index, path in enumerate(islice(cycle(drawn), number)):
        name = f"Benchmark ({(index + per_directory - 1) // per_directory:04})"
        file = root / name / "output" / f"sequence_{index:05}{path.suffix.lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        # Each is a file of its own: a worker recognises equal bytes once.
        file.write_bytes(path.read_bytes() + str(index).encode())
        files.append(file)
        if name not in names:
            names.append(name)
    return Pictures(root, names, files)
