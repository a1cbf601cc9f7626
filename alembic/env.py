"""Runs migrations over asyncpg on the URL it is given.

The service gives it as an attribute, developers as JOB_API_DATABASE_URL.
"""

import asyncio
import os

import asyncpg
from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from job_api import models


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


async def migrate_url(url: str) -> None:
    # asyncpg itself reads the URL, so that migrations and the service understand the same ones.
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=pool.NullPool
    )
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(migrate_url(context.config.attributes.get("url") or os.environ["JOB_API_DATABASE_URL"]))
