"""What processes cost while they are watched: memory that is theirs, and how busy the machine's cores were."""

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from benchmarks.machine import processor_seconds

SAMPLE_SECONDS = 0.5


class Sample(NamedTuple):
    """The machine and the watched processes at one moment; seconds since some beginning."""

    at: float
    idle_seconds: float
    used_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class CoreShares:
    """How the time of all cores was spent: `idle` by nobody, `watched` by the watched processes, else by others.

    Args:
        seconds: what the watched processes used, in seconds of one core.
    """

    idle: float
    watched: float
    seconds: float

    @property
    def others(self) -> float:
        """What programs that have nothing to do with it took."""
        return max(1 - self.idle - self.watched, 0.0)


def memory_bytes(pid: int) -> int:
    """Memory of a process and all below it; what several share is counted once among them, where that can be seen."""
    total = 0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            full = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(full, "pss", full.rss)
    return total


@dataclass
class Watch:
    """Samples twice a second, from when it is opened until it is closed or the processes are gone.

    Args:
        pids: the processes that are watched, each with all below it. A callable, for they may come one after another.
    """

    pids: Callable[[], list[int]]
    samples: list[Sample] = field(default_factory=list)

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

    @property
    def peak_bytes(self) -> int:
        """The most memory that all of them together had."""
        return max((sample.memory_bytes for sample in self.samples), default=0)

    def shares(self, began: float, ended: float) -> CoreShares:
        """How the cores were used between two moments of the monotonic clock, as near as there are samples."""
        times = [sample.at for sample in self.samples]
        last = len(times) - 1
        first = self.samples[min(bisect_left(times, began), last)]
        final = self.samples[max(bisect_right(times, ended) - 1, 0)]
        wall = (final.at - first.at) * (psutil.cpu_count() or 1)
        if wall <= 0:
            return CoreShares(idle=0.0, watched=0.0, seconds=0.0)
        used = (final.used_seconds - first.used_seconds) / wall
        idle = (final.idle_seconds - first.idle_seconds) / wall
        return CoreShares(idle, used, used * (ended - began) * (psutil.cpu_count() or 1))

    def _watch(self) -> None:
        # What a process used is not forgotten when it ends.
        used: dict[int, float] = {}
        while True:
            machine = psutil.cpu_times()
            idle = machine.idle + getattr(machine, "iowait", 0.0)
            memory = 0
            for pid in self.pids():
                try:
                    used[pid] = processor_seconds(pid)
                    memory += memory_bytes(pid)
                except psutil.Error:
                    continue
            self.samples.append(Sample(time.monotonic(), idle, sum(used.values()), memory))
            if self._over.wait(SAMPLE_SECONDS):
                return
