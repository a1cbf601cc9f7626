"""An action on many jobs does to each what the same action does to one, once, however it is cut up or repeated."""

import concurrent.futures
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from job_api import steering
from job_api.client import ApiError, Client, LeaseLost, NotFound
from job_api.schemas import (
    JobAction,
    JobFilter,
    JobsActed,
    JobsAction,
    JobState,
    ProjectSettings,
    ResultStatus,
)
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService
from tests.serving import wait_for

PROJECT = "patents"
SOURCE = ProjectSettings(source="file:///data")
EVERY = JobFilter(all=True)
# Each kind of job there is. An expired lease may come back to its holder, so those are kinds of their own.
KINDS = (
    "new",
    "waiting",
    "claimed",
    "completed",
    "failed",
    "cancelled",
    "expired-queued",
    "expired-failed",
    "released",
)


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    client.put_project(PROJECT, SOURCE)
    return client


@pytest.fixture
def worker(service: RunningService) -> Holder:
    return Holder(service.client("worker"))


def act(client: Client, action: str, which: JobFilter = EVERY, *, project: str = PROJECT, **options: Any) -> JobsActed:
    """Do it, to the end; the sums."""
    *_, total = client.act(project, JobsAction(action=JobAction(action), filter=which, **options))
    return total


def counts(acted: JobsActed) -> tuple[int, int, int, int]:
    return acted.matched, acted.changed, acted.unchanged, acted.skipped


def cast(service: RunningService, admin: Client, worker: Holder, project: str) -> dict[str, int]:
    """A project with one job of each kind; all with rows of three statuses where they were claimed."""
    admin.put_project(project, SOURCE)
    admin.add_jobs(project, list(KINDS))
    ids = {job.directory: job.id for job in admin.jobs(project)}
    leases = {lease.directory: lease for lease in worker.claim(project, max_jobs=len(KINDS))}
    service.judge_leases()
    for lease in leases.values():
        rows = [result("1.png"), result("2.png", "timeout"), result("3.png", "crashed")]
        worker.post(lease, rows=rows)
    worker.complete(leases["completed"], 3)
    worker.fail(leases["failed"], retryable=False)
    worker.fail(leases["waiting"])
    worker.release(leases["released"])
    admin.cancel(project, ids["cancelled"])
    expired = [ids["expired-queued"], ids["expired-failed"]]
    service.sql("UPDATE attempts SET new_results = 0 WHERE job_id = $1", ids["expired-failed"])
    service.sql("UPDATE jobs SET failures = 2 WHERE id = $1", ids["expired-failed"])
    service.sql("UPDATE jobs SET lease_expires_at = now() - interval '1 hour' WHERE id = ANY($1::bigint[])", expired)
    wait_for(lambda: admin.project(project).jobs.claimed == 2)
    # As a job that nobody ever had: by hand, since the claim takes the head of the queue.
    admin.force_release(project, ids["new"])
    service.sql("DELETE FROM attempts WHERE job_id = $1", ids["new"])
    service.sql("UPDATE jobs SET lease_seq = 0, reason = NULL WHERE id = $1", ids["new"])
    return ids


SNAPSHOT = """
SELECT j.directory, j.state, j.run, j.present_from_run, j.lease_seq, j.worker_id, j.claim_key IS NULL AS free,
       j.lease_expires_at IS NULL AS unleased, j.due_at IS NULL AS undue, j.failures, j.releases, j.image_count,
       j.reason, j.message, j.finished_at IS NULL AS unfinished,
       (SELECT json_agg(json_build_array(a.lease_seq, a.outcome, a.charged, a.reason, a.message, a.ended_at IS NULL)
                        ORDER BY a.lease_seq)::text FROM attempts a WHERE a.job_id = j.id) AS attempts,
       (SELECT json_agg(json_build_array(r.image, r.stale, r.run) ORDER BY r.image)::text
        FROM results r WHERE r.job_id = j.id) AS results
FROM jobs j JOIN projects p ON p.id = j.project_id WHERE p.name = $1 ORDER BY j.id
"""
STATUSES = [ResultStatus.TIMEOUT, ResultStatus.CRASHED]
CASES: list[tuple[str, dict[str, Any], Callable[[Client, int], object]]] = [
    ("cancel", {}, lambda client, job_id: client.cancel("one", job_id)),
    ("retry", {}, lambda client, job_id: client.retry("one", job_id)),
    ("rerun", {}, lambda client, job_id: client.rerun("one", job_id)),
    ("rerun", {"statuses": STATUSES}, lambda client, job_id: client.rerun("one", job_id, STATUSES)),
    ("force-release", {}, lambda client, job_id: client.force_release("one", job_id)),
]


@pytest.mark.service(lease_seconds=600, sweep_seconds=0.05, backoff_seconds=3000)
@pytest.mark.parametrize(("action", "options", "single"), CASES)
def test_many_jobs_are_treated_as_one_job_is(
    service: RunningService,
    action: str,
    options: dict[str, Any],
    single: Callable[[Client, int], object],
) -> None:
    admin, worker = service.client("admin"), Holder(service.client("worker"))
    one, many = (cast(service, admin, worker, project) for project in ("one", "many"))
    before = service.sql(SNAPSHOT, "one")
    assert before == service.sql(SNAPSHOT, "many")
    refused = 0
    for job_id in one.values():
        try:
            single(admin, job_id)
        except ApiError as error:
            refused += error.problem_type == "wrong-state"
    dry = act(admin, action, project="many", dry_run=True, **options)
    assert service.sql(SNAPSHOT, "many") == before, "a dry run changes nothing"
    acted = act(admin, action, project="many", **options)
    after = service.sql(SNAPSHOT, "many")
    assert after == service.sql(SNAPSHOT, "one")
    assert counts(dry) == counts(acted)
    assert (acted.matched, acted.skipped, acted.next) == (len(many), refused, None)
    assert acted.changed == sum(new["state"] != old["state"] for new, old in zip(after, before, strict=True))
    service.assert_counters_equal_recount()


def test_finished_jobs_are_deleted_with_all_that_is_theirs(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    admin.add_jobs(PROJECT, ["completed", "failed", "cancelled", "claimed", "queued"])
    leases = [worker.one(PROJECT) for _ in range(4)]
    for lease in leases:
        worker.post(lease, "1.png", "2.png")
    worker.complete(leases[0], 2)
    worker.fail(leases[1], retryable=False)
    admin.cancel(PROJECT, leases[2].job_id)
    acted = act(admin, "delete")
    assert counts(acted) == (5, 3, 0, 2)
    assert [job.directory for job in admin.jobs(PROJECT)] == ["claimed", "queued"]
    assert service.sql("SELECT DISTINCT job_id FROM results") == [{"job_id": leases[3].job_id}]
    assert service.sql("SELECT DISTINCT job_id FROM attempts") == [{"job_id": leases[3].job_id}]
    assert admin.project(PROJECT).images.stored == 2
    for lease in leases[:3]:
        with pytest.raises(NotFound):
            worker.post(lease, "3.png")
    service.assert_counters_equal_recount()
    assert admin.add_jobs(PROJECT, ["completed"]).added == 1, "it may be added again"


def test_a_filter_names_the_jobs_for_which_all_of_it_holds(admin: Client, worker: Holder) -> None:
    admin.add_jobs(PROJECT, ["a (1999)", "b (1999)", "a (2001)", "c", "d"])
    first, second = worker.claim(PROJECT, max_jobs=2)
    worker.fail(first, retryable=False, reason="storage")
    worker.fail(second, retryable=False, reason="no-images")
    held = worker.one(PROJECT)
    ids = {job.directory: job.id for job in admin.jobs(PROJECT)}

    def named(**which: Any) -> set[str]:
        found = act(admin, "cancel", JobFilter(**which), dry_run=True)
        states = {JobState.FAILED}
        everyone = {job.directory for job in admin.jobs(PROJECT)}
        told = {example.directory for example in found.examples}
        assert found.matched == found.changed + found.skipped
        assert told <= everyone - {job.directory for job in admin.jobs(PROJECT) if job.state in states}
        return told

    def failed(**which: Any) -> set[str]:
        return {example.directory for example in act(admin, "retry", JobFilter(**which), dry_run=True).examples}

    assert named(all=True) == {"a (2001)", "c", "d"}
    assert named(states=["queued"]) == {"c", "d"}
    assert named(states=["queued", "claimed"], text="(") == {"a (2001)"}
    assert named(worker_id=worker.worker_id) == {held.directory}
    assert named(worker_id=worker.worker_id, states=["queued"]) == set()
    assert named(worker_id="somebody-else") == set()
    assert named(ids=[ids["d"], ids["c"], ids["d"], 10**15]) == {"c", "d"}
    assert named(ids=[ids["d"]], text="c") == set()
    assert failed(text="a (") == {"a (1999)"}
    assert failed(text="%") == set()
    assert failed(reason="storage") == {"a (1999)"}
    assert failed(reason="no-images", text="1999") == {"b (1999)"}
    assert failed(reason="no-images", ids=[ids["a (1999)"]]) == set()


def test_jobs_of_other_projects_are_not_named(service: RunningService, admin: Client) -> None:
    admin.put_project("others", SOURCE)
    admin.add_jobs(PROJECT, ["a"])
    admin.add_jobs("others", ["a"])
    [stranger] = admin.jobs("others")
    assert counts(act(admin, "cancel", JobFilter(ids=[stranger.id]))) == (0, 0, 0, 0)
    assert counts(act(admin, "cancel")) == (1, 1, 0, 0)
    assert admin.project("others").jobs.queued == 1
    service.assert_counters_equal_recount()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"action": "delete", "filter": {}}, '"all": true'),
    ({"action": "delete", "filter": {"all": False}}, '"all": true'),
    ({"action": "delete", "filter": {"states": None}}, '"all": true'),
    ({"action": "delete"}, "filter"),
    ({"action": "delete", "filter": {"state": "failed"}}, "filter.state"),
    ({"action": "delete", "filter": {"all": True, "states": ["failed"]}}, "all jobs and for some"),
    ({"action": "delete", "filter": {"states": []}}, "filter.states"),
    ({"action": "delete", "filter": {"text": ""}}, "filter.text"),
    ({"action": "delete", "filter": {"ids": []}}, "filter.ids"),
    ({"action": "delete", "filter": {"ids": list(range(1, 10_002))}}, "filter.ids"),
    ({"action": "retry", "filter": {"all": True}, "statuses": ["timeout"]}, "statuses go with rerun"),
    ({"action": "explode", "filter": {"all": True}}, "action"),
    ({"action": "delete", "filter": {"all": True}, "as_of": "2026-01-01T00:00:00"}, "as_of"),
]


@pytest.mark.parametrize(("body", "words"), WRONG)
def test_a_slip_deletes_nothing(service: RunningService, admin: Client, body: dict[str, Any], words: str) -> None:
    admin.add_jobs(PROJECT, ["a"])
    act(admin, "cancel")
    headers = {"Authorization": f"Bearer {service.token('submit')}"}
    answer = httpx.post(f"{service.root}/v4/{PROJECT}/jobs/actions", json=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert admin.project(PROJECT).jobs.cancelled == 1


def many(service: RunningService, admin: Client, number: int, state: str) -> None:
    """Jobs in a state that nobody holds, as if by an earlier action."""
    for begin in range(0, number, 10_000):
        admin.add_jobs(PROJECT, [f"d{n}" for n in range(begin, min(number, begin + 10_000))])
    if state != "queued":
        service.sql("UPDATE jobs SET state = $1, finished_at = now(), reason = 'storage'", state)
        service.sql(f"UPDATE project_slots SET {state} = {state} + queued, queued = 0")  # noqa: S608


@pytest.mark.parametrize("action", ["cancel", "retry", "rerun", "delete"])
def test_more_jobs_than_one_transaction_takes(
    service: RunningService, admin: Client, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Each answer comes after one chunk here; the next request goes on there, and all jobs are met once."""
    monkeypatch.setattr(steering, "BUDGET_SECONDS", 0)
    number = 2 * steering.CHUNK + 17
    many(service, admin, number, "queued" if action == "cancel" else "failed")
    wanted = JobsAction(action=JobAction(action), filter=EVERY)
    answers = list(admin.act(PROJECT, wanted))
    chunk = steering.JOBS_WITH_ROWS if action == "delete" else steering.CHUNK
    assert [answer.changed for answer in answers] == [*range(chunk, number, chunk), number]
    assert counts(answers[-1]) == (number, number, 0, 0)
    jobs = admin.project(PROJECT).jobs
    assert {"cancel": jobs.cancelled, "delete": number - len(list(admin.jobs(PROJECT)))}.get(
        action, jobs.queued
    ) == number
    service.assert_counters_equal_recount()


def test_jobs_are_queued_in_the_order_they_were_in(service: RunningService, admin: Client, worker: Holder) -> None:
    many(service, admin, 300, "failed")
    act(admin, "retry")
    assert [lease.directory for lease in worker.claim(PROJECT, max_jobs=100)] == [f"d{n}" for n in range(100)]


def test_many_rows_are_deleted_in_more_than_one_transaction_and_no_job_by_half(
    service: RunningService, admin: Client, worker: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "BUDGET_SECONDS", 0)
    admin.add_jobs(PROJECT, ["none", "large", "small", "also small", "unfinished"])
    sizes = {"none": 0, "large": steering.ROWS_IN_CHUNK + 1, "small": 10, "also small": 10, "unfinished": 10}
    for job in admin.jobs(PROJECT):
        service.sql(
            "INSERT INTO results (job_id, image, engine, project_id, provenance_id, lease_seq, run, status)"
            " SELECT $1, i || '.png', 'decimer', project_id, 1, 1, 1, 'recognised'"
            " FROM jobs, generate_series(1, $2) AS i WHERE id = $1",
            job.id,
            sizes[job.directory],
        )
        if job.directory != "unfinished":
            admin.cancel(PROJECT, job.id)
    service.sql(
        "UPDATE project_slots SET images_stored = $1, images_recognised = $1 WHERE slot = 0", sum(sizes.values())
    )
    service.assert_counters_equal_recount()
    left = []
    for acted in admin.act(PROJECT, JobsAction(action=JobAction.DELETE, filter=EVERY)):
        service.assert_counters_equal_recount()
        left.append((acted.matched, [job.directory for job in admin.jobs(PROJECT)]))
    assert left == [
        (1, ["large", "small", "also small", "unfinished"]),
        (2, ["small", "also small", "unfinished"]),
        (5, ["unfinished"]),
    ]


@pytest.mark.parametrize("action", ["retry", "rerun", "force-release", "delete"])
def test_a_part_that_is_asked_for_again_changes_nothing_twice(
    service: RunningService, admin: Client, worker: Holder, action: str
) -> None:
    """As when the answer of the first try was lost, and the jobs went on meanwhile."""
    admin.add_jobs(PROJECT, ["a", "b"])
    for lease in worker.claim(PROJECT, max_jobs=2):
        if action != "force-release":
            worker.fail(lease, retryable=False)
    wanted = JobsAction(action=JobAction(action), filter=EVERY, dry_run=True)
    [counted] = admin.act(PROJECT, wanted)
    wanted = wanted.model_copy(update={"dry_run": False, "as_of": counted.as_of})
    [first] = admin.act(PROJECT, wanted)
    assert counts(first) == counts(counted) == (2, 2, 0, 0)
    if action == "delete":
        assert counts(act(admin, action, as_of=counted.as_of)) == (0, 0, 0, 0)
        return
    lease = worker.one(PROJECT)
    if action != "force-release":
        worker.fail(lease, retryable=False)
    before = service.sql("SELECT * FROM jobs ORDER BY id")
    [again] = admin.act(PROJECT, wanted)
    assert (again.changed, again.unchanged + again.skipped) == (0, 2)
    assert service.sql("SELECT * FROM jobs ORDER BY id") == before
    assert act(admin, action).changed == 1, "without as_of it is another action"
    service.assert_counters_equal_recount()


def test_jobs_that_come_into_their_state_later_are_left_alone(admin: Client, worker: Holder) -> None:
    admin.add_jobs(PROJECT, ["a"])
    as_of = act(admin, "cancel", dry_run=True).as_of
    admin.add_jobs(PROJECT, ["b"])
    assert counts(act(admin, "cancel", as_of=as_of)) == (2, 1, 0, 1)
    assert counts(act(admin, "delete", as_of=as_of)) == (2, 0, 0, 2), "cancelled, but only after that"
    assert counts(act(admin, "delete", as_of=as_of + timedelta(hours=1))) == (2, 1, 0, 1)


def test_workers_complete_while_their_jobs_are_cancelled(service: RunningService, admin: Client) -> None:
    """Each job ends one way: completed, or cancelled with its worker told so."""
    number = 120
    admin.add_jobs(PROJECT, [f"d{n}" for n in range(number)])
    workers = [Holder(service.client("worker")) for _ in range(4)]
    leases = [(worker, lease) for worker in workers for lease in worker.claim(PROJECT, max_jobs=number // 4)]

    def complete(worker: Holder, lease: Any) -> str:
        try:
            return str(worker.complete(lease, 2, "1.png", "2.png").state)
        except LeaseLost:
            return "lost"

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        completions = [pool.submit(complete, *one) for one in leases]
        wait_for(lambda: any(one.done() for one in completions))
        cancelled = act(admin, "cancel")
        said = [one.result() for one in completions]
    jobs = admin.project(PROJECT).jobs
    assert (jobs.completed, jobs.cancelled) == (said.count("completed"), said.count("lost"))
    assert jobs.completed + jobs.cancelled == number
    assert cancelled.changed == jobs.cancelled
    service.assert_counters_equal_recount()


@pytest.mark.parametrize("actions", [("retry", "retry"), ("retry", "delete"), ("rerun", "delete"), ("rerun", "cancel")])
def test_two_actions_on_the_same_jobs_at_once(service: RunningService, admin: Client, actions: tuple[str, str]) -> None:
    """They follow one another job by job: no deadlock, nothing is done twice, and the counters are right."""
    number = 3_000
    many(service, admin, number, "failed")
    as_of = act(admin, "retry", dry_run=True).as_of
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda action: act(admin, action, as_of=as_of), actions)
    service.assert_counters_equal_recount()
    jobs = admin.project(PROJECT).jobs
    if actions == ("retry", "retry"):
        assert first.changed + second.changed == jobs.queued == number
    elif "delete" in actions:
        assert first.changed + second.changed == number
        assert jobs.queued == first.changed
    else:
        assert first.changed == number
        assert (jobs.queued, jobs.cancelled) == (number - second.changed, second.changed)
    assert service.sql("SELECT max(run) AS run FROM jobs")[0]["run"] in (1, 2, None)


def test_an_action_of_a_deleted_or_unknown_project_is_not_found(admin: Client) -> None:
    admin.add_jobs(PROJECT, ["a"])
    act(admin, "cancel")
    admin.delete_project(PROJECT)
    for project in (PROJECT, "not-there"):
        with pytest.raises(NotFound):
            act(admin, "retry", project=project)
