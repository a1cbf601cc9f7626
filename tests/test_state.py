"""What a worker says of itself on its own machine: the state file, and `uworker state`, which reads it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from job_api.schemas import ProjectSettings
from tests.emulators.relay import Answer, Relay
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import WAIT_SECONDS, wait_for
from uworker.claimer import LONG_POLL_SECONDS
from uworker.state import State, StateError, StateFile, WorkerReport, read_state

PROJECT = "patents"
FAILING = """
import uworker.worker

def fail(_):
    raise RuntimeError("what nobody thought of")

uworker.worker.Worker._is_over = fail
from uworker.cli import app
app()
"""


def report(*, state: State = State.WORKING, images: int = 7, age_seconds: float = 0, doing: str = "") -> WorkerReport:
    return WorkerReport(
        worker_id="vm7-1-abcd",
        state=state,
        doing=doing or "recognising",
        plan="up to 2 recogniser processes",
        processes=1,
        threads=4,
        project=PROJECT,
        job_api_root="http://host:8800",
        jobs_done=3,
        images_done=images,
        updated_at=datetime.now(UTC) - timedelta(seconds=age_seconds),
    )


def ask(path: Path | None, *options: str) -> subprocess.CompletedProcess[str]:
    """What `uworker state` says in an environment with nothing else set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UWORKER_")}
    if path is not None:
        environment["UWORKER_STATE_FILE"] = str(path)
    command = [sys.executable, "-m", "uworker", "state", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def state_in(path: Path) -> State | None:
    try:
        return read_state(path).state
    except StateError:
        return None


@pytest.mark.service(heartbeat_seconds=1)
def test_a_worker_tells_from_its_start_to_its_end_what_it_does(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=corpus.source))
    worker = start_worker(
        service.root, service.token("worker"), once=False, state_file=str(path), job_api_project=PROJECT
    )
    wait_for(lambda: state_in(path) is not None, WAIT_SECONDS)
    # Before a long poll would be over: the service has no job for it.
    wait_for(lambda: state_in(path) is State.WAITING, LONG_POLL_SECONDS / 2)
    admin.add_jobs(PROJECT, corpus.directories)
    wait_for(lambda: state_in(path) is State.WORKING, WAIT_SECONDS)
    jobs, images = len(corpus.directories), len(corpus.smiles)
    wait_for(lambda: (read_state(path).jobs_done, read_state(path).images_done) == (jobs, images), WAIT_SECONDS)
    wait_for(lambda: state_in(path) is State.WAITING)
    said = ask(path)
    assert said.returncode == 0, said.stderr
    [line] = said.stdout.splitlines()
    [seen] = admin.workers()
    assert line.startswith(f"{seen.id}: waiting, ")
    assert f"{jobs} jobs, {images} images" in line
    assert f"{service.root}, project {PROJECT}" in line
    written = json.loads(ask(path, "--json").stdout)
    assert (written["processes"], written["state"]) == (len(worker.children()), "waiting")
    admin.quarantine(seen.id)
    wait_for(lambda: state_in(path) is State.QUARANTINED, WAIT_SECONDS)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    ended = read_state(path)
    assert (ended.state, ended.processes, ended.threads) == (State.ENDED, 0, 0)
    assert (ended.jobs_done, ended.images_done) == (jobs, images)
    said = ask(path)
    assert said.returncode == 1
    assert said.stdout.startswith(f"{seen.id}: ended, as it was told to; ")


@pytest.mark.service(heartbeat_seconds=1)
def test_a_worker_whose_service_has_gone_says_so_until_it_is_back(
    service: RunningService, start_worker: WorkerStarter, relay_to: Callable[[str], Relay], tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    service.client("admin").put_project(PROJECT, ProjectSettings(source="file:///data"))
    relay = relay_to(service.root)
    start_worker(relay.address, service.token("worker"), once=False, state_file=str(path), job_api_project=PROJECT)
    wait_for(lambda: state_in(path) is State.WAITING)
    # Only the heartbeats: the claim that waits for jobs would learn of it much later.
    relay.plan(Answer(503), times=1_000, matching="heartbeat")
    wait_for(lambda: "503" in read_state(path).doing and "trying again" in read_state(path).doing)
    assert ask(path).returncode == 0, "it is no fault of this machine"
    relay.heal()
    wait_for(lambda: "503" not in read_state(path).doing)


def test_a_worker_that_was_not_let_in_yet_is_not_ready_and_says_what_it_waits_for(
    start_worker: WorkerStarter, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    start_worker("http://127.0.0.1:9", "dj_token", once=False, state_file=str(path))
    wait_for(lambda: state_in(path) is State.STARTING, WAIT_SECONDS)
    wait_for(lambda: "cannot be reached" in read_state(path).doing, WAIT_SECONDS)
    said = ask(path)
    assert said.returncode == 1
    assert "starting, the job service at http://127.0.0.1:9 cannot be reached" in said.stdout


def test_a_worker_that_gets_no_answer_is_seen_to_live_and_may_be_stopped(
    start_worker: WorkerStarter, tmp_path: Path
) -> None:
    """As where a firewall drops packets: whoever starts unhealthy workers anew must not take it for one."""
    path = tmp_path / "state.json"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        worker = start_worker(
            f"http://127.0.0.1:{silent.getsockname()[1]}", "dj_token", once=False, state_file=str(path)
        )
        wait_for(lambda: state_in(path) is State.STARTING, WAIT_SECONDS)
        first = read_state(path)
        assert first.doing == "asking the job service"
        # Still the same question.
        wait_for(lambda: first.updated_at < read_state(path).updated_at and read_state(path).doing == first.doing)
        began = time.monotonic()
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0, worker.log
        assert time.monotonic() - began < 20


def test_a_worker_of_a_project_that_is_not_there_is_not_ready(
    service: RunningService, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    start_worker(service.root, service.token("worker"), once=False, state_file=str(path), job_api_project="nowhere")
    wait_for(lambda: state_in(path) is State.STARTING and "waiting for it to be made" in read_state(path).doing)
    service.client("admin").put_project("nowhere", ProjectSettings(source="file:///data"))
    wait_for(lambda: state_in(path) is State.WAITING)


def test_a_refused_worker_leaves_the_reason(
    service: RunningService, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    worker = start_worker(service.root, "dj_wrong", once=False, state_file=str(path))
    assert worker.wait() == 4
    said = ask(path).stdout
    assert ": ended, " in said
    assert "make a token" in said
    assert "dj_wrong" not in path.read_text()


def test_a_worker_that_fails_says_so_and_not_that_all_is_well(service: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    given = {
        "UWORKER_JOB_API_ROOT": service.root,
        "UWORKER_JOB_API_TOKEN": service.token("worker"),
        "UWORKER_STATE_FILE": str(path),
        "UWORKER_SPOOL_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", FAILING, "--once"],
        env=os.environ | given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: what nobody thought of" in done.stderr
    assert ": ended, it failed: RuntimeError('what nobody thought of'); " in ask(path).stdout


def test_a_file_that_cannot_be_written_hurts_no_worker(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=corpus.source))
    admin.add_jobs(PROJECT, corpus.directories[:1])
    worker = start_worker(service.root, service.token("worker"), state_file=str(tmp_path / "missing" / "state.json"))
    assert worker.wait() == 0, worker.log
    assert admin.project(PROJECT).jobs.completed == 1
    assert worker.log.count("state cannot be written") == 1, worker.log


def test_what_is_silent_for_long_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(report(age_seconds=31).model_dump_json())
    said = ask(path)
    assert said.returncode == 1
    assert re.fullmatch(r"uworker: stale: vm7-1-abcd was working \d+ s ago and is silent since", said.stderr.strip())
    path.write_text(report(age_seconds=1).model_dump_json())
    assert ask(path).returncode == 0
    path.write_text(report(age_seconds=3_600, state=State.ENDED).model_dump_json())
    said = ask(path)
    assert said.returncode == 1
    assert "vm7-1-abcd: ended, " in said.stdout


@pytest.mark.parametrize(
    ("content", "words"), [(None, "has not started yet"), ("", "cannot be read"), ("{}", "cannot be read")]
)
def test_a_file_that_says_nothing_is_told_in_one_line(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "state.json"
    if content is not None:
        path.write_text(content)
    said = ask(path)
    assert said.returncode == 1
    assert words in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_without_the_setting_it_says_what_to_set() -> None:
    said = ask(None)
    assert said.returncode == 2
    assert "set UWORKER_STATE_FILE" in said.stderr


def test_it_is_written_when_something_is_new_and_every_five_seconds_else(tmp_path: Path) -> None:
    path, now = tmp_path / "state.json", 0.0
    file = StateFile(path, clock=lambda: now)

    def is_written(**changes: object) -> bool:
        path.unlink(missing_ok=True)
        file.show(report(**changes))  # type: ignore[arg-type]
        return path.exists()

    assert is_written()
    assert not is_written()
    now = 0.5
    assert not is_written(images=8), "an image more can wait a second"
    assert is_written(images=8, doing="waiting for jobs")
    now = 1.6
    assert is_written(images=9, doing="waiting for jobs")
    now = 6.5
    assert not is_written(images=9, doing="waiting for jobs")
    now = 6.7
    assert is_written(images=9, doing="waiting for jobs")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(path)
    file.show(report())
    done = threading.Event()

    def write() -> None:
        for number in range(2_000):
            file.show(report(doing="x" * (number % 50 * 1_000)))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        read_state(path)
    writer.join()
