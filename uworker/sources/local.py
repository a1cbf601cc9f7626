"""Images in directories of this machine, or mounted on it."""

import errno
import heapq
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from job_api.schemas import ResultStatus
from uworker.images import (
    IGNORED_DIRECTORIES,
    IMAGE_ENDINGS,
    ImageFile,
    NoImages,
    SourceNotAllowed,
    StorageFault,
    Verdict,
    storable,
    unique,
)

LEADS_OUT = "the file is a link that leads out of the source"


class LocalSource:
    """Directories on this machine, or mounted on it. Nothing outside the root is read, links included.

    Args:
        root: the directory that the jobs' directories lie in.
        max_image_bytes: larger files are not read.
    """

    def __init__(self, root: Path, max_image_bytes: int) -> None:
        self.root = os.path.realpath(root)
        self._max_image_bytes = max_image_bytes

    def list_images(self, directory: str) -> Iterator[ImageFile]:
        """All images below a directory, in the order of their paths; behind links to folders last. See `Source`."""
        self._require_root()
        if ".." in directory.split("/"):
            raise NoImages(f"the directory's name {directory!r} leads out of the source")
        top = os.path.join(self.root, directory)  # noqa: PTH118
        if not self._is_inside(top):
            raise SourceNotAllowed(f"the directory {directory!r} is a link that leads out of the source")
        names, found = set[str](), False
        try:
            for path in self._walk(top):
                found = True
                yield self._look_at(os.path.join(top, path), unique(storable(path), names))  # noqa: PTH118
        except (FileNotFoundError, NotADirectoryError):
            raise NoImages(f"there is no directory {directory!r} under {self.root}") from None
        except OSError as error:
            raise StorageFault(f"the directory {directory!r} cannot be read: {error.strerror or error}") from error
        if not found:
            raise NoImages(f"no image lies in the directory {directory!r} or below it")

    def _look_at(self, path: str, name: str) -> ImageFile:
        try:
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode):
                return ImageFile(name, path, size=status.st_size)
            if self._is_inside(path):
                return ImageFile(name, path, size=os.stat(path).st_size)  # noqa: PTH116
        except OSError:
            # It has gone, or whatever: the reading says so.
            return ImageFile(name, path)
        return ImageFile(name, path, Verdict(ResultStatus.UNREADABLE, LEADS_OUT))

    def _require_root(self) -> None:
        """Tell a root that is not mounted, which must not cost its jobs, from a directory without images."""
        try:
            with os.scandir(self.root) as entries:
                mounted = next(entries, None) is not None
        except OSError as error:
            raise StorageFault(f"the source's root {self.root} cannot be read: {error.strerror or error}") from error
        if not mounted:
            raise StorageFault(f"there is nothing in the source's root {self.root}; is it mounted?")

    def _walk(self, top: str) -> Iterator[str]:
        """Paths of images below a folder, relative to it.

        Only the names in the folders on the way down are in memory, and those not yet given. Links to folders are
        followed last and each to a new place only, so that no link leads round in circles, and a folder that can be
        reached in two ways has the same name on every machine and in every attempt.
        """
        links, seen = [""], set[tuple[int, int]]()
        while links:
            # Of each folder, what is in it and not yet given; last things first, and a folder ends in a slash.
            left = [[heapq.heappop(links)]]
            while left:
                if not left[-1]:
                    left.pop()
                elif (path := left[-1].pop()) and not path.endswith("/"):
                    yield path
                else:
                    left.append(self._scan(top, path, links, seen))

    def _scan(self, top: str, below: str, links: list[str], seen: set[tuple[int, int]]) -> list[str]:
        """Images and folders in one folder, unless it was seen before; puts links to folders on the heap of `links`."""
        found: list[str] = []
        try:
            status = os.stat(os.path.join(top, below))  # noqa: PTH116, PTH118
            if (status.st_dev, status.st_ino) in seen:
                return []
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(top, below)) as entries:  # noqa: PTH118
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in IGNORED_DIRECTORIES:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        found.append(below + entry.name + "/")
                    # Not `entry.is_dir()`: it raises for a link that leads to itself.
                    elif entry.is_symlink() and self._is_inside(entry.path) and os.path.isdir(entry.path):  # noqa: PTH112
                        heapq.heappush(links, below + entry.name + "/")
                    elif os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS:  # noqa: PTH122
                        found.append(below + entry.name)
        except (FileNotFoundError, NotADirectoryError):
            if below == "":
                raise
            # It has gone since its parent was listed, or all has.
            self._require_root()
            return []
        return sorted(found, reverse=True)

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self.root or real.startswith(self.root.rstrip("/") + "/")

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image. See `Source`."""
        if image.verdict is not None:
            return image.verdict
        if not self._is_inside(image.key):
            return Verdict(ResultStatus.UNREADABLE, LEADS_OUT)
        try:
            return self._read_file(image.key)
        except (FileNotFoundError, NotADirectoryError):
            self._require_root()
            return Verdict(ResultStatus.MISSING, "the file was listed and is gone")
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO):
                return Verdict(ResultStatus.UNREADABLE, f"the file cannot be opened: {error.strerror}")
            raise StorageFault(f"{image.name!r} cannot be read: {error.strerror or error}") from error

    def _read_file(self, path: str) -> bytes | Verdict:
        # Not blocking: a pipe that nobody writes to must not hold the worker up.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Verdict(ResultStatus.UNREADABLE, "this is not a plain file")
            # Its size is asked before it is read, and bounded all the same: it may be growing.
            data = file.read(self._max_image_bytes + 1) if status.st_size <= self._max_image_bytes else None
        size = status.st_size if data is None else len(data)
        return self._too_large(size) if data is None or size > self._max_image_bytes else data

    def _too_large(self, size: int) -> Verdict:
        return Verdict(ResultStatus.TOO_LARGE, f"the file has {size} bytes; at most {self._max_image_bytes} are read")
