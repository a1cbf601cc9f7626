"""The schema's revision: what the database has, what this code needs, and the way from one to the other."""

import asyncio
import logging
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from job_api import servers
from job_api.settings import StartupError

log = logging.getLogger(__name__)

LOCK_SECONDS = 600.0

_INSTALLED = Path(__file__).with_name("alembic_scripts")
SCRIPTS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "alembic"


def config(url: str | None = None) -> Config:
    """Alembic's configuration for the scripts shipped with this code."""
    settings = Config()
    settings.set_main_option("script_location", str(SCRIPTS))
    settings.attributes["url"] = url
    return settings


def head() -> str:
    """The revision this code needs."""
    revision = ScriptDirectory.from_config(config()).get_current_head()
    if revision is None:
        raise StartupError(f"no migrations lie in {SCRIPTS}; install decimer-jobs again")
    return revision


def upgrade(url: str) -> None:
    """Bring the database to the newest revision; one that is newer still, which this code does not know, is left alone.

    Must not run inside an event loop. Services that are running are not held up.

    Raises:
        StartupError: the database refuses a step; the steps before it are done.
    """
    if not asyncio.run(_is_behind(url)):
        return
    # A lock that is not to be had at once is given up and asked for again: what waits for one stops all traffic.
    trying = Retrying(
        retry=retry_if_exception(_lacks_a_lock),
        wait=wait_random(0.5, 2),
        stop=stop_after_delay(LOCK_SECONDS),
        before_sleep=lambda attempt: log.warning("the migration waits for a lock (try %d)", attempt.attempt_number),
        reraise=True,
    )
    try:
        trying(command.upgrade, config(url), "head")
    except (DBAPIError, asyncpg.LockNotAvailableError) as error:
        why = error.orig if isinstance(error, DBAPIError) else error
        raise StartupError(f"the database's schema cannot be brought up to date: {why}") from error


def _lacks_a_lock(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        return getattr(error.orig, "sqlstate", None) == asyncpg.LockNotAvailableError.sqlstate
    return isinstance(error, asyncpg.LockNotAvailableError)


async def _is_behind(url: str) -> bool:
    connection = await servers.connect(url)
    try:
        found = await current(connection)
    finally:
        await connection.close()
    return found is None or (found in _known() and found != head())


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}


async def current(connection: asyncpg.Connection) -> str | None:
    """The revision the database has; None when it is empty."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return revision


async def check(connection: asyncpg.Connection) -> None:
    """Make sure that this code may run on the database's schema.

    Raises:
        StartupError: the schema is older than this code needs, or so new that it no longer bears this code.
    """
    needed, found = head(), await current(connection)
    if found == needed:
        return
    if found is None or found in _known():
        state = "has no tables yet" if found is None else f"has the older schema {found}, and {needed} is needed"
        raise StartupError(f"the database {state}; run `job-api migrate` once, then start again")
    compatible = await connection.fetchval("SELECT compatible_revisions FROM schema_info")
    if needed not in (compatible or []):
        raise StartupError(
            f"the database has the newer schema {found}, which this version of decimer-jobs does not know; "
            "install the version that made it, or a later one"
        )
