"""The benchmark of storage works: every figure is measured, on all that was laid out, and none is made up."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from benchmarks.stage import BenchmarkError
from benchmarks.storage import corpus, measuring
from benchmarks.storage.__main__ import FIGURES, figures_of
from benchmarks.storage.clients import Plan
from benchmarks.storage.measuring import Outcome
from tests.emulators.azurite import Azurite, run_azurite

ROOT = Path(__file__).parents[1]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder of a short name, for a PostgreSQL that has its socket in it."""
    with tempfile.TemporaryDirectory(prefix="dj-test-") as name:
        yield Path(name)


# Azurite is started three times over, a service and a worker four times.
@pytest.mark.timeout(600)
def test_every_figure_is_measured_and_stands_in_the_last_line(short_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.storage", "--quick"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(short_path)},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert all(said[figure.name] > 0 for figure in FIGURES), said
    (measured,) = said["rounds"]
    assert measured["list"]["number"] == 41
    assert measured["list"]["requests"] == said["requests_for_listing"] <= 3
    assert measured["worker"]["number"] == 200
    # One for each image and one or two for each directory, each of which waited.
    assert 200 < measured["worker"]["requests"] < 220
    assert measured["sdk"]["seconds"] > 0.05 * measured["sdk"]["requests"]
    assert measured["storage"]["number"] == measured["local"]["number"] >= 2 * 40
    # What it made for itself is gone.
    assert list(short_path.glob("dj-bench-*")) == []


def test_what_is_laid_out_is_what_azurite_would_have_been_given(tmp_path: Path) -> None:
    keys = list(corpus.keys(7, 100))
    objects = [(key, (b"one", b"two and more", b"one", b"three")[number % 4]) for number, key in enumerate(keys)]
    corpus.lay_out(tmp_path / "azurite", "laid-out", objects, lambda _: None)
    with run_azurite(tmp_path / "azurite") as azurite:
        found = azurite.content("laid-out")
        connection_string = azurite.environment["AZURE_STORAGE_CONNECTION_STRING"]
        with ContainerClient.from_connection_string(connection_string, "laid-out") as container:
            prefixes = [item.name for item in container.walk_blobs()]
    assert found == dict(objects)
    assert prefixes == [f"{name}/" for name in corpus.directory_names(7)]
    assert {key.partition("/")[0] for key in keys} == set(corpus.directory_names(7))


def test_a_client_that_finds_less_gives_no_figure(azurite: Azurite) -> None:
    bucket = azurite.new_bucket()
    bucket.fill({"a/1.png": b"1"})
    with measuring.run_relay_process(azurite.server, 0) as relay:
        behind = azurite.behind(relay)
        found = measuring.ask(behind, relay, Plan("list", bucket.url), 1)
        assert (found.number, found.requests) == (1, 1)
        with pytest.raises(BenchmarkError, match="2 names and 0 bytes were to be found, and not 1"):
            measuring.ask(behind, relay, Plan("list", bucket.url), 2)
        with pytest.raises(BenchmarkError, match=r"sdk failed: (.|\n)*ContainerNotFound"):
            measuring.ask(behind, relay, Plan("sdk", "az://not-there", ["a"], 1), 1)
    bucket.remove()


def test_ratios_are_made_within_a_round_and_their_median_counts() -> None:
    def measured(speed: float) -> dict[str, Outcome]:
        # The machine as a whole is faster in one round than in another.
        return {
            "list": Outcome(10, 2 / speed, requests=2),
            "sdk": Outcome(100, 10 / speed, 1 / speed),
            "worker": Outcome(1000, 20 / speed, 6 / speed),
            "local": Outcome(100, 4 / speed),
            "storage": Outcome(100, 5 / speed),
        }

    disturbed = measured(1.0) | {"sdk": Outcome(100, 100, 50), "local": Outcome(100, 1)}
    assert figures_of([measured(1.0), disturbed, measured(4.0)]) == pytest.approx(
        {
            "list_seconds": 2,
            "requests_for_listing": 2,
            "images_per_second": 50,
            "vs_azure_sdk": 5,
            "client_cpu_vs_azure_sdk": 0.6,
            "recognition_vs_local": 0.8,
        }
    )
