"""The images of a job: what a kind of storage must be able to do (uworker/sources/), and how images are named.

What can be wrong has three ends: a single file that cannot be used is a row with a status; a directory without images
is a `NoImages`; storage that does not answer is a `StorageFault`, which fails the job and never becomes a row.
"""

import hashlib
import os
from dataclasses import dataclass
from typing import Protocol

from job_api.schemas import ResultStatus
from job_api.text import MAX_PATH_BYTES, clean_text

# Endings, in lower case, of files that say they are pictures; SVG and PDF among them, to be told they are not read.
IMAGE_ENDINGS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".heic"}
    | {".heif", ".avif", ".svg", ".pdf"}
)
IGNORED_DIRECTORIES = frozenset({"__MACOSX"})


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


class SourceDenied(SourceError):
    """The storage does not let this worker in: its credential is at fault, not the job, which is given back."""

    reason = "source-denied"


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
    """An image of a job: its name in the results, where its bytes are, or why it has none that may be read.

    Attributes:
        size: in bytes, where the listing says it.
    """

    name: str
    key: str
    verdict: Verdict | None = None
    size: int | None = None


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


def storable(path: str) -> str:
    """A path as the service can store it; one that is too long keeps its beginning and a digest of the whole."""
    name = clean_text(path, MAX_PATH_BYTES * 4)
    data = name.encode()
    if len(data) <= MAX_PATH_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return data[: MAX_PATH_BYTES - 20].decode(errors="ignore") + "…" + digest


def unique(name: str, names: set[str]) -> str:
    """`name`, or where another file is shown under it already, `name` with a number: both must get their row."""
    number, candidate = 2, name
    while candidate in names:
        candidate, number = f"{name} ({number})", number + 1
    names.add(candidate)
    return candidate
