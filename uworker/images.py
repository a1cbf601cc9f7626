"""The images of a job: what a kind of storage must be able to do (uworker/sources/), and how images are named.

What can be wrong has three ends: a single file that cannot be used is a row with a status; a directory without images
is a `NoImages`; storage that does not answer is a `StorageFault`, which fails the job and never becomes a row.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from job_api.schemas import NONE_CHOSEN, ResultStatus
from job_api.text import MAX_PATH_BYTES, clean_text

# Endings, in lower case, of files that say they are made of pixels.
RASTER_ENDINGS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".heic"}
    | {".heif", ".avif"}
)
# Those, and what is listed with them to be told that it is not read.
IMAGE_ENDINGS = RASTER_ENDINGS | {".svg", ".pdf"}
IGNORED_DIRECTORIES = frozenset({"__MACOSX"})

# What is in every name that `storable` has changed, whichever way.
_CHANGED = re.compile(r"\ufffd|\\x[0-9a-f]{2}|…")


class SourceError(Exception):
    """A job cannot be read; `reason` and `retryable` are what it fails with."""

    reason = "source"
    retryable = True


class NoImages(SourceError):
    """The directory is not there, or there is no image in it."""

    reason = "no-images"
    retryable = False


class NoneChosen(SourceError):
    """There are images in the directory, and the project's patterns choose none of them."""

    reason = NONE_CHOSEN
    retryable = False


class StorageFault(SourceError):
    """The storage does not answer as it should; it may later."""

    reason = "storage"


class SourceDenied(SourceError):
    """The storage does not let this worker in: its credential is at fault, not the job, which is given back."""

    reason = "source-denied"


class DirectoryDenied(SourceError):
    """The storage lets this worker in, and not into this directory: one job is at fault, and not the credential."""

    reason = "directory-denied"


class BadName(SourceError):
    """There is an object among the images that cannot be named, so the images cannot be counted."""

    reason = "bad-name"
    retryable = False


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
    """An image of a job.

    Attributes:
        name: in the results.
        key: where its bytes are, as its source has it.
        verdict: why it has none that may be read.
        size: in bytes, where the listing knows it: by it the reader judges how many may be on their way at once.
    """

    name: str
    key: str
    verdict: Verdict | None = None
    size: int | None = None


class Source(Protocol):
    """A kind of storage. It may be listed and read by many threads at once."""

    def list_images(self, directory: str) -> Iterator[ImageFile]:
        """All images below a directory at any depth, at least one, each name once, in the same order each time.

        A stream: whoever lists a million images holds a few of them.

        Raises:
            NoImages, StorageFault, SourceNotAllowed: as they say; not here, but where the first or a later image is
                asked for.
        """

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image, or why there are none. Ends in bounded time, if only by raising.

        Raises:
            StorageFault: the storage failed, and the image is not to blame.
        """


def storable(path: str) -> str:
    """A path as the service can store it; one that is too long keeps its beginning and a digest of the whole."""
    name = clean_text(path, MAX_PATH_BYTES * 4)
    data = name.encode()
    if len(data) <= MAX_PATH_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return data[: MAX_PATH_BYTES - 20].decode(errors="ignore") + "…" + digest


def unique(name: str, names: set[str]) -> str:
    """`name`, or where another file is shown under it already, `name` with a number: both must get their row.

    Args:
        name: made of a path by `storable`.
        names: of the same directory; only those are kept that a changed name may be equal to, which are few.
    """
    if not _CHANGED.search(name):
        return name
    number, candidate = 2, name
    while candidate in names:
        candidate, number = f"{name} ({number})", number + 1
    names.add(candidate)
    return candidate
