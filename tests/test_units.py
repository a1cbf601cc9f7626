"""Fewer threads at work than there are: real recogniser processes get units of images, each for one thread."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests import engines
from tests.engines import picture
from tests.plugins.recognisers import Supervise, Watched, begun, most_at_work, noted
from uworker.child import Child
from uworker.machine import WINDOW_SECONDS, Load, Machine
from uworker.pacer import Pacer
from uworker.scaling import Plan, Thresholds
from uworker.seat import Seat, Work
from uworker.tasks import MAX_BATCHED_BYTES, ImageTask

STAYS, COMES = 2, 3
"""Codes of images that were there before the limit was lowered, and that come after it."""


def in_hands(watched: Watched) -> list[int]:
    """How many images each process has."""
    return [len(seat.hands) for seat in watched.supervisor._seats]


def started(watched: Watched) -> int:
    """How many images have been taken up and not answered for."""
    return sum(len(seat.started_at) for seat in watched.supervisor._seats)


def behind_a_gate(watched: Watched, *codes: int) -> None:
    """Have `codes`, images 1 and on, wait for the one thread that may be at work, at the gate."""
    watched.wait_ready()
    watched.supervisor.resize(1, 1)
    watched.submit(engines.GATE, *codes)
    watched.poll_until(lambda: started(watched) == 1)


# --- never more threads at work ---


def test_a_limit_keeps_threads_idle_and_can_be_lifted(supervise: Supervise) -> None:
    """Two images that count who is active beside them see nobody under a limit of one, and each other without it."""
    watched = supervise(threads=4)
    watched.wait_ready()
    watched.supervisor.resize(1, 1)
    assert watched.supervisor.free_slots() == 2
    watched.submit(*[engines.LINGER_AND_COUNT] * 4)
    assert [row["smiles"] for row in watched.finish(4).values()] == ["C"] * 4
    watched.supervisor.resize(1, 4)
    watched.submit(*[engines.COMPANY] * 2, first=4)
    rows = watched.finish(6)
    assert [rows[4]["smiles"], rows[5]["smiles"]] == ["CC", "CC"]


def test_a_limit_holds_for_all_processes_together(supervise: Supervise, tmp_path: Path) -> None:
    watched = supervise(processes=2, threads=2, options={"work": str(tmp_path / "work")})
    watched.wait_ready(2)
    watched.supervisor.resize(2, 3)
    watched.submit(*[engines.LINGER] * 12)
    most = 0
    while len(watched.finished) < 12:
        most = max(most, sum(in_hands(watched)))
        watched.reports += watched.supervisor.poll(0.05)
    assert most == most_at_work(tmp_path / "work") == 3


def test_under_a_limit_batches_fill_and_no_more_threads_are_at_work(supervise: Supervise, tmp_path: Path) -> None:
    gate, batches, work = tmp_path / "gate", tmp_path / "batches", tmp_path / "work"
    options = {"max_batch": 4, "gate": str(gate), "batches": str(batches), "work": str(work), "seconds": 0.05}
    watched = supervise(processes=2, threads=2, options=options)
    watched.wait_ready(2)
    watched.supervisor.resize(2, 3)
    assert (watched.supervisor.room.images, watched.supervisor.room.most) == (6, 24)
    assert watched.supervisor.free_slots() == 24
    watched.submit(*[engines.GATE] * 3, *[STAYS] * 21)
    assert watched.supervisor.free_slots() == 0
    assert sorted(in_hands(watched)) == [1, 2], "nobody could keep others from being taken up"
    watched.poll_until(lambda: begun(work) == 3)
    gate.touch()
    assert {row["status"] for row in watched.finish(24).values()} == {"recognised"}
    # Of 21, 17, 13, 9 … that wait, a third, at most four; the last two go alone.
    assert sorted(map(len, noted(batches)), reverse=True) == [4, 4, 4, 3, 2, 2]
    assert most_at_work(work) == 3
    watched.supervisor.resize(2, 4)
    assert watched.supervisor.free_slots() == 32


def test_a_unit_is_in_the_hands_of_one_process_and_its_threads_have_one_each(
    supervise: Supervise, tmp_path: Path
) -> None:
    options = {"max_batch": 4, "gate": str(tmp_path / "gate")}
    watched = supervise(processes=2, threads=3, options=options)
    watched.wait_ready(2)
    watched.supervisor.resize(2, 1)
    watched.submit(*[engines.GATE] * 25)
    watched.supervisor.resize(2, 5)
    # One alone; of the others a fifth each, at most four: of 24, 20 and 16 that wait four, of 12 three.
    assert in_hands(watched) == [1 + 4 + 3, 4 + 4]
    assert sorted(seat.most_at_work for seat in watched.supervisor._seats) == [2, 3]
    # Each unit has its thread: of each the first image waits at the gate, and the others with it.
    watched.poll_until(lambda: started(watched) == 16)
    (tmp_path / "gate").touch()
    watched.finish(25)


def test_few_images_go_to_as_many_threads_as_may_be_at_work(supervise: Supervise, tmp_path: Path) -> None:
    """A batch could have them all."""
    gate, batches = tmp_path / "gate", tmp_path / "batches"
    watched = supervise(threads=4, options={"max_batch": 8, "gate": str(gate), "batches": str(batches)})
    behind_a_gate(watched, *[engines.GATE] * 5)
    watched.supervisor.resize(1, 3)
    watched.poll_until(lambda: started(watched) == 4)
    assert sorted(watched.supervisor._seats[0].started_at) == [0, 1, 2, 3], "a third of five, and a third of three"
    gate.touch()
    watched.finish(6)
    assert noted(batches) == [[engines.GATE] * 2]


def test_large_images_are_not_held_for_the_sake_of_units(supervise: Supervise, tmp_path: Path) -> None:
    watched = supervise(threads=2, options={"max_batch": 8, "gate": str(tmp_path / "gate")})
    behind_a_gate(watched)
    assert watched.supervisor.free_slots() == 15
    watched.supervisor.submit(ImageTask(1, "large.png", os.urandom(MAX_BATCHED_BYTES)))
    assert watched.supervisor.free_slots() == 0
    (tmp_path / "gate").touch()
    watched.finish(2)


# --- a limit that changes ---


def test_one_that_was_lowered_holds_for_what_comes_after_it(supervise: Supervise, tmp_path: Path) -> None:
    """What the threads had in advance is finished by all of them."""
    work = tmp_path / "work"
    options = {"max_batch": 4, "gate": str(tmp_path / "gate"), "work": str(work), "seconds": 0.02}
    watched = supervise(processes=2, threads=2, options=options)
    watched.wait_ready(2)
    # Whichever of them have their batches first, the threads are at work together.
    watched.submit(*[engines.GATE] * 32)
    assert in_hands(watched) == [16, 16]
    watched.supervisor.resize(2, 2)
    assert watched.supervisor.free_slots() == 0
    watched.poll_until(lambda: begun(work) == 4)
    (tmp_path / "gate").touch()
    watched.poll_until(lambda: watched.supervisor.free_slots() > 0)
    for task_id in range(32, 80):
        watched.poll_until(lambda: watched.supervisor.free_slots() > 0)
        watched.submit(COMES, first=task_id)
    assert {row["status"] for row in watched.finish(80).values()} == {"recognised"}
    assert (most_at_work(work), most_at_work(work, COMES)) == (4, 2)


def test_nothing_is_changed_again_before_a_limit_that_was_lowered_holds(supervise: Supervise, tmp_path: Path) -> None:
    """A full memory has threads go, and a process only where it is full without them."""
    watched = supervise(processes=2, threads=2, fixed=False, options={"max_batch": 4, "gate": str(tmp_path / "gate")})
    watched.wait_ready(2)
    watched.submit(*[engines.GATE] * 32)
    pacer = Pacer(Plan(2, 2, "of this test"), Thresholds(start_below=0.75, high_water=0.90))
    pacer._sampler.load = Load(Machine(4, 100, 95), cores_used=4, own_cores=4, others_cores=0, process_bytes=10)

    def look(at: float) -> tuple[int, int]:
        pacer._adjust(watched.supervisor, at)
        return watched.supervisor.processes, watched.supervisor.limit

    began = time.monotonic() + WINDOW_SECONDS
    assert look(began) == (2, 2)
    assert (watched.supervisor.at_work, look(began + WINDOW_SECONDS)) == (4, (2, 2))
    (tmp_path / "gate").touch()
    watched.finish(32)
    assert look(began + 2 * WINDOW_SECONDS - 0.1) == (2, 2), "the means are of before"
    assert look(began + 2 * WINDOW_SECONDS) == (1, 2)


def test_units_are_finished_when_the_limit_is_lowered_and_others_come_when_it_is_lifted(
    supervise: Supervise, tmp_path: Path
) -> None:
    gate, batches = tmp_path / "gate", tmp_path / "batches"
    options = {"max_batch": 4, "gate": str(gate), "batches": str(batches)}
    watched = supervise(threads=4, options=options)
    behind_a_gate(watched, *[engines.GATE] * 15)
    watched.supervisor.resize(1, 3)
    assert (in_hands(watched), watched.supervisor._seats[0].most_at_work) == ([9], 3)
    watched.supervisor.resize(1, 2)
    assert in_hands(watched) == [9]
    watched.supervisor.resize(1, 4)
    assert in_hands(watched) == [16], "all are in its hands in advance"
    gate.touch()
    assert {row["status"] for row in watched.finish(16).values()} == {"recognised"}
    assert sorted(map(len, noted(batches)), reverse=True)[:2] == [4, 4]


def test_threads_that_come_under_a_limit_work_beside_those_that_have_images_in_advance(
    supervise: Supervise, tmp_path: Path
) -> None:
    """One process has many images before the other is there, and is no more than its threads for all that."""
    work = tmp_path / "work"
    watched = supervise(threads=2, options={"max_batch": 4, "gate": str(tmp_path / "gate"), "work": str(work)})
    watched.wait_ready()
    watched.supervisor.resize(1, 3)
    watched.submit(*[engines.GATE] * 16)
    watched.supervisor.resize(2, 3)
    watched.wait_ready(2)
    watched.submit(*[engines.GATE] * 8, first=16)
    assert in_hands(watched) == [16, 1]
    (tmp_path / "gate").touch()
    watched.finish(24)
    assert most_at_work(work) <= 3


def test_the_threads_of_a_retiring_process_count(supervise: Supervise, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    watched = supervise(processes=2, options={"gate": str(gate)})
    watched.wait_ready(2)
    watched.submit(engines.GATE, engines.LINGER, STAYS, STAYS)
    watched.supervisor.resize(1, 1)
    assert watched.supervisor._seats[0].retiring
    watched.poll_until(lambda: in_hands(watched) == [2, 0])
    watched.submit(COMES, COMES, first=4)
    assert in_hands(watched) == [2, 0]
    gate.touch()
    assert {row["status"] for row in watched.finish(6).values()} == {"recognised"}
    watched.poll_until(lambda: watched.supervisor.retiring == 0)
    assert watched.logs == [], "it did not die"


# --- what a unit's images do ---


def test_under_a_limit_of_one_a_suspect_gets_its_turn(supervise: Supervise) -> None:
    watched = supervise(processes=2, threads=2)
    watched.wait_ready(2)
    watched.supervisor.resize(2, 1)
    watched.submit(1, engines.KILL, 2, 3)
    rows = watched.finish(4)
    assert [rows[i]["status"] for i in range(4)] == ["recognised", "crashed", "recognised", "recognised"]


def test_the_third_image_of_a_unit_that_kills_is_crashed_and_each_is_answered_once(
    supervise: Supervise, tmp_path: Path
) -> None:
    """Those before it are tried alone; those behind it, which were not touched, are a unit again."""
    gate, batches, tally = tmp_path / "gate", tmp_path / "batches", tmp_path / "tally"
    options = {"max_batch": 8, "gate": str(gate), "batches": str(batches), "tally": str(tally)}
    watched = supervise(threads=2, options=options)
    behind_a_gate(watched, 1, 2, engines.KILL, 4, 5, 6)
    gate.touch()
    rows = watched.finish(7)
    assert [rows[i]["status"] for i in range(1, 7)] == ["recognised"] * 2 + ["crashed"] + ["recognised"] * 3
    assert "tried alone (exit -9, SIGKILL" in rows[3]["error_message"]
    assert len(watched.logs) == 2
    assert noted(batches) == [[4, 5, 6]]
    obeyed = sorted(int(code) for code in tally.read_text().split())
    assert obeyed == [1, 2, 4, 5, 6, engines.KILL, engines.GATE]


def test_an_image_that_holds_up_its_unit_is_found_and_the_others_are_recognised(
    supervise: Supervise, tmp_path: Path
) -> None:
    gate, batches = tmp_path / "gate", tmp_path / "batches"
    watched = supervise(threads=2, timeout=2, options={"max_batch": 8, "gate": str(gate), "batches": str(batches)})
    behind_a_gate(watched, 1, 2, engines.HANG, 4, 5)
    gate.touch()
    rows = watched.finish(6)
    assert [rows[i]["status"] for i in range(1, 6)] == ["recognised"] * 2 + ["timeout"] + ["recognised"] * 2
    assert noted(batches) == [[1, 2, engines.HANG, 4, 5]]
    assert not any("died" in log for log in watched.logs)


def test_images_of_a_unit_that_the_engine_does_not_take_are_still_of_that_unit(
    supervise: Supervise, tmp_path: Path
) -> None:
    gate, batches, work = tmp_path / "gate", tmp_path / "batches", tmp_path / "work"
    options = {"max_batch": 8, "takes": 2, "gate": str(gate), "batches": str(batches), "work": str(work)}
    watched = supervise(threads=2, options=options)
    behind_a_gate(watched, 1, 2, 3, 4, 5)
    gate.touch()
    watched.finish(6)
    assert noted(batches) == [[1, 2], [3, 4], [5]]
    assert most_at_work(work) == 1


def test_a_solo_image_is_no_part_of_a_unit(supervise: Supervise, tmp_path: Path) -> None:
    gate, batches = tmp_path / "gate", tmp_path / "batches"
    watched = supervise(threads=2, options={"max_batch": 4, "gate": str(gate), "batches": str(batches)})
    behind_a_gate(watched, 1, 2, 3)
    watched.supervisor.submit(ImageTask(100, "solo.png", picture(7), solo=True))
    gate.touch()
    assert watched.finish(5)[100]["smiles"] == "C" * 7
    assert noted(batches) == [[1, 2, 3]]


def test_forgotten_images_of_a_unit_are_not_reported_and_it_ends_all_the_same(
    supervise: Supervise, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    watched = supervise(threads=3, options={"max_batch": 4, "gate": str(gate)})
    behind_a_gate(watched, *[engines.GATE] * 7)
    watched.supervisor.resize(1, 2)
    assert in_hands(watched) == [5]
    watched.supervisor.forget({1, 2, 6})
    assert (watched.supervisor.outstanding(), watched.supervisor.free_slots()) == (5, 9)
    gate.touch()
    assert set(watched.finish(5)) == {0, 3, 4, 5, 7}
    watched.poll_until(lambda: watched.supervisor.free_slots() == 16)


@pytest.mark.parametrize(("max_batch", "largest"), [(1, 3), (4, 3), (4, 4)])
def test_units_survive_processes_and_limits_that_come_and_go(
    supervise: Supervise, tmp_path: Path, max_batch: int, largest: int
) -> None:
    """Four threads, for a while six, of which never more are at work than the largest limit that there was."""
    options = {"max_batch": max_batch, "seconds": 0.01, "work": str(tmp_path / "work")}
    watched = supervise(processes=2, threads=2, options=options)
    watched.wait_ready(2)
    codes = [engines.KILL if place % 13 == 5 else place % 7 + 1 for place in range(60)]
    watched.supervisor.resize(2, 3)
    watched.submit(*codes)
    for done, processes, limit in ((5, 1, 1), (10, 3, 4), (20, 3, 2), (30, 2, 4), (40, 2, 3)):
        watched.poll_until(lambda done=done: len(watched.finished) >= done)  # type: ignore[misc]
        watched.supervisor.resize(processes, min(limit, largest))
    rows = watched.finish(len(codes))
    expected = ["crashed" if code == engines.KILL else "recognised" for code in codes]
    assert [rows[place]["status"] for place in range(len(codes))] == expected
    assert most_at_work(tmp_path / "work") <= largest


@pytest.mark.parametrize("more_bytes", [0, 1_000_000])
def test_the_images_of_a_unit_whose_process_is_killed_are_a_unit_again(
    supervise: Supervise, tmp_path: Path, more_bytes: int
) -> None:
    """As one is that is killed for want of memory before it has touched them, or, of large ones, has them all."""
    gate, batches = tmp_path / "gate", tmp_path / "batches"
    watched = supervise(threads=4, options={"max_batch": 8, "gate": str(gate), "batches": str(batches)})
    behind_a_gate(watched)
    for task_id in range(1, 7):
        watched.supervisor.submit(ImageTask(task_id, f"{task_id}.png", picture(task_id) + bytes(more_bytes)))
    [pid] = watched.supervisor.pids()
    os.kill(pid, signal.SIGSTOP)
    watched.supervisor.resize(1, 2)
    assert watched.supervisor._seats[0].unit_of == {1: 1, 2: 1, 3: 1}
    works = dict(watched.supervisor._open)
    os.kill(pid, signal.SIGKILL)
    watched.poll_until(lambda: watched.supervisor.pids() not in ([], [pid]))
    assert [(works[i].deaths, works[i].solo) for i in range(5)] == [(1, True), *[(1, False)] * 3, (0, False)]
    gate.touch()
    rows = watched.finish(7)
    assert [rows[i]["smiles"] for i in range(1, 7)] == ["C" * i for i in range(1, 7)]
    assert sorted(noted(batches)) == [[1, 2, 3], [4, 5]], "as many to each of two threads as is its share"


def test_a_process_counts_as_many_threads_as_could_be_at_work() -> None:
    seat = Seat(child=Child.__new__(Child), ready=True)
    seat.hands = {i: Work(ImageTask(i, f"{i}.png", b""), solo=False) for i in range(1, 9)}
    seat.unit_of = {1: 1, 2: 1, 3: 1}
    assert seat.most_at_work == 6, "the unit, and whoever takes up each of the others"
    for task_id, batch in ((1, 1), (3, 3), (4, 4), (5, 4), (6, 4)):
        seat.start(task_id, batch, 100.0)
    assert seat.most_at_work == 4, "the unit, though its engine is on its second batch; a batch; two others"
    for task_id in (1, 3, 4, 5, 7):
        seat.take_out(task_id)
    assert seat.most_at_work == 3
    seat.vacate(100.0)
    assert (seat.most_at_work, seat.unit_of) == (0, {}), "the images may be dealt out otherwise the next time"
