"""Images in object storage: a container of Azure, a bucket of S3 or of Google Cloud."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from posixpath import splitext

from job_api.locations import Location
from job_api.schemas import ResultStatus
from job_api.stores import BadKey, BadLocation, ContainerNotThere, Denied, NotThere, Store, StoreError, open_store
from uworker.images import (
    IGNORED_DIRECTORIES,
    IMAGE_ENDINGS,
    BadName,
    ImageFile,
    NoImages,
    SourceDenied,
    SourceUnsupported,
    StorageFault,
    Verdict,
    storable,
    unique,
)

# How many other objects are tried before one that may not be read is held for the whole worker's misfortune.
MAX_PROBES = 20


class ObjectSource:
    """Directories below a location in object storage. Its calls may be made from many threads at once.

    Args:
        store: the location.
        max_image_bytes: larger objects are not read.
    """

    def __init__(self, store: Store, max_image_bytes: int) -> None:
        self._store = store
        self._max_image_bytes = max_image_bytes
        self._readable: str | None = None
        """An object that could be read, the last one."""

    def list_images(self, directory: str) -> Iterator[ImageFile]:
        """All images below a directory, page by page. See `Source`."""
        directory = directory.strip("/")
        if any(part in ("", ".", "..") for part in directory.split("/")):
            raise NoImages(f"{directory!r} names no directory in object storage: it has empty, '.' or '..' parts")
        names, empty = set[str](), True
        with _faults():
            for found in self._store.objects(directory):
                path = found.key[len(directory) + 1 :]
                if not _is_image(path):
                    continue
                empty = False
                too_large = self._too_large(found.size) if found.size > self._max_image_bytes else None
                yield ImageFile(unique(storable(path), names), found.key, too_large, found.size)
        if empty:
            raise NoImages(f"no image lies in {self._store.location}/{directory} or below it")

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image. See `Source`."""
        if image.verdict is not None:
            return image.verdict
        with _faults():
            try:
                data = self._store.read(image.key, self._max_image_bytes)
            except ContainerNotThere:
                raise
            except NotThere:
                return Verdict(ResultStatus.MISSING, "the object was listed and is gone")
            except Denied:
                if not self._may_read_others(image.key):
                    raise
                return Verdict(ResultStatus.UNREADABLE, "access to this object is denied, and to others it is not")
        if isinstance(data, int):
            return self._too_large(data)
        self._readable = image.key
        return data

    def _may_read_others(self, key: str) -> bool:
        """Whether it is this one object that may not be read, and not all of them."""
        if self._readable is not None:
            tried: Iterator[str] = iter([self._readable])
        else:
            neighbours = self._store.objects(key.rpartition("/")[0])
            tried = (found.key for found in chain(neighbours, self._store.objects("")) if found.key != key)
        return any(self._can_read(other) for other in islice(tried, MAX_PROBES))

    def _can_read(self, key: str) -> bool:
        try:
            # Whatever its size: of a larger one the bytes are not asked for.
            self._store.read(key, 0)
        except Denied:
            return False
        except NotThere:
            # Whoever may not read is not told that either.
            return True
        return True

    def _too_large(self, size: int) -> Verdict:
        return Verdict(ResultStatus.TOO_LARGE, f"the object has {size} bytes; at most {self._max_image_bytes} are read")


def open_objects(location: Location, max_image_bytes: int) -> ObjectSource:
    """The source at a location. It has connections and a credential of its own, so it is worth keeping.

    Raises:
        SourceDenied: there is no credential for it.
        SourceUnsupported: it cannot be listed.
    """
    with _faults():
        return ObjectSource(open_store(location), max_image_bytes)


def _is_image(path: str) -> bool:
    *_, name = parts = path.split("/")
    if any(part.startswith(".") or part in IGNORED_DIRECTORIES for part in parts):
        return False
    return splitext(name)[1].lower() in IMAGE_ENDINGS


@contextmanager
def _faults() -> Iterator[None]:
    """What goes wrong with a store, as what becomes of the job."""
    try:
        yield
    except Denied as error:
        raise SourceDenied(str(error)) from None
    except BadKey as error:
        raise BadName(str(error)) from None
    except BadLocation as error:
        raise SourceUnsupported(str(error)) from None
    except StoreError as error:
        raise StorageFault(str(error)) from None
