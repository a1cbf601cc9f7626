"""Real recogniser processes, killed and hung: every image is answered once, and no process stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from job_api.schemas import NewResult
from tests import engines
from tests.engines import picture
from tests.plugins.model import DrawnSamples
from tests.serving import wait_for
from uworker.seat import FIRST_BACKOFF_SECONDS, Seat
from uworker.supervisor import CannotLoad, EngineReady, Finished, ImageTask, RecogniserConfig, Report, Supervisor

DEADLINE_SECONDS = 90.0


@dataclass
class Watched:
    """A supervisor with what it said."""

    supervisor: Supervisor
    lines: list[str]
    logs: list[str]
    pids: set[int] = field(default_factory=set)
    reports: list[Report] = field(default_factory=list)

    def poll_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not done():
            assert time.monotonic() < deadline, (self.reports, self.logs, self.lines)
            self.reports += self.supervisor.poll(0.5)
            self.pids |= set(self.supervisor.pids())

    def wait_ready(self, processes: int = 1) -> None:
        self.poll_until(lambda: sum(isinstance(r, EngineReady) for r in self.reports) >= processes)

    def finish(self, count: int) -> dict[int, dict[str, Any]]:
        """Poll until `count` images are finished; each once, each a valid row."""
        self.poll_until(lambda: len(self.finished) >= count)
        self.reports += self.supervisor.poll(0)
        rows = {finished.task_id: finished.row for finished in self.finished}
        assert len(self.finished) == len(rows) == count
        for row in rows.values():
            NewResult.model_validate({"image": "a.png", **row})
        return rows

    @property
    def finished(self) -> list[Finished]:
        return [report for report in self.reports if isinstance(report, Finished)]

    def submit(self, *codes: int, first: int = 0) -> None:
        for task_id, code in enumerate(codes, start=first):
            self.supervisor.submit(ImageTask(task_id, f"{task_id}.png", picture(code)))


Supervise = Callable[..., Watched]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has ended too."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.01)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Start supervisors of the test engine (or another), and have none of their processes left at the end."""
    started: list[Watched] = []

    def start(*, processes: int = 1, threads: int = 1, timeout: float = 60, **overrides: Any) -> Watched:
        config = RecogniserConfig(
            engine=overrides.get("engine", engines.NAME),
            engine_options=overrides.get("options", {}),
            threads=threads,
            weights_home=overrides.get("home", tmp_path),
            max_pixels=64_000_000,
            image_timeout_seconds=timeout,
            load_timeout_seconds=overrides.get("load_timeout", 120),
            end_timeout_seconds=overrides.get("end_timeout", 60),
        )
        lines: list[str] = []
        logs: list[str] = []
        supervisor = Supervisor(
            config,
            processes,
            lambda line, _: lines.append(line),
            lambda _, text: logs.append(text),
            fixed=overrides.get("fixed", True),
        )
        watched = Watched(supervisor, lines, logs)
        started.append(watched)
        supervisor.start()
        watched.pids |= set(supervisor.pids())
        return watched

    yield start
    for watched in started:
        watched.pids |= set(watched.supervisor.pids())
        watched.supervisor.stop(0.5)
        assert watched.supervisor.pids() == []
        assert [pid for pid in watched.pids if psutil.pid_exists(pid)] == []


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


def test_an_unknown_engine_cannot_load(supervise: Supervise) -> None:
    watched = supervise(engine="molscribe")
    watched.poll_until(lambda: bool(watched.reports))
    assert watched.reports == [CannotLoad("UnknownEngineError: no engine is called 'molscribe'; there is decimer")]


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


# --- fewer images at once than threads ---


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


def test_a_limit_holds_for_all_processes_together(supervise: Supervise) -> None:
    watched = supervise(processes=2, threads=2)
    watched.wait_ready(2)
    watched.supervisor.resize(2, 3)
    watched.submit(*[engines.LINGER] * 12)
    most = 0
    while len(watched.finished) < 12:
        most = max(most, sum(len(seat.hands) for seat in watched.supervisor._seats))
        watched.reports += watched.supervisor.poll(0.5)
    assert most == 3


def test_under_a_limit_of_one_a_suspect_gets_its_turn(supervise: Supervise) -> None:
    watched = supervise(processes=2, threads=2)
    watched.wait_ready(2)
    watched.supervisor.resize(2, 1)
    watched.submit(1, engines.KILL, 2, 3)
    rows = watched.finish(4)
    assert [rows[i]["status"] for i in range(4)] == ["recognised", "crashed", "recognised", "recognised"]
