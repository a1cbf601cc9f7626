"""The images that all are measured on: the demo's samples, repeated, in directories as users have them."""

import shutil
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


def lay_out(folder: Path, number: int) -> Pictures:
    """Draw images below `folder`: one in the first directory, for `worker.py` to tell the time by, and then many."""
    drawn = [sample.path for sample in draw_samples(folder / "drawn")]
    root = folder / "source"
    names = []
    files = []
    for index, path in enumerate(islice(cycle(drawn), number)):
        name = f"Benchmark ({(index + IMAGES_PER_DIRECTORY - 1) // IMAGES_PER_DIRECTORY:04})"
        file = root / name / "output" / f"sequence_{index:05}{path.suffix.lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, file)
        files.append(file)
        if name not in names:
            names.append(name)
    return Pictures(root, names, files)
