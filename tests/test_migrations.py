"""The migrations make the tables that the models describe, both ways, and the tables refuse impossible rows."""

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command

from job_api import migrations, models
from job_api.results import Provenances
from job_api.schemas import EngineRun
from job_api.settings import StartupError
from tests.plugins.service import run
from tests.serving import PROGRAM, environment, wait_for


@pytest.fixture
def url(make_database: Any) -> str:
    return str(make_database())


def fetch(url: str, *statements: str) -> list[dict[str, Any]]:
    """Run statements in one transaction; returns the rows of the last."""

    async def ask() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction():
                for statement in statements[:-1]:
                    await connection.execute(statement)
                return [dict(row) for row in await connection.fetch(statements[-1])]
        finally:
            await connection.close()

    return run(ask())


COLUMNS = """
SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns
WHERE table_schema = 'public' ORDER BY 1, 2
"""
LEFT_OVER = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relname NOT LIKE 'alembic_version%'
"""


def test_the_models_need_no_further_migration(url: str) -> None:
    command.check(migrations.config(url))


def test_the_way_down_leaves_nothing_and_the_way_up_makes_the_same_again(url: str) -> None:
    before = fetch(url, COLUMNS)
    assert {row["table_name"] for row in before} == {*models.metadata.tables, "alembic_version"}
    command.downgrade(migrations.config(url), "base")
    assert fetch(url, LEFT_OVER) == []
    migrations.upgrade(url)
    assert fetch(url, COLUMNS) == before
    migrations.upgrade(url)
    assert fetch(url, "SELECT version_num FROM alembic_version") == [{"version_num": migrations.head()}]
    assert len(fetch(url, "SELECT * FROM schema_info")) == 1


def test_ids_and_sequences_do_not_end_at_two_billion(url: str) -> None:
    numbers = {(row["table_name"], row["column_name"]): row["data_type"] for row in fetch(url, COLUMNS)}
    wide = [key for key in numbers if key[1].endswith(("_seq", "_id")) or key[1] in ("id", "seq", "queue_pos")]
    other = {key: numbers[key] for key in wide if numbers[key] != "bigint"}
    assert {key: kind for key, kind in other.items() if kind == "integer"} == {}
    assert set(other.values()) <= {"text", "boolean"}, "names of workers, and schema_info's one row"
    assert fetch(url, "SELECT DISTINCT data_type::text FROM pg_sequences") == [{"data_type": "bigint"}]


def test_a_step_that_the_database_refuses_is_said(url: str) -> None:
    command.downgrade(migrations.config(url), "base")
    fetch(url, "CREATE TABLE jobs (mine int)")
    with pytest.raises(StartupError, match=r'cannot be brought up to date.*relation "jobs" already exists'):
        migrations.upgrade(url)
    assert fetch(url, "SELECT relname FROM pg_class WHERE relname = 'users'") == [], "nothing is left half done"


@pytest.mark.parametrize(
    "lock",
    [
        # The revision may be read, and not written.
        "LOCK TABLE alembic_version IN SHARE ROW EXCLUSIVE MODE",
        # What another migration holds.
        "SELECT pg_advisory_xact_lock(hashtext('decimer-jobs'), hashtext('migration'))",
    ],
)
def test_migrations_ask_again_for_a_lock(url: str, data_dir: Path, tmp_path: Path, lock: str) -> None:
    command.downgrade(migrations.config(url), "base")
    said = [tmp_path / str(number) for number in range(2)]

    async def hold_until(condition: Callable[[], object]) -> None:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction():
                await connection.execute(lock)
                started.extend(start(path) for path in said)
                await asyncio.to_thread(wait_for, condition, 60)
        finally:
            await connection.close()

    def start(path: Path) -> "subprocess.Popen[bytes]":
        with path.open("wb") as file:
            return subprocess.Popen([PROGRAM, "migrate"], env=environment(data_dir, database_url=url), stderr=file)

    started: list[subprocess.Popen[bytes]] = []
    run(hold_until(lambda: all("waits for a lock" in path.read_text() for path in said)))
    assert [process.wait(100) for process in started] == [0, 0], [path.read_text() for path in said]
    assert fetch(url, "SELECT version_num FROM alembic_version") == [{"version_num": migrations.head()}]


PROJECT = "INSERT INTO projects (name, source) VALUES ('p', 's')"
HELD = "worker_id, claim_key, lease_expires_at"


def job(columns: str, values: str) -> str:
    return f"INSERT INTO jobs (project_id, directory, {columns}) SELECT id, 'd', {values} FROM projects"  # noqa: S608


IMPOSSIBLE = [
    ("jobs_state_known_check", job("state", "'lost'")),
    ("jobs_claimed_has_holder_check", job("state", "'claimed'")),
    ("jobs_claimed_has_holder_check", job("state, worker_id, claim_key", "'claimed', 'w', 'k'")),
    ("jobs_claimed_has_holder_check", job("state, worker_id, lease_expires_at", "'claimed', 'w', now()")),
    ("jobs_claimed_has_holder_check", job(HELD, "'w', 'k', now()")),
    ("jobs_claimed_has_holder_check", job("lease_expires_at", "now()")),
    ("jobs_waiting_is_due_check", job("state", "'waiting'")),
    ("jobs_waiting_is_due_check", job("due_at", "now()")),
    ("jobs_finished_has_time_check", job("state", "'failed'")),
    ("jobs_finished_has_time_check", job("state", "'cancelled'")),
    ("jobs_finished_has_time_check", job("finished_at", "now()")),
    ("jobs_completed_has_images_check", job("state, finished_at, image_count", "'completed', now(), 0")),
    ("jobs_project_id_directory_key", job("state", "'queued'") + ", generate_series(1, 2)"),
    ("jobs_project_id_fkey", "INSERT INTO jobs (project_id, directory) VALUES (0, 'd')"),
    ("projects_name_key", PROJECT),
    ("schema_info_one_row_check", "INSERT INTO schema_info (id) VALUES (false)"),
    ("schema_info_pkey", "INSERT INTO schema_info DEFAULT VALUES"),
]


def test_the_tables_refuse_what_must_not_be(url: str) -> None:
    for constraint, statement in IMPOSSIBLE:
        with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
            fetch(url, PROJECT, statement)
        assert refused.value.constraint_name == constraint, statement


def test_a_completed_job_says_how_many_images_it_has(url: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        fetch(url, PROJECT, job("state, finished_at", "'completed', now()"))


def test_an_attempt_that_ended_says_when_and_how(url: str) -> None:
    opened = "INSERT INTO attempts (job_id, lease_seq, worker_id, claim_key) SELECT id, 1, 'w', 'k' FROM jobs"
    for half in ("ended_at = now()", "outcome = 'failed'"):
        with pytest.raises(asyncpg.CheckViolationError, match="attempts_ended_has_time_check"):
            fetch(url, PROJECT, job("state", "'queued'"), opened, f"UPDATE attempts SET {half}")  # noqa: S608


def test_the_tables_have_the_settings_that_the_models_say(url: str) -> None:
    wanted = {
        table.name: sorted(f"{name}={value}" for name, value in table.dialect_options["postgresql"]["with"].items())
        for table in models.metadata.sorted_tables
        if table.dialect_options["postgresql"].get("with")
    }
    assert "autovacuum_vacuum_scale_factor=0.01" in wanted["jobs"]
    rows = fetch(url, "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND reloptions IS NOT NULL")
    assert {row["relname"]: sorted(row["reloptions"]) for row in rows} == wanted


WAITS = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'provenances'::regclass AND NOT granted)"
# As the code of revision 0005 finds a provenance, or makes one.
FOUND_BY_0005 = """
WITH made AS (
    INSERT INTO provenances (worker_id, engine, engine_version, weights, weights_sha256, snapshot)
    VALUES ('w', 'decimer', NULL, $1, NULL, NULL) ON CONFLICT DO NOTHING RETURNING id)
SELECT id FROM made
UNION ALL
SELECT id FROM provenances
WHERE worker_id = 'w' AND engine = 'decimer' AND engine_version IS NULL AND weights IS NOT DISTINCT FROM $1
      AND weights_sha256 IS NULL AND snapshot IS NULL
LIMIT 1
"""


async def found_by_0005(url: str, weights: str | None) -> int:
    connection = await asyncpg.connect(url)
    try:
        number: int = await connection.fetchval(FOUND_BY_0005, weights)
        return number
    finally:
        await connection.close()


def found(url: str, prepared: str | None, weights: str | None = None) -> int:
    """As this code does."""

    async def ask() -> int:
        async with asyncpg.create_pool(url, min_size=1) as pool, pool.acquire() as connection:
            return await Provenances().find(connection, "w", EngineRun(weights=weights, prepared=prepared))

    return run(ask())


def test_older_code_and_this_find_the_same_provenances(url: str) -> None:
    command.downgrade(migrations.config(url), "0005")
    before = [run(found_by_0005(url, weights)) for weights in (None, "tiny")]
    migrations.upgrade(url)
    assert [run(found_by_0005(url, weights)) for weights in (None, "tiny")] == before
    assert [found(url, None, weights) for weights in (None, "tiny")] == before
    prepared = found(url, "ab" * 32)
    assert prepared not in before
    assert found(url, None) == before[0]
    assert run(found_by_0005(url, None)) in (before[0], prepared)
    new = run(found_by_0005(url, "other"))
    assert found(url, None, "other") == new, "what older code makes has no prepared model"
    assert fetch(url, "SELECT count(*)::int AS n FROM provenances") == [{"n": 4}]
    with pytest.raises(asyncpg.UniqueViolationError, match="provenances_made_with_key"):
        fetch(url, "INSERT INTO provenances (worker_id, engine) VALUES ('w', 'decimer')")


def test_a_migration_to_prepared_models_that_broke_off_begins_anew(url: str) -> None:
    command.downgrade(migrations.config(url), "0005")
    number = run(found_by_0005(url, None))
    fetch(url, "ALTER TABLE provenances ADD COLUMN prepared text", "SELECT 1")
    fetch(url, "CREATE UNIQUE INDEX provenances_made_with_key ON provenances (worker_id)", "SELECT 1")
    migrations.upgrade(url)
    command.check(migrations.config(url))
    assert found(url, None) == number
    assert found(url, "ab" * 32) != number


def test_the_way_down_from_prepared_models_leaves_no_row_without_its_provenance(url: str) -> None:
    fetch(url, PROJECT, job("state", "'queued'"), "SELECT 1")
    numbers = [found(url, prepared) for prepared in (None, "ab" * 32, "cd" * 32)]
    for number in numbers:
        row = f"SELECT j.id, '{number}', 'decimer', project_id, {number}, 1, 1, 'blank' FROM jobs j"  # noqa: S608
        columns = "job_id, image, engine, project_id, provenance_id, lease_seq, run, status"
        fetch(url, f"INSERT INTO results ({columns}) {row}", "SELECT 1")
    command.downgrade(migrations.config(url), "0005")
    assert fetch(url, "SELECT id FROM provenances") == [{"id": numbers[0]}]
    assert fetch(url, "SELECT DISTINCT provenance_id AS id FROM results") == [{"id": numbers[0]}]


def test_what_is_being_stored_on_the_way_down_from_prepared_models_is_merged_too(url: str) -> None:
    number = found(url, None)

    async def store() -> None:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction():
                made = "INSERT INTO provenances (worker_id, engine, prepared) VALUES ('w', 'decimer', $1)"
                await connection.execute(made, "ab" * 32)
                going = asyncio.create_task(asyncio.to_thread(command.downgrade, migrations.config(url), "0005"))
                await asyncio.to_thread(wait_for, lambda: going.done() or fetch(url, WAITS) == [{"exists": True}], 60)
            await going
        finally:
            await connection.close()

    run(store())
    assert fetch(url, "SELECT id FROM provenances") == [{"id": number}]
