"""The benchmark of recognition works: the replica is DECIMER's in form, all ways do all images, and none is made up."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recognition import contest, replica, worker
from benchmarks.recognition.__main__ import FIGURES, figures_of
from benchmarks.recognition.contest import Layout
from benchmarks.recognition.outcome import Outcome
from benchmarks.recognition.pictures import IMAGES_PER_DIRECTORY, lay_out
from benchmarks.recognition.watch import CoreShares, Watch
from benchmarks.stage import BenchmarkError
from uworker.demo.samples import draw_samples
from uworker.weights import find_weights

ROOT = Path(__file__).parents[1]
WAYS = ("plain", "fleet", "threads", "worker")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder of a short name, for a PostgreSQL that has its socket in it."""
    with tempfile.TemporaryDirectory(prefix="dj-test-") as name:
        yield Path(name)


# Builds a model and loads it six times over.
@pytest.mark.timeout(600)
def test_every_figure_is_measured_on_a_replica_and_stands_in_the_last_line(tmp_path: Path, short_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.recognition", "--quick", "--images=5", f"--only={','.join(WAYS)}"]
    done = subprocess.run(
        [*command, "--work-dir", str(tmp_path / "cache")],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(short_path)},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert all(said[figure.name] is not None for figure in FIGURES), said
    (measured,) = said["rounds"]
    assert {name: way["images"] for name, way in measured.items()} == dict.fromkeys(WAYS, 5)
    assert all(way["images_per_second"] > 0 and way["peak_mb"] > 100 for way in measured.values()), measured
    # Nothing is shared between the processes of a fleet but TensorFlow's program text.
    assert measured["fleet"]["peak_mb"] > 1.3 * measured["plain"]["peak_mb"]
    assert said["worker"][0]["rows_by_status"] == {"recognised": 5}
    (home,) = (tmp_path / "cache").glob("replica-*")
    assert replica.prepare(tmp_path / "cache", replica.SMALL, lambda _: None) == home
    weights = find_weights(home, hand_drawn=False)
    assert weights is not None
    assert "no recognition" in weights.name
    # What it made for itself is gone.
    assert list(short_path.glob("dj-bench-*")) == []


def test_what_the_replica_depends_on_is_built_anew() -> None:
    keys = {replica._key(replica.DECIMER), replica._key(replica.SMALL), replica._key(replace(replica.SMALL, tokens=3))}
    assert len(keys) == 3


def outcome(per_second: float, megabytes: float, idle: float = 0.0) -> Outcome:
    return Outcome(10, 10 / per_second, 1.0, round(megabytes * 1e6), CoreShares(idle=idle, watched=1 - idle, seconds=1))


def test_ratios_are_made_within_a_round_and_their_median_counts() -> None:
    def measured(speed: float) -> dict[str, Outcome]:
        # The machine as a whole is faster in one round than in another.
        return {
            "plain": outcome(0.5 * speed, 2500),
            "fleet": outcome(0.8 * speed, 5000),
            "threads": outcome(1.0 * speed, 2600),
            "worker": outcome(0.98 * speed, 2700, idle=0.01 * speed),
        }

    disturbed = measured(1.0) | {"plain": outcome(0.1, 2500), "threads": outcome(2.0, 2600)}
    found = figures_of([measured(1.0), disturbed, measured(4.0)])
    assert found == pytest.approx(
        {
            "images_per_second": 0.98,
            "vs_plain_loop": 1.96,
            "vs_old_fleet": 1.225,
            "worker_overhead": 0.02,
            "peak_rss_mb": 2700,
            "rss_vs_old_fleet": 0.54,
            "idle_core_share": 0.01,
        }
    )


def test_a_figure_that_was_not_measured_is_not_there() -> None:
    assert figures_of([{"plain": outcome(1, 1), "fleet": outcome(1, 1)}]) == {}


def test_the_first_job_has_one_image_and_all_have_what_users_have(tmp_path: Path) -> None:
    pictures = lay_out(tmp_path, 60)
    by_directory = [
        sum(file.is_relative_to(pictures.root / name) for file in pictures.files) for name in pictures.directories
    ]
    assert by_directory[0] == 1
    assert max(by_directory) == IMAGES_PER_DIRECTORY
    assert sum(by_directory) == len(set(pictures.files)) == 60
    assert all(file.is_file() for file in pictures.files)
    assert len(draw_samples(tmp_path / "again")) < 60


def rows_of(files: list[Path], root: Path, status: str) -> list[dict[str, Any]]:
    places = [file.relative_to(root).parts for file in files]
    return [{"directory": place[0], "image": "/".join(place[1:]), "status": status} for place in places]


def test_images_that_the_engine_did_not_recognise_give_no_figure(tmp_path: Path) -> None:
    pictures = lay_out(tmp_path, 3)
    rows = rows_of(pictures.files, pictures.root, "recognised")
    worker._check(rows, pictures)
    with pytest.raises(BenchmarkError, match="3 images were to be recognised, and there are 2 rows"):
        worker._check(rows[1:], pictures)
    with pytest.raises(BenchmarkError, match="1 images were not recognised"):
        worker._check([*rows[1:], rows[0] | {"status": "timeout"}], pictures)


def test_a_contestant_that_cannot_load_its_model_ends_the_benchmark(tmp_path: Path) -> None:
    model = tmp_path / "DECIMER-V2/DECIMER_model"
    (model / "assets").mkdir(parents=True)
    (model / "assets/tokenizer_SMILES.pkl").write_bytes(b"no pickle")
    (model / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(BenchmarkError, match="UnpicklingError"):
        contest.compete(Layout(1, 1), tmp_path, lay_out(tmp_path, 2).files)


@pytest.mark.parametrize(
    ("text", "layout"), [("2x4", Layout(2, 4)), ("16x1", Layout(16, 1)), ("0x1", None), ("2", None), ("2x", None)]
)
def test_a_layout_is_processes_x_threads(text: str, layout: Layout | None) -> None:
    assert Layout.parse(text) == layout


def test_a_watch_counts_what_processes_use_also_of_those_that_have_ended() -> None:
    busy = "import time; held = bytearray(200_000_000)\nwhile time.process_time() < 3: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as process:
        began = time.monotonic()
        with Watch(lambda: [process.pid]) as watch:
            assert process.wait(60) == 0
        # The watch's last look is at a process that is gone.
        ended = time.monotonic()
    shares = watch.shares(began, ended)
    assert watch.peak_bytes > 200_000_000
    assert shares.seconds > 2
    assert 0 <= shares.idle <= 1
    assert 0 <= shares.others <= 1
