"""Where images are kept: finding and reading those of a job. Local directories so far, behind a small protocol.

What can be wrong has three ends: a single file that cannot be used is a row with a status; a directory without images
is a `NoImages`; storage that does not answer is a `StorageFault`, which fails the job and never becomes a row.
"""

import errno
import hashlib
import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from job_api.schemas import ResultStatus
from job_api.text import MAX_PATH_BYTES, clean_text
from uworker.settings import WorkerSettings

# Endings, in lower case, of files that say they are pictures; SVG and PDF among them, to be told they are not read.
IMAGE_ENDINGS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".heic"}
    | {".heif", ".avif", ".svg", ".pdf"}
)
_IGNORED_DIRECTORIES = frozenset({"__MACOSX"})


class SourceError(Exception):
    """A job cannot be read; `reason` and `retryable` are what it fails with."""

    reason = "source"
    retryable = True


class NoImages(SourceError):
    """The directory is not there, or there is no image in it."""

    reason = "no-images"
    retryable = False


class StorageFault(SourceError):
    """The storage does not answer as it should; it may later."""

    reason = "storage"


class SourceNotAllowed(SourceError):
    """This worker must not read there."""

    reason = "source-not-allowed"


class SourceUnsupported(SourceError):
    """This worker does not know how to read there."""

    reason = "source-unsupported"


@dataclass(frozen=True)
class Verdict:
    """Why an image is not given to the engine."""

    status: ResultStatus
    message: str


@dataclass(frozen=True)
class ImageFile:
    """An image of a job: its name in the results, where its bytes are, or why it has none that may be read."""

    name: str
    key: str
    verdict: Verdict | None = None


class Source(Protocol):
    """A kind of storage."""

    def list_images(self, directory: str) -> list[ImageFile]:
        """All images below a directory at any depth, in the order of their names, at least one.

        Raises:
            NoImages, StorageFault, SourceNotAllowed: as they say.
        """

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image, or why there are none.

        Raises:
            StorageFault: the storage failed, and the image is not to blame.
        """


def open_source(url: str, settings: WorkerSettings) -> Source:
    """The source of a project, as this worker sees it.

    Raises:
        SourceNotAllowed: the worker may not read there.
        SourceUnsupported: it knows no such kind of storage.
    """
    if settings.source_root is not None:
        return LocalSource(settings.source_root, settings.max_image_bytes)
    parts = urlsplit(url)
    if url.startswith("/"):
        root = Path(url)
    elif parts.scheme == "file" and parts.netloc in ("", "localhost"):
        root = Path(unquote(parts.path))
    else:
        raise SourceUnsupported(
            f"this worker reads local directories only, and the project's source is {url}; "
            "set UWORKER_SOURCE_ROOT to where it is mounted"
        )
    real = Path(os.path.realpath(root))
    allowed = [Path(os.path.realpath(folder)) for folder in settings.source_allow]
    if allowed and not any(real.is_relative_to(folder) for folder in allowed):
        raise SourceNotAllowed(f"the project's source {url} lies in none of the folders in UWORKER_SOURCE_ALLOW")
    return LocalSource(root, settings.max_image_bytes)


class LocalSource:
    """Directories on this machine, or mounted on it. Nothing outside the root is read, links included.

    Args:
        root: the directory that the jobs' directories lie in.
        max_image_bytes: larger files are not read.
    """

    def __init__(self, root: Path, max_image_bytes: int) -> None:
        self._root = os.path.realpath(root)
        self._max_image_bytes = max_image_bytes

    def list_images(self, directory: str) -> list[ImageFile]:
        """All images below a directory, sorted. See `Source`."""
        self._require_root()
        if ".." in directory.split("/"):
            raise NoImages(f"the directory's name {directory!r} leads out of the source")
        top = os.path.join(self._root, directory)  # noqa: PTH118
        if not self._is_inside(top):
            raise SourceNotAllowed(f"the directory {directory!r} is a link that leads out of the source")
        try:
            found = sorted(self._walk(top), key=lambda item: item[0])
        except (FileNotFoundError, NotADirectoryError):
            raise NoImages(f"there is no directory {directory!r} under {self._root}") from None
        except OSError as error:
            raise StorageFault(f"the directory {directory!r} cannot be read: {error.strerror or error}") from error
        if not found:
            raise NoImages(f"no image lies in the directory {directory!r} or below it")
        names: set[str] = set()
        return [ImageFile(_unique(_storable(path), names), os.path.join(top, path), v) for path, v in found]  # noqa: PTH118

    def _require_root(self) -> None:
        """Tell a root that is not mounted, which must not cost its jobs, from a directory without images."""
        try:
            with os.scandir(self._root) as entries:
                mounted = next(entries, None) is not None
        except OSError as error:
            raise StorageFault(f"the source's root {self._root} cannot be read: {error.strerror or error}") from error
        if not mounted:
            raise StorageFault(f"there is nothing in the source's root {self._root}; is it mounted?")

    def _walk(self, top: str) -> Iterator[tuple[str, Verdict | None]]:
        """Paths of images below a folder, relative to it, with why they may not be read.

        Links to folders are followed last and each to a new place only, so that no link leads round in circles, and a
        folder that can be reached in two ways has the same name on every machine and in every attempt.
        """
        folders, links, seen = [""], list[str](), set[tuple[int, int]]()
        while folders or links:
            below = folders.pop() if folders else heapq.heappop(links)
            try:
                status = os.stat(os.path.join(top, below))  # noqa: PTH116, PTH118
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(os.path.join(top, below)) as entries:  # noqa: PTH118
                    found = [e for e in entries if not e.name.startswith(".") and e.name not in _IGNORED_DIRECTORIES]
            except FileNotFoundError:
                if below == "":
                    raise
                continue  # it has gone since its parent was listed
            for entry in found:
                is_link, path = entry.is_symlink(), below + entry.name
                outside = is_link and not self._is_inside(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path + "/")
                # Not `entry.is_dir()`: it raises for a link that leads to itself.
                elif is_link and not outside and os.path.isdir(entry.path):  # noqa: PTH112
                    heapq.heappush(links, path + "/")
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS:  # noqa: PTH122
                    refusal = Verdict(ResultStatus.UNREADABLE, "the file is a link that leads out of the source")
                    yield path, refusal if outside else None

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._root or real.startswith(self._root.rstrip("/") + "/")

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image. See `Source`."""
        if image.verdict is not None:
            return image.verdict
        if not self._is_inside(image.key):
            return Verdict(ResultStatus.UNREADABLE, "the file is a link that leads out of the source")
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


def _storable(path: str) -> str:
    """A path as the service can store it; one that is too long keeps its beginning and a digest of the whole."""
    name = clean_text(path, MAX_PATH_BYTES * 4)
    data = name.encode()
    if len(data) <= MAX_PATH_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return data[: MAX_PATH_BYTES - 20].decode(errors="ignore") + "…" + digest


def _unique(name: str, names: set[str]) -> str:
    """`name`, or where another file is shown under it already, `name` with a number: both must get their row."""
    number, candidate = 2, name
    while candidate in names:
        candidate, number = f"{name} ({number})", number + 1
    names.add(candidate)
    return candidate
