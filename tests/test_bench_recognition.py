"""The benchmark of recognition works: the replica is DECIMER's in form, all ways do all images, and none is made up."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recognition import contest, lengths, prepared, replica, worker
from benchmarks.recognition.contest import Layout
from benchmarks.recognition.contestant import fair_batch
from benchmarks.recognition.figures import FIGURES, figures_of, with_goals
from benchmarks.recognition.outcome import Outcome
from benchmarks.recognition.pictures import IMAGES_PER_DIRECTORY, lay_out
from benchmarks.recognition.watch import CoreShares, Watch
from benchmarks.report import cores
from benchmarks.stage import BenchmarkError
from uworker.demo.samples import draw_samples
from uworker.engines.prepared import MAX_BATCH
from uworker.prepared.files import REPORT, Difference, Report, prepared_directory
from uworker.weights import find_weights, model_directory

ROOT = Path(__file__).parents[1]
BARE = ("plain", "fleet", "threads", "prepared", "prepared_batched")
WORKERS = ("worker", "worker_shipped")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder of a short name, for a PostgreSQL that has its socket in it."""
    with tempfile.TemporaryDirectory(prefix="dj-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small replica, and its prepared model."""
    folder = tmp_path_factory.mktemp("cache")
    home = replica.prepare(folder, replica.SMALL, print)
    enough = prepared.images_needed(replica.SMALL.tokens)
    prepared.prepare(home, lay_out(tmp_path_factory.mktemp("drawn"), enough).files, print)
    return folder


@pytest.fixture
def home(cache: Path) -> Path:
    """What `PYSTOW_HOME` names to have it."""
    (found,) = cache.glob("replica-*")
    return found


# Loads a model ten times over.
@pytest.mark.timeout(1800)
def test_every_figure_is_measured_on_a_replica_and_stands_in_the_last_line(
    cache: Path, home: Path, short_path: Path
) -> None:
    ways = ",".join(BARE + WORKERS)
    command = [sys.executable, "-m", "benchmarks.recognition", "--quick", "--images=5", f"--only={ways}"]
    done = subprocess.run(
        [*command, "--work-dir", str(cache)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(short_path)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert all(said[figure.name] is not None for figure in FIGURES), said
    (measured,) = said["rounds"]
    assert {name: way["images"] for name, way in measured.items()} == dict.fromkeys(BARE + WORKERS, 5)
    assert all(way["images_per_second"] > 0 for way in measured.values())
    # Python with NumPy alone has 30.
    peaks = {name: way["peak_mb"] for name, way in measured.items()}
    assert min(peaks.values()) > 60, peaks
    # All said as much, so that none had less to do than another.
    assert {name: measured[name]["characters"] for name in BARE} == dict.fromkeys(BARE, 5 * replica.SMALL.tokens)
    # Nothing is shared between the processes of a fleet but TensorFlow's program text, which a prepared model lacks.
    assert measured["fleet"]["peak_mb"] > 1.3 * measured["plain"]["peak_mb"]
    assert measured["prepared"]["peak_mb"] < 0.7 * measured["threads"]["peak_mb"]
    assert measured["prepared"]["at_once"] == 1
    assert measured["prepared_batched"]["at_once"] == fair_batch(5, cores(), MAX_BATCH)
    proof = prepared.prepare(home, [], print)
    assert {one["name"]: one["prepared"] for one in said["worker"]} == {
        "worker": [proof.prepared],
        "worker_shipped": ["None"],
    }
    assert all(one["rows_by_status"] == {"recognised": 5} for one in said["worker"])
    assert said["tokens_equal"] == proof.tokens_equal / proof.tokens
    assert replica.prepare(cache, replica.SMALL, lambda _: None) == home
    weights = find_weights(home, hand_drawn=False)
    assert weights is not None
    assert "no recognition" in weights.name
    # What it made for itself is gone.
    assert list(short_path.glob("dj-bench-*")) == []


@pytest.mark.timeout(900)
def test_a_copy_of_the_replica_says_more_and_is_prepared_for_as_much(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in home.parent.iterdir())
    graph = model_directory(home, "DECIMER").joinpath("saved_model.pb").read_bytes()
    layouts = {"threads": Layout(1, 1), "prepared": Layout(1, 2, prepared=True)}
    found, proofs = lengths.measure(home, replica.SMALL.tokens, [4], (layouts, lay_out(tmp_path, 16).files), print)
    assert {name: by[4].characters for name, by in found.items()} == {"threads": 2 * 4, "prepared": 16 * 4}
    enough = prepared.images_needed(4)
    assert lengths.details_of(proofs[4]) == {
        "images": enough,
        "images_equal": enough,
        "tokens": 4 * enough,
        "tokens_equal": 4 * enough,
        "tokens_equal_batched": 4 * enough,
        "near_ties": 0,
    }
    capsys.readouterr()
    lengths.show_loads(found)
    lengths.show_proofs(proofs)
    told = capsys.readouterr().out.splitlines()
    [row] = [line for line in told if re.match(r"\W*4 ", line)]
    assert re.findall(r"\d+", row) == ["4", *[str(4 * enough)] * 3, "0"]
    assert [len(re.findall(r"[0-9.]+ s, [0-9,]+ MB", line)) for line in told].count(1) == len(layouts)
    # The replica itself is as it was, and nothing is left of the copy.
    assert model_directory(home, "DECIMER").joinpath("saved_model.pb").read_bytes() == graph
    assert sorted(path.name for path in home.parent.iterdir()) == before


@pytest.mark.timeout(900)
def test_a_copy_is_made_only_of_a_replica_whose_loop_is_found(home: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="0 loops of 41 tokens"):
        lengths.measure(home, 41, [4], ({"threads": Layout(1, 1)}, lay_out(tmp_path, 2).files), print)


def test_what_has_loaded_another_model_gives_no_figure() -> None:
    shipped: dict[str, Any]
    ours: dict[str, Any]
    shipped, ours = {"prepared": None, "tensorflow": True}, {"prepared": "ab", "tensorflow": False}
    contest.check_loaded(Layout(2, 1), None, [shipped, shipped])
    contest.check_loaded(Layout(2, 1, prepared=True), "ab", [ours, ours])
    for layout, wanted, reports in (
        (Layout(2, 1, prepared=True), "ab", [ours, shipped]),
        (Layout(1, 1, prepared=True), "ab", [ours | {"tensorflow": True}]),
        (Layout(1, 1, prepared=True), "cd", [ours]),
        (Layout(1, 1), None, [ours]),
    ):
        with pytest.raises(BenchmarkError, match="another model"):
            contest.check_loaded(layout, wanted, reports)


def test_answers_of_another_length_give_no_figure() -> None:
    contest.check_length(replace(outcome(1, 1), characters=400), 40)
    with pytest.raises(BenchmarkError, match="399 tokens in all, not 10 times 40"):
        contest.check_length(replace(outcome(1, 1), characters=399), 40)


@pytest.mark.parametrize(
    ("images", "readers", "size"), [(48, 2, 8), (48, 16, 3), (40, 2, 7), (5, 2, 3), (1, 2, 1), (49, 2, 7)]
)
def test_readers_of_batches_share_the_images_evenly(images: int, readers: int, size: int) -> None:
    assert fair_batch(images, readers, 8) == size


def test_a_further_token_costs_the_same_where_time_grows_linearly() -> None:
    straight = lengths.fit({20: 0.5, 40: 0.7, 150: 1.8})
    assert straight == {
        "ms_per_token": 10.0,
        "off_the_line": 0.0,
        "ms_per_token_between": [10.0, 10.0],
        "growth": 1.0,
    }
    curved = lengths.fit({tokens: 0.5 + tokens * tokens / 1000 for tokens in (20, 40, 80, 150)})
    assert curved["ms_per_token_between"] == [60.0, 120.0, 230.0]
    assert curved["growth"] == pytest.approx(230 / 60, abs=0.001)
    assert curved["off_the_line"] > 0.1


def test_a_model_of_other_code_or_packages_is_prepared_anew(home: Path, tmp_path: Path) -> None:
    known = prepared.prepare(home, [], print)
    other = shutil.copytree(home, tmp_path / "home")
    assert prepared._find(other) == known
    report = prepared_directory(other, hand_drawn=False) / REPORT
    for changed in ({"onnxruntime": "0.1"}, {"code": "ab" * 32}):
        report.write_text(known.model_copy(update={"versions": known.versions | changed}).model_dump_json())
        assert prepared._find(other) is None, changed


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
            "threads": replace(outcome(1.0 * speed, 2600), starting_seconds=20 / speed),
            "worker_shipped": outcome(0.98 * speed, 2700, idle=0.01 * speed),
            "prepared": replace(outcome(2.5 * speed, 1200), starting_seconds=2 / speed),
            "prepared_batched": outcome(3.0 * speed, 1400),
            "worker": outcome(2.4 * speed, 1500, idle=0.02 * speed),
        }

    disturbed = measured(1.0) | {"plain": outcome(0.1, 2500), "threads": outcome(2.0, 2600)}
    found = figures_of([measured(1.0), disturbed, measured(4.0)])
    assert found == pytest.approx(
        {
            "images_per_second": 2.4,
            "vs_plain_loop": 4.8,
            "vs_old_fleet": 3.0,
            "worker_overhead": 0.2,
            "peak_rss_mb": 1500,
            "rss_vs_old_fleet": 0.3,
            "idle_core_share": 0.02,
            "prepared_vs_plain_loop": 5.0,
            "prepared_batched_vs_plain_loop": 6.0,
            "prepared_vs_threads": 2.5,
            "prepared_rss_mb": 1200,
            "prepared_batched_rss_mb": 1400,
            "load_seconds": 2.0,
            "load_seconds_shipped": 5.0,
            "shipped_images_per_second": 0.98,
            "shipped_vs_plain_loop": 1.96,
            "shipped_vs_old_fleet": 1.225,
            "shipped_worker_overhead": 0.02,
            "shipped_peak_rss_mb": 2700,
            "shipped_rss_vs_old_fleet": 0.54,
            "shipped_idle_core_share": 0.01,
        }
    )


def test_only_near_ties_may_be_chosen_differently() -> None:
    def difference(position: int, images_at_once: int) -> Difference:
        return Difference(
            image="a",
            position=position,
            images_at_once=images_at_once,
            shipped="C",
            prepared="N",
            shipped_first=0.401,
            shipped_second=0.4,
            is_near_tie=True,
        )

    proof = Report(
        proved=True,
        reason=None,
        prepared="ab",
        weights="replica",
        weights_sha256="cd",
        margin=0.01,
        tolerance=0.01,
        images=10,
        tokens=400,
        tokens_equal=399,
        tokens_equal_batched=398,
        # One of them alone and in a batch.
        differences=[difference(7, 1), difference(7, 8), difference(9, 8)],
        made_at="2026-11-29T00:00:00+00:00",
    )
    assert figures_of([], proof) == {"tokens_equal": 0.9975, "tokens_equal_batched": 0.995, "near_ties": 2}
    goals = {figure.name: figure.goal for figure in with_goals(proof)}
    assert (goals["tokens_equal"], goals["tokens_equal_batched"]) == (">= 0.995", ">= 0.995")


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
    busy = "import time; held = bytearray(200_000_000)\nwhile time.process_time() < 2: pass\ntime.sleep(2)"
    with subprocess.Popen([sys.executable, "-c", busy]) as process:
        began = time.monotonic()
        # It stays longer than between two looks, so that one sees all it did.
        with Watch(lambda: [process.pid]) as watch:
            assert process.wait(60) == 0
        # The watch's last look is at a process that is gone.
        ended = time.monotonic()
    shares = watch.shares(began, ended)
    assert watch.peak_bytes > 200_000_000
    assert shares.seconds > 1.5
    assert 0 <= shares.idle <= 1
    assert 0 <= shares.others <= 1
