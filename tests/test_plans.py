"""Each statement that runs often is planned once for each connection: by the indexes, whatever the tables hold.

A plan made while a table was empty serves when it holds millions, so all plans are looked at on empty tables, right
after a bulk load that nobody has analysed yet, and after ANALYZE; in sessions as the service has them.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from job_api import (
    directories,
    export,
    failures,
    fleet,
    progress,
    projects,
    queue_sql,
    results,
    reviews,
    selection,
    stored_chemistry,
)
from job_api.counters import SETTLE, SUMS
from job_api.db import SESSION, Database
from job_api.schemas import FailureKind, JobState
from tests.plugins.service import RunningService, run

BIG = ("jobs", "attempts", "results", "worker_failures")
# Sessions that choose their plans freely, but once.
FREE = {name: SESSION[name] for name in ("jit", "plan_cache_mode")}

ROWS = 50_000
NO_CLEANING = [f"ALTER TABLE {table} SET (autovacuum_enabled = off)" for table in (*BIG, "project_slots", "workers")]
FILL = [
    "INSERT INTO projects (name, source) SELECT 'p' || n, 'file:///data' FROM generate_series(1, 5) AS n",
    "INSERT INTO project_slots (project_id, slot) SELECT p.id, n FROM projects p, generate_series(0, 31) AS n",
    "INSERT INTO workers (id, owner) SELECT 'w' || n, 'somebody' FROM generate_series(1, 2000) AS n",
    # Of a hundred jobs 70 are queued, 2 claimed, 2 waiting and the others completed.
    f"""
    INSERT INTO jobs (project_id, directory, state, lease_seq, worker_id, claim_key, claim_place, lease_expires_at,
                      due_at, finished_at, image_count)
    SELECT 1 + n % 5, 'directory ' || n, s.state, (s.state <> 'queued')::int,
           CASE WHEN s.state = 'claimed' THEN 'w' || n END, CASE WHEN s.state = 'claimed' THEN 'k' END, -1,
           CASE WHEN s.state = 'claimed' THEN now() END, CASE WHEN s.state = 'waiting' THEN now() END,
           CASE WHEN s.state = 'completed' THEN now() END, 1
    FROM generate_series(1, {ROWS}) AS n, LATERAL (SELECT CASE WHEN n / 5 % 100 < 70 THEN 'queued'
        WHEN n / 5 % 100 < 72 THEN 'claimed' WHEN n / 5 % 100 < 74 THEN 'waiting' ELSE 'completed' END AS state) AS s
    """,  # noqa: S608 - a number
    """
    INSERT INTO attempts (job_id, lease_seq, worker_id, claim_key)
    SELECT id, 1, coalesce(worker_id, 'w1'), 'k' FROM jobs WHERE lease_seq = 1
    """,
    f"""
    INSERT INTO results (job_id, image, engine, project_id, provenance_id, lease_seq, run, status)
    SELECT j.id, n || '.png', 'decimer', j.project_id, 1, 1, 1, 'recognised'
    FROM (SELECT * FROM jobs WHERE state = 'completed' ORDER BY id LIMIT 500) AS j,
         generate_series(1, {ROWS // 500}) AS n
    """,  # noqa: S608 - a number
]
ANALYZE = ["ANALYZE"]


@dataclass(frozen=True)
class Hot:
    """A statement that runs often.

    Args:
        statement: the SQL.
        indexes: by which it reaches jobs, attempts and results.
        perhaps: more that it may use.
        sorts: by what it may sort: a few rows, or those of one job, one worker or one project's live leases.
        whole: an index that it may read from end to end, because it holds little.
        by: columns that must be looked up in an index, where a part of its columns would do and take long.
    """

    statement: str
    indexes: str = ""
    perhaps: str = ""
    sorts: tuple[str, ...] = ()
    whole: str = ""
    by: tuple[tuple[str, str], ...] = ()


IN_ORDER = ("j.priority DESC, j.queue_pos",)
CLAIM_INDEXES = "jobs_claim_idx jobs_claim_key_idx jobs_pkey results_pkey"
CLAIM_BY = (("jobs_claim_idx", "project_id"), ("jobs_claim_key_idx", "claim_key"))
# Which of them is better depends on how large a part of all jobs the project has.
HELD_BY = (("attempts_pkey", "job_id"), ("attempts_pkey", "lease_seq"), ("jobs_pkey", "id"))
# What a success forgets.
FORGOTTEN_BY = ("worker_failures_pkey", "worker_id")
FAILED_BY = (("results_failures_idx", "engine"), ("results_failures_idx", "error_shape"))
LISTED_BY = "jobs_browse_idx jobs_pkey"
HOT = {
    "claim": Hot(queue_sql.CLAIM, CLAIM_INDEXES, sorts=IN_ORDER, by=CLAIM_BY),
    "claim beyond": Hot(
        queue_sql.CLAIM_BEYOND, CLAIM_INDEXES, sorts=IN_ORDER, by=(*CLAIM_BY, ("jobs_claim_idx", "queue_pos"))
    ),
    "heartbeat": Hot(queue_sql.HEARTBEAT, "jobs_pkey", "jobs_claim_key_idx", sorts=("j_1.id",)),
    "lease fates": Hot(queue_sql.LEASE_FATES, "jobs_pkey attempts_pkey"),
    "complete": Hot(
        queue_sql.COMPLETE,
        "jobs_pkey attempts_pkey results_pkey worker_failures_pkey",
        by=(*HELD_BY, ("results_pkey", "job_id"), FORGOTTEN_BY),
    ),
    "hold": Hot(queue_sql.HOLD, "jobs_pkey attempts_pkey", by=HELD_BY),
    "take back": Hot(queue_sql.TAKE_BACK, "jobs_pkey"),
    "end attempt": Hot(queue_sql.END_ATTEMPT, "attempts_pkey"),
    "put": Hot(queue_sql.PUT, "jobs_pkey"),
    "store": Hot(
        results.STORE,
        "jobs_pkey attempts_pkey results_pkey worker_failures_pkey",
        by=(*HELD_BY, ("results_pkey", "image"), FORGOTTEN_BY),
    ),
    "reviewed answers": Hot(reviews.ANSWERS, "results_pkey", by=(("results_pkey", "image"),)),
    "number again": Hot(reviews.RENUMBER, "results_pkey", by=(("results_pkey", "image"),)),
    "store chemistry": Hot(
        stored_chemistry.STORE,
        perhaps="results_pkey results_export_idx",
        by=(("results_pkey", "image"), ("results_export_idx", "seq")),
    ),
    "any review": Hot(export.ANY_REVIEW),
    "page of reviews": Hot(reviews.PAGE, "jobs_pkey results_pkey", by=(("results_pkey", "image"),)),
    "images done": Hot(results.IMAGES_DONE, "jobs_pkey results_pkey", sorts=("r.image",)),
    "results done": Hot(results.RESULTS_DONE, "jobs_pkey results_pkey", sorts=("r.image",)),
    "count present": Hot(queue_sql.COUNT_PRESENT, "jobs_pkey results_pkey"),
    "leases of claim": Hot(
        queue_sql.LEASES_OF_CLAIM,
        "jobs_claim_key_idx results_pkey",
        sorts=IN_ORDER,
        by=(("jobs_claim_key_idx", "claim_key"),),
    ),
    "leases unnamed": Hot(
        queue_sql.LEASES_UNNAMED,
        "jobs_claim_key_idx results_pkey",
        sorts=("j.id",),
        by=(("jobs_claim_key_idx", "worker_id"),),
    ),
    "expire": Hot(
        queue_sql.EXPIRE, "jobs_browse_idx attempts_pkey jobs_pkey", sorts=("j.id",), by=(("jobs_browse_idx", "state"),)
    ),
    "queue due": Hot(queue_sql.QUEUE_DUE, "jobs_pkey", "jobs_browse_idx jobs_waiting_idx", sorts=("jobs.id",)),
    "overdue": Hot(
        queue_sql.OVERDUE,
        "jobs_claim_key_idx jobs_waiting_idx",
        sorts=("jobs.project_id", "jobs_1.project_id"),
        whole="jobs_claim_key_idx",
    ),
    "touch": Hot(fleet.TOUCH),
    "pending": Hot(queue_sql.PENDING),
    "open projects": Hot(queue_sql.OPEN_PROJECTS),
    "settle": Hot(SETTLE),
    "sums": Hot(SUMS),
    "listing": Hot(projects.JOBS.format(jobs=selection.page(list(JobState))), "", LISTED_BY, sorts=("jobs.id",)),
    "listing of a state": Hot(projects.JOBS.format(jobs=selection.page([JobState.FAILED])), "", LISTED_BY),
    "count usage": Hot(
        progress.COUNT_USAGE,
        "jobs_claim_key_idx",
        sorts=("jobs.worker_id, jobs.project_id", "s.project_id, c.seconds"),
        whole="jobs_claim_key_idx",
    ),
    "slowest": Hot(
        directories.SLOWEST,
        "jobs_browse_idx attempts_pkey",
        sorts=("((EXTRACT(epoch FROM (COALESCE(a.ended_at, now()) - a.claimed_at)))::double precision) DESC, jobs.id",),
        by=(("jobs_browse_idx", "state"), ("attempts_pkey", "lease_seq")),
    ),
    "failing": Hot(
        directories.FAILING,
        "jobs_browse_idx jobs_claim_idx attempts_pkey",
        sorts=(
            """
"*SELECT* 1".failures DESC, (("*SELECT* 1".state = 'failed'::text)) DESC, "*SELECT* 1".job_id DESC""".strip(),
        ),
        by=(("jobs_browse_idx", "state"), ("jobs_claim_idx", "project_id")),
    ),
    "groups of images": Hot(
        failures.statement(failures.KEYS, FailureKind.IMAGE), "results_failures_idx", by=FAILED_BY[:1]
    ),
    "groups counted": Hot(
        failures.statement(failures.COUNT, FailureKind.IMAGE),
        "results_failures_idx",
        by=FAILED_BY,
    ),
    "attempts": Hot(projects.ATTEMPTS, "attempts_pkey", sorts=("lease_seq DESC",)),
}


def faults_of(plan: dict[str, Any], hot: Hot) -> list[str]:
    """What is wrong with the plan of a statement."""
    faults = []
    conditions: dict[str, list[str]] = {}
    for node in nodes_of(plan):
        kind, table = node["Node Type"], node.get("Relation Name")
        if kind in ("Hash Join", "Merge Join") or (kind == "Seq Scan" and table in BIG):
            faults.append(f"{kind} {table or ''}".strip())
        if kind == "Sort" and (key := ", ".join(node["Sort Key"])) not in hot.sorts:
            faults.append(f"Sort by {key}")
        index = node.get("Index Name")
        if index is not None and index.startswith(BIG):
            conditions.setdefault(index, []).append(node.get("Index Cond", ""))
    needed = set(hot.indexes.split())
    faults += [f"no use of {index}" for index in sorted(needed - conditions.keys())]
    faults += [f"use of {index}" for index in sorted(conditions.keys() - needed - set(hot.perhaps.split()))]
    faults += [f"the whole of {index}" for index, said in conditions.items() if "" in said and index != hot.whole]
    for index, column in hot.by:
        if not all(column in said for said in conditions.get(index, [])):
            faults.append(f"{index} not by {column}")
    return faults


@asynccontextmanager
async def session(url: str, settings: dict[str, str]) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        yield connection
    finally:
        await connection.close()


async def plan_of(connection: asyncpg.Connection, statement: str) -> dict[str, Any]:
    """The plan that a session keeps for a statement, whatever its arguments are."""
    prepared = await connection.prepare(statement)
    nothing = ", ".join(["NULL"] * len(prepared.get_parameters()))
    await connection.execute(f"PREPARE looked_at AS {statement}")
    call = f"EXECUTE looked_at({nothing})" if nothing else "EXECUTE looked_at"
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {call}")
    await connection.execute("DEALLOCATE looked_at")
    plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
    return plan


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes_of(child)


async def faults_in(url: str, settings: dict[str, str]) -> dict[str, list[str]]:
    async with session(url, settings) as connection:
        faults = {name: faults_of(await plan_of(connection, hot.statement), hot) for name, hot in HOT.items()}
    return {name: found for name, found in faults.items() if found}


async def execute(url: str, statements: list[str]) -> None:
    async with session(url, {}) as connection:
        for statement in statements:
            await connection.execute(statement)


def test_every_hot_statement_goes_by_its_indexes_whatever_the_tables_hold(make_database: Callable[[], str]) -> None:
    url = make_database()
    for stage, statements in (("empty", NO_CLEANING), ("just filled", FILL), ("analysed", ANALYZE)):
        run(execute(url, statements))
        assert run(faults_in(url, SESSION)) == {}, stage


def test_the_settings_of_the_sessions_are_what_makes_it_so(make_database: Callable[[], str]) -> None:
    url = make_database()
    run(execute(url, NO_CLEANING))
    assert "Seq Scan jobs" in run(faults_in(url, FREE))["claim"]


def test_the_service_has_the_sessions_that_are_looked_at_here(service: RunningService) -> None:
    async def settings() -> dict[str, str]:
        database = Database(service.settings)
        await database.open()
        try:
            async with database.connection() as connection:
                return {name: await connection.fetchval("SELECT current_setting($1)", name) for name in SESSION}
        finally:
            await database.close()

    assert run(settings()) == SESSION
