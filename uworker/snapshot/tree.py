"""The clone that a snapshot is made of: its commit, whether it was changed, and what of it goes into an image."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from uworker.snapshot.builder import BuildError

UNKNOWN = "unknown"
CODE = ("job_api", "uworker")
RECIPE = ("docker/worker", "docker/install-dependencies.sh", "pyproject.toml", "uv.lock")
_SHORT = 7


@dataclass(frozen=True)
class Revision:
    """What the code in an image is.

    Attributes:
        commit: Of git, 40 hexadecimal digits or more; "unknown" where the clone is no git repository.
        dirty: Something that goes into the image is not as in the commit.
    """

    commit: str
    dirty: bool

    def __str__(self) -> str:
        return (self.commit if self.commit == UNKNOWN else self.commit[:_SHORT]) + (", changed" if self.dirty else "")


def revision_of(source: Path) -> Revision:
    """Look up the commit of a clone; what does not go into an image may have been changed.

    Raises:
        BuildError: it is a repository, and git says nothing of it.
    """
    commit = _git(source, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return Revision(UNKNOWN, dirty=False)
    changes = _git(source, "status", "--porcelain", "--untracked-files=all", "--", *CODE, *RECIPE)
    return Revision(commit.strip(), dirty=bool(changes))


def code_files(source: Path) -> list[Path]:
    """List the files of the code, relative to `source`, as they lie there: tracked, and Python that is not ignored.

    Raises:
        BuildError: it is a repository, and git says nothing of it.
    """
    tracked = _git(source, "ls-files", "-z", "--cached", "--", *CODE)
    if tracked is not None:
        python = [f":(glob){folder}/**/*.py" for folder in CODE]
        new = _git(source, "ls-files", "-z", "--others", "--exclude-standard", "--", *python)
        files = {Path(name) for name in f"{tracked}{new or ''}".split("\0") if name}
    else:
        files = {path.relative_to(source) for folder in CODE for path in (source / folder).rglob("*.py")}
    # All new code is Python; what else lies there may be a login, which nobody meant to put into an image.
    # What was removed and not committed is still listed.
    return sorted(path for path in files if (source / path).is_file())


def _git(source: Path, *arguments: str) -> str | None:
    """What git says, or None where it is not there, or there is no repository.

    Raises:
        BuildError: it refuses.
    """
    # Unpacked inside another project's repository it has no history of its own.
    if not (source / ".git").exists():
        return None
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(source.resolve().parent)}
    command = ["git", "-C", str(source), *arguments]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    if done.returncode != 0:
        said = " ".join(done.stderr.split())
        raise BuildError(f"git says nothing of {source} ({said}); mend that, or build in a copy that has no .git")
    return done.stdout
