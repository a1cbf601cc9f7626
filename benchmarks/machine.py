"""What processes cost: processor time and memory, as the operating system counts them."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

SAMPLE_SECONDS = 0.05
DATABASE_PROGRAM = "postgres"


def database_of(backend_pid: int) -> int | None:
    """The server that a database connection belongs to, where it runs on this machine and can be seen."""
    try:
        backend = psutil.Process(backend_pid)
        parent = backend.parent()
        if parent is not None and backend.name() == parent.name() == DATABASE_PROGRAM:
            return parent.pid
    except psutil.Error:
        pass
    return None


def processor_seconds(pid: int) -> float:
    """Processor time of a process and all below it, also of those that have ended.

    A database server that a service has started below itself is not counted with the service.
    """
    root = psutil.Process(pid)
    own_name = root.name()
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            if process.name() == DATABASE_PROGRAM != own_name:
                continue
            times = process.cpu_times()
        except psutil.Error:
            continue
        # A child that was waited for is in its parent's sum.
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and those below it, a database server excepted."""
    total = 0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            if process.name() != DATABASE_PROGRAM:
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


class Sampling(ABC):
    """Samples in a thread of its own while it is open."""

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @abstractmethod
    def _watch(self) -> None:
        """Take samples until `_over` is set."""


@dataclass
class MemoryWatch(Sampling):
    """The most memory a process held while this was open, sampled 20 times a second."""

    pid: int
    highest_bytes: int = 0

    def _watch(self) -> None:
        while True:
            try:
                self.highest_bytes = max(self.highest_bytes, memory_bytes(self.pid))
            except psutil.Error:
                return
            if self._over.wait(SAMPLE_SECONDS):
                return


@dataclass
class ProcessorTimes:
    """Processor seconds that each of several processes used while this was measured."""

    seconds: dict[str, float]


@contextmanager
def processor_times(pids: Iterable[tuple[str, int | None]]) -> Iterator[ProcessorTimes]:
    """Measure what processes, each with a name for the report, use inside this context."""
    known = {name: pid for name, pid in pids if pid is not None}
    before = {name: processor_seconds(pid) for name, pid in known.items()}
    used = ProcessorTimes({})
    yield used
    used.seconds = {name: round(processor_seconds(pid) - before[name], 2) for name, pid in known.items()}
