"""What has failed in a project, in groups: images and jobs whose error messages have one shape. Reads only.

A group's key is a number that the database makes of a status or reason and of the message (`failure_key`, see the
migration); indexes hold it, so that the groups of a project are found by going from one key to the next, whatever the
number of rows. Its id says what has failed, and the key in hexadecimal: nothing is looked up to resolve it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job_api.db import Connection, Database
from job_api.errors import NotFound
from job_api.schemas import FailureExample, FailureGroup, FailureKind, Failures

# Which rows of results and of jobs are failures, and their keys, in the words of their indexes that find them.
IMAGE_FAILED = "(status <> 'recognised' OR error_message IS NOT NULL)"
IMAGE_KEY = "failure_key(status, error_message)"
# Each has a reason; said so that what lists the jobs of a state does not go by the index of these.
JOB_FAILED = "(state = 'failed' AND reason IS NOT NULL)"
JOB_KEY = "failure_key(reason, message)"
# Rows of other engines than that of project $1 are in no group: no rerun would do them again.
IMAGE_FAILED_NOW = f"({IMAGE_FAILED} AND engine = (SELECT p.engine FROM projects p WHERE p.id = $1))"  # noqa: S608

# Groups that are looked at, of images and of jobs.
MAX_GROUPS = 500
# Every group is counted so far, some groups at a time, and then the larger ones further and further, until the time is
# over: rows that must be fetched from a disk take it up a hundred times as fast as those in memory. Of groups that are
# not reached in time one row is looked at.
COUNTED_FIRST = 100
COUNTED_TOGETHER = 20
GROWTH = 30
BUDGET_SECONDS = 2.0
EXAMPLES = 3
# Listings of a process that read at once. Each holds a connection all the while, and the pool is there for the workers.
MAX_READING = 2


@dataclass(frozen=True)
class _Rows:
    """The rows of a kind of failure, in SQL: where they are, and what the groups tell of them."""

    table: str
    failed: str
    key: str
    job: str
    at: str
    what: str
    message: str
    image: str


_ROWS = {
    FailureKind.IMAGE: _Rows(
        "results", IMAGE_FAILED_NOW, IMAGE_KEY, "job_id", "processed_at", "status", "error_message", "image"
    ),
    FailureKind.JOB: _Rows("jobs", JOB_FAILED, JOB_KEY, "id", "finished_at", "reason", "message", "NULL::text"),
}

# The keys of project $1, each found by one look into the index; at most $2.
KEYS = """
WITH RECURSIVE found AS (
    (SELECT {key} AS key FROM {table} WHERE project_id = $1 AND {failed} ORDER BY {key} LIMIT 1)
    UNION ALL
    SELECT (SELECT {key} FROM {table} WHERE project_id = $1 AND {failed} AND {key} > f.key ORDER BY {key} LIMIT 1)
    FROM found f WHERE f.key IS NOT NULL)
SELECT key FROM found WHERE key IS NOT NULL LIMIT $2
"""

# The rows of groups $2, of each no more than $3, counted.
COUNT = """
SELECT k.key, c.* FROM unnest($2::bigint[]) AS k (key) CROSS JOIN LATERAL (
    SELECT count(*) AS count, count(*) < $3 AS exact, count(DISTINCT s.job_id) AS jobs,
           min(s.at) AS first_at, max(s.at) AS last_at
    FROM (SELECT {job} AS job_id, {at} AS at FROM {table}
          WHERE project_id = $1 AND {failed} AND {key} = k.key ORDER BY {job} LIMIT $3) AS s) AS c
"""

# Some rows of groups $2, of different jobs as far as that is cheap: looked at are the first 200 of each.
FIND_EXAMPLES = """
SELECT k.key, e.*, j.directory FROM unnest($2::bigint[]) AS k (key)
CROSS JOIN LATERAL (
    SELECT DISTINCT ON (s.job_id) s.*, coalesce(error_shape(s.message), '') AS shape
    FROM (SELECT {job} AS job_id, {what} AS what, {message} AS message, {image} AS image FROM {table}
          WHERE project_id = $1 AND {failed} AND {key} = k.key ORDER BY {job} LIMIT 200) AS s
    ORDER BY s.job_id, s.image LIMIT $3) AS e
CROSS JOIN LATERAL (SELECT directory FROM jobs WHERE id = e.job_id OFFSET 0) AS j
"""


@dataclass(frozen=True)
class _Counted:
    """A group's rows, counted so far, and how long that took."""

    count: int
    exact: bool
    jobs: int
    first_at: datetime
    last_at: datetime
    seconds: float


_Counts = dict[tuple[FailureKind, int], _Counted]


def statement(template: str, kind: FailureKind) -> str:
    """One of the above for a kind of failure."""
    return template.format(**vars(_ROWS[kind]))


def key_of(failure: str | None, kind: FailureKind) -> int | None:
    """The key of a group of this kind; None where the id is of another kind."""
    named, _, key = (failure or "").partition("-")
    return int(key, 16) if named == kind else None


def id_of(kind: FailureKind, key: int) -> str:
    """The id of a group."""
    return f"{kind}-{key:012x}"


async def require(connection: Connection, project_id: int, failure: str) -> None:
    """Make sure that there is such a group.

    Raises:
        NotFound: nothing in the project fails like that (any more).
    """
    for kind in FailureKind:
        if (key := key_of(failure, kind)) is not None:
            [counted] = await connection.fetch(statement(COUNT, kind), project_id, [key], 1)
            if counted["count"]:
                return
    raise NotFound(f"there is no group of failures {failure} in this project (any more)")


class Groups:
    """Lists the groups of projects, for a few callers at once; others wait for their turn."""

    def __init__(self) -> None:
        self._reading = asyncio.Semaphore(MAX_READING)

    async def read(self, database: Database, project_id: int, kind: FailureKind | None, limit: int) -> Failures:
        """The groups of a project, rare ones first: at most `limit` of those found.

        Args:
            database: for several statements, each of which sees the rows as they are then.
            project_id: of the project.
            kind: only these.
            limit: most groups in the answer.
        """
        async with self._reading, database.connection() as connection:
            return await _groups(connection, project_id, kind, limit)


async def _groups(connection: Connection, project_id: int, kind: FailureKind | None, limit: int) -> Failures:
    counts: _Counts = {}
    complete = True
    until = time.monotonic() + BUDGET_SECONDS
    for one in FailureKind if kind is None else [kind]:
        keys = [row["key"] for row in await connection.fetch(statement(KEYS, one), project_id, MAX_GROUPS + 1)]
        complete &= len(keys) <= MAX_GROUPS
        for start in range(0, min(len(keys), MAX_GROUPS), COUNTED_TOGETHER):
            some = keys[start : min(start + COUNTED_TOGETHER, MAX_GROUPS)]
            most = COUNTED_FIRST if start == 0 or time.monotonic() < until else 1
            counts |= await _count(connection, project_id, one, some, most)
    await _count_on(connection, project_id, counts, until)
    rare = sorted(counts, key=lambda group: (counts[group].count, group))
    shown = await _examples(connection, project_id, rare[:limit])
    items = [_group(*group, counts[group], shown[group]) for group in rare[:limit] if group in shown]
    return Failures(items=items, total=len(counts), complete=complete)


async def _count_on(connection: Connection, project_id: int, counts: _Counts, until: float) -> None:
    """Count the larger groups further, each for its share of the time by the pace that it was counted at."""
    counted_on = True
    while counted_on:
        counted_on = False
        large = [group for group, counted in counts.items() if not counted.exact]
        for place, (kind, key) in enumerate(large):
            counted = counts[kind, key]
            share = (until - time.monotonic()) / (len(large) - place)
            most = int(counted.count * min(GROWTH, share / counted.seconds))
            # Each time it is counted from its beginning.
            if most >= 2 * counted.count:
                counts |= await _count(connection, project_id, kind, [key], most)
                counted_on = True


async def _count(connection: Connection, project_id: int, kind: FailureKind, keys: Sequence[int], most: int) -> _Counts:
    began = time.monotonic()
    rows = await connection.fetch(statement(COUNT, kind), project_id, keys, most)
    seconds = (time.monotonic() - began) / max(len(rows), 1)
    # Nothing of a group that has gone since it was found.
    found = [dict(row) for row in rows if row["count"] > 0]
    return {(kind, row.pop("key")): _Counted(**row, seconds=seconds) for row in found}


async def _examples(
    connection: Connection, project_id: int, wanted: Sequence[tuple[FailureKind, int]]
) -> dict[tuple[FailureKind, int], list[Any]]:
    found: dict[tuple[FailureKind, int], list[Any]] = {}
    for kind in FailureKind:
        keys = [key for one, key in wanted if one is kind]
        for row in await connection.fetch(statement(FIND_EXAMPLES, kind), project_id, keys, EXAMPLES):
            found.setdefault((kind, row["key"]), []).append(row)
    return found


def _group(kind: FailureKind, key: int, counted: _Counted, rows: list[Any]) -> FailureGroup:
    what = rows[0]["what"]
    return FailureGroup(
        id=id_of(kind, key),
        kind=kind,
        status=what if kind is FailureKind.IMAGE else None,
        reason=what if kind is FailureKind.JOB else None,
        shape=rows[0]["shape"],
        count=counted.count,
        jobs=counted.jobs,
        exact=counted.exact,
        first_at=counted.first_at,
        last_at=counted.last_at,
        examples=[
            FailureExample(
                job_id=row["job_id"],
                directory=row["directory"],
                image=row["image"],
                message=row["message"] and row["message"][:500],
            )
            for row in rows
        ],
    )
