"""How many recogniser processes and threads a machine bears: pure decisions, from readings that others take.

The rules, in the order in which they go before each other:

1. *Memory above the high-water mark:* the threads in use become fewer by those of one process (of the last process:
   half of them), then a process is retired, and so on down to one thread in one process. Threads that memory did not
   bear come back when it is below the middle between both marks.
2. *Threads:* one for each core that other programs leave, parts of a core rounded, never fewer than one.
3. *Processes:* one more, once all others are ready and measured and images have waited all the while that the means are
   of, if the threads in use do not fit into those that are there, or if they do and yet leave the processor below the
   `start below` mark, because each of them waits for something else now and then. Only where the memory with one more
   process stays below that mark.

Nothing changes twice within the seconds that the means are taken over, so that each decision sees what the one before
has brought. The marks for less and for more lie apart, so that nothing goes to and fro between them.
"""

import math
from dataclasses import dataclass, replace

from uworker.machine import WINDOW_SECONDS, Load, Machine

# Measured: DECIMER's printed model loaded, with an image on its way in each of two threads, is 2.6 GB. What a process
# is taken for until one was measured.
PROCESS_BYTES = 2_600_000_000
# What the worker's parent and the images read ahead need.
PARENT_BYTES = 500_000_000

# Less than this, in cores, is the system's own housekeeping and no program to yield to.
HOUSEKEEPING_CORES = 0.25
# A thread stays while this part of its core is left, and one is added where that part of a further one is.
STAYING_CORE, ADDED_CORE = 0.5, 0.65
# A process is added while at least this much is idle, however large the machine is.
IDLE_CORE = 0.5
# Threads that wait a lot may be more than the cores, up to this many for each.
MAX_THREADS_PER_CORE = 2


@dataclass(frozen=True)
class Thresholds:
    """Parts of the processor and the memory: below the first more is started, above the other less is kept."""

    start_below: float
    high_water: float


@dataclass(frozen=True)
class Plan:
    """How many threads a process has, and how many processes are expected to do; `decide` has the last word on that."""

    processes: int
    threads: int
    reason: str
    fixed: bool = False

    def __str__(self) -> str:
        up_to = "" if self.fixed or self.processes == 1 else "up to "
        thread = "thread" if self.threads == 1 else "threads"
        return f"{up_to}{_processes(self.processes)} with {self.threads} {thread} ({self.reason})"


@dataclass(frozen=True)
class Situation:
    """What a decision is taken on.

    Attributes:
        load: The means over the last seconds.
        processes: Recogniser processes that run or are being started again, without those that retire.
        measured: How many of them are ready and measured.
        retiring: Processes that finish what is in their hands.
        threads: How many threads may recognise at once now.
        threads_per_process: How many threads each process has.
        images_wait_seconds: For how long there have been more images than threads in use without a break.
        unchanged_seconds: Since the numbers were last changed.
        fixed: Somebody has set the number of processes.
        bearable_threads: The last target's.
    """

    load: Load
    processes: int
    measured: int
    retiring: int
    threads: int
    threads_per_process: int
    images_wait_seconds: float
    unchanged_seconds: float
    fixed: bool = False
    bearable_threads: int | None = None

    @property
    def capacity(self) -> int:
        """Threads there are."""
        return self.processes * self.threads_per_process

    @property
    def others_cores(self) -> float:
        """Cores that programs use which one must yield to."""
        others = self.load.others_cores
        return others if others >= HOUSEKEEPING_CORES else 0.0

    @property
    def memory_share(self) -> float:
        """The part of the memory that is in use."""
        return self.load.machine.memory_used_bytes / self.load.machine.memory_bytes


@dataclass(frozen=True)
class Target:
    """How many processes there shall be, how many threads may recognise at once, and why.

    `bearable_threads`: more of them have filled the memory; None where it was not so. Goes into the next situation.
    """

    processes: int
    threads: int
    reason: str
    bearable_threads: int | None = None

    def __str__(self) -> str:
        thread = "thread" if self.threads == 1 else "threads"
        return f"{_processes(self.processes)}, {self.threads} {thread}: {self.reason}"


def plan(
    machine: Machine,
    *,
    threads_per_process: int,
    processes: int | None = None,
    start_below: float,
) -> Plan:
    """Say how many processes with how many threads would use all cores without using up the memory.

    One thread for each core, since each recognises one image with one core. Threads of a process share one copy of
    the weights, so a process is added only for every `threads_per_process` threads, and only where memory allows.

    Args:
        machine: what there is.
        threads_per_process: the most threads a process may have.
        processes: the number of processes, where somebody has set it.
        start_below: the part of the memory that may be in use.
    """
    threads = _rounded(machine.cores)
    wanted = math.ceil(threads / threads_per_process)
    room = start_below * machine.memory_bytes - machine.memory_used_bytes - PARENT_BYTES
    affordable = max(1, int(room // PROCESS_BYTES))
    if processes is not None:
        count, why = processes, "as set"
    elif affordable < wanted:
        count, why = affordable, f"{machine.memory_bytes / 1e9:.1f} GB of memory bear no more"
    else:
        count, why = wanted, _cores(machine.cores)
    per_process = min(threads_per_process, math.ceil(threads / count))
    return Plan(count, per_process, why, fixed=processes is not None)


def decide(now: Situation, thresholds: Thresholds) -> Target:
    """Decide how many processes and threads there shall be, by the rules at the top of this module."""
    kept = Target(now.processes, min(now.threads, now.capacity), "as before", now.bearable_threads)
    if now.unchanged_seconds < WINDOW_SECONDS:
        return kept
    if now.memory_share >= thresholds.high_water:
        return _shed(now, kept)
    bearable = now.bearable_threads
    if bearable is not None and now.memory_share < (thresholds.start_below + thresholds.high_water) / 2:
        bearable = None
    processes, threads, reason = now.processes, _threads_for_what_is_left(now), _reason(now)
    if _may_start(now, thresholds):
        if threads > now.capacity:
            processes += 1
        elif _is_idle(now, thresholds):
            processes += 1
            threads = processes * now.threads_per_process
            reason = f"only {now.load.cpu_percent:.0f} % of the processor is in use"
    most = processes * now.threads_per_process
    if bearable is not None:
        most = min(most, bearable)
    if (processes, min(threads, most)) == (kept.processes, kept.threads):
        return replace(kept, bearable_threads=bearable)
    return Target(processes, min(threads, most), reason, bearable)


def _reason(now: Situation) -> str:
    if now.others_cores:
        return f"another program uses {_cores(now.others_cores)}"
    return _cores(now.load.machine.cores)


def _shed(now: Situation, kept: Target) -> Target:
    """Less of everything, a step at a time, down to one thread in one process."""
    why = f"{100 * now.memory_share:.0f} % of the memory is in use"
    without_one = now.capacity - now.threads_per_process
    if kept.threads > without_one > 0:
        return replace(kept, threads=without_one, reason=why, bearable_threads=without_one)
    if now.processes > 1 and not now.fixed:
        # What it had is freed, so the threads of the others are all borne until it shows that they are not.
        return kept if now.retiring else replace(kept, processes=now.processes - 1, reason=why, bearable_threads=None)
    fewer = max(1, kept.threads // 2)
    return replace(kept, threads=fewer, reason=why, bearable_threads=fewer)


def _threads_for_what_is_left(now: Situation) -> int:
    cores, per_core = now.load.machine.cores, _threads_per_core(now)
    all_of_them = _rounded(cores * per_core)
    left = max(cores - now.others_cores, 0) * per_core
    fewer = max(1, math.floor(left + STAYING_CORE))
    more = math.floor(left + 1 - ADDED_CORE) if now.others_cores else all_of_them
    return fewer if fewer < now.threads else max(now.threads, min(more, all_of_them))


def _threads_per_core(now: Situation) -> float:
    """How many threads each core bears: more than one where more were set, or started because they wait a lot."""
    cores = now.load.machine.cores
    if now.fixed:
        return max(1.0, now.processes / cores)
    planned = math.ceil(_rounded(cores) / now.threads_per_process)
    return max(1.0, now.capacity / cores) if now.processes > planned else 1.0


def _may_start(now: Situation, thresholds: Thresholds) -> bool:
    """Whether one more process may be started, if there is use for it."""
    if now.fixed or now.measured < now.processes or now.retiring:
        return False
    if now.images_wait_seconds < WINDOW_SECONDS:
        # A processor that was idle for want of images says nothing.
        return False
    machine, size = now.load.machine, now.load.process_bytes or PROCESS_BYTES
    if machine.memory_used_bytes + size >= thresholds.start_below * machine.memory_bytes:
        return False
    return now.load.cores_used < max(thresholds.start_below * machine.cores, machine.cores - IDLE_CORE)


def _is_idle(now: Situation, thresholds: Thresholds) -> bool:
    """Whether threads for all cores leave the processor idle, and some more are sensible."""
    cores = now.load.machine.cores
    return (
        now.threads >= now.capacity >= _rounded(cores)
        and not now.others_cores
        and now.load.cores_used < thresholds.start_below * cores
        and now.capacity + now.threads_per_process <= MAX_THREADS_PER_CORE * _rounded(cores)
    )


def _rounded(cores: float) -> int:
    """Threads for that many cores; half a core is better used than left."""
    return max(1, math.floor(cores + STAYING_CORE))


def _cores(number: float) -> str:
    return f"{round(number, 1):g} {'core' if round(number, 1) == 1 else 'cores'}"


def _processes(count: int) -> str:
    return f"{count} recogniser {'process' if count == 1 else 'processes'}"
