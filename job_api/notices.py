"""What API processes tell each other through the database: that jobs were queued, so that waiting claims look.

A notice can be missed: while the listening connection is away, or where a pooler stands between that does not pass
notices on. Therefore everybody also looks now and then; a notice only makes it sooner.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from job_api import servers
from job_api.db import UNAVAILABLE, Connection, Database
from job_api.errors import JobApiError

log = logging.getLogger(__name__)

CHANNEL = "decimer_jobs_queued"
# The longest that a waiting claim overlooks a job whose notice was missed.
LOOK_SECONDS = 5.0
AGAIN_SECONDS = 1.0

# Heard when the transaction commits. A project that is gone needs no notice.
ANNOUNCE = """
SELECT pg_notify($2, concat_ws(' ', p.name, $3::bigint, $4::bigint)) FROM projects p WHERE p.id = $1
"""


async def announce(connection: Connection, project_id: int, jobs: int, priority: int | None) -> None:
    """Tell all API processes, once this transaction has committed, that jobs of a project were queued.

    Args:
        connection: in a transaction.
        project_id: the project.
        jobs: how many.
        priority: the highest among them; None where that is not known.
    """
    await connection.execute(ANNOUNCE, project_id, CHANNEL, jobs, priority)


async def listen_for_ever(
    database: Database, heard: Callable[[str, int, int | None], None], look: Callable[[], Awaitable[None]]
) -> None:
    """Call `heard` with the project, number of jobs and priority of each notice, and `look` now and then.

    Holds a connection of its own, which is made again when it is lost.
    """

    def hear(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        project, jobs, *priority = str(payload).split(" ")
        heard(project, int(jobs), int(priority[0]) if priority else None)

    while True:
        try:
            connection = await servers.connect(database.url, server_settings={"application_name": "job-api-notices"})
        except UNAVAILABLE:
            # The watch over the pool says in a sentence that the database is away.
            await asyncio.sleep(AGAIN_SECONDS)
            continue
        try:
            await connection.add_listener(CHANNEL, hear)
            while True:
                # First of all for what was queued while nobody listened.
                await _attempt(look)
                await asyncio.sleep(LOOK_SECONDS)
                # A connection that was cut without a word would stay silent for ever.
                await connection.fetchval("SELECT 1", timeout=LOOK_SECONDS)
        except UNAVAILABLE:
            await asyncio.sleep(AGAIN_SECONDS)
        finally:
            connection.terminate()


async def _attempt(look: Callable[[], Awaitable[None]]) -> None:
    try:
        await look()
    except JobApiError as error:
        log.debug("could not look for queued jobs: %s", error)
    except Exception:
        log.exception("looking for queued jobs failed; it is tried again")
