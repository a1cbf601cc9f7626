"""Workers that fail one job after another: they are told to stop, and the jobs pay nothing for them."""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from job_api.client import ApiError, Client, WorkerStopped
from job_api.schemas import Job, JobAction, JobFilter, JobsAction, JobState, Lease, ProjectSettings, Worker
from tests.engines import picture
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, ServiceStarter
from tests.serving import LOAD_SECONDS, wait_for

PROJECT, OTHER = "patents", "others"
AFTER = 5
BEATING = pytest.mark.service(lease_seconds=120, heartbeat_seconds=0.3, sweep_seconds=0.2)
# Back-offs end when a test says so.
PATIENT = pytest.mark.service(backoff_seconds=86_400, sweep_seconds=3600)
NOT_CHARGED = "why; not charged: the worker is quarantined"


def with_jobs(service: RunningService, jobs: int, project: str = PROJECT, **settings: Any) -> Client:
    admin = service.client("admin")
    admin.put_project(project, ProjectSettings(source="file:///data", **settings))
    admin.add_jobs(project, [f"{number:02}" for number in range(jobs)])
    return admin


def holder(service: RunningService) -> Holder:
    return Holder(service.client("worker"))


def fail_all(worker: Holder, leases: list[Lease], *, retryable: bool = True) -> list[JobState]:
    return [worker.fail(lease, retryable=retryable, reason="no-images").state for lease in leases]


def test_directories_without_a_chosen_image_speak_against_nobody(service: RunningService) -> None:
    admin = with_jobs(service, AFTER + 1)
    worker = holder(service)
    leases = worker.claim(PROJECT, max_jobs=AFTER + 1)
    said = [worker.fail(lease, retryable=False, reason="no-chosen-images").state for lease in leases]
    assert said == [JobState.FAILED] * (AFTER + 1)
    assert state_of(admin, worker) == "run"


def seen(admin: Client, worker: Holder) -> Worker:
    [found] = [found for found in admin.workers() if found.id == worker.worker_id]
    return found


def state_of(admin: Client, worker: Holder) -> str:
    return seen(admin, worker).state.value


def all_jobs(admin: Client, project: str = PROJECT) -> list[Job]:
    return list(admin.jobs(project))


def assert_untouched(service: RunningService, admin: Client, jobs: int) -> None:
    """All jobs are queued as if nobody had ever failed them."""
    assert {(job.state, job.failures, job.finished_at, job.due_at) for job in all_jobs(admin)} == {
        (JobState.QUEUED, 0, None, None)
    }
    assert admin.project(PROJECT).jobs.queued == jobs
    service.assert_counters_equal_recount()


@PATIENT
@pytest.mark.parametrize("retryable", [True, False])
def test_a_worker_that_fails_five_jobs_in_a_row_is_stopped_and_nobody_pays(
    service: RunningService, retryable: bool
) -> None:
    admin = with_jobs(service, AFTER)
    worker = holder(service)
    leases = worker.claim(PROJECT, max_jobs=AFTER)
    charged = JobState.WAITING if retryable else JobState.FAILED
    assert fail_all(worker, leases[:-1], retryable=retryable) == [charged] * (AFTER - 1)
    assert state_of(admin, worker) == "run"
    assert worker.heartbeat().reason is None
    assert fail_all(worker, leases[-1:], retryable=retryable) == [JobState.QUEUED]

    answer = worker.heartbeat()
    assert answer.state == "quarantined"
    assert answer.reason == "5 different jobs failed one after another; the last, job 5: no-images (why)"
    with pytest.raises(WorkerStopped, match="quarantined"):
        worker.claim(PROJECT)
    told = seen(admin, worker)
    assert (told.state, told.reason) == ("quarantined", answer.reason)
    assert told.state_since is not None
    assert told.first_seen_at < told.state_since <= told.last_seen_at

    assert_untouched(service, admin, AFTER)
    for lease in leases:
        [attempt] = admin.job(PROJECT, lease.job_id).attempts
        assert (attempt.outcome, attempt.charged, attempt.reason) == ("failed", False, "no-images")
        assert attempt.message == NOT_CHARGED
    [line] = admin.logs(PROJECT, level="error")
    assert (line.worker_id, line.job_id) == (worker.worker_id, 5)
    assert "5 jobs are queued again" in line.message
    assert f"job-api worker lift {worker.worker_id}" in line.message
    # Said again, it is heard again.
    assert fail_all(worker, leases, retryable=retryable) == [JobState.QUEUED] * AFTER
    assert len(list(admin.logs(PROJECT))) == 1
    again = holder(service).claim(PROJECT, max_jobs=AFTER)
    assert [lease.job_id for lease in again] == [lease.job_id for lease in leases], "in their order"


@PATIENT
@pytest.mark.parametrize("success", ["complete", "results", "complete with results"])
def test_a_success_makes_good_what_was_before(service: RunningService, success: str) -> None:
    admin = with_jobs(service, 2 * AFTER)
    worker = holder(service)
    *bad, good, last = worker.claim(PROJECT, max_jobs=2 * AFTER)
    assert len(bad) == 2 * (AFTER - 1)
    if success == "complete":
        # Stored before the failures: only the completion comes after them.
        worker.post(good, "1.png")
    fail_all(worker, bad[: AFTER - 1])
    if success == "results":
        worker.post(good, "1.png")
    elif success == "complete":
        worker.complete(good, 1)
    else:
        worker.complete(good, 1, "1.png")
    fail_all(worker, bad[AFTER - 1 :])
    assert state_of(admin, worker) == "run"
    assert {job.state for job in all_jobs(admin) if job.failures} == {JobState.WAITING}
    # The next one is one too many; what was charged before the success stays.
    fail_all(worker, [last])
    assert state_of(admin, worker) == "quarantined"
    failures = {job.id: job.failures for job in all_jobs(admin)}
    assert [failures[lease.job_id] for lease in bad] == [1] * (AFTER - 1) + [0] * (AFTER - 1)
    service.assert_counters_equal_recount()


@PATIENT
def test_rows_that_were_there_already_are_no_success(service: RunningService) -> None:
    admin = with_jobs(service, AFTER + 1)
    worker = holder(service)
    *bad, held = worker.claim(PROJECT, max_jobs=AFTER + 1)
    worker.post(held, "1.png")
    fail_all(worker, bad[:-1])
    assert worker.post(held, "1.png").unchanged == 1
    fail_all(worker, bad[-1:])
    assert state_of(admin, worker) == "quarantined"


@pytest.mark.service(backoff_seconds=0.001, sweep_seconds=0.02, quarantine_after=2)
def test_one_job_that_fails_again_and_again_counts_once(service: RunningService) -> None:
    admin = with_jobs(service, 1, max_failures=4)
    worker = holder(service)
    for _ in range(4):
        [lease] = worker.claim(PROJECT, wait_seconds=20)
        worker.fail(lease)
    assert all_jobs(admin)[0].state is JobState.FAILED
    assert state_of(admin, worker) == "run"
    # Also not when a person forgets its charges.
    admin.retry(PROJECT, 1)
    worker.fail(worker.one(PROJECT))
    assert state_of(admin, worker) == "run"
    admin.add_jobs(PROJECT, ["another"])
    while (lease := worker.claim(PROJECT, wait_seconds=20)[0]).directory != "another":
        worker.fail(lease)
    worker.fail(lease)
    assert state_of(admin, worker) == "quarantined"


@PATIENT
def test_a_failure_with_new_results_says_nothing_against_the_worker(service: RunningService) -> None:
    admin = with_jobs(service, AFTER + 1)
    worker = holder(service)
    for number, lease in enumerate(worker.claim(PROJECT, max_jobs=AFTER + 1)):
        worker.post(lease, f"{number}.png")
        worker.fail(lease)
    assert state_of(admin, worker) == "run"


@PATIENT
@pytest.mark.parametrize("who", ["the same worker", "another"])
def test_jobs_that_failed_once_speak_against_nobody_and_fail_for_good(service: RunningService, who: str) -> None:
    """Truly empty directories do not go round for ever, nor stop the next worker."""
    admin = with_jobs(service, AFTER)
    worker = holder(service)
    fail_all(worker, worker.claim(PROJECT, max_jobs=AFTER), retryable=False)
    lifted = admin.lift(worker.worker_id)
    assert (lifted.state, lifted.reason) == ("run", None)
    assert worker.heartbeat().state == "run"
    second = worker if who == "the same worker" else holder(service)
    leases = second.claim(PROJECT, max_jobs=AFTER)
    assert fail_all(second, leases, retryable=False) == [JobState.FAILED] * AFTER
    assert state_of(admin, second) == "run"
    assert admin.project(PROJECT).jobs.failed == AFTER
    service.assert_counters_equal_recount()
    # Where a person says that they are worth another try, they are as new.
    [acted] = admin.act(PROJECT, JobsAction(action=JobAction.RETRY, filter=JobFilter(all=True)))
    assert acted.changed == AFTER
    third = holder(service)
    fail_all(third, third.claim(PROJECT, max_jobs=AFTER), retryable=False)
    assert state_of(admin, third) == "quarantined"
    assert_untouched(service, admin, AFTER)


@PATIENT
def test_what_did_not_count_is_taken_back_too(service: RunningService) -> None:
    admin = with_jobs(service, AFTER + 1)
    first, worker = holder(service), holder(service)
    fail_all(first, first.claim(PROJECT), retryable=True)
    service.sql("UPDATE jobs SET state = 'queued', due_at = NULL WHERE state = 'waiting'")
    service.sql("UPDATE project_slots SET queued = queued + waiting, waiting = 0")
    leases = worker.claim(PROJECT, max_jobs=AFTER + 1)
    suspect = leases.pop(0)
    assert worker.fail(suspect, retryable=False).state is JobState.FAILED
    fail_all(worker, leases, retryable=False)
    assert state_of(admin, worker) == "quarantined"
    job = admin.job(PROJECT, suspect.job_id)
    assert (job.state, job.failures) == (JobState.QUEUED, 1)
    assert [attempt.charged for attempt in job.attempts] == [False, True]


@PATIENT
def test_a_quarantined_worker_may_end_what_it_holds_but_charges_nobody(service: RunningService) -> None:
    admin = with_jobs(service, AFTER + 3)
    worker = holder(service)
    *bad, done, given_back, failed = worker.claim(PROJECT, max_jobs=AFTER + 3)
    fail_all(worker, bad)
    assert [worker.status_of(lease).value for lease in (done, given_back, failed)] == ["held"] * 3
    assert worker.complete(done, 1, "1.png").state is JobState.COMPLETED
    assert worker.release(given_back).state is JobState.QUEUED
    assert worker.fail(failed, retryable=False).state is JobState.QUEUED
    assert state_of(admin, worker) == "quarantined", "a success does not lift it"
    job = admin.job(PROJECT, failed.job_id)
    assert (job.failures, job.reason) == (0, "worker-quarantined")
    assert job.attempts[0].message == NOT_CHARGED
    assert admin.project(PROJECT).jobs.queued == AFTER + 2
    service.assert_counters_equal_recount()


@PATIENT
def test_a_worker_that_is_quarantined_by_hand_gives_back_what_it_charged(service: RunningService) -> None:
    admin = with_jobs(service, 3)
    worker = holder(service)
    leases = worker.claim(PROJECT, max_jobs=3)
    fail_all(worker, leases[:2], retryable=False)
    told = admin.quarantine(worker.worker_id)
    assert (told.state, told.reason, told.leases) == ("quarantined", "by hand", 1)
    assert worker.heartbeat(leases[2]).reason == "by hand"
    assert [job.state for job in all_jobs(admin)] == ["queued", "queued", "claimed"]
    again = admin.quarantine(worker.worker_id)
    assert (again.reason, again.state_since) == (told.reason, told.state_since)
    worker.release(leases[2])
    assert_untouched(service, admin, 3)


@PATIENT
def test_a_lift_empties_the_record(service: RunningService) -> None:
    admin = with_jobs(service, 2 * AFTER)
    worker = holder(service)
    leases = worker.claim(PROJECT, max_jobs=2 * AFTER)
    fail_all(worker, leases[: AFTER - 1], retryable=False)
    admin.lift(worker.worker_id)
    fail_all(worker, leases[AFTER - 1 : 2 * AFTER - 2], retryable=False)
    assert state_of(admin, worker) == "run"
    fail_all(worker, leases[2 * AFTER - 2 : 2 * AFTER - 1], retryable=False)
    assert state_of(admin, worker) == "quarantined"
    assert [job.state.value for job in all_jobs(admin)] == ["failed"] * 4 + ["queued"] * 5 + ["claimed"]


@pytest.mark.parametrize("quarantine_after", [0, 2])
def test_the_threshold_is_a_setting(start_service: ServiceStarter, quarantine_after: int) -> None:
    service = start_service(quarantine_after=quarantine_after, backoff_seconds=86_400)
    admin = with_jobs(service, AFTER + 1)
    worker = holder(service)
    leases = worker.claim(PROJECT, max_jobs=AFTER + 1)
    for failed, lease in enumerate(leases, start=1):
        worker.fail(lease)
        assert (state_of(admin, worker) == "quarantined") == (failed >= quarantine_after > 0)
    # Also where none is quarantined by itself, one that is by hand gives back what it charged.
    admin.quarantine(worker.worker_id)
    assert_untouched(service, admin, AFTER + 1)


@PATIENT
def test_workers_that_fail_in_turns_are_judged_each_by_itself(service: RunningService) -> None:
    admin = with_jobs(service, 3 * AFTER)
    bad, better = holder(service), holder(service)
    for number in range(AFTER - 1):
        bad.fail(bad.one(PROJECT))
        better.fail(better.one(PROJECT))
        if number == 1:
            better.post(better.one(PROJECT), "1.png")
    bad.fail(bad.one(PROJECT))
    better.fail(better.one(PROJECT))
    assert (state_of(admin, bad), state_of(admin, better)) == ("quarantined", "run")
    charged = service.sql("SELECT DISTINCT worker_id FROM attempts WHERE charged")
    assert charged == [{"worker_id": better.worker_id}]
    service.assert_counters_equal_recount()


@pytest.mark.service(backoff_seconds=0.001, sweep_seconds=0.02)
def test_what_others_did_to_a_job_since_stays_done(service: RunningService) -> None:
    admin = with_jobs(service, AFTER, max_failures=2)
    bad, good = holder(service), holder(service)
    fail_all(bad, bad.claim(PROJECT, max_jobs=AFTER - 1))
    last = bad.one(PROJECT)
    wait_for(lambda: admin.project(PROJECT).jobs.queued == AFTER - 1)
    held, failed, done, cancelled = good.claim(PROJECT, max_jobs=AFTER - 1)
    assert good.fail(failed).state is JobState.FAILED
    good.complete(done, 1, "1.png")
    admin.cancel(PROJECT, cancelled.job_id)
    bad.fail(last)
    assert state_of(admin, bad) == "quarantined"
    jobs = {job.id: (job.state.value, job.failures) for job in all_jobs(admin)}
    assert jobs == {
        held.job_id: ("claimed", 0),
        failed.job_id: ("failed", 1),
        done.job_id: ("completed", 0),
        cancelled.job_id: ("cancelled", 0),
        last.job_id: ("queued", 0),
    }
    assert good.complete(held, 1, "1.png").state is JobState.COMPLETED
    service.assert_counters_equal_recount()


@PATIENT
def test_a_worker_that_drains_goes_on_to_its_end_and_charges_nobody(service: RunningService) -> None:
    admin = with_jobs(service, AFTER)
    worker = holder(service)
    leases = worker.claim(PROJECT, max_jobs=AFTER)
    admin.drain(worker.worker_id)
    fail_all(worker, leases, retryable=False)
    assert worker.heartbeat().state == "drain"
    assert_untouched(service, admin, AFTER)


@PATIENT
def test_jobs_of_several_projects_come_back_and_deleted_ones_do_not(service: RunningService) -> None:
    doomed = "doomed"
    for project in (PROJECT, OTHER, doomed):
        admin = with_jobs(service, 2, project)
    worker, waiting = holder(service), holder(service)
    fail_all(worker, worker.claim(doomed, max_jobs=2), retryable=False)
    fail_all(worker, worker.claim(OTHER, max_jobs=2), retryable=False)
    last = worker.one(PROJECT)
    admin.delete_project(doomed)
    got: list[Lease] = []
    thread = threading.Thread(target=lambda: got.extend(waiting.claim(OTHER, wait_seconds=40, max_jobs=2)))
    thread.start()
    wait_for(lambda: service.waiting == 1)
    worker.fail(last, retryable=False)
    thread.join(20)
    assert [lease.project for lease in got] == [OTHER, OTHER], "who waits is woken"
    assert state_of(admin, worker) == "quarantined"
    assert admin.project(PROJECT).jobs.queued == 2
    assert service.sql(
        "SELECT count(*)::int AS n FROM project_slots s JOIN projects p ON p.id = s.project_id "
        "WHERE p.deleted_at IS NOT NULL"
    ) == [{"n": 0}]
    service.assert_counters_equal_recount()


def test_one_that_is_gone_or_was_never_there_is_not_quarantined(service: RunningService) -> None:
    admin = with_jobs(service, 1)
    worker = holder(service)
    worker.heartbeat()
    worker.client.goodbye(worker.worker_id)
    for steer in (admin.quarantine, admin.lift):
        with pytest.raises(ApiError, match="has said goodbye"):
            steer(worker.worker_id)
        with pytest.raises(ApiError, match="there is no worker"):
            steer("nobody")


# --- many at once ---


def fail_much(worker: Holder, chance: random.Random, iterations: int) -> None:
    """A worker that mostly fails, also through leases that were taken from it, and that is lifted again by people."""
    for _ in range(iterations):
        with suppress(WorkerStopped):
            leases = worker.claim(chance.choice([PROJECT, OTHER, None]), max_jobs=4)
            ends: list[Callable[[Lease], object]] = [
                lambda lease: worker.complete(lease, 1, "1.png"),
                lambda lease: worker.post(lease, "1.png", "2.png"),
                *[lambda lease: worker.fail(lease, retryable=chance.random() < 0.5)] * 5,
            ]
            both = [threading.Thread(target=end_some, args=(part, ends, chance)) for part in (leases[:2], leases[2:])]
            for thread in both:
                thread.start()
            for thread in both:
                thread.join()
        worker.heartbeat()


def end_some(leases: list[Lease], ends: list[Callable[[Lease], object]], chance: random.Random) -> None:
    for lease in leases:
        with suppress(ApiError):
            chance.choice(ends)(lease)


def meddle(admin: Client, workers: list[Holder], chance: random.Random, done: threading.Event) -> None:
    while not done.is_set():
        project = chance.choice([PROJECT, OTHER])
        with suppress(ApiError):
            chance.choice([admin.quarantine, admin.lift, admin.lift])(chance.choice(workers).worker_id)
        with suppress(ApiError):
            chance.choice([admin.retry, admin.rerun, admin.force_release])(project, chance.randint(1, 60))
        for _ in admin.act(project, JobsAction(action=JobAction.RETRY, filter=JobFilter(all=True))):
            pass


@pytest.mark.service(
    lease_seconds=0.5, heartbeat_seconds=0.1, sweep_seconds=0.05, backoff_seconds=0.01, quarantine_after=2
)
def test_workers_that_fail_at_once_leave_the_counters_right(service: RunningService) -> None:
    with_jobs(service, 30, PROJECT)
    admin = with_jobs(service, 30, OTHER)
    workers = [holder(service) for _ in range(4)]
    done = threading.Event()
    threads = [
        threading.Thread(target=fail_much, args=(worker, random.Random(number), 25))
        for number, worker in enumerate(workers)
    ]
    people = threading.Thread(
        target=meddle, args=(service.client("admin", fresh=True), workers, random.Random(9), done)
    )
    for worker in workers:
        worker.heartbeat()
    for thread in (*threads, people):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    people.join()
    wait_for(lambda: not service.sql("SELECT 1 FROM jobs WHERE state IN ('claimed', 'waiting') LIMIT 1"), LOAD_SECONDS)
    service.assert_counters_equal_recount()
    assert any("one after another" in line.message for line in admin.logs(level="error"))
    refunded = "SELECT count(*)::int AS n FROM attempts WHERE message LIKE '%not charged%'"
    assert service.sql(refunded)[0]["n"] >= 2
    wrong = "SELECT 1 FROM attempts WHERE message LIKE '%not charged%' AND (charged OR outcome <> 'failed')"
    assert service.sql(wrong) == []


# --- real workers ---


@pytest.fixture
def small_corpus(tmp_path: Path) -> Corpus:
    """20 directories of one image."""
    root, smiles = tmp_path / "small corpus", {}
    for atoms in range(1, 21):
        target = root / f"{atoms:02}" / "one.png"
        target.parent.mkdir(parents=True)
        target.write_bytes(picture(atoms))
        smiles[target.parent.name, target.name] = "C" * atoms
    return Corpus(root, smiles, "pixel")


@pytest.fixture
def wrong_root(tmp_path: Path) -> str:
    """A folder that is mounted, and is not the source."""
    (tmp_path / "another disk" / "things").mkdir(parents=True)
    return str(tmp_path / "another disk")


def submit(service: RunningService, corpus: Corpus) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, corpus.project)
    admin.add_jobs(PROJECT, corpus.directories)
    return admin


@BEATING
def test_a_worker_with_a_wrong_mount_costs_no_job(
    service: RunningService, small_corpus: Corpus, wrong_root: str, start_worker: WorkerStarter
) -> None:
    admin = submit(service, small_corpus)
    bad = start_worker(service.root, service.token("worker", fresh=True), once=False, source_root=wrong_root)
    wait_for(lambda: any(worker.state == "quarantined" for worker in admin.workers()), LOAD_SECONDS)
    wait_for(lambda: "is quarantined" in bad.log)
    [told] = admin.workers()
    assert told.reason is not None
    assert told.reason in bad.log
    assert f"job-api worker lift {told.id}" in bad.log
    wait_for(lambda: admin.project(PROJECT).jobs.claimed == 0)
    counts = admin.project(PROJECT).jobs
    assert (counts.queued, counts.failed, counts.waiting) == (20, 0, 0)

    good = start_worker(service.root, service.token("worker", fresh=True))
    assert good.wait() == 0, good.log
    assert admin.project(PROJECT).jobs.completed == 20
    assert {job.failures for job in admin.jobs(PROJECT)} == {0}
    assert len(list(admin.results(PROJECT))) == 20
    service.assert_counters_equal_recount()

    # The bad one is still there, and works as soon as it is lifted.
    assert bad.process.poll() is None
    beat_at = told.last_seen_at
    wait_for(lambda: next(w for w in admin.workers() if w.id == told.id).last_seen_at > beat_at)
    admin.add_jobs(PROJECT, ["still not there"])
    admin.lift(told.id)
    wait_for(lambda: admin.project(PROJECT).jobs.failed == 1)
    assert "lifted" in bad.log


def test_a_quarantined_worker_that_runs_once_ends_and_says_so(
    service: RunningService, small_corpus: Corpus, wrong_root: str, start_worker: WorkerStarter
) -> None:
    admin = submit(service, small_corpus)
    worker = start_worker(service.root, service.token("worker"), source_root=wrong_root)
    assert worker.wait(60) == 5, worker.log
    assert "quarantined" in worker.log
    assert "told to stop" not in worker.log, "the refusal of a claim does not say why, and comes again and again"
    [told] = admin.workers()
    assert told.state == "gone"
    assert told.reason is not None
    assert "no-images" in told.reason, "it is still to be seen why"
    counts = admin.project(PROJECT).jobs
    assert (counts.queued, counts.failed) == (20, 0)
    service.assert_counters_equal_recount()
