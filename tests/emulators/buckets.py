"""What every emulator of an object store can do for a test, whoever's it is."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar, Self

CONNECTIONS = 8


@dataclass(frozen=True)
class Emulator(ABC):
    """A running object store.

    Args:
        server: its own address, such as `http://127.0.0.1:40123`.
        address: where those who are tested reach it: a relay before it, or itself.
    """

    server: str
    address: str
    scheme: ClassVar[str]

    def behind(self, address: str) -> Self:
        """The same store, for those who are tested at another address; it is still filled directly."""
        return replace(self, address=address)

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Variables with which a worker or `add_jobs.py` reaches it."""

    @property
    @abstractmethod
    def wrong_environment(self) -> dict[str, str]:
        """The same with a key that it refuses."""

    def new_bucket(self, name: str | None = None) -> "Bucket":
        """An empty bucket, or container; of a name that nobody has if None is given."""
        bucket = Bucket(self, name or f"test{uuid.uuid4().hex[:20]}")
        self._create(bucket.name)
        return bucket

    def fill(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Put objects there, each under the very key that is given."""
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            for _ in threads.map(lambda item: self._put(bucket, *item), objects.items()):
                pass

    @abstractmethod
    def _create(self, bucket: str) -> None: ...

    @abstractmethod
    def _put(self, bucket: str, key: str, data: bytes) -> None: ...

    @abstractmethod
    def content(self, bucket: str) -> dict[str, bytes]:
        """All that lies there."""

    @abstractmethod
    def delete(self, bucket: str, key: str) -> None:
        """Take one object away."""

    @abstractmethod
    def remove(self, bucket: str) -> None:
        """Take a bucket away with all that lies there; nothing happens where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections that it was filled through."""


@dataclass(frozen=True)
class Bucket:
    """A bucket, or container, of one test."""

    emulator: Emulator
    name: str

    @property
    def url(self) -> str:
        """As a project's source names it."""
        return f"{self.emulator.scheme}://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a worker or `add_jobs.py` reaches it."""
        return self.emulator.environment

    def behind(self, address: str) -> "Bucket":
        """The same bucket, for those who are tested at another address."""
        return Bucket(self.emulator.behind(address), self.name)

    def fill(self, objects: Mapping[str, bytes]) -> None:
        """Put objects there, each under the very key that is given."""
        self.emulator.fill(self.name, objects)

    def content(self) -> dict[str, bytes]:
        """All that lies there."""
        return self.emulator.content(self.name)

    def delete(self, key: str) -> None:
        """Take one object away."""
        self.emulator.delete(self.name, key)

    def remove(self) -> None:
        """Take the bucket away."""
        self.emulator.remove(self.name)
