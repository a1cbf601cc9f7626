"""What was kept long enough goes, bit by bit; what is still needed stays however old it is."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

import asyncpg
import pytest

from job_api.client import Client
from job_api.janitor import BATCH
from job_api.janitor_sql import ALONE
from job_api.schemas import LogLevel, LogLine, NewToken, ProjectSettings, Role, WorkerState
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, run
from tests.serving import wait_for

PROJECT = "patents"
JANITOR = {"janitor_seconds": 0.05}


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    client.put_project(PROJECT, ProjectSettings(source="file:///data"))
    return client


def holder(service: RunningService) -> Holder:
    return Holder(service.client("worker"))


def count(service: RunningService, table: str) -> int:
    return int(service.sql(f"SELECT count(*) AS n FROM {table}")[0]["n"])  # noqa: S608


def rounds(service: RunningService, number: int = 2) -> None:
    """Wait until the janitor has certainly been round: a token that ended long ago goes last in each round."""
    for _ in range(number):
        service.sql(
            "INSERT INTO tokens (token_hash, name, role, expires_at)"
            " VALUES (gen_random_uuid()::text::bytea, 'canary', 'read', now() - interval '9 years')"
        )
        wait_for(lambda: not service.sql("SELECT 1 FROM tokens WHERE name = 'canary'"))


LINES = (
    "INSERT INTO log_lines (worker_id, level, message, received_at) SELECT 'w', 'info', 'old', now() - $1::interval "
)


@pytest.mark.service(**JANITOR, keep_log_days=1)
def test_log_lines_go_when_they_are_old_in_more_than_one_batch(service: RunningService, admin: Client) -> None:
    service.sql(LINES.replace("$1", "'25 hours'") + f"FROM generate_series(1, {2 * BATCH + 10})")
    service.sql(LINES.replace("$1", "'23 hours'") + "FROM generate_series(1, 3)")
    holder(service).client.post_logs("w-1", [LogLine(level=LogLevel.INFO, message="new")])
    wait_for(lambda: count(service, "log_lines") == 4)
    rounds(service)
    assert [line.message for line in admin.logs()] == ["old"] * 3 + ["new"]


@pytest.mark.service(**JANITOR, keep_log_days=0, keep_log_lines=100)
def test_log_lines_go_when_they_are_too_many(service: RunningService, admin: Client) -> None:
    service.sql(LINES.replace("$1", "'9 years'") + f"FROM generate_series(1, {BATCH + 200})")
    wait_for(lambda: count(service, "log_lines") == 100)
    rounds(service)
    assert [line.id for line in admin.logs()] == list(range(BATCH + 101, BATCH + 201)), "the newest"


@pytest.mark.service(**JANITOR, keep_log_days=0, keep_log_lines=0, keep_attempt_days=0, keep_worker_days=0)
def test_with_zero_days_all_is_kept(service: RunningService, admin: Client) -> None:
    service.sql(LINES.replace("$1", "'9 years'") + "FROM generate_series(1, 10)")
    worker = attempts_of_finished_and_other_jobs(service, admin)
    before = service.sql("SELECT * FROM attempts ORDER BY 1, 2"), service.sql("SELECT * FROM log_lines ORDER BY 1")
    rounds(service)
    after = service.sql("SELECT * FROM attempts ORDER BY 1, 2"), service.sql("SELECT * FROM log_lines ORDER BY 1")
    assert after == before
    assert worker.worker_id in {known.id for known in admin.workers()}


AGES = {"9 years": timedelta(days=9 * 365), "23 hours": timedelta(hours=23)}


def attempts_of_finished_and_other_jobs(service: RunningService, admin: Client, age: str = "9 years") -> Holder:
    """Four jobs with two attempts each that ended long ago, but for the second one of the claimed job."""
    worker = holder(service)
    admin.add_jobs(PROJECT, ["completed", "cancelled", "queued", "claimed"])
    for lease in worker.claim(PROJECT, max_jobs=4):
        worker.release(lease)
    for lease in worker.claim(PROJECT, max_jobs=4):
        if lease.directory == "completed":
            worker.complete(lease, 1, "1.png")
        elif lease.directory != "claimed":
            worker.release(lease)
    [cancelled] = admin.jobs(PROJECT, text="cancelled")
    admin.cancel(PROJECT, cancelled.id)
    service.sql("UPDATE attempts SET claimed_at = now() - $1::interval, ended_at = ended_at - $1::interval", AGES[age])
    service.sql("UPDATE workers SET last_seen_at = now() - interval '9 years'")
    return worker


@pytest.mark.service(**JANITOR, keep_worker_days=0)
def test_old_attempts_go_but_the_newest_and_those_of_unfinished_jobs(service: RunningService, admin: Client) -> None:
    attempts_of_finished_and_other_jobs(service, admin)
    wait_for(lambda: count(service, "attempts") == 6)
    rounds(service)
    left = {job.directory: [a.lease_seq for a in admin.job(PROJECT, job.id).attempts] for job in admin.jobs(PROJECT)}
    assert left == {"completed": [2], "cancelled": [2], "queued": [2, 1], "claimed": [2, 1]}
    service.assert_counters_equal_recount()


@pytest.mark.service(**JANITOR, keep_attempt_days=1)
def test_attempts_that_ended_lately_stay(service: RunningService, admin: Client) -> None:
    attempts_of_finished_and_other_jobs(service, admin, "23 hours")
    rounds(service)
    assert count(service, "attempts") == 8


@pytest.mark.service(**JANITOR)
def test_a_walk_through_many_attempts_comes_to_all_of_them(service: RunningService, admin: Client) -> None:
    """More than two batches, of which only the first attempt of each job may go."""
    service.sql(
        "INSERT INTO jobs (project_id, directory, state, finished_at, image_count, lease_seq)"
        " SELECT id, 'd' || n, 'failed', now(), 10, 2 FROM projects, generate_series(1, $1::int) AS n",
        BATCH + 10,
    )
    service.sql(
        "INSERT INTO attempts (job_id, lease_seq, worker_id, claim_key, ended_at, outcome)"
        " SELECT j.id, s, 'w', 'k', now() - interval '9 years', 'failed' FROM jobs j, generate_series(1, 2) AS s"
    )
    wait_for(lambda: count(service, "attempts") == BATCH + 10)
    rounds(service)
    assert service.sql("SELECT DISTINCT lease_seq FROM attempts") == [{"lease_seq": 2}]


@pytest.mark.service(**JANITOR)
def test_workers_go_when_nobody_hears_of_them_but_not_with_live_leases(service: RunningService, admin: Client) -> None:
    admin.add_jobs(PROJECT, ["a"])
    working, idle, gone, alive = (holder(service) for _ in range(4))
    lease = working.one(PROJECT)
    for worker in (idle, gone, alive):
        worker.heartbeat()
    gone.client.goodbye(gone.worker_id)
    names = [worker.worker_id for worker in (working, idle, gone)]
    service.sql("UPDATE workers SET last_seen_at = now() - interval '31 days' WHERE id = ANY($1::text[])", names)
    wait_for(lambda: count(service, "workers") == 2)
    rounds(service)
    assert {worker.id for worker in admin.workers()} == {working.worker_id, alive.worker_id}
    working.complete(lease, 1, "1.png")
    assert idle.heartbeat().state is WorkerState.RUN, "it is made again when it comes back"


@pytest.mark.service(**JANITOR)
def test_tokens_go_long_after_they_ended(service: RunningService, admin: Client) -> None:
    made = {
        name: admin.new_token(NewToken(name=name, role=Role.READ, expires_in_seconds=60)).id
        for name in ("valid", "expired lately", "expired", "revoked lately", "revoked")
    }
    for name, column, days in (
        ("expired lately", "expires_at", 29),
        ("expired", "expires_at", 31),
        ("revoked lately", "revoked_at", 29),
        ("revoked", "revoked_at", 31),
    ):
        statement = f"UPDATE tokens SET {column} = now() - $2 * interval '1 day' WHERE id = $1"  # noqa: S608
        service.sql(statement, made[name], days)
    wait_for(lambda: not service.sql("SELECT 1 FROM tokens WHERE name IN ('expired', 'revoked')"))
    rounds(service)
    left = {row["name"] for row in service.sql("SELECT name FROM tokens")} & set(made)
    assert left == {"valid", "expired lately", "revoked lately"}


@pytest.mark.service(**JANITOR)
def test_what_goes_wrong_does_not_end_the_janitor(
    service: RunningService, admin: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "job_api.janitor")
    service.sql("ALTER TABLE workers RENAME TO workers_away")
    wait_for(lambda: "clearing workers failed" in caplog.text)
    service.sql("ALTER TABLE workers_away RENAME TO workers")
    holder(service).heartbeat()
    service.sql("UPDATE workers SET last_seen_at = now() - interval '31 days'")
    wait_for(lambda: count(service, "workers") == 0)


@pytest.mark.service(**JANITOR)
def test_one_janitor_works_at_a_time(service: RunningService, start_service: Callable[..., RunningService]) -> None:
    """While somebody holds the janitor's lock, no process clears anything away."""
    start_service(database_url=service.database_url, **JANITOR)
    committed = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"

    async def hold_the_lock() -> None:
        connection = await asyncpg.connect(service.database_url)
        try:
            async with connection.transaction():
                wait = "SELECT pg_advisory_xact_lock" + ALONE.partition("pg_try_advisory_xact_lock")[2]
                await connection.execute(wait)
                await asyncio.to_thread(service.sql, LINES.replace("$1", "'9 years'") + "FROM generate_series(1, 10)")
                before = (await asyncio.to_thread(service.sql, committed))[0]["xact_commit"]
                await asyncio.to_thread(wait_for, lambda: service.sql(committed)[0]["xact_commit"] > before + 100)
                assert (await asyncio.to_thread(service.sql, "SELECT count(*) AS n FROM log_lines")) == [{"n": 10}]
        finally:
            await connection.close()

    run(hold_the_lock())
    wait_for(lambda: count(service, "log_lines") == 0)
