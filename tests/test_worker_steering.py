"""A worker that is told something while it works: by the service, by a person at the keyboard, by its login."""

import signal
import time
from pathlib import Path

import pytest

from job_api.client import Client
from job_api.schemas import JobState, NewUser, Role, Worker
from tests.plugins.fleet import Corpus, WorkerProcess, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import WAIT_SECONDS, is_gone, wait_for
from uworker.state import read_state

PROJECT = "patents"
BEATING = pytest.mark.service(lease_seconds=5, heartbeat_seconds=0.3, sweep_seconds=0.3)
PASSWORD = "a password of some length"


@pytest.fixture
def admin(service: RunningService, paced_corpus: Corpus) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, paced_corpus.project)
    admin.add_jobs(PROJECT, paced_corpus.directories)
    return admin


def stored(admin: Client) -> int:
    return admin.project(PROJECT).images.stored


def busy_worker(service: RunningService, admin: Client, start_worker: WorkerStarter) -> tuple[WorkerProcess, Worker]:
    """A worker in the middle of its jobs, and what the service calls it."""
    worker = start_worker(service.root, service.token("worker", fresh=True), once=False)
    wait_for(lambda: stored(admin) >= 5, WAIT_SECONDS)
    [seen] = admin.workers()
    return worker, seen


@BEATING
def test_a_drained_worker_finishes_what_it_holds_and_ends(
    service: RunningService, admin: Client, start_worker: WorkerStarter
) -> None:
    worker, seen = busy_worker(service, admin, start_worker)
    admin.drain(seen.id)
    assert worker.wait() == 0, worker.log
    counts = admin.project(PROJECT).jobs
    assert counts.completed >= 1
    assert counts.queued >= 1
    assert counts.completed + counts.queued == 12
    assert all(job.releases == 0 for job in admin.jobs(PROJECT)), "what it held was finished, not given back"


@BEATING
def test_a_quarantined_worker_claims_nothing_until_it_is_lifted(
    service: RunningService, admin: Client, start_worker: WorkerStarter
) -> None:
    worker, seen = busy_worker(service, admin, start_worker)
    admin.quarantine(seen.id)
    wait_for(lambda: admin.project(PROJECT).jobs.claimed == 0, WAIT_SECONDS)
    done = admin.project(PROJECT).jobs.completed
    assert 1 <= done < 12
    beat_at = next(admin.workers()).last_seen_at
    wait_for(lambda: next(admin.workers()).last_seen_at > beat_at)
    assert worker.process.poll() is None
    assert admin.project(PROJECT).jobs.completed == done
    admin.lift(seen.id)
    wait_for(lambda: admin.project(PROJECT).jobs.completed > done, WAIT_SECONDS)


@BEATING
def test_a_cancelled_job_is_dropped_and_the_next_is_done(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    everything = paced_corpus.root / "everything"
    everything.mkdir()
    for directory in paced_corpus.directories:
        (everything / directory).symlink_to(paced_corpus.root / directory, target_is_directory=True)
    admin = service.client("admin")
    admin.put_project(PROJECT, paced_corpus.project)
    admin.add_jobs(PROJECT, ["everything"])
    worker, _ = busy_worker(service, admin, start_worker)
    admin.cancel(PROJECT, 1)
    wait_for(lambda: "job 1:" in worker.log)
    rows = stored(admin)
    assert rows < len(paced_corpus.smiles)
    admin.add_jobs(PROJECT, paced_corpus.directories[:1])
    wait_for(lambda: admin.project(PROJECT).jobs.completed == 1, WAIT_SECONDS)
    assert admin.job(PROJECT, 1).state is JobState.CANCELLED
    assert len(list(admin.job_results(PROJECT, 1))) == rows


@BEATING
def test_a_token_that_is_revoked_ends_the_worker_and_charges_nobody(
    service: RunningService, admin: Client, start_worker: WorkerStarter
) -> None:
    worker, _ = busy_worker(service, admin, start_worker)
    for token in admin.tokens():
        if token.role is Role.WORKER:
            admin.revoke_token(token.id)
    assert worker.wait(30) == 4, worker.log
    assert "token is not valid" in worker.log
    assert "Traceback" not in worker.log


def test_a_second_sigterm_is_obeyed_at_once(
    service: RunningService, admin: Client, start_worker: WorkerStarter
) -> None:
    worker, _ = busy_worker(service, admin, start_worker)
    children = worker.children()
    assert children
    # Both at once: while it is stopped, they are kept for it. Different ones, for equal ones are merged.
    worker.send(signal.SIGSTOP)
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGINT)
    sent_at = time.monotonic()
    worker.send(signal.SIGCONT)
    assert worker.wait(10) == 128 + signal.SIGTERM
    assert time.monotonic() - sent_at < 5
    for child in children:
        wait_for(lambda child=child: is_gone(child))  # type: ignore[misc]


def test_a_worker_that_logs_in_by_name_shows_its_password_to_nobody(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = service.client("admin")
    admin.put_user("vm", NewUser(password=PASSWORD, role=Role.WORKER))
    admin.put_project(PROJECT, paced_corpus.project)
    admin.add_jobs(PROJECT, paced_corpus.directories[:2])
    worker = start_worker(
        service.root, "", once=True, job_api_username="vm", job_api_password=PASSWORD, log_level="DEBUG"
    )
    assert worker.wait() == 0, worker.log
    assert admin.project(PROJECT).jobs.completed == 2
    assert PASSWORD not in worker.log
    assert not any(PASSWORD in line.message for line in admin.logs())


def test_a_pause_is_told_and_not_taken_for_the_end_of_all_work_in_silence(
    service: RunningService, admin: Client, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    admin.pause(PROJECT)
    of_it = {"job_api_project": PROJECT}
    told = f"the project {PROJECT} is paused and hands out no jobs; `job-api project {PROJECT} --resume` ends that"
    ends = start_worker(service.root, service.token("worker"), **of_it)
    assert ends.wait() == 0, ends.log
    assert told in ends.log
    state = tmp_path / "state.json"
    waits = start_worker(service.root, service.token("worker"), once=False, state_file=str(state), **of_it)
    wait_for(lambda: told in waits.log and state.exists(), WAIT_SECONDS)
    wait_for(lambda: read_state(state).doing == f"waiting for jobs; the project {PROJECT} is paused", WAIT_SECONDS)
    assert stored(admin) == 0
    admin.resume(PROJECT)
    wait_for(lambda: stored(admin) >= 1, WAIT_SECONDS)
    wait_for(lambda: read_state(state).doing == "recognising", WAIT_SECONDS)
    assert waits.log.count(told) == 1
