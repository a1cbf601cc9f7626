"""The way to the database: one asyncpg pool, the watch over it, and what its failures mean.

Knows nothing of jobs. Where the database is embedded, brings it back when it is gone.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from job_api import migrations, servers
from job_api.embedded import EmbeddedPostgres
from job_api.errors import DatabaseUnavailable, InvalidRequest, JobApiError, NoDiskSpace
from job_api.settings import Settings, StartupError

if TYPE_CHECKING:
    # These are generic for the type checker alone.
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Connection = asyncpg.pool.PoolConnectionProxy

log = logging.getLogger(__name__)
# It shows a traceback at each try while the database is away; the watch says so in a sentence.
logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)

OLDEST_SERVER = 15
ACQUIRE_SECONDS = 10.0
WATCH_SECONDS = 1.0
# A sign of life older than this is none: the database, this process, or its whole machine stood still.
CONTACT_SECONDS = 5.0

SESSION = {
    "application_name": "job-api",
    "jit": "off",
    "timezone": "UTC",
    # COPY writes times and floats as text, and a role may have its own taste.
    "datestyle": "ISO, MDY",
    "extra_float_digits": "1",
    # Each statement is planned once for each connection, not at each call, which takes longer than to run it; and by
    # the indexes, for a plan that suits a small table would be kept when it has grown.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    # What asyncpg's pool raises when it gives back a connection that was cut off in the middle.
    asyncpg.InternalClientError,
    asyncpg.QueryCanceledError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


# Which server it is, also behind one address, and whether it takes writes: a standby says that it does not.
LOOK = """
SELECT pg_postmaster_start_time() AS started_at, current_setting('transaction_read_only')::bool AS read_only
"""

# A text of the request that got past its schema: PostgreSQL knows neither NUL nor lone surrogates.
UNSTORABLE = (
    asyncpg.CharacterNotInRepertoireError,
    asyncpg.UntranslatableCharacterError,
    asyncpg.InvalidTextRepresentationError,
)


class Database:
    """The pool of one process.

    Args:
        settings: says where the database is; without a URL it is embedded in the data directory.
        alone: whether no parent has looked at the database for this process and its siblings.
    """

    def __init__(self, settings: Settings, *, alone: bool = True) -> None:
        self._settings = settings
        self._alone = alone
        self._embedded = None if settings.database_url else EmbeddedPostgres(settings.data_dir)
        self._pool: asyncpg.Pool | None = None
        self._in_use: set[Connection] = set()
        self._server_started_at: object = None
        self._contact_since: float | None = None
        self._seen_at = 0.0
        self._watcher: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The address asyncpg connects to; may hold a password, never to be shown."""
        if self._settings.database_url is not None:
            return self._settings.database_url.get_secret_value()
        if self._embedded is None:
            raise RuntimeError("neither a URL nor an embedded database")
        return self._embedded.url

    async def open(self) -> None:
        """Start the embedded database, check the schema and open the pool.

        Raises:
            StartupError: says what is the matter and what to do.
        """
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.start)
        try:
            if self._embedded is not None:
                await asyncio.to_thread(migrations.upgrade, self.url)
            await check_external(self.url, self._settings if self._alone else None)
            self._pool = await asyncpg.create_pool(
                connect=servers.Servers(self.url).connect,
                min_size=1,
                max_size=self._settings.pool_size,
                command_timeout=60,
                init=_read_json,
                reset=_leave_session,
                server_settings=SESSION,
            )
            # At once: what hangs on this server when it is gone is let go by seeing that another one has answered.
            async with self._pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
                await self._look(connection)
        except BaseException as error:
            if self._embedded is not None:
                await asyncio.to_thread(self._embedded.stop)
            if isinstance(error, asyncpg.DuplicatePreparedStatementError | asyncpg.InvalidSQLStatementNameError):
                raise StartupError(
                    "the database hands each transaction to another session, as a pooler in transaction mode does; "
                    "set it to session mode, or name the server itself in JOB_API_DATABASE_URL"
                ) from None
            raise
        self._contact_since = self._seen_at = time.monotonic()
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Close the pool and stop the embedded database."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._pool is not None:
            try:
                async with asyncio.timeout(5):
                    await self._pool.close()
            except (TimeoutError, *UNAVAILABLE):
                self._pool.terminate()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)

    @property
    def contact_seconds(self) -> float:
        """For how long the database has answered this process without a break; 0 when it does not answer now.

        A process that was stopped for a while has had a break too: meanwhile no heartbeat could arrive through it.
        """
        now = time.monotonic()
        if self._contact_since is None or now - self._seen_at > CONTACT_SECONDS:
            return 0.0
        return now - self._contact_since

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection from the pool, for one statement.

        What is set for its session would stay for the next who gets it: SET LOCAL in a transaction, nothing else.

        Raises:
            DatabaseUnavailable: the database is away or not ready.
            NoDiskSpace: its disk is full.
            InvalidRequest: it was given a text that it cannot hold.
        """
        if self._pool is None:
            raise DatabaseUnavailable("the service is starting or stopping; try again")
        try:
            async with self._pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
                self._in_use.add(connection)
                try:
                    yield connection
                finally:
                    self._in_use.discard(connection)
        except asyncpg.DiskFullError as error:
            raise NoDiskSpace(
                "the database's disk is full; nothing of this request was stored: make room, then try again"
            ) from error
        except UNSTORABLE as error:
            raise InvalidRequest("a text of the request holds a NUL character or a lone surrogate") from error
        except UNAVAILABLE as error:
            if isinstance(error, JobApiError):
                raise
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                await self._drop_connections()
            raise DatabaseUnavailable(f"the database does not answer ({type(error).__name__}); try again") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction; committed at the end, rolled back by an exception. Raises as `connection`."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def _watch(self) -> None:
        """Ask the database for a sign of life, and bring an embedded one back; goes on whatever happens."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                async with self.connection() as connection:
                    await self._look(connection)
            except Exception as error:  # noqa: BLE001 - a watch that ended would leave leases unjudged for ever
                if self._contact_since is not None:
                    log.error("lost contact with the database: %s", error.__cause__ or error)  # noqa: TRY400
                self._contact_since = None
                await self._bring_back()
                await self._look_past_the_pool()
            else:
                now = time.monotonic()
                if self._contact_since is None:
                    log.warning("the database answers again")
                    self._contact_since = now
                elif now - self._seen_at > CONTACT_SECONDS:
                    log.warning("this process stood still for %.0f s", now - self._seen_at)
                    self._contact_since = now
                self._seen_at = now

    async def _look(self, connection: asyncpg.Connection | Connection) -> None:
        """Make sure that a connection's server answers, takes writes, and is the one that the pool knows."""
        try:
            async with asyncio.timeout(CONTACT_SECONDS):
                row = await connection.fetchrow(LOOK)
        except TimeoutError:
            # To cancel the question in good order one would have to reach the server.
            connection.terminate()
            raise
        if row is None or row["read_only"]:
            raise asyncpg.ReadOnlySQLTransactionError("it takes no writes now; it may have become a standby")
        before, self._server_started_at = self._server_started_at, row["started_at"]
        if before not in (None, row["started_at"]):
            log.warning("the database is another server now, or was started again; older connections are dropped")
            self._contact_since = None
            await self._drop_connections()

    async def _look_past_the_pool(self) -> None:
        """Look whether there is a server, while all connections of the pool may hang on a machine that is gone."""
        try:
            connection = await servers.connect(self.url)
        except Exception as error:  # noqa: BLE001 - it is tried again, and that contact is lost has been said
            log.debug("no server takes writes: %s", error)
            return
        try:
            await self._look(connection)
        except Exception as error:  # noqa: BLE001 - as above
            log.debug("the server does not answer: %s", error)
        finally:
            connection.terminate()

    async def _drop_connections(self) -> None:
        """Let no connection made until now be used again, and end what waits on one."""
        if self._pool is not None:
            await self._pool.expire_connections()
        for connection in list(self._in_use):
            connection.terminate()

    async def _bring_back(self) -> None:
        if self._embedded is None:
            return
        try:
            await asyncio.to_thread(self._embedded.ensure_running)
        except StartupError as why:
            log.error("%s", why)  # noqa: TRY400 - sentences for people, no tracebacks
        except Exception:
            log.exception("the embedded database could not be started again; it is tried again")


async def _leave_session(_: asyncpg.Connection | Connection) -> None:
    """Nothing to reset in a connection that is given back.

    asyncpg has rolled back what was open; its own reset would cost each request another trip to the server.
    """


async def _read_json(connection: asyncpg.Connection | Connection) -> None:
    """Let JSONB columns be read and written as Python objects."""
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def check_external(url: str, settings: Settings | None = None) -> None:
    """Connect once, and check the server's version and schema.

    With `settings`, say also if the server has too few connections for all processes of this service.

    Raises:
        StartupError: says what is the matter and what to do, never showing the URL, which may hold a password.
    """
    connection = await connect(url)
    try:
        version = connection.get_server_version()
        if version.major < OLDEST_SERVER:
            raise StartupError(f"PostgreSQL {version.major} is too old; {OLDEST_SERVER} or newer is needed")
        await migrations.check(connection)
        if settings is not None:
            await _check_room(connection, settings)
    finally:
        await connection.close()


# The connections that this login may have at once, and those that others have now.
ROOM = """
SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                 - coalesce(current_setting('reserved_connections', true), '0')::int,
             nullif(d.datconnlimit, -1), nullif(r.rolconnlimit, -1)) AS allowed,
       (SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend') AS taken
FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user
"""


async def _check_room(connection: asyncpg.Connection, settings: Settings) -> None:
    """Warn where the processes could not fill their pools: requests would be refused in the busiest hour."""
    room = await connection.fetchrow(ROOM)
    # One more each for what a process listens on beside its pool.
    needed = settings.processes * (settings.pool_size + 1)
    if room is None or needed <= room["allowed"] - room["taken"]:
        return
    log.warning(
        "%d processes with JOB_API_POOL_SIZE=%d need up to %d database connections, and the server allows %d, of which "
        "others have %d now; lower one of them, or raise max_connections",
        settings.processes,
        settings.pool_size,
        needed,
        room["allowed"],
        room["taken"],
    )


async def connect(url: str) -> asyncpg.Connection:
    """One connection outside the pool.

    Raises:
        StartupError: the database cannot be reached, refuses the login, or is not there.
    """
    try:
        return await servers.connect(url)
    except asyncpg.TargetServerAttributeNotMatched:
        raise StartupError(
            "no server of JOB_API_DATABASE_URL takes writes: each is a standby or read-only; promote one, or correct it"
        ) from None
    except asyncpg.InvalidCatalogNameError as error:
        raise StartupError(f"{error}; create it (`createdb`) or correct JOB_API_DATABASE_URL") from None
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError) as error:
        raise StartupError(f"the database refuses the login: {error}; correct JOB_API_DATABASE_URL") from None
    except (ValueError, asyncpg.InterfaceError) as error:
        raise StartupError(
            f"JOB_API_DATABASE_URL cannot be understood ({type(error).__name__}); it must look like "
            "postgresql://user:password@host:5432/database"
        ) from None
    except UNAVAILABLE as error:
        raise StartupError(
            f"the database cannot be reached ({error or type(error).__name__}); is it running, and is the host in "
            "JOB_API_DATABASE_URL right?"
        ) from None
