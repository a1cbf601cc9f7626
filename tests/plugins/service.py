"""A real service on a real PostgreSQL for each test: its own database, cloned from a migrated template."""

import asyncio
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import uvicorn

from job_api import migrations, schemas
from job_api.client import Client
from job_api.counters import RECOUNT, SUMS
from job_api.db import Database
from job_api.embedded import EmbeddedPostgres
from job_api.main import PASSWORD_FILE, create_app
from job_api.settings import Settings

TEMPLATE = "decimer_jobs_template"
START_SECONDS = 30.0

T = TypeVar("T")


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


def database_url(server_url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


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


@pytest.fixture(scope="session")
def postgres_directory() -> Iterator[Path]:
    with _short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def postgres_url(postgres_directory: Path) -> Iterator[str]:
    """A PostgreSQL server for this test process, with a migrated template database."""
    embedded = EmbeddedPostgres(postgres_directory)
    embedded.start()
    try:
        url = embedded.url
        # The server lives as long as the tests: what a power cut would cost does not matter.
        run(_execute(url, "ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET max_connections = 300"))
        run(_execute(url, "SELECT pg_reload_conf()", f"CREATE DATABASE {TEMPLATE}"))
        migrations.upgrade(database_url(url, TEMPLATE))
        yield url
    finally:
        embedded.stop()


@pytest.fixture
def make_database(postgres_url: str) -> Iterator[Callable[[], str]]:
    """Makes fresh databases; each is dropped at the end."""
    names: list[str] = []

    def make() -> str:
        name = f"t_{uuid.uuid4().hex}"
        run(_execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
        names.append(name)
        return database_url(postgres_url, name)

    yield make
    for name in names:
        run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@dataclass
class RunningService:
    """A service in a thread of this process, with all the doors a test may need."""

    root: str
    admin_password: str
    database_url: str
    settings: Settings
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

        async def fetch() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.database_url)
            try:
                return [dict(row) for row in await connection.fetch(statement, *arguments)]
            finally:
                await connection.close()

        return run(fetch())

    def assert_counters_equal_recount(self) -> None:
        """The counters of every project equal a recount."""
        for project in self.sql("SELECT id, name FROM projects"):
            counters, recount = self.sql(SUMS, project["id"]), self.sql(RECOUNT, project["id"])
            assert counters == recount, project["name"]

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
    """Starts services with given settings, each on a fresh database unless `database_url` is given."""
    running: list[tuple[ServiceThread, RunningService]] = []

    def start(**options: Any) -> RunningService:
        data_dir = tmp_path / f"service-{len(running)}"
        url = str(options.pop("database_url", None) or make_database())
        defaults = {"data_dir": data_dir, "database_url": url, "port": 0, "pool_size": 8, "backoff_seconds": 0.2}
        thread = ServiceThread(Settings(**{**defaults, **options}))
        thread.start()
        password_file = data_dir / PASSWORD_FILE
        password = password_file.read_text().strip() if password_file.exists() else ""
        service = RunningService(f"http://127.0.0.1:{thread.port}", password, url, thread.settings)
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
