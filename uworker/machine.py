"""What the machine, or the control group this process is in, is doing: processor and memory as means over 5 seconds.

Only readings; what follows from them is `scaling`'s to say. Cheap enough for once a second: a handful of small files,
and the size of one process every 5 s, which is the one reading that costs milliseconds.
"""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from uworker.cgroups import Cgroups, CpuLimit, MemoryLimit

WINDOW_SECONDS = 5.0

_HOST = "host"


@dataclass(frozen=True)
class Machine:
    """What there is to use: cores as a fraction where a quota says so, and of the scarcer memory all and what is used.

    Memory is that of the host or of a control group, whichever has less left.
    """

    cores: float
    memory_bytes: int
    memory_used_bytes: int


@dataclass(frozen=True)
class Load:
    """A machine and what it did in the last seconds, on average.

    Attributes:
        machine: Its cores as they are now; the memory in use is a mean.
        cores_used: Cores in use by anyone, as a part of `machine.cores`.
        own_cores: Cores in use by this process and the processes it named.
        others_cores: Cores of `machine.cores` that other programs use, on the host or in the control group.
        process_bytes: The largest of the processes it named, as far as they were measured.
    """

    machine: Machine
    cores_used: float
    own_cores: float
    others_cores: float
    process_bytes: int | None

    @property
    def cpu_percent(self) -> float:
        """Processor time in use, of what may be used."""
        return 100 * self.cores_used / self.machine.cores

    @property
    def memory_percent(self) -> float:
        """Memory in use, of what may be used."""
        return 100 * self.machine.memory_used_bytes / self.machine.memory_bytes


@dataclass(frozen=True)
class _Snapshot:
    at: float
    cpu: Mapping[str, CpuLimit]
    own_seconds: float
    stolen_seconds: float
    memory: Sequence[MemoryLimit]


class Sampler:
    """Remembers readings for as long as a mean needs them. One thread samples; any may read what comes of it.

    Args:
        cgroups: limits beside those of the host.
    """

    def __init__(self, cgroups: Cgroups | None = None) -> None:
        self._cgroups = cgroups or Cgroups()
        self._snapshots: deque[_Snapshot] = deque()
        self._settled_at: dict[int, float] = {}
        self._sizes: dict[int, tuple[float, int]] = {}
        self._measured_at = float("-inf")
        self.load: Load | None = None
        """What the last seconds were like; None until there were two samples."""

    @property
    def measured(self) -> int:
        """How many of the processes that are ready were measured."""
        return len(self._sizes)

    def sample(self, now: float, pids: Sequence[int], ready: Sequence[int] = ()) -> None:
        """Take readings at `now` (monotonic seconds).

        Args:
            now: when that is.
            pids: the processes below this one.
            ready: those of them whose size is what it is going to be.
        """
        limits = {limit.group: limit for limit in self._cgroups.cpu_limits()}
        cpu = limits | {_HOST: CpuLimit(_HOST, float(len(_allowed_cores())), _busy_seconds())}
        memory = _memory_limits(self._cgroups)
        self._snapshots.append(_Snapshot(now, cpu, self._own_seconds(pids), _stolen_seconds(), memory))
        # The oldest that stays is the last one that is old enough to begin the window.
        while len(self._snapshots) > 2 and self._snapshots[1].at <= now - WINDOW_SECONDS:
            self._snapshots.popleft()
        self._measure(now, ready)
        first, last = self._snapshots[0], self._snapshots[-1]
        if last.at > first.at:
            self.load = self._mean(first, last)

    def _mean(self, first: _Snapshot, last: _Snapshot) -> Load:
        seconds = last.at - first.at
        own = max(last.own_seconds - first.own_seconds, 0) / seconds
        cores = min(limit.cores for limit in last.cpu.values())
        used_share, left = 0.0, cores
        for group, limit in last.cpu.items():
            before = first.cpu.get(group)
            if before is None or before.used_seconds is None or limit.used_seconds is None:
                continue
            used = max(limit.used_seconds - before.used_seconds, 0) / seconds
            # What a hypervisor takes is nobody's here, and it is not idle either.
            stolen = (last.stolen_seconds - first.stolen_seconds) / seconds if group == _HOST else 0.0
            used_share = max(used_share, min((used + max(stolen, 0)) / limit.cores, 1.0))
            left = min(left, limit.cores - max(used - own, 0))
        memory = _scarcest([self._mean_memory(place, limit) for place, limit in enumerate(last.memory)])
        return Load(
            machine=Machine(cores, memory.limit_bytes, memory.used_bytes),
            cores_used=used_share * cores,
            own_cores=own,
            others_cores=cores - max(left, 0),
            process_bytes=max((size for _, size in self._sizes.values()), default=None),
        )

    def _mean_memory(self, place: int, limit: MemoryLimit) -> MemoryLimit:
        """The limit of the host or of one group, with the mean of what was used of it."""
        seen = [snapshot.memory for snapshot in self._snapshots][1:]
        used = [limits[place].used_bytes for limits in seen if place < len(limits)]
        return MemoryLimit(limit.limit_bytes, sum(used) // len(used))

    def _own_seconds(self, pids: Sequence[int]) -> float:
        """Processor time of this process, of those below it, and of those that were below it and are gone."""
        total = 0.0
        # This one last, and parents after their children: a process that ends meanwhile is rather counted twice than
        # taken for another program.
        for pid in (*reversed(_with_those_below(pids)), os.getpid()):
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def _measure(self, now: float, ready: Sequence[int]) -> None:
        """Measure the process that was not for longest, now and then, once it has been ready for a while."""
        self._settled_at = {pid: self._settled_at.get(pid, now) for pid in ready}
        self._sizes = {pid: size for pid, size in self._sizes.items() if pid in self._settled_at}
        due = [pid for pid, at in self._settled_at.items() if now - at >= WINDOW_SECONDS]
        if due and now - self._measured_at >= WINDOW_SECONDS:
            pid = min(due, key=lambda pid: self._sizes.get(pid, (float("-inf"), 0))[0])
            if (size := own_bytes(pid)) is not None:
                self._sizes[pid] = (now, size)
                self._measured_at = now


def _with_those_below(pids: Sequence[int]) -> list[int]:
    """Processes, and behind them those that they have started, as an engine may be; where the system tells them."""
    found = list(pids)
    for pid in found:
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, thread.read_text().split())
            except OSError:
                continue
    return found


def read_machine(cgroups: Cgroups | None = None) -> Machine:
    """What this process may use, by affinity and by control group, and how much of the memory is used now."""
    cgroups = cgroups or Cgroups()
    memory = _scarcest(_memory_limits(cgroups))
    cores = min([float(len(_allowed_cores())), *(limit.cores for limit in cgroups.cpu_limits())])
    return Machine(cores, memory.limit_bytes, memory.used_bytes)


def own_bytes(pid: int) -> int | None:
    """Memory that comes back when a process ends, and that one more like it takes: its unique set (USS).

    Pages that it shares, such as those of TensorFlow's libraries, are there already and stay for the others; the
    resident set would count them again for each process, and the proportional set changes with the number of sharers.
    Where the system does not tell, it is the resident set. None: the process is gone.
    """
    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().uss)
        except psutil.AccessDenied:
            return int(process.memory_info().rss)
    except psutil.Error:
        return None


def _allowed_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_seconds() -> float:
    """Processor time used by anyone on the cores this process may use.

    Time that a hypervisor stole is not among it: no program of this machine had it, and it does not come back to
    somebody who yields.
    """
    return _seconds_of("user", "nice", "system", "irq", "softirq")


def _stolen_seconds() -> float:
    return _seconds_of("steal")


def _seconds_of(*names: str) -> float:
    cores, allowed = psutil.cpu_times(percpu=True), _allowed_cores()
    seen = [times for number, times in enumerate(cores) if number in allowed] if max(allowed) < len(cores) else cores
    return float(sum(getattr(times, name, 0.0) for times in seen for name in names))


def _memory_limits(cgroups: Cgroups) -> list[MemoryLimit]:
    """The host's memory and that of the groups, always in this order."""
    host = psutil.virtual_memory()
    return [MemoryLimit(host.total, host.total - host.available), *cgroups.memory_limits()]


def _scarcest(limits: Sequence[MemoryLimit]) -> MemoryLimit:
    return min(limits, key=lambda limit: limit.limit_bytes - limit.used_bytes)
