"""Images in object storage: a container of Azure, a bucket of S3 or of Google Cloud."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from posixpath import splitext

from job_api.locations import Location
from job_api.schemas import ResultStatus
from job_api.stores import (
    BadKey,
    BadLocation,
    ContainerNotThere,
    Denied,
    NotThere,
    Store,
    StoredObject,
    StoreError,
    open_store,
)
from uworker.images import (
    IGNORED_DIRECTORIES,
    IMAGE_ENDINGS,
    BadName,
    DirectoryDenied,
    ImageFile,
    NoImages,
    SourceDenied,
    SourceUnsupported,
    StorageFault,
    Verdict,
    storable,
    unique,
)

# How many other objects are tried, near and far, before one that may not be read is held for more than its own
# misfortune.
MAX_PROBES = 20


class ObjectSource:
    """Directories below a location in object storage. Its calls may be made from many threads at once.

    Args:
        store: the location; results files are written with it, too.
        max_image_bytes: larger objects are not read.
    """

    def __init__(self, store: Store, max_image_bytes: int) -> None:
        self.store = store
        self._max_image_bytes = max_image_bytes
        self._listed = ""
        """A directory that could be listed, the last one; at first the source itself."""
        self._readable: str | None = None
        """An object that could be read, the last one."""

    def list_images(self, directory: str) -> Iterator[ImageFile]:
        """All images below a directory, page by page. See `Source`."""
        directory = directory.strip("/")
        if any(part in ("", ".", "..") for part in directory.split("/")):
            raise NoImages(f"{directory!r} names no directory in object storage: it has empty, '.' or '..' parts")
        names, empty = set[str](), True
        with _faults():
            for found in self._objects(directory):
                self._listed = directory
                path = found.key[len(directory) + 1 :]
                if not _is_image(path):
                    continue
                empty = False
                too_large = self._too_large(found.size) if found.size > self._max_image_bytes else None
                yield ImageFile(unique(storable(path), names), found.key, too_large, found.size)
            if empty and not self._may_hold_anything():
                raise StorageFault(f"there is nothing below {self.store.location}; is it spelled as it should be?")
        if empty:
            raise NoImages(f"no image lies in {self.store.location}/{directory} or below it")

    def _objects(self, directory: str) -> Iterator[StoredObject]:
        try:
            yield from self.store.objects(directory)
        except Denied as error:
            # Not what was possible once: a credential may have expired since.
            if any(self._can_list(other) for other in {self._listed, ""} - {directory}):
                raise DirectoryDenied(str(error)) from None
            raise

    def _can_list(self, directory: str) -> bool:
        """Whether a directory may be listed now: its first page is."""
        try:
            next(self.store.objects(directory), None)
        except Denied:
            return False
        except BadKey:
            return True
        return True

    def _may_hold_anything(self) -> bool:
        """Whether there is something below the source, or this worker may not look."""
        try:
            return next(self.store.objects(""), None) is not None
        except (Denied, BadKey):
            return True

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image. See `Source`."""
        if image.verdict is not None:
            return image.verdict
        with _faults():
            try:
                data = self.store.read(image.key, self._max_image_bytes)
            except ContainerNotThere:
                raise
            except NotThere:
                return Verdict(ResultStatus.MISSING, "the object was listed and is gone")
            except Denied as error:
                directory = _directory(image)
                if self._can_read_any(self._near(directory, image.key)):
                    return Verdict(ResultStatus.UNREADABLE, "access to this object is denied, and to others it is not")
                if self._can_read_any(self._far(directory)):
                    raise DirectoryDenied(str(error)) from None
                raise
        if isinstance(data, int):
            return self._too_large(data)
        self._readable = image.key
        return data

    def _near(self, directory: str, key: str) -> Iterator[str]:
        """Other objects of a directory, the one read last before all."""
        last = self._readable
        if last is not None and last.startswith(directory + "/"):
            yield last
        yield from (found.key for found in self.store.objects(directory) if found.key != key)

    def _far(self, directory: str) -> Iterator[str]:
        """Objects elsewhere in the source: the one read last, the first of it, and the first of each directory."""
        if self._readable is not None:
            yield self._readable
        for other in chain([""], self.store.directories()):
            first = next(self.store.objects(other), None)
            if first is not None and not first.key.startswith(directory + "/"):
                yield first.key

    def _can_read_any(self, keys: Iterator[str]) -> bool:
        """Whether one of the first of these may be read now. What may not be listed, or not be named, is none."""
        with suppress(Denied, BadKey):
            return any(self._can_read(key) for key in islice(keys, MAX_PROBES))
        return False

    def _can_read(self, key: str) -> bool:
        try:
            # Whatever its size: of a larger one the bytes are not asked for.
            self.store.read(key, 0)
        except Denied:
            return False
        except NotThere:
            # Whoever may not read is not told that either.
            return True
        self._readable = key
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


def _directory(image: ImageFile) -> str:
    """The directory that an image was listed in; where its name is not the end of its key, the folder it lies in."""
    above = image.key.removesuffix("/" + image.name)
    return above if above != image.key else image.key.rpartition("/")[0]


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
