"""The benchmark of opinions counts what is right, on anybody's images, and makes no figure where some are missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.opinions import figures_of
from benchmarks.stage import BenchmarkError
from tests.plugins.model import DrawnSamples

ETHANOL, ISOMER, OTHER = ("LFQSCWFLJHTTHZ-UHFFFAOYSA-N", "LFQSCWFLJHTTHZ-WFVSFCRTSA-N", "UHOVQNZJYSORNB-UHFFFAOYSA-N")


def test_a_worker_recognises_what_the_reference_names(samples: DrawnSamples, tmp_path: Path) -> None:
    directory = "Größe & Söhne (Müller 2019)"
    images = [item.image for item in samples.items if item.directory == directory]
    keys = dict(zip(images, (ETHANOL, ISOMER, OTHER), strict=False))
    reference = tmp_path / "reference.csv"
    lines = [f"{directory},{image},{key}" for image, key in keys.items()]
    reference.write_text("\n".join(["directory,image,inchikey", *lines]), encoding="utf-8")
    command = ["--images", str(samples.root), "--reference", str(reference), "--engine", "command"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.opinions", *command],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"UWORKER_ENGINE_COMMAND": "echo CCO {image}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["images"], said["recognised"], said["right"], said["right_skeleton"]) == (3, 3, 1, 2)
    assert said["setting"]["engine"] == "command"


def test_an_image_without_a_row_or_without_an_answer_is_not_right() -> None:
    row = {"directory": "a", "image": "1.png", "status": "engine_error", "inchikey": None, "duration_ms": 5}
    assert figures_of([row], {("a", "1.png"): ""})["right"] == 0
    with pytest.raises(BenchmarkError, match=r"1 images of the reference are not there, the first: \('a', '2.png'\)"):
        figures_of([row], {("a", "1.png"): ETHANOL, ("a", "2.png"): ETHANOL})


def test_an_image_that_no_engine_worked_on_has_no_time() -> None:
    row = {"directory": "a", "status": "unreadable", "inchikey": None}
    durations = {"1.png": 2000, "2.png": 4000, "3.png": 9000, "4.png": None, "5.png": 0}
    rows = [{**row, "image": image, "duration_ms": duration} for image, duration in durations.items()]
    figures = figures_of(rows, {("a", image): ETHANOL for image in durations})
    assert (figures["images"], figures["median_seconds_per_image"], figures["mean_seconds_per_image"]) == (5, 4, 5)
    assert "mean_seconds_per_image" not in figures_of(rows[3:], {("a", image): ETHANOL for image in ("4.png", "5.png")})
