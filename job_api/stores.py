"""Directories and objects in the storage that a URL names: the one place that knows obstore.

Keys are plain here, never percent-encoded. All calls block, and may be made from many threads at once; obstore lets go
of the interpreter while it waits.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import obstore

from job_api.credentials import (
    MAX_SENDING_SECONDS,
    MAX_SILENCE_SECONDS,
    PATIENCE_SECONDS,
    CloudStore,
    Limits,
    connect,
)
from job_api.faults import (
    NO_OBJECT,
    RAISED,
    UNNAMEABLE,
    BadKey,
    ContainerNotThere,
    Denied,
    NotThere,
    Unavailable,
    explain,
    service_code,
)
from job_api.locations import BadLocation, Location, StoreError, locate

__all__ = [
    "BadKey",
    "BadLocation",
    "ContainerNotThere",
    "Denied",
    "Listing",
    "Location",
    "NotThere",
    "Store",
    "StoreError",
    "StoredObject",
    "Unavailable",
    "locate",
    "open_listing",
    "open_store",
]

PAGE_OBJECTS = 1_000
# S3 and Google take 10,000 parts: 640 GiB. A part is in memory until it has arrived, so this costs up to 300 MiB.
PART_BYTES = 64 << 20
PARTS_AT_ONCE = 4
# What is no larger is soon sent, so that a server which does not answer is known in time.
PROMPT_BYTES = 1 << 20
IMPOSSIBLE = re.compile(r"[\x00-\x1f\x7f]|(^|/)\.{0,2}(/|$)")


@dataclass(frozen=True)
class StoredObject:
    """An object: its key, relative to the location, and its size in bytes."""

    key: str
    size: int


class Listing(ABC):
    """The names of what lies at one location. Everything here raises a `StoreError` when it cannot be done."""

    def __init__(self, location: Location) -> None:
        self.location = location

    @abstractmethod
    def directories(self) -> list[str]:
        """The names of the directories directly below the location, sorted; what lies in them is not looked at."""

    @abstractmethod
    def objects(self, directory: str) -> Iterator[StoredObject]:
        """All objects below a directory at any depth, in the order of their keys, each key once, a page at a time.

        A directory that is not there has none; '' is the location itself. Markers of folders are passed over. An object
        that cannot be named is a `BadKey`, here or where it is read.
        """


class Store(Listing):
    """What lies at one location in object storage."""

    @abstractmethod
    def read(self, key: str, max_bytes: int) -> bytes | int:
        """The bytes of an object, or its size when that is more than `max_bytes`."""

    @abstractmethod
    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Put an object there, whole or not at all, in place of one that is there."""


def open_listing(where: str | Location, patience_seconds: float = PATIENCE_SECONDS) -> Listing:
    """The same as `open_store`, for who wants names alone; local directories and web servers have them, too."""
    location = locate(where) if isinstance(where, str) else where
    if location.kind == "file":
        from job_api.folders import FolderListing  # noqa: PLC0415  (it is a Listing, too)

        return FolderListing(location)
    if location.kind == "http":
        from job_api.websites import WebListing  # noqa: PLC0415  (and it)

        return WebListing(location, patience_seconds)
    return open_store(location, patience_seconds)


def open_store(where: str | Location, patience_seconds: float = PATIENCE_SECONDS) -> Store:
    """Open the object storage that a URL names, with the credentials of this process's environment; asks nothing yet.

    Args:
        where: its URL, or location.
        patience_seconds: for how long what fails is tried again.

    Raises:
        BadLocation: the URL makes no sense, or is of another kind.
        Denied: a credential is missing or makes no sense.
    """
    location = locate(where) if isinstance(where, str) else where
    if location.kind == "file":
        raise BadLocation(f"{location} is a directory of this machine; use an az, s3 or gs URL")
    if location.kind == "http":
        raise BadLocation(f"{location} is on a web server, which cannot be listed; use a file, az, s3 or gs URL")
    return ObjectStore(location, patience_seconds)


class ObjectStore(Store):
    """A container of Azure, or a bucket of S3 or GCS."""

    def __init__(self, location: Location, patience_seconds: float) -> None:
        super().__init__(location)
        self._patience_seconds = patience_seconds
        silence_seconds = min(MAX_SILENCE_SECONDS, patience_seconds)
        self._store: CloudStore = connect(location, Limits(patience_seconds, silence_seconds))
        self._answered = False

    def directories(self) -> list[str]:
        """See `Store`."""
        try:
            found = obstore.list_with_delimiter(self._store, self.location.prefix or None)
        except RAISED as error:
            raise self._explain(error) from None
        self._answered = True
        return sorted(self._below(prefix) for prefix in found["common_prefixes"])

    def objects(self, directory: str) -> Iterator[StoredObject]:
        """See `Store`."""
        empty: StoredObject | None = None
        before = ""
        # The library cuts the slash off the end of a key: an object after one whose key begins with the whole of its
        # own is `a.png/`, after `a.png` or `a.png-1`, and an empty one with others below it is a folder's marker.
        for found in self._list(directory):
            if empty is not None and not found.key.startswith(empty.key + "/"):
                yield empty
            empty = None
            if not before.startswith(found.key):
                if found.size:
                    yield found
                else:
                    empty = found
            elif found.size:
                raise BadKey(f"{self.location}/{found.key + '/'!r} {UNNAMEABLE}; rename it")
            before = found.key
        if empty is not None:
            yield empty

    def _list(self, directory: str, after: str | None = None) -> Iterator[StoredObject]:
        """What the library lists below a directory; with `after`, from that key on or from one before it."""
        path = self._path(directory)
        try:
            pages = obstore.list(
                self._store, path or None, chunk_size=PAGE_OBJECTS, offset=None if after is None else self._path(after)
            )
            for page in pages:
                self._answered = True
                for meta in page:
                    if len(meta["path"]) > len(path):
                        yield StoredObject(self._below(meta["path"]), meta["size"])
        except RAISED as error:
            raise self._explain(error, directory) from None

    def read(self, key: str, max_bytes: int) -> bytes | int:
        """See `Store`."""
        try:
            answer = obstore.get(self._store, self._path(key))
            size = answer.meta["size"]
            if size > max_bytes:
                return size
            return answer.bytes().to_bytes()
        except RAISED as error:
            if isinstance(error, FileNotFoundError) and service_code(error, self._path(key)) not in NO_OBJECT:
                # Whether it is the container that has gone is found by asking for anything in it.
                next(self._list(""), None)
            fault = self._explain(error, key, of_object=True)
            if isinstance(fault, NotThere) and self._ends_in_slash(key):
                fault = BadKey(f"{self.location}/{key + '/'!r} {UNNAMEABLE}; rename it")
            raise fault from None

    def _ends_in_slash(self, key: str) -> bool:
        """Whether an object that is not there is listed for the sake of another, which has a slash after this key."""
        for found in self._list(key.rpartition("/")[0], after=key):
            if found.key == key:
                return found.size > 0
            if found.key > key and not found.key.startswith(key):
                break
        return False

    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """See `Store`."""
        store = self._store if isinstance(data, bytes) and len(data) <= PROMPT_BYTES else self._sender
        try:
            obstore.put(store, self._path(key), data, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        except RAISED as error:
            raise self._explain(error, key, of_object=True, writing=True) from None

    @cached_property
    def _sender(self) -> CloudStore:
        """The same store, with time to send a part on a slow line."""
        return connect(self.location, Limits(self._patience_seconds, MAX_SENDING_SECONDS))

    def _path(self, key: str) -> str:
        """The whole key of what lies below the location."""
        if key and IMPOSSIBLE.search(key):
            raise BadKey(f"{key!r} {UNNAMEABLE}")
        return "/".join(part for part in (self.location.prefix, key) if part)

    def _below(self, path: str) -> str:
        return path[len(self.location.prefix) :].strip("/")

    def _explain(
        self, error: BaseException, key: str = "", *, of_object: bool = False, writing: bool = False
    ) -> StoreError:
        subject = f"{self.location}/{key}" if key else str(self.location)
        path = "/".join(part for part in (self.location.prefix, key) if part)
        return explain(
            error, self.location.kind, subject, path, writing=writing, of_object=of_object, answered=self._answered
        )
