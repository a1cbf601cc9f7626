"""Real recogniser processes, killed and hung: every image is answered once, and no process stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import engines
from tests.engines import picture
from tests.plugins.model import DrawnSamples
from tests.plugins.recognisers import DEADLINE_SECONDS, Supervise, Watched, noted
from tests.serving import is_gone, wait_for
from uworker.child import Child
from uworker.seat import FIRST_BACKOFF_SECONDS, Seat, Work
from uworker.supervisor import CannotLoad, EngineReady, ImageTask, RecogniserConfig
from uworker.tasks import MAX_BATCHED_BYTES, Room


def wait_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.01)


def test_a_killed_recogniser_costs_no_image(supervise: Supervise, samples: DrawnSamples, miniature_home: Path) -> None:
    watched = supervise(processes=2, threads=2, engine="decimer", home=miniature_home)
    wanted = {task_id: sample.smiles for task_id, sample in enumerate(samples.items)}
    for task_id, sample in enumerate(samples.items):
        watched.supervisor.submit(ImageTask(task_id, sample.image, sample.path.read_bytes()))
    watched.wait_ready(2)
    victim = watched.supervisor.pids()[0]
    watched.poll_until(lambda: len(watched.finished) >= 3)
    os.kill(victim, signal.SIGKILL)
    rows = watched.finish(len(wanted))
    assert {task_id: row["smiles"] for task_id, row in rows.items()} == wanted
    assert {row["status"] for row in rows.values()} == {"recognised"}
    ending = f"recogniser {victim} died (exit -9, SIGKILL, possible out of memory)"
    watched.poll_until(lambda: any(ending in log for log in watched.logs))
    run = next(report.run for report in watched.reports if isinstance(report, EngineReady))
    assert (run.engine, run.engine_version) == ("decimer", "2.8.1")
    assert run.weights is not None
    assert run.weights_sha256 is not None


@pytest.mark.parametrize(
    ("code", "ending"),
    [(engines.KILL, "exit -9, SIGKILL"), (engines.SEGFAULT, "exit -11, SIGSEGV"), (engines.EXIT, "exit 7")],
)
def test_an_image_that_kills_twice_is_crashed_and_its_neighbours_are_recognised(
    supervise: Supervise, code: int, ending: str
) -> None:
    watched = supervise(threads=3)
    watched.submit(1, 2, code, 3, 4, 5)
    rows = watched.finish(6)
    assert [rows[i]["status"] for i in (0, 1, 3, 4, 5)] == ["recognised"] * 5
    assert [rows[i]["smiles"] for i in (0, 1, 3, 4, 5)] == ["C", "CC", "CCC", "CCCC", "CCCCC"]
    assert rows[2]["status"] == "crashed"
    assert ending in rows[2]["error_message"]
    assert len(watched.logs) == 2
    assert "2.png" in watched.logs[0]


def test_an_image_whose_process_died_once_is_recognised_alone(supervise: Supervise, tmp_path: Path) -> None:
    watched = supervise(threads=2, options={"once": str(tmp_path / "once")})
    watched.submit(engines.KILL_ONCE, 2)
    rows = watched.finish(2)
    assert [row["status"] for row in rows.values()] == ["recognised", "recognised"]
    assert (tmp_path / "once").exists()


def test_a_hung_image_times_out_and_its_neighbours_are_recognised(supervise: Supervise) -> None:
    watched = supervise(threads=2, timeout=1.5)
    watched.submit(1, engines.HANG, 2, 3, engines.HANG, 4)
    rows = watched.finish(6)
    assert [rows[i]["smiles"] for i in (0, 2, 3, 5)] == ["C", "CC", "CCC", "CCCC"]
    assert [rows[i]["status"] for i in (1, 4)] == ["timeout", "timeout"]
    assert rows[1]["error_message"] == "not recognised within 1.5 s"
    assert not any("died" in log for log in watched.logs)


def test_an_image_that_keeps_the_interpreter_is_found_and_its_neighbours_are_recognised(supervise: Supervise) -> None:
    """They are as late as it is, and none can say so: each is tried alone."""
    watched = supervise(threads=3, timeout=4)
    watched.wait_ready()
    watched.submit(engines.LINGER, engines.HOLD_LOCK, engines.LINGER, 5)
    rows = watched.finish(4)
    assert [rows[i]["smiles"] for i in (0, 2, 3)] == ["C", "C", "CCCCC"]
    assert rows[1]["status"] == "timeout"
    assert "says nothing any more" in watched.logs[0]


def test_neighbours_of_a_hung_image_are_tried_again_side_by_side(supervise: Supervise, tmp_path: Path) -> None:
    """They are not suspected: one that was tried alone would find nobody active beside it."""
    watched = supervise(threads=4, timeout=3, options={"once": str(tmp_path / "once"), "mark": True})
    watched.wait_ready()
    watched.submit(engines.HANG)
    watched.reports += watched.supervisor.poll(1)  # so that the others are not overdue together with it
    watched.submit(*[engines.HANG_ONCE] * 3, first=1)
    rows = watched.finish(4)
    assert rows.pop(0)["status"] == "timeout"
    assert "CCC" in [row["smiles"] for row in rows.values()]
    assert [log for log in watched.logs if "killed" not in log] == []


def test_images_that_a_dead_process_had_not_touched_are_not_suspected(supervise: Supervise, tmp_path: Path) -> None:
    """Two threads are taken by the first two images; the others wait in the process's hands when it dies."""
    watched = supervise(threads=2, options={"once": str(tmp_path / "once"), "mark": True})
    watched.submit(engines.HANG_ONCE, engines.KILL, engines.HANG_ONCE, engines.HANG_ONCE)
    rows = watched.finish(4)
    assert rows[0]["smiles"] == "C"
    assert rows[1]["status"] == "crashed"
    assert "CC" in (rows[2]["smiles"], rows[3]["smiles"])


def test_a_solo_image_has_a_process_to_itself(supervise: Supervise) -> None:
    watched = supervise(threads=4)
    watched.wait_ready()
    watched.submit(*[engines.LINGER] * 3)
    watched.supervisor.submit(ImageTask(100, "solo.png", picture(engines.COUNT_ACTIVE), solo=True))
    watched.submit(engines.COMPANY, engines.COMPANY, first=10)
    rows = watched.finish(6)
    assert rows[100]["smiles"] == "C"
    assert [rows[10]["smiles"], rows[11]["smiles"]] == ["CC", "CC"]


def test_nothing_joins_a_solo_image(supervise: Supervise) -> None:
    watched = supervise(threads=4)
    watched.wait_ready()
    watched.supervisor.submit(ImageTask(100, "solo.png", picture(engines.HANG_ONCE), solo=True))
    watched.submit(*[engines.LINGER] * 3)
    assert watched.finish(4)[100]["smiles"] == "C"


def test_a_solo_image_that_kills_is_crashed_at_once(supervise: Supervise) -> None:
    watched = supervise()
    watched.supervisor.submit(ImageTask(1, "solo.png", picture(engines.KILL), solo=True))
    assert watched.finish(1)[1]["status"] == "crashed"
    assert len(watched.logs) == 1


def test_an_engine_that_cannot_load_is_said_once_and_not_tried_again(supervise: Supervise) -> None:
    watched = supervise(processes=3, options={"load_error": "no weights here"})
    watched.submit(1)
    watched.poll_until(lambda: bool(watched.reports) and not watched.supervisor.pids())
    watched.reports += watched.supervisor.poll(1)
    assert watched.reports == [CannotLoad("EngineLoadError: no weights here")]
    assert watched.supervisor.free_slots() == 0
    assert len(watched.pids) == 3


def test_one_that_cannot_load_while_others_recognise_does_not_end_them(supervise: Supervise, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    watched = supervise(options={"spoilt": str(spoilt)})
    watched.wait_ready()
    spoilt.touch()
    watched.supervisor.resize(2, 2)
    watched.poll_until(lambda: bool(watched.logs))
    assert "cannot be loaded, and others go on: EngineLoadError: it is spoilt" in watched.logs[0]
    watched.submit(1, 2, 3)
    assert [row["smiles"] for row in watched.finish(3).values()] == ["C", "CC", "CCC"]
    # It is tried again, and once there is no other it is the end.
    spoilt.unlink()
    watched.wait_ready(2)
    spoilt.touch()
    for pid in watched.supervisor.pids():
        os.kill(pid, signal.SIGKILL)
    watched.poll_until(lambda: any(isinstance(report, CannotLoad) for report in watched.reports))
    assert not any(isinstance(report, CannotLoad) for report in watched.reports[:-1])


def test_an_unknown_engine_cannot_load(supervise: Supervise) -> None:
    watched = supervise(engine="molscribe")
    watched.poll_until(lambda: bool(watched.reports))
    known = "there is decimer, osra, or UWORKER_ENGINE_COMMAND"
    assert watched.reports == [CannotLoad(f"UnknownEngineError: no engine is called 'molscribe'; {known}")]


def test_processes_that_keep_dying_while_loading_cannot_load(supervise: Supervise) -> None:
    watched = supervise(options={"die_loading": True})
    watched.poll_until(lambda: bool(watched.reports))
    (report,) = watched.reports
    assert isinstance(report, CannotLoad)
    assert "3 recognisers in a row died while loading, the last: exit -4, SIGILL" in report.message


def test_a_process_that_does_not_get_ready_is_killed(supervise: Supervise) -> None:
    watched = supervise(options={"hang_loading": True}, load_timeout=0.5)
    watched.poll_until(lambda: bool(watched.reports))
    assert isinstance(watched.reports[0], CannotLoad)
    assert "not ready after 0.5 s" in watched.logs[0]


def test_what_an_engine_raised_is_reported_beside_the_row(supervise: Supervise) -> None:
    watched = supervise()
    watched.submit(engines.RAISE, 2)
    watched.finish(2)
    faults = {finished.task_id: finished.fault for finished in watched.finished}
    assert faults[1] is None
    assert faults[0] is not None
    assert "ValueError: invalid literal" in faults[0].traceback


def test_a_flood_of_output_stalls_nothing_and_is_passed_on(supervise: Supervise) -> None:
    watched = supervise(threads=2)
    watched.submit(engines.FLOOD, 2, engines.FLOOD, 3)
    rows = watched.finish(4)
    assert {row["status"] for row in rows.values()} == {"recognised"}
    watched.poll_until(lambda: watched.lines.count("last line") == 2)
    assert sum(line.count("x") for line in watched.lines) == 2 * engines.FLOOD_BYTES


def test_a_process_that_reads_nothing_does_not_block_submitting(supervise: Supervise) -> None:
    watched = supervise(threads=2)
    watched.wait_ready()
    (pid,) = watched.supervisor.pids()
    os.kill(pid, signal.SIGSTOP)
    noise = os.urandom(20_000_000)
    for task_id in range(3):
        watched.supervisor.submit(ImageTask(task_id, "noise.png", noise))
    assert watched.supervisor.poll(0) == []
    assert watched.supervisor.outstanding() == 3
    os.kill(pid, signal.SIGCONT)
    assert {row["status"] for row in watched.finish(3).values()} == {"unreadable"}


def test_forgotten_images_are_not_reported(supervise: Supervise, tmp_path: Path) -> None:
    watched = supervise(threads=1, options={"gate": str(tmp_path / "gate")})
    watched.wait_ready()
    watched.submit(engines.GATE, 1, 2, 3, 4)
    watched.supervisor.forget({0, 1, 3})
    assert watched.supervisor.outstanding() == 2
    assert watched.supervisor.free_slots() == 0
    (tmp_path / "gate").touch()
    assert sorted(watched.finish(2)) == [2, 4]
    assert watched.supervisor.outstanding() == 0
    assert watched.supervisor.free_slots() == 2


def test_free_slots_count_two_for_each_thread(supervise: Supervise, tmp_path: Path) -> None:
    watched = supervise(processes=2, threads=2, options={"gate": str(tmp_path / "gate")})
    assert watched.supervisor.free_slots() == 8
    watched.submit(engines.GATE, engines.GATE, 1)
    assert watched.supervisor.free_slots() == 5
    with pytest.raises(ValueError, match="image 2 is submitted twice"):
        watched.submit(1, first=2)
    (tmp_path / "gate").touch()
    watched.finish(3)
    assert watched.supervisor.free_slots() == 8


def test_wake_ends_a_poll_early(supervise: Supervise) -> None:
    watched = supervise()
    watched.wait_ready()
    timer = threading.Timer(0.05, watched.supervisor.wake)
    timer.start()
    began = time.monotonic()
    assert watched.supervisor.poll(DEADLINE_SECONDS) == []
    assert time.monotonic() - began < DEADLINE_SECONDS / 2
    timer.join()


def test_a_terminals_signals_do_not_end_a_recogniser(supervise: Supervise) -> None:
    watched = supervise()
    watched.wait_ready()
    (pid,) = watched.supervisor.pids()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    watched.submit(1)
    assert watched.finish(1)[0]["status"] == "recognised"
    assert watched.supervisor.pids() == [pid]


def test_stop_kills_what_does_not_go_and_may_be_repeated(supervise: Supervise) -> None:
    watched = supervise(processes=2)
    watched.wait_ready(2)
    os.kill(watched.supervisor.pids()[0], signal.SIGSTOP)
    watched.submit(engines.HANG)
    watched.supervisor.stop(0.2)
    watched.supervisor.stop(0.2)
    assert [pid for pid in watched.pids if psutil.pid_exists(pid)] == []
    assert watched.supervisor.poll(0) == []
    assert watched.supervisor.free_slots() == 0


def test_stop_lets_recognisers_go_by_themselves(supervise: Supervise) -> None:
    watched = supervise(processes=2)
    watched.wait_ready(2)
    watched.submit(engines.HANG)
    watched.supervisor.stop(grace_seconds=10_000)  # would be waited for in full if they did not
    assert watched.supervisor.pids() == []


def test_a_recogniser_gets_no_secrets(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UWORKER_TOKEN", "JOB_API_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    watched = supervise()
    watched.wait_ready()
    environ = psutil.Process(watched.supervisor.pids()[0]).environ()
    assert "s3cret" not in environ.values()
    assert environ["OMP_NUM_THREADS"] == "1"


def test_recognisers_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    """One of them hangs on an image, as a recogniser may when its machine is in trouble."""
    script = f"""
from pathlib import Path
from tests import engines
from uworker.supervisor import EngineReady, ImageTask, RecogniserConfig, Supervisor
config = RecogniserConfig({engines.NAME!r}, {{}}, 1, Path({str(tmp_path)!r}), 64_000_000, 600)
supervisor = Supervisor(config, 2, print, print)
supervisor.start()
ready = 0
while ready < 2:
    ready += sum(isinstance(report, EngineReady) for report in supervisor.poll(1))
supervisor.submit(ImageTask(1, "hang.png", engines.picture(engines.HANG)))
supervisor.poll(0)
print(*supervisor.pids(), flush=True)
supervisor.poll(600)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as parent:
        assert parent.stdout is not None
        pids = {int(word) for word in parent.stdout.readline().split()}
        assert len(pids) == 2
        assert not any(is_gone(pid) for pid in pids)
        parent.kill()
    wait_gone(pids)


def test_restarts_back_off_and_an_answer_resets_them() -> None:
    seat = Seat()
    pauses = []
    for _ in range(9):
        seat.vacate(now=100.0)
        pauses.append(seat.restart_at - 100.0)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_importing_the_parents_side_imports_nothing_heavy() -> None:
    script = (
        "import sys, uworker.supervisor, uworker.weights, uworker.recogniser\n"
        "heavy = {'fastapi', 'sqlmodel', 'tensorflow', 'rdkit', 'PIL', 'DECIMER', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy), 'pydantic' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] True"


# --- more and fewer of them ---


def test_processes_are_added_while_others_work(supervise: Supervise) -> None:
    watched = supervise()
    watched.wait_ready()
    first = watched.supervisor.pids()
    watched.supervisor.resize(2, 2)
    assert watched.supervisor.free_slots() == 4
    watched.submit(engines.LINGER, engines.LINGER, 1, 2)
    watched.wait_ready(2)
    assert {row["status"] for row in watched.finish(4).values()} == {"recognised"}
    assert len(watched.supervisor.ready_pids()) == 2
    assert watched.supervisor.pids()[0] == first[0]


def test_a_retiring_process_finishes_what_is_in_its_hands_and_is_given_nothing_more(
    supervise: Supervise, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    watched = supervise(processes=2, options={"gate": str(gate)})
    watched.wait_ready(2)
    watched.submit(*[engines.GATE] * 4)
    watched.poll_until(lambda: len(watched.supervisor._seats[0].started_at) == 1)
    both = set(watched.supervisor.pids())
    watched.supervisor.resize(1, 1)
    assert (watched.supervisor.processes, watched.supervisor.retiring) == (1, 1)
    assert len(watched.supervisor.ready_pids()) == 1
    assert set(watched.supervisor.pids()) == both
    assert watched.supervisor.free_slots() == 0
    gate.touch()
    watched.submit(1, 2, 3, first=4)
    rows = watched.finish(7)
    assert {row["status"] for row in rows.values()} == {"recognised"}
    watched.poll_until(lambda: watched.supervisor.retiring == 0)
    wait_gone(both - set(watched.supervisor.pids()))
    watched.poll_until(lambda: len(watched.supervisor.pids()) == 1)
    assert watched.supervisor.ready_pids() == watched.supervisor.pids()
    assert watched.logs == [], "it did not die"


def test_one_process_stays_whatever_is_asked_for(supervise: Supervise) -> None:
    watched = supervise(processes=3)
    watched.supervisor.resize(0, 0)
    watched.submit(1)
    assert watched.finish(1)[0]["smiles"] == "C"
    assert (watched.supervisor.processes, watched.supervisor.limit) == (1, 1)
    watched.poll_until(lambda: len(watched.supervisor.pids()) == 1)
    assert watched.logs == []


def test_the_process_that_is_not_ready_retires_first(supervise: Supervise) -> None:
    watched = supervise()
    watched.wait_ready()
    ready = watched.supervisor.pids()
    watched.supervisor.resize(2, 2)
    watched.pids |= set(watched.supervisor.pids())
    watched.supervisor.resize(1, 1)
    watched.poll_until(lambda: watched.supervisor.pids() == ready)
    assert watched.supervisor.ready_pids() == ready
    assert watched.logs == []


def test_a_retiring_process_that_dies_costs_no_image_and_is_not_started_again(supervise: Supervise) -> None:
    watched = supervise(processes=2, threads=2)
    watched.wait_ready(2)
    watched.submit(*[engines.LINGER] * 8)
    both = set(watched.supervisor.pids())
    leaving = min(watched.supervisor._seats, key=lambda seat: len(seat.hands))
    assert leaving.child is not None
    victim = leaving.child.pid
    watched.supervisor.resize(1, 2)
    os.kill(victim, signal.SIGKILL)
    assert {row["status"] for row in watched.finish(8).values()} == {"recognised"}
    assert any(f"recogniser {victim} died" in log for log in watched.logs)
    # As long as a restart would take.
    until = time.monotonic() + 2 * FIRST_BACKOFF_SECONDS
    watched.poll_until(lambda: time.monotonic() > until)
    assert (watched.supervisor.processes, watched.supervisor.retiring) == (1, 0)
    assert watched.pids == both


def test_a_hung_image_does_not_keep_a_process_from_retiring(supervise: Supervise) -> None:
    watched = supervise(processes=2, timeout=1.5)
    watched.wait_ready(2)
    watched.submit(engines.HANG, engines.HANG)
    watched.supervisor.resize(1, 1)
    assert [row["status"] for row in watched.finish(2).values()] == ["timeout", "timeout"]
    watched.poll_until(lambda: watched.supervisor.retiring == 0)
    watched.submit(1, first=2)
    assert watched.finish(3)[2]["smiles"] == "C"


def test_a_process_that_does_not_end_when_it_is_told_to_is_killed(supervise: Supervise) -> None:
    watched = supervise(processes=2, end_timeout=0.5)
    watched.wait_ready(2)
    for pid in watched.supervisor.pids():
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)  # type: ignore[misc]
    watched.supervisor.resize(1, 1)
    watched.poll_until(lambda: len(watched.supervisor.pids()) == 1)
    assert ["did not end when it was told to" in log for log in watched.logs] == [True]
    os.kill(watched.supervisor.pids()[0], signal.SIGCONT)


@pytest.mark.parametrize(("fixed", "left"), [(True, 2), (False, 1)])
def test_one_that_the_system_killed_comes_back_only_where_their_number_is_fixed(
    supervise: Supervise, fixed: bool, left: int
) -> None:
    """It may have been for want of memory, which one more would want again."""
    watched = supervise(processes=2, fixed=fixed)
    watched.wait_ready(2)
    os.kill(watched.supervisor.pids()[0], signal.SIGKILL)
    watched.poll_until(lambda: len(watched.supervisor.pids()) == 1)
    assert watched.supervisor.processes == left
    # The last one comes back in any case.
    os.kill(watched.supervisor.pids()[0], signal.SIGKILL)
    watched.wait_ready(4 if fixed else 3)
    assert watched.supervisor.processes == left
    watched.submit(1)
    assert watched.finish(1)[0]["smiles"] == "C"


def test_a_dead_process_that_waits_for_its_restart_can_retire(supervise: Supervise) -> None:
    watched = supervise(processes=2)
    watched.wait_ready(2)
    victim = watched.supervisor.pids()[0]
    os.kill(victim, signal.SIGKILL)
    watched.poll_until(lambda: victim not in watched.supervisor.pids())
    watched.supervisor.resize(1, 1)
    assert (watched.supervisor.processes, watched.supervisor.retiring) == (1, 0)
    watched.submit(1)
    watched.finish(1)
    assert len(watched.supervisor.pids()) == 1


def test_suspects_are_tried_alone_also_while_processes_come_and_go(supervise: Supervise) -> None:
    watched = supervise(processes=2, threads=2)
    codes = [engines.LINGER, engines.KILL, engines.LINGER, engines.KILL, *[engines.LINGER] * 8]
    watched.submit(*codes)
    for processes, done in ((1, 2), (3, 4), (1, 8), (2, 10)):
        watched.poll_until(lambda done=done: len(watched.finished) >= done)  # type: ignore[misc]
        watched.supervisor.resize(processes, 2 * processes)
    rows = watched.finish(len(codes))
    expected = ["crashed" if code == engines.KILL else "recognised" for code in codes]
    assert [rows[place]["status"] for place in range(len(codes))] == expected


# --- several images at once ---


def in_crowd(watched: Watched, codes: list[int], *, then: tuple[int, ...] = ()) -> dict[int, dict[str, Any]]:
    """Have `codes`, images 1 and on, wait in the process together; `crowd` in its options is their number."""
    watched.wait_ready()
    watched.submit(engines.CROWD)
    watched.poll_until(lambda: bool(watched.supervisor._seats[0].started_at))
    watched.submit(*codes, *then, first=1)
    return watched.finish(1 + len(codes) + len(then))


def test_a_process_gets_batches_in_advance_as_many_as_its_threads_need(supervise: Supervise, tmp_path: Path) -> None:
    options = {"max_batch": 4, "gate": str(tmp_path / "gate"), "batches": str(tmp_path / "batches")}
    watched = supervise(threads=2, options=options)
    assert watched.supervisor.free_slots() == 4, "what the engine takes is not known"
    watched.wait_ready()
    assert watched.supervisor.free_slots() == 16
    assert (watched.supervisor.room.images, watched.supervisor.room.most) == (4, 16)
    watched.submit(*[engines.GATE] * 16)
    assert watched.supervisor.free_slots() == 0
    assert len(watched.supervisor._seats[0].hands) == 16
    (tmp_path / "gate").touch()
    watched.finish(16)
    assert max(len(batch) for batch in noted(tmp_path / "batches")) <= 4
    assert watched.supervisor.free_slots() == 16


def test_batches_fill_while_images_wait(supervise: Supervise, tmp_path: Path) -> None:
    watched = supervise(options={"max_batch": 4, "crowd": 7, "batches": str(tmp_path / "batches")})
    rows = in_crowd(watched, [1, 2, 3, 4, 5, 6, 7], then=(8, 9, 10, 11, 12))
    assert [rows[i]["smiles"] for i in range(1, 13)] == ["C" * i for i in range(1, 13)]
    batches = noted(tmp_path / "batches")
    # Those that are sent later fill the second and the third, as far as they come in time.
    assert (batches[0], batches[1][:3], max(map(len, batches))) == ([1, 2, 3, 4], [5, 6, 7], 4)


def test_large_images_are_not_held_for_the_sake_of_batches(supervise: Supervise, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    watched = supervise(options={"max_batch": 8, "gate": str(gate)})
    watched.wait_ready()
    assert watched.supervisor.free_slots() == 16
    watched.submit(engines.GATE)
    watched.supervisor.submit(ImageTask(1, "large.png", os.urandom(MAX_BATCHED_BYTES - 100_000)))
    assert watched.supervisor.free_slots() == 14
    watched.supervisor.submit(ImageTask(2, "large.png", os.urandom(100_000)))
    assert watched.supervisor.free_slots() == 0
    watched.supervisor.forget({1})
    assert watched.supervisor.free_slots() == 0, "it is held in the process"
    gate.touch()
    watched.finish(2)
    assert watched.supervisor.free_slots() == 16


def test_large_images_that_nobody_wants_any_more_leave_no_room_for_batches(
    supervise: Supervise, tmp_path: Path
) -> None:
    watched = supervise(options={"max_batch": 8, "gate": str(tmp_path / "gate")})
    watched.wait_ready()
    watched.submit(engines.GATE)
    watched.supervisor.submit(ImageTask(1, "large.png", os.urandom(MAX_BATCHED_BYTES)))
    assert watched.supervisor.room == Room(2, 16), "whoever asks knows how large what is there is"
    watched.supervisor.forget({1})
    assert watched.supervisor.room == Room(1, 1)
    (tmp_path / "gate").touch()
    watched.poll_until(lambda: watched.supervisor.room == Room(2, 16))


def test_the_third_image_of_a_batch_that_kills_is_crashed_and_each_is_answered_once(
    supervise: Supervise, tmp_path: Path
) -> None:
    """Those before it are tried alone; those behind it, which were not touched, are a batch again."""
    options = {"max_batch": 8, "crowd": 6, "batches": str(tmp_path / "batches"), "tally": str(tmp_path / "tally")}
    watched = supervise(options=options)
    rows = in_crowd(watched, [1, 2, engines.KILL, 4, 5, 6])
    assert [rows[i]["status"] for i in range(1, 7)] == ["recognised"] * 2 + ["crashed"] + ["recognised"] * 3
    assert "tried alone (exit -9, SIGKILL" in rows[3]["error_message"]
    assert len(watched.logs) == 2
    # Whoever was touched is in no batch any more. The first of the others may find a thread free before they have come.
    assert {code for batch in noted(tmp_path / "batches") for code in batch} <= {4, 5, 6}
    obeyed = sorted(int(code) for code in (tmp_path / "tally").read_text().split())
    assert obeyed == [1, 2, 4, 5, 6, engines.KILL, engines.CROWD]


def test_only_images_of_a_batch_that_were_touched_are_suspected(supervise: Supervise, tmp_path: Path) -> None:
    """Those that were not can be company for each other, which one that is tried alone never has."""
    watched = supervise(options={"max_batch": 8, "crowd": 5, "once": str(tmp_path / "once")})
    watched.wait_ready()
    watched.submit(engines.CROWD)
    watched.poll_until(lambda: bool(watched.supervisor._seats[0].started_at))
    watched.submit(1, 2, engines.KILL_ONCE, 4, 5, first=1)
    works = dict(watched.supervisor._open)
    rows = watched.finish(6)
    suspects = {task_id for task_id, work in works.items() if work.solo}
    assert suspects == {1, 2, 3}
    assert {row["status"] for row in rows.values()} == {"recognised"}


def test_an_image_that_holds_up_its_batch_is_found_and_the_others_are_recognised(
    supervise: Supervise, tmp_path: Path
) -> None:
    """All of them are late, and none is to blame before it was tried alone."""
    watched = supervise(timeout=2, options={"max_batch": 8, "crowd": 5, "batches": str(tmp_path / "batches")})
    rows = in_crowd(watched, [1, 2, engines.HANG, 4, 5])
    assert [rows[i]["status"] for i in range(1, 6)] == ["recognised"] * 2 + ["timeout"] + ["recognised"] * 2
    assert rows[3]["error_message"] == "not recognised within 2 s"
    assert noted(tmp_path / "batches") == [[1, 2, engines.HANG, 4, 5]]
    assert "1.png" in watched.logs[0]
    assert not any("died" in log for log in watched.logs)


def test_a_late_batch_puts_no_other_image_in_doubt() -> None:
    config = RecogniserConfig(engines.NAME, {}, 4, Path("/nowhere"), 10**6, 60)
    seat = Seat(child=Child.__new__(Child), ready=True)
    seat.hands = {i: Work(ImageTask(i, f"{i}.png", b""), solo=False) for i in range(1, 7)}
    for task_id, batch, at in ((1, 1, 100.0), (2, 1, 100.5), (3, 3, 100.0), (4, 4, 150.0), (5, 4, 150.5)):
        seat.start(task_id, batch, at)
    seat.heard_at = 159.9
    assert seat.find_overdue(config, 159.9) is None
    assert seat.find_overdue(config, 160.0) == "1.png, 2.png, 3.png took longer than 60 s"
    assert (seat.overdue, seat.in_doubt) == ({1, 2, 3}, {1, 2})
    assert "says nothing" in (seat.find_overdue(config, 170.0) or "")
    assert seat.overdue == seat.in_doubt == {1, 2, 3, 4, 5}
    for task_id in (1, 3, 4, 5):
        seat.take_out(task_id)
    seat.find_overdue(config, 170.0)
    assert seat.overdue == seat.in_doubt == {2}, "it was not alone when it was taken up"
    seat.take_out(2)
    assert not seat.taken_up
    seat.start(6, 6, 110.0)
    seat.find_overdue(config, 170.0)
    assert (seat.overdue, seat.in_doubt) == ({6}, set()), "one alone is to blame"


def test_a_batch_that_comes_to_nothing_keeps_no_clock_of_those_that_wait() -> None:
    config = RecogniserConfig(engines.NAME, {}, 2, Path("/nowhere"), 10**6, 60)
    seat = Seat(child=Child.__new__(Child), ready=True)
    seat.hands = {i: Work(ImageTask(i, f"{i}.png", b""), solo=False) for i in range(1, 5)}
    for task_id, batch, at in ((1, 1, 100.0), (2, 1, 100.0), (3, 1, 100.0), (4, 4, 150.0), (1, 1, 159.0)):
        seat.start(task_id, batch, at)
    seat.heard_at = 209.9
    assert (seat.started_at, seat.batch_of) == ({1: 159.0, 4: 150.0}, {1: 1, 4: 4})
    assert seat.taken_up == {1: 1, 4: 1}, "each is alone"
    assert seat.find_overdue(config, 209.9) is None
    seat.take_out(1)
    seat.start(2, 2, 170.0)
    seat.heard_at = 229.9
    assert seat.find_overdue(config, 229.9) == "4.png took longer than 60 s"


def test_a_solo_image_is_in_no_batch(supervise: Supervise, tmp_path: Path) -> None:
    options = {"max_batch": 4, "batches": str(tmp_path / "batches"), "gate": str(tmp_path / "gate")}
    watched = supervise(options=options)
    watched.wait_ready()
    watched.supervisor.submit(ImageTask(100, "solo.png", picture(7), solo=True))
    watched.submit(1, 2, 3, 4, 5, 6, 8, 9)
    assert watched.finish(9)[100]["smiles"] == "C" * 7
    assert 7 not in {code for batch in noted(tmp_path / "batches") for code in batch}


def test_a_retiring_process_finishes_its_batches(supervise: Supervise, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    watched = supervise(processes=2, options={"max_batch": 4, "gate": str(gate)})
    watched.wait_ready(2)
    watched.submit(*[engines.GATE] * 16)
    watched.supervisor.resize(1, 1)
    assert watched.supervisor.free_slots() == 0
    assert (watched.supervisor.room.images, watched.supervisor.room.most) == (2, 8)
    gate.touch()
    assert {row["status"] for row in watched.finish(16).values()} == {"recognised"}
    watched.poll_until(lambda: watched.supervisor.retiring == 0)
    assert watched.logs == [], "it did not die"


def test_forgotten_images_of_a_batch_are_not_reported(supervise: Supervise, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    watched = supervise(options={"max_batch": 4, "gate": str(gate)})
    watched.wait_ready()
    watched.submit(engines.GATE, 1, 2, 3, 4, 5, 6, 7)
    watched.supervisor.forget({0, 2, 4})
    assert (watched.supervisor.outstanding(), watched.supervisor.free_slots()) == (5, 0)
    assert watched.supervisor.room.most == 5
    gate.touch()
    assert sorted(watched.finish(5)) == [1, 3, 5, 6, 7]
    watched.poll_until(lambda: watched.supervisor.free_slots() == 8)


def test_batches_survive_processes_that_come_and_go(supervise: Supervise) -> None:
    watched = supervise(processes=2, threads=2, options={"max_batch": 4})
    watched.wait_ready(2)
    codes = [engines.KILL if place % 13 == 5 else place % 7 + 1 for place in range(40)]
    watched.submit(*codes)
    for processes, done in ((1, 5), (3, 10), (1, 20), (2, 25)):
        watched.poll_until(lambda done=done: len(watched.finished) >= done)  # type: ignore[misc]
        watched.supervisor.resize(processes, 2 * processes)
    rows = watched.finish(len(codes))
    expected = ["crashed" if code == engines.KILL else "recognised" for code in codes]
    assert [rows[place]["status"] for place in range(len(codes))] == expected
