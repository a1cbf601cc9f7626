"""What processes cost while they are watched: memory that is theirs, and how busy the machine's cores were."""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import psutil

from benchmarks.machine import Sampling, processor_seconds

FIRST_SAMPLE_SECONDS, SAMPLE_SECONDS = 0.1, 1.0
# The kernel takes 40 ms of a core to say how much of 2 GB is shared, and the process may have to wait for it. So that
# is asked only when there is more resident memory, by this factor, than ever before: in loading, and hardly later.
NEW_HIGH = 1.01


class Sample(NamedTuple):
    """The machine and the watched processes at one moment; seconds since some beginning."""

    at: float
    idle_seconds: float
    used_seconds: float


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


def shared_once_bytes(processes: list[psutil.Process]) -> int:
    """Memory of processes; what several share is counted once among them, where that can be seen."""
    total = 0
    for process in processes:
        try:
            full = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(full, "pss", full.rss)
    return total


@dataclass
class Watch(Sampling):
    """Samples once a second, more often at first, from when it is opened until it is closed or the processes are gone.

    Args:
        pids: the processes that are watched, each with all below it. A callable, for they may come one after another.
    """

    pids: Callable[[], list[int]]
    samples: list[Sample] = field(default_factory=list)
    peak_bytes: int = 0
    """The most memory that all of them together had, what they share counted once."""
    _highest_resident: int = 0

    def shares(self, began: float, ended: float) -> CoreShares:
        """How the cores were used between two moments of the monotonic clock, as near as there are samples."""
        times = [sample.at for sample in self.samples]
        first, final = bisect_left(times, began), bisect_right(times, ended) - 1
        if first >= final:
            # Shorter than a sample takes: with what was before and after it.
            first, final = max(first - 1, 0), min(final + 1, len(times) - 1)
        return self._shares(self.samples[first], self.samples[final], ended - began)

    @staticmethod
    def _shares(first: Sample, final: Sample, seconds: float) -> CoreShares:
        wall = (final.at - first.at) * (psutil.cpu_count() or 1)
        if wall <= 0:
            return CoreShares(idle=0.0, watched=0.0, seconds=0.0)
        used = (final.used_seconds - first.used_seconds) / wall
        idle = (final.idle_seconds - first.idle_seconds) / wall
        return CoreShares(idle, used, used * seconds * (psutil.cpu_count() or 1))

    def _watch(self) -> None:
        # What a process used is not forgotten when it ends.
        used: dict[int, float] = {}
        over, interval = False, FIRST_SAMPLE_SECONDS
        while True:
            machine = psutil.cpu_times()
            idle = machine.idle + getattr(machine, "iowait", 0.0)
            processes: list[psutil.Process] = []
            for pid in self.pids():
                try:
                    used[pid] = processor_seconds(pid)
                    root = psutil.Process(pid)
                    processes += [root, *root.children(recursive=True)]
                except psutil.Error:
                    continue
            self.samples.append(Sample(time.monotonic(), idle, sum(used.values())))
            self._weigh(processes)
            if over:
                return
            # One more at the end, so that every moment has samples around it.
            over = self._over.wait(interval)
            interval = min(interval * 2, SAMPLE_SECONDS)

    def _weigh(self, processes: list[psutil.Process]) -> None:
        resident = 0
        for process in processes:
            try:
                resident += process.memory_info().rss
            except psutil.Error:
                continue
        if resident > self._highest_resident * NEW_HIGH:
            self._highest_resident = resident
            self.peak_bytes = max(self.peak_bytes, shared_once_bytes(processes))
