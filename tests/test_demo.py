"""`make demo`, as a person runs it: its CSV is right, its words are clear, and it leaves no process behind."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from job_api.client import Client
from tests.plugins.model import DrawnSamples
from tests.plugins.replica import copy_home
from tests.serving import LOAD_SECONDS, is_gone, wait_for
from uworker.demo.__main__ import AWKWARD
from uworker.demo.samples import Awkward, draw_awkward
from uworker.prepared.files import find_prepared

# They load TensorFlow more than once, and the first to want the replica waits until it is made.
pytestmark = pytest.mark.timeout(900)

SERVING = r"serving (http://\S+:\d+)"


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JOB_API_", "UWORKER_"))}
    return {**plain, "HOME": str(tmp_path), "COLUMNS": "200", **more}


def start(tmp_path: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "uworker.demo", "--output", str(tmp_path / "out"), *arguments],
        env=environment(tmp_path, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def postgres_below(directory: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()).is_relative_to(directory):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def short_tmp(data_dir: Path) -> str:
    """Where the demo puts its database; a path short enough for a socket, that this test alone uses."""
    return str(data_dir)


def test_the_demo_ends_with_a_right_csv_and_nothing_running(
    tmp_path: Path, data_dir: Path, samples: DrawnSamples
) -> None:
    demo = start(tmp_path, TMPDIR=short_tmp(data_dir))
    seen: set[psutil.Process] = set()

    def watch() -> bool:
        seen.update(family(demo))
        return demo.poll() is not None

    wait_for(watch, 500)
    said, _ = demo.communicate()
    assert demo.returncode == 0, said
    assert "all 52 sample images that can be recognised got exactly the SMILES they were drawn from" in said
    assert "weights: miniature model" in said
    assert "results: " + str(tmp_path / "out" / "results.csv") in said
    with (tmp_path / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drawn = {(item.directory, item.image): ("recognised", item.smiles) for item in samples.items}
    awkward = draw_awkward(tmp_path / "awkward")
    drawn |= {(AWKWARD, name): (status, smiles or "") for name, (status, smiles) in _plain(awkward).items()}
    assert Counter((row["directory"], row["image"]) for row in rows) == Counter(drawn.keys())
    assert {(row["directory"], row["image"]): (row["status"], row["smiles"]) for row in rows} == drawn
    assert len(seen) >= 3
    assert [process for process in seen if not is_gone(process)] == []
    assert postgres_below(data_dir) == []
    assert list(data_dir.iterdir()) == [], "its scratch is cleaned up"


def _plain(awkward: dict[str, Awkward]) -> dict[str, tuple[str, str | None]]:
    return {name: (file.status, file.smiles) for name, file in awkward.items()}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_all_it_started(
    tmp_path: Path, data_dir: Path, samples: DrawnSamples, miniature_home: Path, sent: signal.Signals
) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    out.mkdir()
    (out / "results.csv").write_text("of an earlier run")
    for number in range(60):
        shutil.copytree(samples.root, images / f"{number:03}")
        for path in (images / f"{number:03}").rglob("*.*"):
            # A worker recognises equal bytes once.
            path.write_bytes(path.read_bytes() + str(number).encode())
    # On images that need no model to be built first.
    more = {"PYSTOW_HOME": str(miniature_home), "TMPDIR": short_tmp(data_dir)}
    demo = start(tmp_path, "--images", str(images), **more)
    wait_for(lambda: any(path.read_text() for path in data_dir.glob("*/service/admin-password")), LOAD_SECONDS)
    [password] = data_dir.glob("*/service/admin-password")
    log = out / "service.log"
    wait_for(lambda: re.search(SERVING, log.read_text()), LOAD_SECONDS)
    [root] = re.findall(SERVING, log.read_text())
    with Client(root, username="admin", password=password.read_text().strip()) as client:
        wait_for(client.projects, LOAD_SECONDS)
        wait_for(lambda: client.project("demo").images.recognised > 0, LOAD_SECONDS)
    started = family(demo)
    demo.send_signal(sent)
    said, _ = demo.communicate(timeout=200)
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert f"what was recognised until now: {out / 'results.csv'}" in said
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        assert 0 < len([row for row in csv.DictReader(file) if row["smiles"]]) < 60 * len(samples.items)
    assert [path.read_text() for path in out.glob("earlier-*/results.csv")] == ["of an earlier run"]
    wait_for(lambda: all(is_gone(process) for process in started))
    assert postgres_below(data_dir) == []


def test_own_images_with_decimers_own_weights(
    tmp_path: Path, data_dir: Path, samples: DrawnSamples, miniature_home: Path
) -> None:
    directory = samples.items[0].directory
    wanted = {item.image: item.smiles for item in samples.items if item.directory == directory}
    # The weights of this machine's PYSTOW_HOME, whatever they are: the demo takes them for DECIMER's own.
    more = {"PYSTOW_HOME": str(miniature_home), "TMPDIR": short_tmp(data_dir)}
    folder = tmp_path / "my images"
    shutil.copytree(samples.root / directory / "output", folder)
    demo = start(tmp_path, "--images", str(folder), **more)
    said, _ = demo.communicate(timeout=500)
    assert demo.returncode == 0, said
    with (tmp_path / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"output/" + row["image"]: row["smiles"] for row in rows} == wanted
    assert {row["directory"] for row in rows} == {"my images"}
    assert "prepared" not in said


def test_a_prepared_model_alone_will_do_and_is_named(
    tmp_path: Path, data_dir: Path, samples: DrawnSamples, prepared_home: Path
) -> None:
    prepared = find_prepared(prepared_home, hand_drawn=False)
    assert prepared is not None
    copy_home(prepared.directory, tmp_path / "home" / prepared.directory.relative_to(prepared_home))
    # Nothing can be downloaded here, and without the weights there is no other model.
    more = {"PYSTOW_HOME": str(tmp_path / "home"), "TMPDIR": short_tmp(data_dir)}
    demo = start(tmp_path, "--images", str(samples.items[0].path.parent), **more)
    said, _ = demo.communicate(timeout=500)
    assert demo.returncode == 0, said
    assert f"sha256 {prepared.about.weights_sha256}; prepared: {prepared.sha256}" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "IMAGES"], "weights are not at"),
        (["--images", "IMAGES", "--model", "miniature"], "need MODEL=decimer"),
        (["--images", "NOWHERE"], "there is no folder"),
        (["--images", "EMPTY"], "neither images nor folders"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    tmp_path: Path, data_dir: Path, samples: DrawnSamples, arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": str(samples.root), "NOWHERE": str(tmp_path / "nowhere"), "EMPTY": str(tmp_path / "empty")}
    # Nothing is downloaded here, also on a machine that could.
    away = {"HTTPS_PROXY": "http://127.0.0.1:1", "TMPDIR": short_tmp(data_dir)}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.csv").write_text("of an earlier run")
    demo = start(tmp_path, *(places.get(argument, argument) for argument in arguments), **away)
    said, _ = demo.communicate(timeout=500)
    assert demo.returncode == 1, said
    assert (tmp_path / "out" / "results.csv").read_text() == "of an earlier run"
    assert [line for line in said.splitlines() if words in line] == said.splitlines()[-1:], said
    assert "Traceback" not in said
