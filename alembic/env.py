"""Runs migrations over asyncpg on the URL it is given.

The service gives it as an attribute, developers as JOB_API_DATABASE_URL. A statement that needs a lock gives up after
LOCK_TIMEOUT, since all traffic queues up behind it; `job_api.migrations.upgrade` tries again.
"""

import asyncio
import os

import asyncpg
from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from job_api import models, servers

LOCK_TIMEOUT = "2s"
# Held as long as the connection, so that migrations follow one another. It is never waited for: a statement that waits
# holds a snapshot, and the other's CREATE INDEX CONCURRENTLY would wait for that.
ONE_AT_A_TIME = "SELECT pg_try_advisory_lock(hashtext('decimer-jobs'), hashtext('migration'))"


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=models.metadata,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect(url: str) -> asyncpg.Connection:
    connection = await servers.connect(url)
    await connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    if not await connection.fetchval(ONE_AT_A_TIME):
        await connection.close()
        raise asyncpg.LockNotAvailableError("another migration is running")
    return connection


async def migrate_url(url: str) -> None:
    # The service's own way to the server, so that migrations and the service understand the same URLs.
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: connect(url), poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


asyncio.run(migrate_url(context.config.attributes.get("url") or os.environ["JOB_API_DATABASE_URL"]))
