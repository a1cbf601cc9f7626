"""What the clock does to jobs, in every API process: expired leases end, jobs that are due are queued."""

import asyncio
import logging
from collections.abc import Awaitable

from job_api import counters, progress, queue
from job_api.db import Database
from job_api.errors import JobApiError
from job_api.settings import Settings

log = logging.getLogger(__name__)


async def sweep_for_ever(database: Database, settings: Settings) -> None:
    """Sweep every `sweep_seconds`, and note how far the projects are.

    Leases are only judged after `lease_seconds` of unbroken contact with the database: while it or this process was
    away no heartbeat could arrive, and the whole fleet would be expired on the return.
    """
    while True:
        await asyncio.sleep(settings.sweep_seconds)
        judge_leases = database.contact_seconds >= settings.lease_seconds
        await _attempt(sweep(database, judge_leases=judge_leases))
        await _attempt(_take_samples(database))
        await _attempt(_fold_counters(database))


async def _attempt(work: Awaitable[None]) -> None:
    """Do something that is done again soon, and must not end the sweeps: jobs of dead workers would stay claimed."""
    try:
        await work
    except JobApiError as error:
        log.warning("the sweep was put off: %s", error)
    except Exception:
        log.exception("the sweep failed; it is tried again")


async def _take_samples(database: Database) -> None:
    async with database.connection() as connection:
        await progress.take_samples(connection)


async def _fold_counters(database: Database) -> None:
    async with database.transaction() as connection:
        await counters.fold(connection)


async def sweep(database: Database, *, judge_leases: bool) -> None:
    """Sweep once, each project in its own transactions, until nothing is overdue."""
    async with database.connection() as connection:
        overdue = await queue.overdue_projects(connection, judge_leases=judge_leases)
    for project_id in overdue:
        await _attempt(_sweep_project(database, project_id, judge_leases=judge_leases))


async def _sweep_project(database: Database, project_id: int, *, judge_leases: bool) -> None:
    moved = {"": 1}
    while moved:
        async with database.transaction() as connection:
            moved = await queue.sweep(connection, project_id, judge_leases=judge_leases)
        if moved:
            log.info("swept project %d: %s", project_id, moved)
