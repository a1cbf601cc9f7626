"""A real service on a real PostgreSQL for each test: its own database, cloned from a migrated template."""

import asyncio
import math
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import argon2
import asyncpg
import pytest
import uvicorn
from fastapi import FastAPI

from job_api import migrations, schemas
from job_api.client import Client
from job_api.counters import RECOUNT, SUMS
from job_api.db import Database
from job_api.embedded import EmbeddedPostgres
from job_api.main import PASSWORD_FILE, create_app
from job_api.settings import Settings
from job_api.waiting import WaitingRoom

SERVER_VARIABLE = "TEST_DATABASE_URL"

# Whoever ends tells what it counted.
END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = $1"
START_SECONDS = 90.0
# An administrator whose password costs next to nothing to check: a hash says with which parameters, and with those of
# the service each test would spend half a second of a core on its logins.
ADD_ADMIN = "INSERT INTO users (name, password_hash, role) VALUES ('admin', $1, 'admin')"
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)

T = TypeVar("T")


def pytest_report_header() -> str:
    """Say on which server the tests run."""
    return f"PostgreSQL: {'that of ' + SERVER_VARIABLE if os.environ.get(SERVER_VARIABLE) else 'embedded'}"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own, also where pytest's thread has none."""
    return asyncio.run(coroutine)


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def sql_of(url: str, statement: str, *arguments: Any) -> list[dict[str, Any]]:
    """Rows straight from a database."""
    connection = await asyncpg.connect(url)
    try:
        return [dict(row) for row in await connection.fetch(statement, *arguments)]
    finally:
        await connection.close()


async def count_deadlocks(server_url: str, name: str) -> int:
    """How many deadlocks a database has had; ends all its sessions."""
    connection = await asyncpg.connect(server_url)
    try:
        deadline = time.monotonic() + START_SECONDS
        while await connection.fetchval(SESSIONS, name):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the sessions of {name} do not end")
            await connection.fetch(END_SESSIONS, name)
            await asyncio.sleep(0.005)
        deadlocks: int = await connection.fetchval(DEADLOCKS, name)
        return deadlocks
    finally:
        await connection.close()


def database_url(server_url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def as_user(url: str, user: str, password: str) -> str:
    """The URL with another login."""
    parts = urlsplit(url)
    rest = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("user", "password")]
    if not parts.netloc:
        return urlunsplit(parts._replace(query=urlencode([*rest, ("user", user), ("password", password)])))
    hosts = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password)}@{hosts}", query=urlencode(rest)))


@contextmanager
def _short_directory() -> Iterator[Path]:
    """A directory for an embedded database.

    Not under pytest's own: its path would be too long for a socket, and other test runs shut its parent to all but
    their user, which as root the database is not.
    """
    path = Path(tempfile.mkdtemp(prefix="dj-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory for a service with an embedded database."""
    with _short_directory() as path:
        yield path


@contextmanager
def _own_server() -> Iterator[str]:
    """A PostgreSQL of this test process alone."""
    with _short_directory() as directory:
        embedded = EmbeddedPostgres(directory)
        embedded.start()
        try:
            # The server lives as long as the tests: what a power cut would cost does not matter. Who waits for another
            # in a circle hears of it soon, and does so in each test that makes it possible.
            settings = ("fsync = off", "deadlock_timeout = '100ms'")
            run(_execute(embedded.url, *(f"ALTER SYSTEM SET {setting}" for setting in settings)))
            run(_execute(embedded.url, "SELECT pg_reload_conf()"))
            yield embedded.url
        finally:
            embedded.stop()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server, by a database of it that is left alone: TEST_DATABASE_URL, or one of this process."""
    given = os.environ.get(SERVER_VARIABLE)
    with nullcontext(given) if given else _own_server() as url:
        yield url


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database to clone, of this test process alone."""
    name = f"decimer_jobs_template_{uuid.uuid4().hex}"
    run(_execute(postgres_url, f"CREATE DATABASE {name}"))
    try:
        migrations.upgrade(database_url(postgres_url, name))
        yield name
    finally:
        run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def make_database(
    request: pytest.FixtureRequest, postgres_url: str, template_database: str
) -> Iterator[Callable[[], str]]:
    """Makes fresh databases; each is dropped at the end, and none may have had a deadlock.

    A deadlock shows nowhere else: it is answered 503, and whoever was refused tries again. `@pytest.mark.may_deadlock`
    is for a test that wants one.
    """
    names: list[str] = []

    def make() -> str:
        name = f"decimer_jobs_{uuid.uuid4().hex}"
        run(_execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template_database}"))
        names.append(name)
        return database_url(postgres_url, name)

    yield make
    deadlocks = {name: run(count_deadlocks(postgres_url, name)) for name in names}
    for name in names:
        run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))
    if request.node.get_closest_marker("may_deadlock") is None:
        assert not any(deadlocks.values()), deadlocks


def assert_counters_equal_recount(url: str) -> None:
    """The counters of every project of a database that is not deleted equal a recount."""
    for name, (counters, recount) in run(_counted(url)).items():
        assert counters == recount, name


async def _counted(url: str) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Each project's counters and a recount, as of one moment."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            projects = await connection.fetch("SELECT id, name FROM projects WHERE deleted_at IS NULL")
            found = {}
            for project in projects:
                sums, recount = [await connection.fetch(sql, project["id"]) for sql in (SUMS, RECOUNT)]
                found[project["name"]] = ([dict(row) for row in sums], [dict(row) for row in recount])
            return found
    finally:
        await connection.close()


class _InContact(Database):
    """A database that has always answered."""

    @property
    def contact_seconds(self) -> float:
        return math.inf


@dataclass
class RunningService:
    """A service in a thread of this process, with all the doors a test may need."""

    root: str
    admin_password: str
    database_url: str
    settings: Settings
    app: FastAPI = field(default_factory=FastAPI)
    _clients: list[Client] = field(default_factory=list)
    _tokens: dict[tuple[str, str | None], str] = field(default_factory=dict)

    def token(self, role: str = "admin", project: str | None = None, *, fresh: bool = False) -> str:
        """A token of a role; the same for the same role unless `fresh`."""
        key = (role, project)
        if fresh or key not in self._tokens:
            with Client(self.root, username="admin", password=self.admin_password) as admin:
                wanted = schemas.NewToken(name=f"test-{role}", role=schemas.Role(role), project=project)
                self._tokens[key] = admin.new_token(wanted).token
        return self._tokens[key]

    def client(self, role: str = "admin", project: str | None = None, *, fresh: bool = False, **options: Any) -> Client:
        """A client with a token of a role, closed at the end of the test."""
        client = Client(self.root, token=self.token(role, project, fresh=fresh), **{"retry_seconds": 10, **options})
        self._clients.append(client)
        return client

    def sql(self, statement: str, *arguments: Any) -> list[dict[str, Any]]:
        """Rows straight from the service's database."""

        return run(sql_of(self.database_url, statement, *arguments))

    @property
    def waiting(self) -> int:
        """How many claims wait in this process."""
        room: WaitingRoom = self.app.state.service.room
        return len(room)

    def judge_leases(self) -> None:
        """From now on leases that have run out are judged, however short the service's contact with its database."""
        self.app.state.service.database.__class__ = _InContact

    def expire_leases(self) -> None:
        """All leases have run out, and nothing is between that and the next sweep."""
        self.judge_leases()
        self.sql("UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE state = 'claimed'")

    def assert_counters_equal_recount(self) -> None:
        """The counters of every project that is not deleted equal a recount."""
        assert_counters_equal_recount(self.database_url)

    def close_clients(self) -> None:
        """Close what `client` opened."""
        for client in self._clients:
            client.close()


class ServiceThread:
    """A uvicorn in a thread; started and stopped as often as a test likes."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        self.settings = settings
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.port: int = self.listener.getsockname()[1]
        self.app = create_app(settings)
        config = uvicorn.Config(
            self.app, http="httptools", log_config=None, timeout_graceful_shutdown=2, proxy_headers=False
        )
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, args=([self.listener],))

    @property
    def database(self) -> Database:
        """The running service's database."""
        database: Database = self.app.state.service.database
        return database

    def start(self) -> None:
        """Start and wait until it serves."""
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self.server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start: {getattr(self.app.state, 'startup_error', None)}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop it in an orderly way."""
        self.server.should_exit = True
        self._thread.join(timeout=START_SECONDS)
        self.listener.close()
        assert not self._thread.is_alive()


ServiceStarter = Callable[..., RunningService]


@pytest.fixture
def start_service(make_database: Callable[[], str], tmp_path: Path) -> Iterator[ServiceStarter]:
    """Starts services with given settings, each on a fresh database that has an administrator already.

    With `database_url` it is that database as it is: on one of `make_database` the service makes its administrator.
    """
    running: list[tuple[ServiceThread, RunningService]] = []

    def start(**options: Any) -> RunningService:
        data_dir = tmp_path / f"service-{len(running)}"
        password = ""
        if (url := str(options.pop("database_url", ""))) == "":
            url, password = make_database(), secrets.token_urlsafe(18)
            run(sql_of(url, ADD_ADMIN, CHEAP.hash(password)))
        defaults = {"data_dir": data_dir, "database_url": url, "port": 0, "pool_size": 8, "backoff_seconds": 0.2}
        thread = ServiceThread(Settings(**{**defaults, **options}))
        thread.start()
        if (password_file := data_dir / PASSWORD_FILE).exists():
            password = password_file.read_text().strip()
        service = RunningService(f"http://127.0.0.1:{thread.port}", password, url, thread.settings, thread.app)
        running.append((thread, service))
        return service

    yield start
    for thread, service in reversed(running):
        service.close_clients()
        thread.stop()


@pytest.fixture
def service(request: pytest.FixtureRequest, start_service: ServiceStarter) -> RunningService:
    """A service; `@pytest.mark.service(lease_seconds=2, …)` changes its settings."""
    mark = request.node.get_closest_marker("service")
    return start_service(**(mark.kwargs if mark else {}))
