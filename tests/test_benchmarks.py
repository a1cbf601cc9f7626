"""The benchmarks work: all figures are there, what they are measured on is true, and no figure is made of refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import exports, formats, seeding
from benchmarks.report import FIGURES
from benchmarks.stage import BenchmarkError, Stage
from tests.plugins.service import RunningService
from tests.serving import wait_for

ROOT = Path(__file__).parents[1]
TINY = ["--rows=1000", "--finished=1000", "--added=1000", "--churned=16", "--seconds=0.2", "--rounds=1"]


@pytest.fixture
def stage(service: RunningService, tmp_path: Path) -> Stage:
    """The stage of a benchmark on the test's service."""
    made = Stage(
        root=service.root,
        directory=tmp_path,
        database_url=service.database_url,
        service_pid=1,
        database_pid=None,
        admin_token=service.token("admin"),
        worker_token=service.token("worker"),
    )
    made.put_project("bench")
    return made


def test_every_figure_is_measured_and_stands_in_the_last_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *TINY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert all(said[figure.name] > 0 for figure in FIGURES), said
    assert {"generator", "service", "database"} == set(said["details"]["cycles_per_second"]["cores_busy"])
    assert said["details"]["export"]["rows"] == 1001
    assert said["details"]["claim_growth_old_snapshot"]["jobs_claimed_and_completed_meanwhile"] == 16


def test_every_format_of_the_export_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.formats", "--rows=1000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert all(said[figure.name] > 0 for figure in formats.FIGURES), said
    rows = {name: said["details"][name]["rows"] for name in formats.STREAMED}
    assert rows == {name: 101 if name == formats.DRAWN else 1001 for name in formats.STREAMED}


def test_what_is_put_straight_into_the_database_is_what_the_service_would_have_made(
    service: RunningService, stage: Stage
) -> None:
    seeding.seed_finished(stage, "bench", jobs=30, results=120, say=lambda _: None)
    seeding.seed_queued(stage, "bench", 20)
    service.assert_counters_equal_recount()
    found = stage.status("bench")
    assert (found.jobs.completed, found.jobs.failed, found.jobs.queued) == (4, 27, 20)
    rows = list(service.client().results("bench"))
    assert len(rows) == found.images.stored == 151
    assert all(row["smiles"] and row["image_sha256"] and row["worker_id"] for row in rows)


def test_the_export_and_the_copy_it_is_compared_with_hold_the_same_rows(stage: Stage) -> None:
    seeding.seed_finished(stage, "bench", jobs=3, results=100, say=lambda _: None)
    assert exports.copy(stage, "bench", keep=True).rows == 101
    for options in ({}, {"keep": True}, {"gzip": True}, {"export_format": "jsonl"}):
        assert exports.export(stage, "bench", **{"keep": False, **options}).units == 101  # type: ignore[arg-type]
    # Of a file that is no text the rows are counted in the file: this one leaves a row out.
    stage.sql("UPDATE results SET smiles = 'C(', normalized_smiles = NULL WHERE seq = (SELECT min(seq) FROM results)")
    with pytest.raises(BenchmarkError, match="has 100 rows, and the project has 101"):
        exports.export(stage, "bench", keep=False, export_format="sdf")


@pytest.mark.parametrize("script", ["cycles", "cycles_two_requests", "claims"])
def test_a_load_that_the_service_refuses_gives_no_figure(stage: Stage, script: str) -> None:
    seeding.seed_queued(stage, "bench", 3)
    with pytest.raises(BenchmarkError, match="204 and not 200; nothing was left to claim"):
        stage.play(script, "bench", clients=2, seconds=5)


def test_an_old_snapshot_is_held_as_long_as_it_is_measured(service: RunningService, stage: Stage) -> None:
    held = "SELECT 1 FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
    held += " AND datname = current_database() AND state = 'idle in transaction'"
    with stage.old_snapshot():
        assert service.sql(held) != []
    wait_for(lambda: service.sql(held) == [])
