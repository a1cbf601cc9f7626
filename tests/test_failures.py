"""What has failed is shown in groups of messages that are alike, rare ones first, and each group can be done again."""

import asyncio
import json
from typing import Any

import asyncpg
import httpx
import pytest
from typer.testing import CliRunner

from job_api import failures, projects
from job_api.cli import app
from job_api.client import ApiError, Client, NotFound
from job_api.db import Database
from job_api.schemas import (
    Fail,
    FailureGroup,
    FailureKind,
    JobAction,
    JobFilter,
    JobsActed,
    JobsAction,
    JobState,
    ProjectSettings,
    ResultStatus,
)
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService, run

PROJECT, OTHER = "patents", "others"
BOMB = "RuntimeError: out of memory at /opt/x/{n}.cc:{n}"
LATE = "not recognised within {n} s"
STORAGE = "the directory 'Name (Author {n})' cannot be read: Input/output error"

# What this code base says, of two images or jobs, and what is left of both.
ALIKE = [
    ("{0} x 12{0} pixels; its longer side may have at most 8000",
     "<n> x <n> pixels; its longer side may have at most <n>"),
    ("OSError: image file is truncated ({0} bytes not processed)",
     "OSError: image file is truncated (<n> bytes not processed)"),
    ("SyntaxError: broken PNG file (chunk b'\\x0{0}IDA')", "SyntaxError: broken PNG file (chunk <text>)"),
    ("UnidentifiedImageError: <_io.BytesIO object at 0x7f3a2c11d0e{0}>",
     "UnidentifiedImageError: <_io.BytesIO object at <id>>"),
    ("RDKit: KekulizeException: Unkekulized atoms: 3 4 1{0}", "RDKit: KekulizeException: Unkekulized atoms: <n>"),
    ("not recognised within {0}.5 s", "not recognised within <n> s"),
    ("the file has {0} bytes; at most 50000 are read", "the file has <n> bytes; at most <n> are read"),
    ("the directory 'Name {0}' cannot be read: Input/output error",
     "the directory <text> cannot be read: Input/output error"),
    ("there is no directory 'plain' under /data/{0}", "there is no directory <text> under <path>"),
    ('there is no directory "O\'Brien ({0})" under /data', "there is no directory <text> under <path>"),
    ("no image lies in s3://bucket/Name (Author {0}) or below it", "no image lies in <path> or below it"),
    ("'output/a_{0} left.png' cannot be read: Stale file handle", "<text> cannot be read: Stale file handle"),
    ("{0} of 17 images could not be read; the first of them: 'a b/{0}.png' cannot be read: Input/output error",
     "<n> of <n> images could not be read; the first of them: <text> cannot be read: Input/output error"),
    ("https://host:8443/x%20{0}/y.png cannot be read: HTTP 500", "<path> cannot be read: HTTP 500"),
    ("the web server lets this worker in, but not into the directory '{0}' (https://h/{0}/ (HTTP 403)): permit it",
     "the web server lets this worker in, but not into the directory <text> (<path> (HTTP 403)): permit it"),
    ("s3://bucket/Name (A {0})/1.png: access is denied (403 AccessDenied); set AWS_REGION",
     "<path>: access is denied (<n> AccessDenied); set AWS_REGION"),
    ("worker vm-{0}.local-a1b2 was not heard of any more; it may have died of this directory",
     "worker <id> was not heard of any more; it may have died of this directory"),
    ("/data/Name (Author {0})/smiles_output.json cannot be written: Read-only file system",
     "<path> cannot be written: Read-only file system"),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/tmp/x{0}/Fig 3.png'",
     "FileNotFoundError: [Errno 2] No such file or directory: <text>"),
    ("job 550e8400-e29b-41d4-a716-44665544000{0} was not found", "job <id> was not found"),
    ("exit code 3: error in Fig_{0}.png: no molecule", "exit code <n>: error in <file>: no molecule"),
    ("first\nsecond {0}", "first second <n>"),
]  # fmt: skip
# These are of a kind each.
APART = [
    "AttributeError: 'NoneType' object has no attribute 'shape'",
    "AttributeError: 'NoneType' object has no attribute 'size'",
    "the web server refuses this file (HTTP 403)",
    "the web server refuses this file (HTTP 404)",
    "the recogniser died on this image, tried alone (exit -9, SIGKILL, possible out of memory)",
    "the recogniser died on this image, tried alone (exit -11, SIGSEGV)",
    "the file is XML or HTML, not an image",
    "OSError: [Errno 5] Input/output error",
]


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    for project in (PROJECT, OTHER):
        client.put_project(project, ProjectSettings(source="file:///data"))
    return client


@pytest.fixture
def worker(service: RunningService) -> Holder:
    return Holder(service.client("worker"))


def fill(admin: Client, worker: Holder, project: str) -> dict[str, int]:
    """Four completed jobs with images that failed in three ways, and three that failed themselves in two."""
    names = [f"Name (Author {n})" for n in range(7)]
    admin.add_jobs(project, names)
    leases = worker.claim(project, max_jobs=7)
    for n, lease in enumerate(leases[:4]):
        rows = [result("good.png"), result("late.png", "timeout", error_message=LATE.format(n=60 + n))]
        rows.append(result("late too.png", "timeout", error_message=LATE.format(n=60 + n)))
        if n < 2:
            rows.append(result("bomb.png", "engine_error", error_message=BOMB.format(n=n)))
        if n == 3:
            rows.append(result("mute.png", "crashed"))
            rows.append(result("odd.png", error_message="RDKit: RuntimeError: Pre-condition Violation"))
        worker.post(lease, rows=rows)
        worker.complete(lease, len(rows))
    for n, lease in enumerate(leases[4:]):
        reason, message = (
            ("no-images", "no image lies in the directory 'x' or below it") if n == 0 else ("storage", STORAGE)
        )
        body = Fail(
            worker_id=worker.worker_id,
            lease_seq=lease.lease_seq,
            reason=reason,
            retryable=False,
            message=message.format(n=n),
        )
        worker.client.fail(project, lease.job_id, body)
    return {lease.directory: lease.job_id for lease in leases}


def act(client: Client, action: str, failure: str, **options: Any) -> JobsActed:
    wanted = JobsAction(action=JobAction(action), filter=JobFilter(failure=failure), **options)
    *_, total = client.act(PROJECT, wanted)
    return total


def group(client: Client, what: str) -> FailureGroup:
    [found] = [one for one in client.failures(PROJECT).items if what in (one.status, one.reason)]
    return found


def test_messages_are_alike_but_for_what_differs_from_one_to_the_next(service: RunningService) -> None:
    def shape(message: str) -> str:
        return str(service.sql("SELECT error_shape($1) AS shape", message)[0]["shape"])

    assert [shape(message.format(n)) for message, _ in ALIKE for n in (1, 7)] == [s for _, s in ALIKE for _ in (1, 7)]
    assert [shape(message) for message in APART] == APART
    assert len(shape("many 'different' words " * 1_000)) <= 300


def test_failures_are_shown_in_groups_the_rare_ones_first(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    ids = fill(admin, worker, PROJECT)
    fill(admin, worker, OTHER)
    found = service.client("read").failures(PROJECT)
    assert found.complete
    assert found.total == len(found.items) == 6
    told = [(one.kind, one.status or one.reason, one.count, one.jobs, one.shape) for one in found.items]
    assert sorted(told[:3]) == [
        ("image", "crashed", 1, 1, ""),
        ("image", "recognised", 1, 1, "RDKit: RuntimeError: Pre-condition Violation"),
        ("job", "no-images", 1, 1, "no image lies in the directory <text> or below it"),
    ]
    assert sorted(told[3:5]) == [
        ("image", "engine_error", 2, 2, "RuntimeError: out of memory at <path>:<n>"),
        ("job", "storage", 2, 2, "the directory <text> cannot be read: Input/output error"),
    ]
    assert told[5] == ("image", "timeout", 8, 4, "not recognised within <n> s")
    late = found.items[5]
    assert late.exact
    assert late.first_at <= late.last_at
    assert [(e.job_id, e.directory, e.image, e.message) for e in late.examples] == [
        (ids[f"Name (Author {n})"], f"Name (Author {n})", "late too.png", f"not recognised within {60 + n} s")
        for n in range(3)
    ]
    assert {one.id for one in found.items} == {one.id for one in admin.failures(OTHER).items}, (
        "they say what, not where"
    )
    jobs = admin.failures(PROJECT, kind=FailureKind.JOB, limit=1)
    assert ([one.reason for one in jobs.items], jobs.total) == (["no-images"], 2)
    assert [example.image for example in jobs.items[0].examples] == [None]


def test_what_is_cut_off_is_said(
    service: RunningService, admin: Client, worker: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(admin, worker, PROJECT)
    monkeypatch.setattr(failures, "BUDGET_SECONDS", 60.0)
    monkeypatch.setattr(failures, "COUNTED_FIRST", 2)
    found = [(one.count, one.exact) for one in admin.failures(PROJECT).items]
    assert found == [(1, True), (1, True), (1, True), (2, True), (2, True), (8, True)], "counted on"
    monkeypatch.setattr(failures, "BUDGET_SECONDS", 0.0)
    found = [(one.count, one.exact) for one in admin.failures(PROJECT).items]
    assert found == [(1, True), (1, True), (1, True), (2, False), (2, False), (2, False)]
    monkeypatch.setattr(failures, "COUNTED_TOGETHER", 1)
    monkeypatch.setattr(failures, "COUNTED_FIRST", 100)
    found = [(one.count, one.exact) for one in admin.failures(PROJECT, kind=FailureKind.JOB).items]
    assert [count for count, exact in found if not exact] == [1], "the second was not reached in time"
    monkeypatch.setattr(failures, "MAX_GROUPS", 3)
    few = admin.failures(PROJECT)
    assert (few.complete, few.total) == (False, 5)


def test_a_group_of_failed_jobs_is_retried(service: RunningService, admin: Client, worker: Holder) -> None:
    fill(admin, worker, PROJECT)
    fill(admin, worker, OTHER)
    storage = group(admin, "storage")
    counted = act(admin, "retry", storage.id, dry_run=True)
    assert [(e.directory, e.state) for e in counted.examples] == [
        ("Name (Author 5)", "failed"),
        ("Name (Author 6)", "failed"),
    ]
    assert admin.project(PROJECT).jobs.failed == 3
    done = act(admin, "retry", storage.id, as_of=counted.as_of)
    assert (done.matched, done.changed) == (2, 2)
    assert {job.directory for job in admin.jobs(PROJECT, state=JobState.QUEUED)} == {
        e.directory for e in counted.examples
    }
    assert admin.project(OTHER).jobs.failed == 3
    assert act(admin, "retry", storage.id, as_of=counted.as_of).matched == 0, "asked for again"
    with pytest.raises(NotFound, match="no group of failures"):
        act(admin, "retry", storage.id)
    service.assert_counters_equal_recount()


def test_of_a_group_of_failed_images_those_alone_are_done_again(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    ids = fill(admin, worker, PROJECT)
    fill(admin, worker, OTHER)
    bombs = group(admin, "engine_error")
    counted = act(admin, "rerun", bombs.id, dry_run=True)
    assert (counted.matched, counted.changed) == (2, 2)
    done = act(admin, "rerun", bombs.id, as_of=counted.as_of)
    assert (done.matched, done.changed) == (2, 2)
    assert admin.project(OTHER).jobs.queued == 0
    again = worker.claim(PROJECT, max_jobs=10)
    assert {lease.job_id for lease in again} == {ids["Name (Author 0)"], ids["Name (Author 1)"]}
    for lease in again:
        assert worker.images_done(lease) == ["good.png", "late too.png", "late.png"]
    # The one is read now, the other fails as before.
    worker.post(again[0], "bomb.png")
    worker.post(again[1], rows=[result("bomb.png", "engine_error", error_message=BOMB.format(n=9))])
    for lease in again:
        worker.complete(lease, 4)
    left = group(admin, "engine_error")
    assert (left.id, left.count, left.examples[0].job_id) == (bombs.id, 1, again[1].job_id)
    assert act(admin, "rerun", bombs.id, as_of=counted.as_of).changed == 0, "it was finished after that"
    by_id = JobFilter(failure=bombs.id, ids=list(ids.values()))
    [acted] = admin.act(PROJECT, JobsAction(action=JobAction.RERUN, filter=by_id))
    assert (acted.matched, acted.changed) == (1, 1)
    assert worker.images_done(worker.one(PROJECT)) == ["good.png", "late too.png", "late.png"]
    service.assert_counters_equal_recount()


def test_groups_are_of_the_rows_of_the_projects_engine(service: RunningService, admin: Client, worker: Holder) -> None:
    fill(admin, worker, PROJECT)
    late, bombs = group(admin, "timeout"), group(admin, "engine_error")
    admin.put_project(PROJECT, ProjectSettings(engine="osra"))
    assert admin.failures(PROJECT, kind=FailureKind.IMAGE).items == []
    for one in (late, bombs):
        with pytest.raises(NotFound, match="no group of failures"):
            act(admin, "rerun", one.id)
    admin.add_jobs(PROJECT, ["a"])
    lease = worker.one(PROJECT)
    rows = [result(f"{n}.png", "timeout", engine="osra", error_message=LATE.format(n=n)) for n in range(3)]
    assert worker.post(lease, rows=rows, engine="osra").refused == []
    worker.complete(lease, 3)
    [found] = admin.failures(PROJECT, kind=FailureKind.IMAGE).items
    assert (found.id, found.count, found.jobs) == (late.id, 3, 1)
    assert [example.job_id for example in found.examples] == [lease.job_id]
    both = JobFilter(failure=late.id, ids=[job.id for job in admin.jobs(PROJECT)])
    for wanted in (JobFilter(failure=late.id), both):
        [counted] = admin.act(PROJECT, JobsAction(action=JobAction.RERUN, filter=wanted, dry_run=True))
        assert counted.changed == 1
    admin.put_project(PROJECT, ProjectSettings(engine="decimer"))
    assert {one.id: one.count for one in (group(admin, "timeout"), group(admin, "engine_error"))} == {
        late.id: 8,
        bombs.id: 2,
    }


def test_those_who_ask_again_and_again_leave_connections_to_the_workers(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    fill(admin, worker, PROJECT)

    async def ask() -> list[int]:
        database, listing = Database(service.settings), failures.Groups()
        await database.open()
        blocker = await asyncpg.connect(service.database_url)
        try:
            transaction = blocker.transaction()
            await transaction.start()
            await blocker.execute("LOCK TABLE results")
            async with database.connection() as connection:
                project_id = await projects.project_id(connection, PROJECT)
            asking = [asyncio.create_task(listing.read(database, project_id, None, 10)) for _ in range(10)]
            await asyncio.sleep(0)
            async with database.connection() as connection:
                assert await connection.fetchval("SELECT 1") == 1
            await transaction.rollback()
            return [found.total for found in await asyncio.gather(*asking)]
        finally:
            await blocker.close()
            await database.close()

    assert run(ask()) == [6] * 10


def test_a_group_is_acted_on_in_several_requests(
    service: RunningService, admin: Client, worker: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(admin, worker, PROJECT)
    monkeypatch.setattr("job_api.steering.BUDGET_SECONDS", 0)
    monkeypatch.setattr("job_api.steering.JOBS_WITH_ROWS", 1)
    wanted = JobsAction(action=JobAction.RERUN, filter=JobFilter(failure=group(admin, "timeout").id))
    assert [acted.changed for acted in admin.act(PROJECT, wanted)] == [1, 2, 3, 4, 4]
    assert [row["image"] for row in service.sql("SELECT DISTINCT image FROM results WHERE stale ORDER BY 1")] == [
        "late too.png",
        "late.png",
    ]
    monkeypatch.setattr("job_api.steering.CHUNK", 1)
    wanted = JobsAction(action=JobAction.RETRY, filter=JobFilter(failure=group(admin, "storage").id))
    assert [acted.changed for acted in admin.act(PROJECT, wanted)] == [1, 2, 2]


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"action": "retry", "filter": {"failure": "storage"}}, 422, "filter.failure: Value error, is no id of a group"),
    ({"action": "retry", "filter": {"failure": "image-0123456789ab"}}, 422, "rerun does images again"),
    (
        {"action": "rerun", "filter": {"failure": "image-0123456789ab"}, "statuses": ["timeout"]},
        422,
        "leave statuses out",
    ),
    ({"action": "rerun", "filter": {"failure": "job-0123456789ab", "all": True}}, 422, "all jobs and for some"),
    ({"action": "rerun", "filter": {"failure": "image-0123456789ab"}}, 404, "no group of failures image-0123456789ab"),
    ({"action": "delete", "filter": {"failure": "job-0123456789ab"}}, 404, "no group of failures job-0123456789ab"),
]


def test_a_group_that_is_not_there_or_does_not_fit_is_refused(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    fill(admin, worker, OTHER)
    headers = {"Authorization": f"Bearer {service.token('submit')}"}
    for body, status, words in WRONG:
        answer = httpx.post(f"{service.root}/v4/{PROJECT}/jobs/actions", json=body, headers=headers)
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert admin.failures(PROJECT).items == []
    with pytest.raises(NotFound, match="no group"):
        act(admin, "rerun", admin.failures(OTHER, kind=FailureKind.IMAGE).items[0].id)
    with pytest.raises(ApiError):
        service.client("worker").failures(PROJECT)


def test_the_command_line_shows_groups_and_acts_on_one(
    service: RunningService, admin: Client, worker: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_API_ROOT", service.root)
    monkeypatch.setenv("JOB_API_TOKEN", service.token("submit"))

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done.stdout

    assert run("failures", PROJECT) == "nothing has failed\n"
    assert run("failures", PROJECT, "--kind", "job") == "no job has failed\n"
    fill(admin, worker, PROJECT)
    table = run("failures", PROJECT)
    bombs, storage = group(admin, "engine_error"), group(admin, "storage")
    [line] = [line for line in table.splitlines() if line.startswith(bombs.id)]
    for words in (" 2 ", "engine_error", "RuntimeError: out of memory at <path>:<n>", "Name (Author 0)/bomb.png"):
        assert words in line
    documents = [json.loads(line) for line in run("failures", PROJECT, "--json", "--kind", "job").splitlines()]
    assert [document["id"] for document in documents] == [
        one.id for one in admin.failures(PROJECT, kind=FailureKind.JOB).items
    ]
    assert "2 would be queued for a new run" in run("act", PROJECT, "rerun", "--failure", bombs.id, "--dry-run")
    assert "2 queued for a new run" in run("act", PROJECT, "rerun", "--failure", bombs.id)
    assert "2 queued again" in run("act", PROJECT, "retry", "--failure", storage.id)
    stale = service.sql("SELECT status, count(*) AS rows FROM results WHERE stale GROUP BY 1")
    assert stale == [{"status": ResultStatus.ENGINE_ERROR, "rows": 2}]
