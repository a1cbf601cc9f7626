"""How many recogniser processes and threads a machine gets: the plan at the start, and each decision after it."""

from dataclasses import replace
from typing import Any

import pytest

from uworker.machine import WINDOW_SECONDS, Load, Machine
from uworker.scaling import PARENT_BYTES, PROCESS_BYTES, Plan, Situation, Target, Thresholds, decide, plan

GIB = 2**30
GB = 10**9
THRESHOLDS = Thresholds(start_below=0.75, high_water=0.90)


# --- the plan at the start ---


def planned(cores: float, memory: int, *, used: int = 0, threads_per_process: int = 4, **settings: Any) -> Plan:
    machine = Machine(cores, memory, used)
    return plan(machine, threads_per_process=threads_per_process, **{"start_below": 0.75, **settings})


@pytest.mark.parametrize(
    ("cores", "memory_gib", "threads_per_process", "processes", "expected"),
    [
        # One process serves as many cores as it may have threads.
        (1, 64, 4, None, (1, 1)),
        (2, 64, 4, None, (1, 2)),
        (4, 64, 4, None, (1, 4)),
        # One more for every further threads_per_process; threads are spread evenly.
        (5, 64, 4, None, (2, 3)),
        (16, 64, 4, None, (4, 4)),
        (16, 64, 1, None, (16, 1)),
        (96, 1024, 4, None, (24, 4)),
        # Half a core makes a thread, less does not, and there is always one.
        (0.3, 64, 4, None, (1, 1)),
        (0.5, 64, 4, None, (1, 1)),
        (1.4, 64, 4, None, (1, 1)),
        (1.5, 64, 4, None, (1, 2)),
        # Memory allows fewer; even where it allows none, one is tried.
        (16, 9, 4, None, (2, 4)),
        (16, 1, 4, None, (1, 4)),
        (16, 0, 4, None, (1, 4)),
        (2, 4, 1, None, (1, 1)),
        # What somebody has set is done.
        (16, 64, 4, 2, (2, 4)),
        (2, 64, 4, 3, (3, 1)),
        (2, 1, 4, 2, (2, 1)),
    ],
)
def test_the_plan_uses_all_cores_and_no_more_memory_than_there_is(
    cores: float, memory_gib: int, threads_per_process: int, processes: int | None, expected: tuple[int, int]
) -> None:
    found = planned(cores, memory_gib * GIB, threads_per_process=threads_per_process, processes=processes)
    assert (found.processes, found.threads) == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_process_more_is_planned_as_soon_as_its_memory_is_there(count: int) -> None:
    enough = PARENT_BYTES + count * PROCESS_BYTES
    for used in (0, 5 * GB):
        limit = 2 * (enough + used)
        settings: dict[str, Any] = {"used": used, "threads_per_process": 1, "start_below": 0.5}
        assert planned(64, limit, **settings).processes == count
        assert planned(64, limit - 2, **settings).processes == max(1, count - 1)


def test_the_plan_is_said_in_one_line_with_its_reason() -> None:
    assert str(planned(2, 64 * GIB)) == "1 recogniser process with 2 threads (2 cores)"
    assert str(planned(0.5, 64 * GIB)) == "1 recogniser process with 1 thread (0.5 cores)"
    short = str(planned(16, 8_000_000_000))
    assert short == "up to 2 recogniser processes with 4 threads (8.0 GB of memory bear no more)"
    assert str(planned(2, 64 * GIB, processes=2)) == "2 recogniser processes with 1 thread (as set)"


# --- one decision ---

LARGE = Machine(16, 64 * GB, 4 * GB)
"""16 cores and 64 GB, of which 4 are in use."""


def situation(machine: Machine = LARGE, **differences: Any) -> Situation:
    """One process of four threads, ready, measured and busy, for whom more images wait; nobody else is there."""
    processes, per_process = differences.get("processes", 1), differences.get("threads_per_process", 4)
    load = Load(
        machine=machine,
        cores_used=differences.pop("cores_used", min(processes * per_process, machine.cores)),
        own_cores=0.0,
        others_cores=differences.pop("others_cores", 0.0),
        process_bytes=differences.pop("process_bytes", 3 * GB),
    )
    given: dict[str, Any] = {
        "load": load,
        "processes": processes,
        "measured": processes,
        "retiring": 0,
        "threads": processes * per_process,
        "threads_per_process": per_process,
        "images_wait_seconds": 60.0,
        "unchanged_seconds": WINDOW_SECONDS,
    }
    return Situation(**given | differences)


def filled(share: float, cores: float = 16, memory: int = 64 * GB) -> Machine:
    return Machine(cores, memory, int(share * memory))


TWO_FOUR = Machine(2, 4 * GB, GB)
"""A small virtual machine: 2 cores, 4 GB."""
CONTAINER = Machine(4, 6 * GB, 3_500_000_000)
"""A container with a limit on a large host, with one process in it."""


@pytest.mark.parametrize(
    ("now", "expected", "words"),
    [
        # 16 cores, 64 GB: one process more at a time, up to one thread for each core.
        (situation(), (2, 8), "16 cores"),
        (situation(processes=2), (3, 12), "16 cores"),
        (situation(processes=3, cores_used=12.4), (4, 16), "16 cores"),
        (situation(processes=4), (4, 16), "as before"),
        # Not before the last change shows in the means,
        (situation(unchanged_seconds=WINDOW_SECONDS - 0.1), (1, 4), "as before"),
        # nor while a process is loading, or is not measured, or ends,
        (situation(processes=2, measured=1), (2, 8), "as before"),
        (situation(processes=2, measured=0), (2, 8), "as before"),
        (situation(processes=2, retiring=1), (2, 8), "as before"),
        # nor where no image waits for it,
        (situation(images_wait_seconds=0.0), (1, 4), "as before"),
        # nor where no processor time is left: such threads use more than a core each.
        (situation(cores_used=15.9), (1, 4), "as before"),
        (situation(cores_used=15.4), (2, 8), "16 cores"),
        (situation(Machine(2, 64 * GB, 4 * GB), threads_per_process=1, cores_used=1.7), (1, 1), "as before"),
        (situation(Machine(2, 64 * GB, 4 * GB), threads_per_process=1, cores_used=1.1), (2, 2), "2 cores"),
        # Cores that do not fill a process's threads get as many threads as they are.
        (situation(Machine(5, 64 * GB, 4 * GB), threads_per_process=3), (2, 5), "5 cores"),
        # Memory: with one process more, as large as the largest was measured, it stays below the mark,
        (situation(filled(0.70), process_bytes=3 * GB), (2, 8), "16 cores"),
        (situation(filled(0.70), process_bytes=int(3.3 * GB)), (1, 4), "as before"),
        (situation(filled(0.74)), (1, 4), "as before"),
        (situation(filled(0.80)), (1, 4), "as before"),
        # and as long as nothing was measured the known size of the model counts.
        (situation(filled(0.70, memory=40 * GB), process_bytes=None), (1, 4), "as before"),
        (situation(filled(0.68, memory=40 * GB), process_bytes=None), (2, 8), "16 cores"),
        # 2 cores and 4 GB: one process, whose size leaves no room for a second.
        (situation(TWO_FOUR, threads_per_process=2), (1, 2), "as before"),
        (situation(TWO_FOUR, threads_per_process=1), (1, 1), "as before"),
        (situation(TWO_FOUR, threads_per_process=1, process_bytes=10**9), (2, 2), "2 cores"),
        # A container's limit, and not the host's, decides.
        (situation(CONTAINER, threads_per_process=1), (1, 1), "as before"),
        (situation(CONTAINER, threads_per_process=1, process_bytes=900_000_000), (2, 2), "4 cores"),
        # Parts of a core.
        (situation(Machine(0.5, 64 * GB, 0), threads_per_process=1), (1, 1), "as before"),
        (situation(Machine(1.5, 64 * GB, 0), threads_per_process=2), (1, 2), "as before"),
        (situation(Machine(1.5, 64 * GB, 0), threads_per_process=1, cores_used=1.0), (2, 2), "1.5 cores"),
        (situation(Machine(1.5, 64 * GB, 0), threads_per_process=2, others_cores=0.6), (1, 1), "uses 0.6 cores"),
    ],
)
def test_more_is_started_while_there_is_room(now: Situation, expected: tuple[int, int], words: str) -> None:
    target = decide(now, THRESHOLDS)
    assert (target.processes, target.threads) == expected
    assert words in target.reason


def test_threads_that_wait_a_lot_are_more_than_the_cores_but_not_without_end() -> None:
    two = Machine(2, 64 * GB, 4 * GB)
    target = decide(situation(two, threads_per_process=2, cores_used=1.2), THRESHOLDS)
    assert (target.processes, target.threads) == (2, 4)
    assert target.reason == "only 60 % of the processor is in use"
    kept = {"processes": 2, "threads_per_process": 2, "threads": 4}
    # They stay while it is better with them, and there are never more than two for each core.
    for cores_used in (0.5, 1.4, 2.0):
        target = decide(situation(two, **kept, cores_used=cores_used), THRESHOLDS)
        assert (target.processes, target.threads) == (2, 4)
    # They yield to another program in the same proportion.
    assert decide(situation(two, **kept, others_cores=1.0), THRESHOLDS).threads == 2
    # What is fast enough, or has nothing to do, or is held back by another program, is not made more.
    alone = {"threads_per_process": 2}
    assert decide(situation(two, **alone, cores_used=1.6), THRESHOLDS).processes == 1
    assert decide(situation(two, **alone, cores_used=1.2, images_wait_seconds=0.0), THRESHOLDS).processes == 1
    assert decide(situation(two, **alone, cores_used=1.2, others_cores=0.4), THRESHOLDS).processes == 1
    assert decide(situation(filled(0.74, cores=2), **alone, cores_used=1.2), THRESHOLDS).processes == 1


@pytest.mark.parametrize(
    ("others_cores", "threads", "expected"),
    [
        # Of 16 cores, what others leave, rounded.
        (0.2, 16, 16),
        (0.45, 16, 16),
        (1.0, 16, 15),
        (6.0, 16, 10),
        (15.2, 16, 1),
        (16.0, 16, 1),
        # A thread goes when less than half of its core is left, and comes back when more than that is.
        (0.51, 16, 15),
        (0.45, 15, 15),
        (0.34, 15, 16),
        (0.0, 1, 16),
        (6.4, 10, 10),
        (5.6, 10, 10),
        (5.3, 10, 11),
    ],
)
def test_threads_are_as_many_as_the_cores_that_others_leave(others_cores: float, threads: int, expected: int) -> None:
    now = situation(processes=4, threads=threads, others_cores=others_cores, cores_used=16.0)
    target = decide(now, THRESHOLDS)
    assert (target.processes, target.threads) == (4, expected), "its processes stay, they have loaded their engine"


def test_no_process_is_started_for_threads_that_have_no_core() -> None:
    assert decide(situation(others_cores=12.0), THRESHOLDS).processes == 1
    assert decide(situation(others_cores=10.0, cores_used=14.0), THRESHOLDS).processes == 2


@pytest.mark.parametrize(
    ("now", "expected", "bearable"),
    [
        # First fewer threads, by those of one process; then a process; the last one keeps half of its threads.
        (situation(filled(0.91), processes=4), (4, 12), 12),
        (situation(filled(0.91), processes=4, threads=12, bearable_threads=12), (3, 12), None),
        (situation(filled(0.91), processes=3), (3, 8), 8),
        (situation(filled(0.95), processes=2, threads=4), (1, 4), None),
        (situation(filled(0.95), processes=1), (1, 2), 2),
        (situation(filled(0.95), processes=1, threads=2), (1, 1), 1),
        (situation(filled(1.05), processes=1, threads=1), (1, 1), 1),
        # One after the other, each shown by the means first.
        (situation(filled(0.95), processes=3, threads=3, retiring=1), (3, 3), None),
        (situation(filled(0.95), processes=4, unchanged_seconds=3), (4, 16), None),
        # A number of processes that somebody has set is kept.
        (situation(filled(0.95), processes=2, fixed=True), (2, 4), 4),
        (situation(filled(0.95), processes=2, threads=4, fixed=True), (2, 2), 2),
        (situation(filled(0.95), processes=2, threads=1, fixed=True), (2, 1), 1),
        # Below the mark nothing goes, and what went comes back only well below it.
        (situation(filled(0.89), processes=4), (4, 16), None),
        (situation(filled(0.85), processes=4, threads=12, bearable_threads=12), (4, 12), 12),
        (situation(filled(0.82), processes=4, threads=12, bearable_threads=12), (4, 16), None),
        # What others take meanwhile goes, and comes back up to there.
        (situation(filled(0.85), processes=4, threads=12, bearable_threads=12, others_cores=8), (4, 8), 12),
        (situation(filled(0.85), processes=4, threads=8, bearable_threads=12), (4, 12), 12),
    ],
)
def test_above_the_high_water_mark_threads_go_and_then_processes(
    now: Situation, expected: tuple[int, int], bearable: int | None
) -> None:
    target = decide(now, THRESHOLDS)
    assert (target.processes, target.threads, target.bearable_threads) == (*expected, bearable)


def test_the_thresholds_are_settings() -> None:
    half = Thresholds(start_below=0.5, high_water=0.6)
    assert decide(situation(filled(0.44)), half).processes == 2
    assert decide(situation(filled(0.46)), half).processes == 1
    assert decide(situation(filled(0.61), processes=2, threads=4), half).processes == 1


@pytest.mark.parametrize("memory_share", [0.1, 0.8])
@pytest.mark.parametrize("cores_used", [0.1, 2.0])
def test_a_number_of_processes_that_was_set_is_kept(memory_share: float, cores_used: float) -> None:
    machine = filled(memory_share, cores=2)
    for processes, per_process in ((1, 2), (2, 1), (3, 1), (5, 1)):
        now = situation(
            machine, processes=processes, threads_per_process=per_process, cores_used=cores_used, fixed=True
        )
        assert decide(now, THRESHOLDS) == Target(processes, processes * per_process, "as before")
    # More than the cores yield in proportion, too.
    crowd = situation(machine, processes=4, threads_per_process=1, others_cores=1.0, fixed=True)
    target = decide(crowd, THRESHOLDS)
    assert (target.processes, target.threads) == (4, 2)


def test_a_change_is_said_in_one_line_with_its_reason() -> None:
    yields = decide(situation(processes=4, others_cores=6.04), THRESHOLDS)
    assert str(yields) == "4 recogniser processes, 10 threads: another program uses 6 cores"
    full = decide(situation(filled(0.934), processes=2, threads=1), THRESHOLDS)
    assert str(full) == "1 recogniser process, 1 thread: 93 % of the memory is in use"


# --- decisions in a row, on a simulated machine ---


class Simulation:
    """A machine with our recognisers and other programs on it, second by second; threads share its cores fairly."""

    def __init__(self, machine: Machine, threads_per_process: int, *, loading_seconds: int = 20) -> None:
        self.base = machine
        self.per_process = threads_per_process
        self.loading_seconds = loading_seconds
        self.ages = [0]
        self.target = Target(1, threads_per_process, "at the start")
        self.unchanged = 0
        self.others: list[float] = []
        self.own: list[float] = []
        self.memory: list[int] = []
        self.said: list[tuple[int, Target]] = []
        self.second = self.busy_since = 0

    def run(self, seconds: int, *, others: float = 0.0, memory_of_others: int = 0, images: bool = True) -> Target:
        for _ in range(seconds):
            self._tick(others, memory_of_others, images=images)
        return self.target

    def _tick(self, others: float, memory_of_others: int, *, images: bool) -> None:
        self.second += 1
        self.busy_since = self.busy_since if images else self.second
        self.unchanged += 1
        self.ages = [age + 1 for age in self.ages]
        ready = sum(age >= self.loading_seconds for age in self.ages)
        threads = min(self.target.threads, ready * self.per_process)
        threads = threads if images else 0
        crowd = max(1.0, (threads + others) / self.base.cores)
        self.others = [*self.others, others / crowd][-5:]
        used = self.base.memory_used_bytes + memory_of_others + 3 * GB * ready
        self.memory = [*self.memory, used][-5:]
        self.own = [*self.own, threads / crowd][-5:]
        others_now, own_now = sum(self.others) / len(self.others), sum(self.own) / len(self.own)
        load = Load(
            machine=replace(self.base, memory_used_bytes=sum(self.memory) // len(self.memory)),
            cores_used=min(own_now + others_now, self.base.cores),
            own_cores=own_now,
            others_cores=others_now,
            process_bytes=3 * GB if ready else None,
        )
        target = decide(
            Situation(
                load=load,
                processes=self.target.processes,
                measured=sum(age >= self.loading_seconds + 5 for age in self.ages),
                retiring=0,
                threads=self.target.threads,
                threads_per_process=self.per_process,
                images_wait_seconds=self.second - self.busy_since,
                unchanged_seconds=self.unchanged,
                bearable_threads=self.target.bearable_threads,
            ),
            THRESHOLDS,
        )
        if (target.processes, target.threads) != (self.target.processes, self.target.threads):
            self.said.append((self.second, target))
            self.unchanged = 0
        self.ages = [*self.ages, *[0] * target.processes][: target.processes]
        self.target = target

    def numbers(self, since: int = 0) -> list[tuple[int, int]]:
        return [(target.processes, target.threads) for second, target in self.said if second > since]


def test_a_large_machine_is_filled_process_by_process() -> None:
    machine = Simulation(LARGE, 4)
    machine.run(200)
    assert machine.numbers() == [(2, 8), (3, 12), (4, 16)]
    starts = [second for second, _ in machine.said]
    assert all(later - earlier >= 25 for earlier, later in zip([0, *starts], starts, strict=False))


def test_work_that_comes_after_a_pause_finds_the_processes_that_are_enough() -> None:
    machine = Simulation(Machine(2, 24 * GB, GB), 2)
    for _ in range(3):
        machine.run(60)
        machine.run(30, images=False)
    assert machine.numbers() == []


def test_another_program_comes_and_goes() -> None:
    machine = Simulation(LARGE, 4)
    machine.run(150)
    assert machine.target.threads == 16
    # Six busy cores: what a fair scheduler gives both leaves the other program less at first than it wants.
    came_at = machine.second
    assert machine.run(60, others=6.0).threads == 10
    falling = [threads for _, threads in machine.numbers(came_at)]
    assert falling == sorted(falling, reverse=True)
    assert "another program uses" in machine.said[-1][1].reason
    left_at = machine.second
    assert machine.run(12).threads == 16
    assert machine.numbers(left_at)[-1] == (4, 16)
    assert {target.processes for _, target in machine.said if target.threads > 12} == {4}, "none was retired"


def test_one_that_takes_all_cores_leaves_one_thread_and_gets_the_rest() -> None:
    machine = Simulation(Machine(2, 16 * GB, GB), 2)
    machine.run(40)
    assert machine.run(15, others=2.0).threads == 1
    assert machine.run(12).threads == 2


@pytest.mark.parametrize("others", [0.1, 0.3, 0.4, 0.5, 0.55, 0.65, 0.9, 1.0, 1.3, 1.5, 2.0])
def test_a_steady_program_makes_nothing_flap(others: float) -> None:
    for cores, per_process in ((2, 2), (16, 4)):
        machine = Simulation(Machine(cores, 64 * GB, GB), per_process)
        machine.run(150)
        came_at = machine.second
        machine.run(300, others=others)
        changes = machine.numbers(came_at)
        assert len(changes) <= 2, changes
        # Whether it is more or less than half a core may be seen now so and now otherwise; that too changes little.
        wobbling_at = machine.second
        for second in range(300):
            machine.run(1, others=others + (0.1 if second % 2 else -0.1))
        assert len(machine.numbers(wobbling_at)) <= 2


def test_memory_that_another_program_takes_is_given_back_until_one_process_is_left() -> None:
    machine = Simulation(LARGE, 4)
    machine.run(150)
    filled_at = machine.second
    machine.run(120, memory_of_others=57 * GB)
    assert machine.numbers(filled_at) == [(4, 12), (3, 12), (3, 8), (2, 8), (2, 4), (1, 4), (1, 2), (1, 1)]
    # All is there again when the other has gone.
    machine.run(200)
    assert (machine.target.processes, machine.target.threads) == (4, 16)


def test_memory_between_the_marks_makes_nothing_flap() -> None:
    machine = Simulation(LARGE, 4)
    machine.run(150)
    filled_at = machine.second
    machine.run(300, memory_of_others=42 * GB)
    # 58 of 64 GB: fewer threads free nothing here, so one process goes; 55 of 64 GB stay, with no room for another.
    assert machine.numbers(filled_at) == [(4, 12), (3, 12)]
