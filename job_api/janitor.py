"""What is thrown away: deleted projects, and what was kept long enough. In every API process, one at a time over all.

Owns the pace: one short transaction after another, and between two a pause as long as the first one took. Rows are
found in the order of a primary key or of an index that begins with the project; no statement reads a large table whole.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from job_api import janitor_sql as sql
from job_api.db import Connection, Database
from job_api.errors import JobApiError
from job_api.settings import Settings

log = logging.getLogger(__name__)

# Rows that one transaction reads or deletes.
BATCH = 5_000
# Jobs of a deleted project that are taken up together.
JOBS = 500
SHORTEST_PAUSE_SECONDS = 0.01


class Chore(Protocol):
    """Something that is done bit by bit."""

    name: str

    async def step(self, connection: Connection) -> bool:
        """Do one transaction's share; says whether there is more to do at once.

        What it remembers may be of a transaction that was rolled back: it only saves work, and nothing relies on it.
        """
        ...


async def tidy_for_ever(database: Database, settings: Settings) -> None:
    """Do all chores every `janitor_seconds`."""
    chores = chores_of(settings)
    while True:
        await asyncio.sleep(settings.janitor_seconds)
        for chore in chores:
            await _do(database, chore)


def chores_of(settings: Settings) -> list[Chore]:
    """What there is to do; 0 days mean that something is kept for ever."""
    chores: list[Chore] = [DeletedProjects()]
    if settings.keep_log_days or settings.keep_log_lines:
        chores.append(OldLines(_days(settings.keep_log_days), settings.keep_log_lines or None))
    for name, statement, days, begin, somewhere in (
        ("attempts", sql.DROP_ATTEMPTS, settings.keep_attempt_days, (0, 0), _any_job),
        ("workers", sql.DROP_WORKERS, settings.keep_worker_days, ("",), None),
        ("tokens", sql.DROP_TOKENS, settings.keep_token_days, (0,), None),
    ):
        if keep := _days(days):
            chores.append(Walk(name, statement, keep, begin, somewhere))
    return chores


def _days(days: float) -> timedelta | None:
    return timedelta(days=days) if days else None


async def _do(database: Database, chore: Chore) -> None:
    """Go on with a chore until there is no more of it, and whatever happens: it is tried again in the next round."""
    more = True
    try:
        while more:
            began = time.monotonic()
            async with database.transaction() as connection:
                more = bool(await connection.fetchval(sql.ALONE)) and await chore.step(connection)
            await asyncio.sleep(max(time.monotonic() - began, SHORTEST_PAUSE_SECONDS))
    except JobApiError as error:
        log.warning("clearing %s was put off: %s", chore.name, error)
    except Exception:
        log.exception("clearing %s failed; it is tried again", chore.name)


class DeletedProjects:
    """Deletes the rows of projects that nobody can name any more, children first."""

    name = "deleted projects"

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, project_id: int | None) -> None:
        self._project_id = project_id
        self._jobs_after = ("", 0)
        self._lines_after = 0

    async def step(self, connection: Connection) -> bool:
        """Delete up to a batch of a project's rows, and the project with the last of them."""
        project_id = await connection.fetchval(sql.DOOMED)
        if project_id is None:
            return False
        if project_id != self._project_id:
            self._begin(project_id)
        if await self._delete_jobs(connection, project_id) or await self._delete_lines(connection, project_id):
            return True
        await connection.execute(sql.DELETE_PROJECT, project_id)
        log.info("the rows of the deleted project %d are gone", project_id)
        return True

    async def _delete_jobs(self, connection: Connection, project_id: int) -> bool:
        jobs = await connection.fetch(sql.DOOMED_JOBS, project_id, *self._jobs_after, JOBS)
        if not jobs:
            # Once more from the beginning, if this was not it: a late writer may have moved a job behind us.
            again = self._jobs_after != ("", 0)
            self._jobs_after = ("", 0)
            return again
        ids = [job["id"] for job in jobs]
        for statement in (sql.DELETE_RESULTS, sql.DELETE_REVIEWS, sql.DELETE_ATTEMPTS):
            if await connection.fetchval(statement, ids, BATCH) == BATCH:
                return True
        await connection.execute(sql.DELETE_JOBS, ids)
        self._jobs_after = (jobs[-1]["state"], jobs[-1]["id"])
        return True

    async def _delete_lines(self, connection: Connection, project_id: int) -> bool:
        row = await connection.fetchrow(sql.DELETE_LINES, project_id, self._lines_after, BATCH)
        if row is None or not row["lines"]:
            return False
        self._lines_after = row["last"]
        return True


@dataclass
class OldLines:
    """Deletes the oldest log lines, as far as they are too old or too many."""

    keep: timedelta | None
    keep_lines: int | None
    after: int = 0
    name: str = "log lines"

    async def step(self, connection: Connection) -> bool:
        """Delete up to a batch from the beginning of the table."""
        row = await connection.fetchrow(sql.DROP_LINES, self.keep, BATCH, self.keep_lines, self.after)
        more = row is not None and row["dropped"] == BATCH
        self.after = row["last"] if row and more else 0
        return more


@dataclass
class Walk:
    """Goes round a table in the order of its primary key and deletes what ended longer than `keep` ago.

    A batch is looked at in each round, and the next at once after one that had something to delete. A walk round a
    large table takes days and may be cut short by a restart, so it begins `somewhere`, where that is given.
    """

    name: str
    statement: str
    keep: timedelta
    begin: tuple[Any, ...]
    somewhere: Callable[[Connection], Awaitable[tuple[Any, ...]]] | None = None
    after: tuple[Any, ...] | None = None

    async def step(self, connection: Connection) -> bool:
        """Look at the next batch."""
        if self.after is None:
            self.after = await self.somewhere(connection) if self.somewhere else self.begin
        row = await connection.fetchrow(self.statement, self.keep, BATCH, *self.after)
        if row is None or row["seen"] < BATCH:
            # A walk that began in the middle has the beginning before it, and all of a small table is one step.
            more, self.after = self.after != self.begin, self.begin
            return more
        _seen, dropped, *last = row.values()
        self.after = tuple(last)
        return bool(dropped)


async def _any_job(connection: Connection) -> tuple[int, int]:
    return random.randint(0, await connection.fetchval(sql.LAST_JOB_TRIED) or 0), 0  # noqa: S311 - no secret
