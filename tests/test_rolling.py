"""An upgrade under live traffic: the newest code with an older schema, the migration, and this code beside it."""

import io
import random
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from job_api import migrations
from job_api.client import Client
from job_api.schemas import NewToken, ProjectSettings, Role
from job_api.settings import Settings
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, run
from tests.serving import LOAD_SECONDS, PROGRAM, Serving, environment, job_api, wait_for

ROOT = Path(__file__).parents[1]
PROJECT = "patents"
JOBS = 8_000
IMAGES = ("1.png", "2.png")
# What each stretch of the way must get done, at least.
STRETCH = 30
# With what the workers say that they made their rows; older code may know nothing of it.
PREPARED = "ab" * 32
SLOWEST_SECONDS = 25.0
READ = ("jobs", "results", "provenances", "attempts", "workers", "projects", "project_slots", "tokens")
# The services' own connections have a name.
MIGRATION_WAITS = """
SELECT 1 FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name <> 'job-api'
"""


def git(*arguments: str) -> bytes:
    """What git says.

    Raises:
        LookupError: there is no git, no history, or no such thing in it.
    """
    program = shutil.which("git")
    if program is None:
        raise LookupError("there is no git")
    ended = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, check=False)
    if ended.returncode != 0:
        raise LookupError(ended.stderr.decode())
    return ended.stdout


def newest_commit_with_an_older_schema() -> str:
    """The newest commit of this line that has migrations, and not the newest one."""
    newest = f'revision = "{migrations.head()}"'
    for commit in git("rev-list", "--first-parent", "HEAD").decode().split():
        known = git("grep", "-h", "^revision = ", commit, "--", "alembic/versions").decode().splitlines()
        if newest not in known:
            return commit
    raise LookupError("no commit has an older revision than today's")


@pytest.fixture
def older_code(tmp_path: Path) -> Path:
    if len(list(ScriptDirectory.from_config(migrations.config()).walk_revisions())) < 2:
        pytest.skip("NOT TESTED: a rolling upgrade; there is one revision of the schema only")
    try:
        archive = git("archive", newest_commit_with_an_older_schema(), "job_api", "alembic")
    except LookupError as why:
        pytest.skip(f"NOT TESTED: a rolling upgrade; no older code is found: {why}")
    folder = tmp_path / "older"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@dataclass
class Load:
    """Workers that claim, post and complete as fast as they can, each call by any of the services."""

    token: str
    clients: list[Client] = field(default_factory=list)
    completed: list[int] = field(default_factory=list)
    slowest_seconds: float = 0.0
    _opened: list[Client] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _errors: list[BaseException] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def add(self, serving: Serving) -> None:
        """Let the workers ask this service too."""
        client = Client(serving.root, token=self.token, retry_seconds=60)
        self._opened.append(client)
        self.clients = [*self.clients, client]

    def start(self, workers: int) -> None:
        self._threads = [threading.Thread(target=self._work) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        holder = Holder(self.clients[0])

        def pick() -> Holder:
            holder.client = random.choice(self.clients)
            return holder

        try:
            while not self._over.is_set():
                began = time.monotonic()
                lease = pick().one(PROJECT)
                assert pick().post(lease, *IMAGES, prepared=PREPARED).stored == len(IMAGES)
                pick().heartbeat(lease)
                pick().complete(lease, len(IMAGES))
                self.completed.append(lease.job_id)
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        except BaseException as error:
            self._errors.append(error)
            raise

    def goes_on(self) -> None:
        """Wait until a stretch more is done."""
        wanted = len(self.completed) + STRETCH
        wait_for(lambda: len(self.completed) >= wanted or self._errors, LOAD_SECONDS)
        assert self._errors == []

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for client in self._opened:
            client.close()
        assert self._errors == []


@contextmanager
def long_reader(url: str) -> Iterator[Callable[[], None]]:
    """Somebody who reads all tables in one transaction, as a backup does, until told to end."""
    over = threading.Event()

    async def read() -> None:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction():
                for table in READ:
                    await connection.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
                reading.set()
                while not over.is_set():
                    await connection.fetchval("SELECT pg_sleep(0.05)")
        finally:
            await connection.close()

    reading = threading.Event()
    thread = threading.Thread(target=lambda: run(read()))
    thread.start()
    assert reading.wait(30)
    try:
        yield over.set
    finally:
        over.set()
        thread.join()


def database_of(url: str) -> RunningService:
    """What asks a database, of a service that is a process."""
    return RunningService("", "", url, Settings())


def migrate_while_somebody_reads(data_dir: Path, url: str, load: Load) -> str:
    """`job-api migrate` beside a long reader, who goes only after the migration has had to wait or is done."""
    database = database_of(url)
    with long_reader(url) as end_reader:
        process = subprocess.Popen(
            [PROGRAM, "migrate"],
            env=environment(data_dir, database_url=url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: process.poll() is not None or database.sql(MIGRATION_WAITS), LOAD_SECONDS)
        load.goes_on()
        end_reader()
        said, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained
    return said


def assert_none_failed(serving: Serving) -> None:
    """No request was answered by an error of the service's own: the clients would have hidden it by trying again."""
    assert "Traceback" not in serving.log
    metrics = serving.get("/metrics").text
    assert 'status="200"' in metrics
    assert 'status="500"' not in metrics


def test_an_upgrade_under_load_loses_and_doubles_nothing(
    older_code: Path, data_dir: Path, make_database: Callable[[], str], tmp_path: Path
) -> None:
    url = make_database()
    command.downgrade(migrations.config(url), "base")
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("PYTHONPATH", str(older_code))
        was = job_api(data_dir, "migrate", database_url=url)
        assert was.returncode == 0, was.stderr
        assert f"is {migrations.head()}" not in was.stdout, "the older code has the older schema"
        older = Serving(data_dir, database_url=url)
    with older as old:
        admin = old.client()
        admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
        admin.add_jobs(PROJECT, [f"directory {number}" for number in range(JOBS)])
        token = admin.new_token(NewToken(name="load", role=Role.WORKER)).token
        load = Load(token)
        load.add(old)
        load.start(workers=3)
        try:
            load.goes_on()
            said = migrate_while_somebody_reads(data_dir, url, load)
            assert f"is {migrations.head()}" in said
            load.goes_on()
            with Serving(tmp_path / "new", database_url=url) as new:
                load.add(new)
                load.goes_on()
                load.goes_on()
                assert_none_failed(old)
                load.clients = load.clients[1:]
                load.goes_on()
                by_both = len(load.completed)
                old.stop()
                load.goes_on()
                load.stop()
                assert_none_failed(new)
                # The password of the one administrator lies where the first service wrote it.
                new.data_dir = data_dir
                assert_nothing_lost_or_doubled(new.client(), load, url)
                assert_rows_say_what_made_them(new.client(), set(load.completed[by_both:]))
        finally:
            load.stop()
    assert load.slowest_seconds < SLOWEST_SECONDS


def assert_nothing_lost_or_doubled(admin: Client, load: Load, url: str) -> None:
    done = len(load.completed)
    assert len(set(load.completed)) == done, "no job was completed twice"
    status = admin.project(PROJECT)
    assert (status.jobs.completed, status.jobs.queued) == (done, JOBS - done)
    assert status.images.stored == done * len(IMAGES)
    rows = [(row["directory"], row["image"]) for row in admin.results(PROJECT)]
    assert len(rows) == len(set(rows)) == done * len(IMAGES)
    service = database_of(url)
    assert service.sql("SELECT count(*)::int AS n FROM attempts WHERE charged OR outcome <> 'completed'") == [{"n": 0}]
    assert service.sql("SELECT count(*)::int AS n FROM attempts") == [{"n": done}]
    service.assert_counters_equal_recount()


def assert_rows_say_what_made_them(admin: Client, by_new: set[int]) -> None:
    """The newer code keeps all that the workers say; the older one may keep less, and never something else."""
    rows = [(row["job_id"], row["prepared"]) for row in admin.results(PROJECT)]
    assert {prepared for job_id, prepared in rows if job_id in by_new} == {PREPARED}
    assert {prepared for _, prepared in rows} <= {PREPARED, None}
