"""A deleted project is gone for everybody at once; its rows go bit by bit, whatever happens meanwhile."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from functools import partial
from pathlib import Path

import asyncpg
import httpx
import pytest

from job_api.client import ApiError, Client, NotFound
from job_api.schemas import JobState, LeaseStatus, LogLevel, LogLine, ProjectSettings
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, ServiceStarter, run, sql_of
from tests.serving import LOAD_SECONDS, Serving, wait_for

PROJECT, OTHER = "patents", "others"
SOURCE = ProjectSettings(source="file:///data")
ROWS = """
SELECT (SELECT count(*) FROM jobs WHERE project_id = $1) AS jobs,
       (SELECT count(*) FROM results WHERE project_id = $1) AS results,
       (SELECT count(*) FROM log_lines WHERE project_id = $1) AS lines,
       (SELECT count(*) FROM projects WHERE id = $1) AS projects,
       (SELECT count(*) FROM attempts a WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = a.job_id)) AS orphans
"""
WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
GONE = {"jobs": 0, "results": 0, "lines": 0, "projects": 0, "orphans": 0}
# As work that was done long ago leaves them: more than one batch of each kind of row, and one job with more than one.
FILLED = r"FROM jobs j, generate_series({}, {}) AS i WHERE project_id = $1 AND directory ~ '^d\d'"
NEW_ROW = """
INSERT INTO results (job_id, image, engine, project_id, provenance_id, lease_seq, run, status)
SELECT {}, i || '.png', 'decimer', $1, 1, 1, 1, 'blank'
"""
FILL = (
    """
    INSERT INTO jobs (project_id, directory, state, finished_at, image_count, lease_seq)
    SELECT $1, 'd' || n, 'completed', now(), 10, 1 FROM generate_series(1, 1200) AS n
    """,
    """
    INSERT INTO attempts (job_id, lease_seq, worker_id, claim_key, ended_at, outcome)
    SELECT j.id, i, 'w', 'k', now(), 'completed'
    """
    + FILLED.format(1, 5),
    NEW_ROW.format("j.id") + FILLED.format(1, 10),
    NEW_ROW.format("min(j.id)") + FILLED.format(11, 12000) + "GROUP BY i",
    """
    INSERT INTO log_lines (worker_id, project_id, level, message)
    SELECT 'w', $1, 'info', 'hello' FROM generate_series(1, 6000)
    """,
    """
    UPDATE project_slots SET completed = completed + 1200, images_stored = images_stored + 23990,
                             images_listed = images_listed + 12000
    WHERE project_id = $1 AND slot = 0
    """,
)


def fill(sql: Callable[..., list[dict[str, object]]], project: str) -> object:
    """Give a project many rows; returns its id."""
    project_id = sql("SELECT id FROM projects WHERE name = $1", project)[0]["id"]
    for statement in FILL:
        sql(statement, project_id)
    return project_id


def finished(service: RunningService, *projects: str) -> tuple[Client, Holder]:
    """Projects with a completed, a failed and a cancelled job each, rows and log lines."""
    admin, worker = service.client("admin"), Holder(service.client("worker"))
    for project in projects:
        admin.put_project(project, SOURCE)
        admin.add_jobs(project, ["completed", "failed", "cancelled"])
        worker.complete(worker.one(project), 2, "1.png", "2.png")
        worker.fail(worker.one(project), retryable=False)
        [last] = admin.jobs(project, state="queued")
        admin.cancel(project, last.id)
        worker.client.post_logs(worker.worker_id, [LogLine(level=LogLevel.INFO, message="hello", project=project)])
    return admin, worker


@pytest.mark.service(janitor_seconds=3600)
def test_a_deleted_project_is_gone_for_everybody_at_once(service: RunningService) -> None:
    admin, worker = finished(service, PROJECT, OTHER)
    [project_id] = [row["id"] for row in service.sql("SELECT id FROM projects WHERE name = $1", PROJECT)]
    job = next(admin.jobs(PROJECT))
    admin.delete_project(PROJECT)
    assert service.sql(ROWS, project_id)[0]["results"] == 2, "the janitor has not come yet"
    [hidden] = [row["name"] for row in service.sql("SELECT name FROM projects WHERE id = $1", project_id)]
    for name in (PROJECT, hidden):
        for call in (
            partial(admin.project, name),
            partial(admin.delete_project, name),
            partial(admin.pause, name),
            partial(admin.resume, name),
            partial(admin.add_jobs, name, ["a"]),
            partial(admin.job, name, job.id),
            partial(admin.rerun, name, job.id),
            partial(worker.claim, name),
            partial(next, admin.jobs(name)),
            partial(next, admin.job_results(name, job.id)),
            partial(next, admin.results(name)),
            partial(next, admin.logs(name)),
        ):
            with pytest.raises(NotFound):
                call()
    with pytest.raises(NotFound):
        admin.put_project(hidden, SOURCE)
    assert [project.name for project in admin.projects()] == [OTHER]
    assert worker.claim(None) == []
    assert {line.project for line in admin.logs()} == {OTHER, None}
    metrics = httpx.get(f"{service.root}/metrics").text
    assert 'job_api_jobs{state="completed"} 1.0' in metrics
    assert 'job_api_images{recognised="true"} 2.0' in metrics
    service.assert_counters_equal_recount()


def test_the_name_of_a_deleted_project_is_free_at_once(service: RunningService) -> None:
    admin, worker = finished(service, PROJECT)
    admin.delete_project(PROJECT)
    admin.put_project(PROJECT, ProjectSettings(source="file:///elsewhere"))
    assert admin.add_jobs(PROJECT, ["completed", "failed"]).added == 2
    worker.complete(worker.one(PROJECT), 1, "1.png")
    assert admin.project(PROJECT).images.stored == 1
    assert [row["image"] for row in admin.results(PROJECT)] == ["1.png"]
    admin.cancel(PROJECT, next(admin.jobs(PROJECT, state="queued")).id)
    admin.delete_project(PROJECT)
    assert admin.projects() == []


def test_a_project_with_unfinished_jobs_is_not_deleted(service: RunningService) -> None:
    admin, worker = finished(service, PROJECT)
    admin.add_jobs(PROJECT, ["more", "and more"])
    worker.one(PROJECT)
    with pytest.raises(ApiError, match="2 jobs of 'patents' are unfinished") as refused:
        admin.delete_project(PROJECT)
    assert (refused.value.status, refused.value.problem_type) == (409, "project-busy")
    assert admin.project(PROJECT).jobs.completed == 1
    service.assert_counters_equal_recount()


@pytest.mark.service(janitor_seconds=0.05)
def test_the_rows_go_in_batches_and_those_of_others_stay(
    service: RunningService, start_service: ServiceStarter
) -> None:
    start_service(database_url=service.database_url, janitor_seconds=0.05)
    admin, _ = finished(service, PROJECT, OTHER, "next")
    project_id = fill(service.sql, PROJECT)
    service.assert_counters_equal_recount()
    [next_id] = [row["id"] for row in service.sql("SELECT id FROM projects WHERE name = 'next'")]
    [other_id] = [row["id"] for row in service.sql("SELECT id FROM projects WHERE name = $1", OTHER)]
    others = service.sql(ROWS, other_id)
    admin.delete_project("next")
    admin.delete_project(PROJECT)
    wait_for(lambda: service.sql(ROWS, project_id) == [GONE], LOAD_SECONDS)
    wait_for(lambda: service.sql(ROWS, next_id) == [GONE])
    assert service.sql(ROWS, other_id) == others
    assert service.sql("SELECT count(*) AS n FROM attempts")[0]["n"] == 2, "those of the other project"
    service.assert_counters_equal_recount()


@pytest.mark.service(sweep_seconds=0.1, janitor_seconds=3600)
def test_a_late_writer_finds_nothing_while_the_rows_are_still_there(service: RunningService) -> None:
    admin, worker = service.client("admin"), Holder(service.client("worker"))
    admin.put_project(PROJECT, ProjectSettings(source="file:///data", max_failures=1))
    admin.add_jobs(PROJECT, ["a"])
    lease = worker.one(PROJECT)
    service.expire_leases()
    wait_for(lambda: admin.job(PROJECT, lease.job_id).state is JobState.FAILED)
    admin.delete_project(PROJECT)
    before = service.sql("SELECT * FROM jobs")
    assert worker.status_of(lease) is LeaseStatus.LOST, "although a lease that expired may come back"
    for write in (
        lambda: worker.post(lease, "1.png"),
        lambda: worker.complete(lease, 1, "1.png"),
        lambda: worker.fail(lease),
        lambda: worker.release(lease),
        lambda: worker.images_done(lease),
        lambda: worker.results_done(lease),
    ):
        with pytest.raises(NotFound):
            write()
    assert service.sql("SELECT * FROM jobs") == before
    assert service.sql("SELECT * FROM results") == []


@pytest.mark.service(janitor_seconds=3600)
def test_what_would_queue_jobs_comes_before_a_deletion_or_finds_nothing(service: RunningService) -> None:
    """Many rounds of adding, retrying and deleting at once: no unfinished job is ever in a deleted project."""
    admin = service.client("admin")

    def quietly(call: Callable[[], object]) -> str:
        try:
            call()
        except NotFound:
            return "not found"
        except ApiError as error:
            return error.problem_type
        return "done"

    outcomes = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for number in range(40):
            name = f"p-{number}"
            admin.put_project(name, SOURCE)
            admin.add_jobs(name, ["a"])
            [job] = admin.jobs(name)
            admin.cancel(name, job.id)
            names = [f"{n}" for n in range(200)]
            if number % 2:
                queued = pool.submit(quietly, partial(admin.add_jobs, name, names))
            else:
                queued = pool.submit(quietly, partial(admin.retry, name, job.id))
            deleted = pool.submit(quietly, partial(admin.delete_project, name))
            outcomes.append((queued.result(), deleted.result()))
    assert set(outcomes) <= {("done", "project-busy"), ("not found", "done")}
    of_deleted = "SELECT 1 FROM jobs j JOIN projects p ON p.id = j.project_id WHERE p.deleted_at IS NOT NULL AND "
    assert service.sql(of_deleted + "state = 'queued'") == []
    assert len(service.sql(of_deleted + "true")) == sum(outcome == ("not found", "done") for outcome in outcomes)
    service.assert_counters_equal_recount()


@pytest.mark.service(janitor_seconds=0.05)
def test_the_row_of_a_writer_that_was_let_in_before_is_cleared_away_too(service: RunningService) -> None:
    """Its transaction holds the job while the janitor comes, as `hold` does for a worker's write."""
    admin, _ = finished(service, PROJECT)
    [row] = service.sql("SELECT id, project_id FROM jobs WHERE directory = 'completed'")
    late = NEW_ROW.format("$2::bigint") + "FROM generate_series(100, 109) AS i"

    async def write_late() -> None:
        connection = await asyncpg.connect(service.database_url)
        try:
            async with connection.transaction():
                await connection.execute("SELECT 1 FROM jobs WHERE id = $1 FOR NO KEY UPDATE", row["id"])
                await asyncio.to_thread(admin.delete_project, PROJECT)
                await asyncio.to_thread(wait_for, lambda: service.sql(WAITS))
                await connection.execute(late, row["project_id"], row["id"])
        finally:
            await connection.close()

    run(write_late())
    wait_for(lambda: service.sql(ROWS, row["project_id"]) == [GONE])


def test_a_deletion_goes_on_after_the_service_was_killed(make_database: Callable[[], str], data_dir: Path) -> None:
    """It is killed while it waits for rows that somebody else has."""
    url = make_database()
    settings: dict[str, str | int] = {"database_url": url, "janitor_seconds": "0.05"}

    def rows(project_id: object) -> dict[str, object]:
        return run(sql_of(url, ROWS, project_id))[0]

    killed = Serving(data_dir, **settings)

    async def kill_amid(admin: Client, project_id: object) -> dict[str, object]:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("BEGIN")
            await connection.fetch("SELECT 1 FROM log_lines WHERE project_id = $1 FOR UPDATE", project_id)
            admin.delete_project(PROJECT)
            await asyncio.to_thread(wait_for, lambda: run(sql_of(url, WAITS)))
            killed.kill()
            return await asyncio.to_thread(rows, project_id)
        finally:
            await connection.close()

    try:
        admin = killed.client()
        admin.put_project(PROJECT, SOURCE)
        project_id = fill(lambda *words: run(sql_of(url, *words)), PROJECT)
        before = rows(project_id)
        left = run(kill_amid(admin, project_id))
        admin.close()
    finally:
        killed.kill()
    assert left["results"] != before["results"]
    assert (left["projects"], left["lines"]) == (1, before["lines"]), "it was not done yet"
    with Serving(data_dir, **settings):
        wait_for(lambda: rows(project_id) == GONE)
