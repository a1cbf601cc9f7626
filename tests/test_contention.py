"""Many at once: each job is handed out once, counters stay right, nobody deadlocks, and old snapshots cost little.

That no database had a deadlock is asserted after every test, by the fixture that made it.
"""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import httpx
import pytest

from job_api import queue_sql
from job_api.client import ApiError, Client
from job_api.schemas import ProjectSettings
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, count_deadlocks, run
from tests.serving import LOAD_SECONDS, wait_for

PROJECT, OTHER = "patents", "others"
WORK_ITERATIONS = 40


def directory(number: int) -> str:
    """A name as long as names get, so that a page of the table holds few jobs."""
    return f"{number:05} " + "x" * 200 + ("/" + "y" * 200) * 3


def with_jobs(service: RunningService, jobs: int, *projects: str, **settings: Any) -> Client:
    admin = service.client("admin")
    for project in projects or (PROJECT,):
        admin.put_project(project, ProjectSettings(source="file:///data", **settings))
        admin.add_jobs(project, [directory(number) for number in range(jobs)])
    return admin


def claims_at_once(service: RunningService, bodies: list[dict[str, Any]], path: str) -> list[httpx.Response]:
    """Send claims all at once; one that is put off (503) is sent again, as workers do."""
    headers = {"Authorization": f"Bearer {service.token('worker')}"}

    async def claim(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        while (answer := await client.post(path, json=body)).status_code == 503:
            pass
        return answer

    async def all_of_them() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=service.root, headers=headers, limits=limits, timeout=120) as client:
            return await asyncio.gather(*(claim(client, body) for body in bodies))

    return run(all_of_them())


@pytest.mark.parametrize("path", [f"/v4/{PROJECT}/claim", "/v4/claim"])
def test_256_claimers_of_10_jobs_get_each_job_once(service: RunningService, path: str) -> None:
    with_jobs(service, 10)
    answers = claims_at_once(service, [{"worker_id": f"w-{n}", "claim_key": "k"} for n in range(256)], path)
    assert Counter(answer.status_code for answer in answers) == {200: 10, 204: 246}
    leases = [lease for answer in answers if answer.status_code == 200 for lease in answer.json()["leases"]]
    assert sorted(lease["directory"] for lease in leases) == [directory(number) for number in range(10)]
    assert {lease["lease_seq"] for lease in leases} == {1}
    service.assert_counters_equal_recount()


@pytest.mark.parametrize("path", [f"/v4/{PROJECT}/claim", "/v4/claim"])
@pytest.mark.parametrize("jobs", [1, 40])
def test_one_claim_sent_32_times_at_once_gets_one_lease(service: RunningService, path: str, jobs: int) -> None:
    with_jobs(service, jobs)
    answers = claims_at_once(service, [{"worker_id": "w", "claim_key": "k"}] * 32, path)
    assert Counter(answer.status_code for answer in answers) == {200: 32}
    assert len({answer.text for answer in answers}) == 1
    assert service.sql("SELECT count(*) AS leases FROM attempts") == [{"leases": 1}]
    service.assert_counters_equal_recount()


WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.mark.parametrize("project", [PROJECT, None])
def test_a_claim_sent_again_waits_for_the_first_one_to_get_the_last_job(
    service: RunningService, project: str | None
) -> None:
    with_jobs(service, 1)
    worker = Holder(service.client("worker"))
    worker.heartbeat()

    def are_waiting(number: int) -> bool:
        return len(service.sql(WAITING)) == number

    async def hold_up() -> list[Any]:
        connection = await asyncpg.connect(service.database_url)
        try:
            # The first claim has locked the job, and waits for one who opens the same attempt, and gives up.
            attempt = connection.transaction()
            await attempt.start()
            await connection.execute(
                "INSERT INTO attempts (job_id, lease_seq, worker_id, claim_key) SELECT id, 1, 'w', 'k' FROM jobs"
            )
            claims = []
            for waiting in (1, 2):
                claims.append(asyncio.create_task(asyncio.to_thread(worker.claim, project, key="k")))
                await asyncio.to_thread(wait_for, partial(are_waiting, waiting))
            await attempt.rollback()
        finally:
            await connection.close()
        return [await claim for claim in claims]

    first, again = run(hold_up())
    assert first == again
    assert len(first) == 1
    assert worker.claim(project, key="k") == first


class Listening(httpx.HTTPTransport):
    """The network, and what came through it, also what the client tries again without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        self.statuses[answer.status_code] += 1
        return answer


def work(holder: Holder, chance: random.Random) -> None:
    """Claim and do something with the leases, again and again; some are left to run out."""
    for _ in range(WORK_ITERATIONS):
        leases = holder.claim(chance.choice([PROJECT, OTHER, None]), max_jobs=chance.randint(1, 4))
        for lease in leases:
            ends: list[Callable[[], object]] = [
                lambda lease=lease: holder.complete(lease, 1, "1.png"),  # type: ignore[misc]
                lambda lease=lease: holder.complete(lease, 2, "1.png", "2.png"),  # type: ignore[misc]
                lambda lease=lease: holder.fail(lease),  # type: ignore[misc]
                lambda lease=lease: holder.release(lease),  # type: ignore[misc]
                lambda lease=lease: holder.post(lease, "1.png", "3.png"),  # type: ignore[misc]
            ]
            with suppress(ApiError):
                chance.choice(ends)()
        holder.heartbeat(*leases)


def meddle(admin: Client, chance: random.Random, done: threading.Event) -> None:
    """Do what a person may do to a job that is in use."""
    ids = {project: [job.id for job in admin.jobs(project)] for project in (PROJECT, OTHER)}
    while not done.is_set():
        project = chance.choice([PROJECT, OTHER])
        action = chance.choice([admin.cancel, admin.retry, admin.rerun, admin.force_release])
        with suppress(ApiError):
            action(project, chance.choice(ids[project]))


@pytest.mark.service(
    lease_seconds=0.3,
    heartbeat_seconds=0.1,
    sweep_seconds=0.05,
    backoff_seconds=0.01,
    token_seconds=600,
    # These workers fail often, and shall go on; `test_quarantine.py` has those that do not.
    quarantine_after=0,
)
def test_all_kinds_of_writers_at_once_leave_the_counters_right(service: RunningService) -> None:
    with_jobs(service, 20, PROJECT, OTHER, max_failures=50)
    networks = [Listening() for _ in range(10)]
    done = threading.Event()
    workers = [
        threading.Thread(target=work, args=(Holder(service.client("worker", transport=network)), random.Random(number)))
        for number, network in enumerate(networks[2:])
    ]
    people = [
        threading.Thread(target=meddle, args=(service.client("admin", transport=network), random.Random(number), done))
        for number, network in enumerate(networks[:2])
    ]
    for thread in (*workers, *people):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in people:
        thread.join()
    # Until everything that was left has run out and every back-off is over.
    wait_for(lambda: not service.sql("SELECT 1 FROM jobs WHERE state IN ('claimed', 'waiting') LIMIT 1"), LOAD_SECONDS)
    service.assert_counters_equal_recount()
    assert max(status for network in networks for status in network.statuses) < 500
    assert all(network.statuses[200] for network in networks)
    outcomes = {row["outcome"] for row in service.sql("SELECT DISTINCT outcome FROM attempts")}
    assert outcomes == {"completed", "failed", "released", "expired", "cancelled", "force-released"}
    assert (
        service.sql("SELECT job_id FROM attempts GROUP BY job_id HAVING count(*) FILTER (WHERE outcome IS NULL) > 0")
        == []
    )


def told(service: RunningService, statement: str, *arguments: Any) -> list[dict[str, Any]]:
    """Rows of a statistics view, once the service's sessions, which are ended for that, have told what they counted."""
    sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'job-api' AND datname = current_database()"
    pids = [row["pid"] for row in service.sql(sessions)]
    service.sql("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)
    wait_for(lambda: not {row["pid"] for row in service.sql(sessions)} & set(pids))
    return service.sql(statement, *arguments)


ENTRIES_READ = "SELECT pg_stat_get_xact_tuples_returned('jobs_claim_idx'::regclass)"


async def reads_of(url: str, statement: str, *arguments: Any) -> tuple[int, int]:
    """How many entries of the queue's index a statement reads, and how many pages of all; nothing of it stays."""
    connection = await asyncpg.connect(url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        [row] = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *arguments)
        entries: int = await connection.fetchval(ENTRIES_READ)
        await transaction.rollback()
        plan = json.loads(row[0])[0]["Plan"]
        return entries, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    finally:
        await connection.close()


def test_claims_stay_cheap_while_an_old_snapshot_is_open(service: RunningService) -> None:
    jobs, left = 1_000, 5
    with_jobs(service, jobs + left)
    worker = Holder(service.client("worker"))
    read = threading.Event()

    async def keep_reading(stop: asyncio.Event) -> int:
        connection = await asyncpg.connect(service.database_url)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await connection.fetchval("SELECT count(*) FROM jobs")
                read.set()
                await stop.wait()
                seen: int = await connection.fetchval("SELECT count(*) FROM jobs WHERE state = 'queued'")
                return seen
        finally:
            await connection.close()

    async def work_meanwhile() -> int:
        stop = asyncio.Event()
        reader = asyncio.create_task(keep_reading(stop))
        await asyncio.to_thread(read.wait)
        try:
            await asyncio.to_thread(claim_and_complete)
            await asyncio.to_thread(look_at_the_next_claim)
        finally:
            stop.set()
        return await reader

    def claim_and_complete() -> None:
        for _ in range(jobs // 10):
            for lease in worker.claim(PROJECT, max_jobs=10):
                worker.complete(lease, 1, "1.png")

    def look_at_the_next_claim() -> None:
        [owner] = [row["owner"] for row in service.sql("SELECT owner FROM workers")]
        [last] = service.sql("SELECT max(queue_pos) AS queue_pos FROM jobs WHERE state = 'completed'")
        arguments = (PROJECT, worker.worker_id, owner, "k", 1, timedelta(seconds=60), 0)
        beyond = run(reads_of(service.database_url, queue_sql.CLAIM_BEYOND, *arguments, 0, last["queue_pos"]))
        plain = run(reads_of(service.database_url, queue_sql.CLAIM, *arguments))
        assert plain[0] > jobs, "without a beginning it walks over all entries that the old snapshot keeps"
        assert beyond[0] < 10
        # Both update the counters, whose dead versions the old snapshot keeps, too: more of them the faster the claims.
        assert plain[1] > beyond[1] + jobs / 20
        # The service itself used the beginning: without it each claim reads what all claims before it left.
        [index] = told(service, "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'jobs_claim_idx'")
        assert jobs <= index["idx_tup_read"] < 15 * jobs

    assert run(work_meanwhile()) == jobs + left, "the old snapshot sees the queue as it was"
    assert service.sql("SELECT count(*) AS rows FROM results") == [{"rows": jobs}]
    assert len(worker.claim(PROJECT, max_jobs=10)) == left
    service.assert_counters_equal_recount()


def test_heartbeats_touch_no_index(service: RunningService) -> None:
    with_jobs(service, 4)
    worker = Holder(service.client("worker"))
    leases = worker.claim(PROJECT, max_jobs=4)
    updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs'"
    [before] = told(service, updates)
    for _ in range(50):
        worker.heartbeat(*leases)
    [after] = told(service, updates)
    assert after["n_tup_upd"] - before["n_tup_upd"] == 200
    # A page is cleaned of old versions when it is full, unless somebody looks at them just then.
    assert after["n_tup_hot_upd"] - before["n_tup_hot_upd"] >= 180


@pytest.mark.may_deadlock
def test_a_deadlock_would_be_seen(make_database: Callable[[], str], postgres_url: str) -> None:
    url = make_database()

    async def meet() -> None:
        first, second = await asyncpg.connect(url), await asyncpg.connect(url)
        try:
            await first.execute("CREATE TABLE t AS SELECT generate_series(1, 2) AS n")
            for connection, number in ((first, 1), (second, 2)):
                await connection.execute("BEGIN")
                await connection.execute("UPDATE t SET n = n WHERE n = $1", number)
            cross = [first.execute("UPDATE t SET n = n WHERE n = 2"), second.execute("UPDATE t SET n = n WHERE n = 1")]
            ends = await asyncio.gather(*cross, return_exceptions=True)
            assert sum(isinstance(end, asyncpg.DeadlockDetectedError) for end in ends) == 1
        finally:
            first.terminate()
            second.terminate()

    run(meet())
    assert run(count_deadlocks(postgres_url, url.rpartition("/")[2].partition("?")[0])) == 1
