"""A service that cannot start says why and what to do: in one line, with no traceback and no password."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from alembic import command

from job_api import migrations
from job_api.embedded import EmbeddedPostgres
from job_api.migrations import head
from tests.plugins.service import as_user, database_url, run
from tests.serving import Serving, environment, job_api, postgres_processes, refusal

SECRET = "hunter2-hunter2"


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def execute(url: str, statement: str) -> None:
    run(_execute(url, statement))


def give_revision(url: str, revision: str, *compatible: str) -> None:
    """Let a database have another revision, on which code of the `compatible` ones still runs."""
    execute(url, f"UPDATE alembic_version SET version_num = '{revision}'")  # noqa: S608
    execute(url, f"UPDATE schema_info SET compatible_revisions = '{{{','.join(compatible)}}}'")  # noqa: S608


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"mysql://anna:{SECRET}@localhost/jobs", "must begin with postgresql://"),
        (f"anna:{SECRET}@localhost/jobs", "must begin with postgresql://"),
        (f"postgresql://anna:{SECRET}@no-such-host.invalid/jobs", "cannot be reached"),
        (f"postgresql://anna:{SECRET}@127.0.0.1:1/jobs", "cannot be reached"),
        (f"postgresql://anna:{SECRET}@127.0.0.1:port/jobs", "cannot be understood"),
        (f"postgresql://anna:{SECRET}@127.0.0.1:1/jobs?sslmode=perhaps", "cannot be understood"),
    ],
)
def test_a_wrong_url_is_said_without_its_password(data_dir: Path, url: str, said: str) -> None:
    line = refusal(data_dir, database_url=url)
    assert said in line
    assert "JOB_API_DATABASE_URL" in line
    assert SECRET not in line
    assert list(data_dir.iterdir()) == []


def test_a_refused_login_and_a_missing_database_are_said(data_dir: Path, postgres_url: str) -> None:
    nobody = as_user(postgres_url, "nobody", SECRET)
    missing = database_url(postgres_url, "not_there")
    for verb in ("serve", "migrate"):
        line = refusal(data_dir, verb, database_url=nobody)
        assert "refuses the login" in line
        assert '"nobody"' in line, "in the server's own words"
        assert SECRET not in line
        line = refusal(data_dir, verb, database_url=missing)
        assert 'database "not_there" does not exist' in line
        assert "createdb" in line


def test_an_external_database_is_migrated_by_its_command_alone(
    data_dir: Path, postgres_url: str, make_database: Callable[[], str]
) -> None:
    url = make_database()
    command.downgrade(migrations.config(url), "base")
    line = refusal(data_dir, database_url=url)
    assert "no tables yet" in line
    assert "run `job-api migrate`" in line
    for was in ("empty", head()):
        ended = job_api(data_dir, "migrate", database_url=url)
        assert ended.returncode == 0, ended.stderr
        assert f"was {was} and is {head()}" in ended.stdout
    with Serving(data_dir, database_url=url) as serving, serving.client() as client:
        assert client.server().version
    assert postgres_processes(data_dir) == []


def test_a_newer_schema_is_served_only_when_it_says_that_it_may_be(
    data_dir: Path, make_database: Callable[[], str]
) -> None:
    url = make_database()
    give_revision(url, "9999", "0000")
    line = refusal(data_dir, database_url=url)
    assert "newer schema 9999" in line
    assert "install the version that made it" in line
    line = refusal(data_dir, "migrate", database_url=url)
    assert "newer schema 9999" in line
    give_revision(url, "9999", "0000", head())
    assert "is 9999" in job_api(data_dir, "migrate", database_url=url).stdout
    with Serving(data_dir, database_url=url) as serving:
        assert serving.get("/readyz").status_code == 200


def test_an_embedded_database_is_migrated_at_the_start_unless_it_is_newer(data_dir: Path) -> None:
    embedded = EmbeddedPostgres(data_dir)

    def change(how: Callable[[], None]) -> None:
        embedded.start()
        try:
            how()
        finally:
            embedded.stop()

    change(lambda: migrations.upgrade(embedded.url))
    change(lambda: command.downgrade(migrations.config(embedded.url), "base"))
    with Serving(data_dir) as serving:
        assert serving.get("/readyz").status_code == 200

    change(lambda: give_revision(embedded.url, "9999"))
    assert "newer schema 9999" in refusal(data_dir)
    assert postgres_processes(data_dir) == []
    change(lambda: give_revision(embedded.url, "9999", head()))
    with Serving(data_dir) as serving:
        assert serving.get("/readyz").status_code == 200
    assert postgres_processes(data_dir) == []


def test_a_data_directory_that_cannot_hold_a_database_is_said(data_dir: Path) -> None:
    (data_dir / "file").touch()
    for path, said in (
        (data_dir / "white space", "white space"),
        (data_dir / ("x" * 100), "too long for a Unix socket"),
        (data_dir / "file" / "below", "cannot be used"),
    ):
        line = refusal(path)
        assert said in line
        assert "JOB_API_DATA_DIR" in line
    assert [entry.name for entry in data_dir.iterdir()] == ["file"]


@pytest.mark.parametrize(("version", "said"), [("15", "was made by PostgreSQL 15"), ("what", "PG_VERSION")])
def test_a_database_of_another_version_of_postgresql_is_left_alone(data_dir: Path, version: str, said: str) -> None:
    (data_dir / "postgresql").mkdir(mode=0o700)
    (data_dir / "postgresql" / "PG_VERSION").write_text(f"{version}\n")
    assert said in refusal(data_dir)
    assert (data_dir / "postgresql" / "PG_VERSION").read_text() == f"{version}\n"


def test_a_database_that_others_may_enter_is_not_served(data_dir: Path) -> None:
    with Serving(data_dir):
        pass
    (data_dir / "postgresql").chmod(0o750)  # which PostgreSQL itself would bear
    assert f"run `chmod 700 '{data_dir / 'postgresql'}'`" in refusal(data_dir)
    assert postgres_processes(data_dir) == []
    (data_dir / "postgresql").chmod(0o700)
    with Serving(data_dir) as serving:
        assert serving.get("/readyz").status_code == 200
        # While it serves, too: nobody else can reach the socket.
        if os.geteuid() == 0:
            reach = ["setpriv", "--reuid", "65534", "--clear-groups", "ls", str(data_dir / "postgresql")]
            assert subprocess.run(reach, capture_output=True, check=False).returncode != 0


def test_a_broken_database_is_said_with_where_its_log_lies(data_dir: Path) -> None:
    with Serving(data_dir):
        pass
    (data_dir / "postgresql" / "global" / "pg_control").unlink()
    line = refusal(data_dir)
    assert "does not start" in line
    assert str(data_dir / "postgresql" / "log") in line
    assert postgres_processes(data_dir) == []


def test_a_wrong_setting_is_named(data_dir: Path) -> None:
    for name, value in (("port", "many"), ("lease_seconds", "-1"), ("pool_size", "0")):
        line = refusal(data_dir, **{name: value})
        assert f"JOB_API_{name.upper()}" in line
    assert "JOB_API_HEARTBEAT_SECONDS" in refusal(data_dir, lease_seconds=20, heartbeat_seconds=20)
    assert environment(data_dir)["JOB_API_PORT"] == "0"
