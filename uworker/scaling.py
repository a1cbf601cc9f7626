"""How many recogniser processes and threads a machine bears: a pure decision, and the reading of the machine.

The machine is the cgroup's share of it where there is one: a container's limit is not the host's.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

# Measured: DECIMER's printed model loaded, with an image on its way in each of two threads, is 2.6 GB.
PROCESS_BYTES = 2_600_000_000
# What the worker's parent and the images read ahead need.
PARENT_BYTES = 500_000_000

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What there is to use: cores as a fraction where a quota says so, and bytes that are free now."""

    cores: float
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """How many recogniser processes to run, and how many threads in each."""

    processes: int
    threads: int
    reason: str

    def __str__(self) -> str:
        process = "process" if self.processes == 1 else "processes"
        thread = "thread" if self.threads == 1 else "threads"
        return f"{self.processes} recogniser {process} with {self.threads} {thread} ({self.reason})"


def plan(machine: Machine, *, threads_per_process: int, processes: int | None = None) -> Plan:
    """Decide how many processes with how many threads use all cores without using up the memory.

    One thread for each core, since each recognises one image with one core. Threads of a process share one copy of
    the weights, so a process is added only for every `threads_per_process` threads, and only where memory allows.

    Args:
        machine: what there is.
        threads_per_process: the most threads a process may have.
        processes: the number of processes, where somebody has set it.
    """
    threads = max(1, math.floor(machine.cores + 0.01))
    wanted = math.ceil(threads / threads_per_process)
    affordable = max(1, (machine.memory_bytes - PARENT_BYTES) // PROCESS_BYTES)
    if processes is not None:
        count, why = processes, "as set"
    elif affordable < wanted:
        count, why = affordable, f"{machine.memory_bytes / 1e9:.1f} GB of memory bear no more"
    else:
        count, why = wanted, f"{machine.cores:g} cores"
    return Plan(count, min(threads_per_process, max(1, math.ceil(threads / count))), why)


def read_machine(cgroup: Path = CGROUP) -> Machine:
    """The cores this process may use and the memory that is free, by affinity and by cgroup (version 2 or 1)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if (quota := _cpu_quota(cgroup)) is not None:
        cores = min(cores, quota)
    memory = psutil.virtual_memory().available
    if (left := _memory_left(cgroup)) is not None:
        memory = min(memory, left)
    return Machine(cores, memory)


def _cpu_quota(cgroup: Path) -> float | None:
    """Cores' worth of time the cgroup may use, or None where it is not limited."""
    words = _read(cgroup / "cpu.max")
    if words:
        return None if words[0] == "max" else int(words[0]) / int(words[1])
    quota, period = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0])
    return None


def _memory_left(cgroup: Path) -> int | None:
    """Bytes the cgroup may still take, or None where it is not limited."""
    for limit_file, used_file, details_file, cache_name in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        limit, used = _read(cgroup / limit_file), _read(cgroup / used_file)
        # Version 1 says "no limit" with a number larger than any machine.
        if limit and used and limit[0] != "max" and int(limit[0]) < 2**60:
            details = _read(cgroup / details_file)
            # Files that were read count as used, and make room when it is needed.
            cache = int(details[details.index(cache_name) + 1]) if cache_name in details else 0
            return min(int(limit[0]), max(0, int(limit[0]) - int(used[0]) + cache))
    return None


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
