"""Leases: who holds one may write, who lost it changes nothing, and what expired may come back."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from job_api.client import ApiError, Client, LeaseLost, NotFound, Refused, ResultsMissing, WorkerStopped
from job_api.schemas import JobState, LeaseStatus, LogLine, NewUser, ProjectSettings, Role
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService, ServiceStarter
from tests.serving import wait_for

PROJECT = "patents"
# Leases run out when a test says so (`expire_leases`), and back-offs do not end by themselves.
SWEPT = pytest.mark.service(sweep_seconds=0.1, backoff_seconds=3600)
PATIENT = pytest.mark.service(backoff_seconds=3600)


@pytest.fixture
def admin(service: RunningService) -> Client:
    return with_jobs(service, "a")


def with_jobs(service: RunningService, *directories: str, **settings: Any) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data", **settings))
    if directories:
        admin.add_jobs(PROJECT, list(directories))
    return admin


def holder(service: RunningService) -> Holder:
    return Holder(service.client("worker"))


def everything(service: RunningService) -> list[Any]:
    """All that a stale writer could have changed."""
    return [
        service.sql("SELECT * FROM jobs ORDER BY id"),
        service.sql("SELECT * FROM attempts ORDER BY job_id, lease_seq"),
        service.sql("SELECT * FROM results ORDER BY job_id, image"),
    ]


def writes(stale: Holder, lease: Any) -> dict[str, Callable[[], object]]:
    return {
        "results": lambda: stale.post(lease, "late.png"),
        "complete": lambda: stale.complete(lease, 1, "late.png"),
        "fail": lambda: stale.fail(lease),
        "release": lambda: stale.release(lease),
        "images-done": lambda: stale.images_done(lease),
        "results-done": lambda: stale.results_done(lease),
    }


def assert_shut_out(service: RunningService, stale: Holder, lease: Any, status: LeaseStatus = LeaseStatus.LOST) -> None:
    before = everything(service)
    for name, write in writes(stale, lease).items():
        with pytest.raises(LeaseLost):
            write()
        assert everything(service) == before, name
    assert stale.status_of(lease) is status
    assert everything(service) == before
    stale.client.post_logs(stale.worker_id, [LogLine(message="kept", project=PROJECT, job_id=lease.job_id)])
    [line] = service.client("admin").logs(PROJECT)
    assert (line.message, line.worker_id, line.job_id) == ("kept", stale.worker_id, lease.job_id)
    service.assert_counters_equal_recount()


@SWEPT
def test_a_worker_paused_past_its_lease_changes_nothing_once_another_has_claimed(
    service: RunningService, admin: Client
) -> None:
    stale, successor = holder(service), holder(service)
    lost = stale.one(PROJECT)
    stale.post(lost, "1.png")
    service.expire_leases()
    wait_for(lambda: admin.project(PROJECT).jobs.queued == 1)
    held = successor.one(PROJECT)
    assert held.lease_seq == lost.lease_seq + 1
    assert_shut_out(service, stale, lost)
    assert successor.images_done(held) == ["1.png"]
    successor.complete(held, 2, "2.png")
    assert admin.job(PROJECT, held.job_id).state is JobState.COMPLETED


@SWEPT
@pytest.mark.parametrize(
    "first_write", ["heartbeat", "results", "complete", "fail", "release", "images-done", "results-done"]
)
def test_a_lease_nobody_claimed_again_comes_back_at_its_next_write_uncharged(
    service: RunningService, admin: Client, first_write: str
) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    service.expire_leases()
    wait_for(lambda: admin.job(PROJECT, lease.job_id).state is JobState.QUEUED)
    assert admin.job(PROJECT, lease.job_id).failures == 1
    if first_write == "heartbeat":
        assert worker.status_of(lease) is LeaseStatus.HELD
    else:
        writes(worker, lease)[first_write]()
    job = admin.job(PROJECT, lease.job_id)
    assert job.lease_seq == lease.lease_seq
    expected = {"complete": JobState.COMPLETED, "fail": JobState.WAITING, "release": JobState.QUEUED}
    assert job.state is expected.get(first_write, JobState.CLAIMED)
    assert job.failures == (1 if first_write == "fail" else 0)
    service.assert_counters_equal_recount()
    if job.state is JobState.CLAIMED:
        assert worker.complete(lease, 1, "late.png").state is JobState.COMPLETED


@SWEPT
def test_a_lease_that_expired_for_the_last_time_still_comes_back(service: RunningService) -> None:
    admin = with_jobs(service, "a", max_failures=1)
    worker = holder(service)
    lease = worker.one(PROJECT)
    service.expire_leases()
    wait_for(lambda: admin.job(PROJECT, lease.job_id).state is JobState.FAILED)
    assert worker.complete(lease, 1, "1.png").state is JobState.COMPLETED
    assert admin.job(PROJECT, lease.job_id).failures == 0
    service.assert_counters_equal_recount()


@SWEPT
@pytest.mark.parametrize("action", ["cancel", "force_release", "rerun"])
def test_an_expired_lease_does_not_come_back_after_a_person_stepped_in(service: RunningService, action: str) -> None:
    admin = with_jobs(service, "a", max_failures=1 if action == "rerun" else 3)
    worker = holder(service)
    lease = worker.one(PROJECT)
    if action == "force_release":
        admin.force_release(PROJECT, lease.job_id)
    else:
        state = JobState.FAILED if action == "rerun" else JobState.QUEUED
        service.expire_leases()
        wait_for(lambda: admin.job(PROJECT, lease.job_id).state is state)
        getattr(admin, action)(PROJECT, lease.job_id)
    assert_shut_out(service, worker, lease)


def test_a_cancelled_job_is_said_to_be_cancelled(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    assert admin.cancel(PROJECT, lease.job_id).state is JobState.CANCELLED
    assert_shut_out(service, worker, lease, LeaseStatus.CANCELLED)


def test_a_repeated_claim_hands_out_the_same_lease(service: RunningService) -> None:
    admin = with_jobs(service, "a", "b", "c", "d")
    worker, other = holder(service), holder(service)
    first = worker.claim(PROJECT, key="k1", max_jobs=2)
    assert worker.claim(PROJECT, key="k1", max_jobs=2) == first
    assert [lease.directory for lease in first] == ["a", "b"]
    assert [lease.directory for lease in other.claim(PROJECT, key="k1")] == ["c"]
    assert admin.project(PROJECT).jobs.claimed == 3
    worker.release(first[0])
    worker.release(first[1])
    assert [lease.directory for lease in worker.claim(PROJECT, key="k1")] == ["d"]


def test_a_claim_repeated_while_the_first_still_waits_gets_one_job_for_both(service: RunningService) -> None:
    admin = with_jobs(service)
    worker = holder(service)
    answers: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(worker.claim(PROJECT, key="k", wait_seconds=20)))
        for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    wait_for(lambda: len(service.sql("SELECT 1 FROM workers")) == 1)
    admin.add_jobs(PROJECT, ["a", "b"])
    for thread in waiting:
        thread.join(timeout=20)
    assert [lease.directory for answer in answers for lease in answer] == ["a", "a"]
    assert answers[0] == answers[1]
    assert admin.project(PROJECT).jobs.queued == 1


def test_a_long_poll_is_woken_by_new_jobs(service: RunningService) -> None:
    admin = with_jobs(service)
    worker = holder(service)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(worker.claim(PROJECT, wait_seconds=50)))
    thread.start()
    wait_for(lambda: len(service.sql("SELECT 1 FROM workers")) == 1)
    admin.add_jobs(PROJECT, ["a"])
    thread.join(timeout=20)
    assert [lease.directory for lease in answers[0]] == ["a"]


@PATIENT
def test_an_end_repeated_is_answered_again_and_another_end_is_refused(service: RunningService) -> None:
    admin = with_jobs(service, "a", "b", "c")
    worker = holder(service)
    leases = worker.claim(PROJECT, max_jobs=3)
    ends: list[Callable[[Any], Any]] = [lambda lease: worker.complete(lease, 1, "1.png"), worker.fail, worker.release]
    for lease, end in zip(leases, ends, strict=True):
        first = end(lease)
        before = everything(service)
        assert end(lease) == first
        for other in ends:
            if other is not end:
                with pytest.raises(LeaseLost):
                    other(lease)
        with pytest.raises(LeaseLost):
            worker.post(lease, "2.png")
        assert everything(service) == before
    assert admin.project(PROJECT).jobs.completed == 1
    service.assert_counters_equal_recount()


def test_a_lost_batch_followed_by_complete_is_found_out(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    worker.post(lease, "1.png")
    with pytest.raises(ResultsMissing, match="3 images were listed and 2 are stored"):
        worker.complete(lease, 3, "3.png")
    assert admin.job(PROJECT, lease.job_id).state is JobState.CLAIMED
    assert sorted(row.image for row in admin.job_results(PROJECT, lease.job_id)) == ["1.png", "3.png"]
    worker.complete(lease, 3, "2.png")
    assert admin.job(PROJECT, lease.job_id).image_count == 3
    service.assert_counters_equal_recount()


@PATIENT
def test_failures_are_charged_and_the_last_one_fails_the_job(service: RunningService) -> None:
    admin = with_jobs(service, "a", max_failures=2)
    worker = holder(service)
    lease = worker.one(PROJECT)
    assert worker.fail(lease).state is JobState.WAITING
    # Compared on one clock.
    assert service.sql("SELECT due_at > ended_at AS later FROM jobs, attempts") == [{"later": True}]
    service.sql("UPDATE jobs SET state = 'queued', due_at = NULL")
    service.sql("UPDATE project_slots SET queued = queued + 1, waiting = waiting - 1 WHERE slot = 0")
    lease = worker.one(PROJECT)
    assert worker.fail(lease).state is JobState.FAILED
    job = admin.job(PROJECT, lease.job_id)
    assert (job.failures, job.reason, job.message) == (2, "storage", "why")
    assert [attempt.charged for attempt in job.attempts] == [True, True]
    assert admin.retry(PROJECT, lease.job_id).failures == 0
    service.assert_counters_equal_recount()


@PATIENT
def test_an_attempt_that_stored_something_new_is_not_charged(service: RunningService) -> None:
    admin = with_jobs(service, "a", max_failures=1)
    worker = holder(service)
    lease = worker.one(PROJECT)
    worker.post(lease, "1.png")
    assert worker.fail(lease).state is JobState.WAITING
    service.sql("UPDATE jobs SET state = 'queued', due_at = NULL")
    service.sql("UPDATE project_slots SET queued = queued + 1, waiting = waiting - 1 WHERE slot = 0")
    lease = worker.one(PROJECT)
    # The same row once more is nothing new.
    worker.post(lease, "1.png")
    assert worker.fail(lease).state is JobState.FAILED
    assert admin.job(PROJECT, lease.job_id).failures == 1


def test_a_failure_that_is_not_retryable_is_final(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    assert worker.fail(lease, retryable=False, reason="no-images").state is JobState.FAILED
    assert admin.job(PROJECT, lease.job_id).reason == "no-images"


@PATIENT
def test_releases_are_free_and_the_third_in_a_row_waits(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    states = [worker.release(worker.one(PROJECT)).state for _ in range(3)]
    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.WAITING]
    job = next(admin.jobs(PROJECT))
    assert (job.failures, job.releases) == (0, 3)
    service.assert_counters_equal_recount()


@pytest.mark.service(sweep_seconds=0.1, backoff_seconds=0.01)
def test_a_job_in_back_off_is_queued_when_it_is_due(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    assert worker.fail(worker.one(PROJECT)).state is JobState.WAITING
    wait_for(lambda: admin.project(PROJECT).jobs.queued == 1)
    service.assert_counters_equal_recount()


@SWEPT
def test_a_directory_that_kills_its_workers_fails_in_the_end(service: RunningService) -> None:
    admin = with_jobs(service, "poison", max_failures=2)
    for _ in range(2):
        wait_for(lambda: admin.project(PROJECT).jobs.queued == 1)
        lease = holder(service).one(PROJECT)
        service.expire_leases()
    wait_for(lambda: admin.project(PROJECT).jobs.failed == 1)
    job = admin.job(PROJECT, lease.job_id)
    assert job.reason == "lease-expired"
    assert [attempt.outcome for attempt in job.attempts] == ["expired", "expired"]
    service.assert_counters_equal_recount()


def test_an_api_away_for_longer_than_a_lease_does_not_expire_the_fleet(start_service: ServiceStarter) -> None:
    # It is as good as away: it does not judge before the test is over.
    first = start_service(lease_seconds=3600, sweep_seconds=0.1)
    admin = with_jobs(first, "a")
    worker = holder(first)
    lease = worker.one(PROJECT)
    # While every API process is away the lease runs out.
    first.sql("UPDATE jobs SET lease_expires_at = now() - interval '1 hour'")
    returned = start_service(database_url=first.database_url, lease_seconds=20, heartbeat_seconds=1, sweep_seconds=0.1)
    time_of_return = time.monotonic()
    # Many sweeps go by, and none of them may judge this lease yet.
    while time.monotonic() < time_of_return + 1:
        assert admin.job(PROJECT, lease.job_id).state is JobState.CLAIMED
    again = Holder(Client(returned.root, token=first.token("worker")), worker.worker_id)
    with again.client:
        assert again.status_of(lease) is LeaseStatus.HELD
    assert time.monotonic() - time_of_return < 20, "too slow a machine to tell"
    [attempt] = admin.job(PROJECT, lease.job_id).attempts
    assert attempt.outcome is None


def test_goodbye_releases_everything_and_ends_the_id(service: RunningService) -> None:
    admin = with_jobs(service, "a", "b")
    worker = holder(service)
    [kept, _] = worker.claim(PROJECT, max_jobs=2)
    worker.post(kept, "1.png")
    worker.client.goodbye(worker.worker_id)
    worker.client.goodbye(worker.worker_id)
    assert admin.project(PROJECT).jobs.queued == 2
    with pytest.raises(WorkerStopped):
        worker.claim(PROJECT)
    assert holder(service).claim(PROJECT, max_jobs=2)
    service.assert_counters_equal_recount()


def test_a_drained_worker_gets_no_more_and_a_lifted_one_does(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    assert worker.heartbeat().state == "run"
    for steer, state in ((admin.drain, "drain"), (admin.quarantine, "quarantined")):
        steer(worker.worker_id)
        assert worker.heartbeat().state == state
        with pytest.raises(WorkerStopped):
            worker.claim(PROJECT)
    admin.lift(worker.worker_id)
    assert worker.one(PROJECT)


def test_a_heartbeat_names_leases_whose_claim_was_not_answered(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    assert worker.heartbeat().unnamed == [lease]
    assert worker.heartbeat(lease).unnamed == []


def test_a_paused_project_hands_nothing_out_and_running_work_finishes(service: RunningService) -> None:
    admin = with_jobs(service, "a", "b")
    worker = holder(service)
    lease = worker.one(PROJECT)
    admin.pause(PROJECT)
    assert worker.claim(PROJECT) == []
    assert worker.claim(None) == []
    worker.complete(lease, 1, "1.png")
    admin.resume(PROJECT)
    assert worker.one(PROJECT).directory == "b"


@PATIENT
def test_an_empty_claim_says_how_many_jobs_shall_still_be_done(service: RunningService) -> None:
    admin = with_jobs(service, "a", "b")
    worker = holder(service)
    assert worker.fail(worker.one(PROJECT)).state is JobState.WAITING
    worker.complete(worker.one(PROJECT), 1, "1.png")
    for project in (PROJECT, None):
        assert worker.pending(project) == 1, "the job in back-off"
    admin.pause(PROJECT)
    for project in (PROJECT, None):
        assert worker.pending(project) == 0, "a worker that works once does not wait for a paused project"


def test_a_claim_without_a_project_goes_by_priority_and_keeps_to_the_tokens_project(service: RunningService) -> None:
    admin = service.client("admin")
    for name, priority in (("low", 0), ("high", 5)):
        admin.put_project(name, ProjectSettings(source="file:///data", priority=priority))
        admin.add_jobs(name, ["a", "b"])
    bound = Holder(service.client("worker", "low"))
    assert bound.one(None).project == "low"
    assert [holder(service).one(None).project for _ in range(3)] == ["high", "high", "low"]


def test_a_job_of_a_deleted_project_is_not_found(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    with pytest.raises(ApiError, match="unfinished"):
        admin.delete_project(PROJECT)
    worker.complete(lease, 1, "1.png")
    admin.delete_project(PROJECT)
    for write in writes(worker, lease).values():
        with pytest.raises(NotFound):
            write()


def test_two_workers_of_one_host_are_two_workers(service: RunningService) -> None:
    admin = with_jobs(service, "a", "b")
    first, second = holder(service), holder(service)
    first.one(PROJECT)
    second.one(PROJECT)
    assert admin.project(PROJECT).active_workers == 2
    assert {worker.leases for worker in admin.workers()} == {1}


def test_a_row_of_an_older_lease_is_replaced_by_a_newer_one(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    worker.post(lease, rows=[result("1.png", smiles="C"), result("2.png", "blank")])
    assert worker.post(lease, rows=[result("1.png", smiles="N")]).unchanged == 1
    worker.release(lease)
    newer = worker.one(PROJECT)
    assert newer.results_count == 2
    assert worker.post(newer, rows=[result("1.png", smiles="O")]).stored == 1
    rows = {row.image: (row.smiles, row.lease_seq) for row in admin.job_results(PROJECT, lease.job_id)}
    assert rows == {"1.png": ("O", 2), "2.png": (None, 1)}
    service.assert_counters_equal_recount()


def test_a_forced_release_shuts_out_a_lease_that_has_just_expired(service: RunningService, admin: Client) -> None:
    worker = holder(service)
    lease = worker.one(PROJECT)
    service.sql("UPDATE attempts SET outcome = 'expired', ended_at = now()")
    service.sql("UPDATE jobs SET state = 'queued', worker_id = NULL, claim_key = NULL, lease_expires_at = NULL")
    service.sql("UPDATE project_slots SET queued = queued + 1, claimed = claimed - 1 WHERE slot = 0")
    assert admin.force_release(PROJECT, lease.job_id).state is JobState.QUEUED
    assert_shut_out(service, worker, lease)


@SWEPT
def test_a_goodbye_gives_back_all_leases_though_some_have_run_out(service: RunningService) -> None:
    admin = with_jobs(service, "a", "b", "c")
    leaving = holder(service)
    leases = leaving.claim(PROJECT, max_jobs=3)
    service.expire_leases()
    wait_for(lambda: admin.project(PROJECT).jobs.queued == 3)
    taken = holder(service).one(PROJECT)
    assert taken.job_id == leases[0].job_id
    leaving.client.goodbye(leaving.worker_id)
    assert admin.project(PROJECT).jobs.unfinished == 3
    service.assert_counters_equal_recount()


def test_tokens_of_one_user_for_two_projects_are_two_workers(service: RunningService) -> None:
    admin = service.client("admin")
    admin.put_user("fleet", NewUser(password="a long password", role=Role.WORKER))
    holders = []
    for name in ("one", "two"):
        admin.put_project(name, ProjectSettings(source="file:///data"))
        admin.add_jobs(name, ["a"])
        login = ("fleet", "a long password")
        answer = httpx.post(f"{service.root}/v4/token", auth=login, json={"project": name})
        token = answer.raise_for_status().json()["token"]
        holders.append(Holder(Client(service.root, token=token), "shared-id"))
    one, two = holders
    with one.client, two.client:
        lease = two.one("two")
        for act in (one.heartbeat, lambda: one.claim("one"), lambda: one.client.goodbye("shared-id")):
            with pytest.raises(Refused, match="belongs to another"):
                act()
        assert two.status_of(lease) is LeaseStatus.HELD


def test_a_token_revoked_while_its_claim_waits_gets_nothing(service: RunningService) -> None:
    admin = with_jobs(service)
    worker = Holder(service.client("worker", fresh=True))
    refused: list[BaseException] = []

    def claim() -> None:
        try:
            worker.claim(PROJECT, wait_seconds=30)
        except Refused as error:
            refused.append(error)

    thread = threading.Thread(target=claim)
    thread.start()
    wait_for(lambda: len(service.sql("SELECT 1 FROM workers")) == 1)
    [token] = [token for token in admin.tokens() if token.name == "test-worker"]
    admin.revoke_token(token.id)
    admin.add_jobs(PROJECT, ["a"])
    thread.join(timeout=30)
    assert len(refused) == 1
    assert admin.project(PROJECT).jobs.queued == 1


def test_a_claim_whose_client_hung_up_gets_nothing(service: RunningService) -> None:
    admin = with_jobs(service)
    body = {"worker_id": "gone", "claim_key": "k", "wait_seconds": 30}
    headers = {"Authorization": f"Bearer {service.token('worker')}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.root}/v4/{PROJECT}/claim", json=body, headers=headers, timeout=0.5)
    # Answered only after the service has seen the other connection's end.
    wait_for(lambda: service.client("admin").server().version != "")
    admin.add_jobs(PROJECT, ["a"])
    assert holder(service).one(PROJECT).directory == "a"
