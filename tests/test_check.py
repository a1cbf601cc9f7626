"""Whether `uworker check` sees that a worker has the weights that its project's engine wants."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job_api.schemas import ProjectSettings
from tests.plugins.service import RunningService
from uworker.prepared.files import prepared_directory
from uworker.weights import FOLDER, find_weights

PROJECT = "sketches"
REFUSED = 4
WITHOUT_TENSORFLOW = """
import uworker.weights
uworker.weights.find_spec = {}.get
from uworker.cli import app
app()
"""
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

Check = Callable[..., str]


@pytest.fixture
def homes(tmp_path: Path, miniature_home: Path) -> Path:
    """Folders with weights: `printed` has that model alone, `both` has both, `none` has none."""
    for name, left_out in (("printed", "*HandDrawn*"), ("both", "nothing"), ("none", "*")):
        shutil.copytree(miniature_home, tmp_path / name, ignore=shutil.ignore_patterns(left_out))
    return tmp_path


def sha256(home: Path, *, hand_drawn: bool) -> str:
    found = find_weights(home, hand_drawn=hand_drawn)
    assert found is not None
    return found.sha256


@pytest.fixture
def check(service: RunningService, homes: Path) -> Check:
    """Asks as a worker of the project does whose weights are in a folder; returns what it complains of, if at all."""
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data/sketches"))

    def run(
        home: str,
        options: dict[str, Any],
        *,
        may_write: bool = False,
        paused: bool = False,
        tensorflow: bool = True,
        **settings: str,
    ) -> str:
        admin.put_project(PROJECT, ProjectSettings(engine_options=options))
        (admin.pause if paused else admin.resume)(PROJECT)
        for folder in (homes / home, homes / home / FOLDER):
            folder.chmod(0o755 if may_write else 0o555) if folder.exists() else None
        given = {
            "job_api_root": service.root,
            "job_api_token": service.token("worker"),
            "job_api_project": PROJECT,
            "weights_home": str(homes / home),
            "spool_dir": "/tmp",
            **settings,
        }
        started = ["-m", "uworker"] if tensorflow else ["-c", WITHOUT_TENSORFLOW]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("UWORKER_")}
        done = subprocess.run(
            # Root may write everywhere unless it gives that up.
            [*(WITHOUT_RIGHTS if os.geteuid() == 0 else ()), sys.executable, *started, "check"],
            env=clean | {f"UWORKER_{name.upper()}": value for name, value in given.items()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, bool(done.stderr)) in ((0, False), (REFUSED, True)), done.stderr
        assert len(done.stderr.splitlines()) <= 1
        assert ("the worker downloads them first" in done.stdout) == (home == "none" and may_write and tensorflow)
        assert (f"the project {PROJECT} is paused" in done.stdout) == paused
        return done.stderr

    return run


def test_a_project_that_is_paused_is_no_fault_and_is_told(check: Check) -> None:
    assert check("both", {}, paused=True) == ""


def test_a_snapshot_of_the_other_model_is_refused_with_what_to_build(check: Check, homes: Path) -> None:
    printed, drawn = (sha256(homes / "both", hand_drawn=hand_drawn) for hand_drawn in (False, True))
    assert check("printed", {}, weights_sha256=printed) == ""
    said = check("printed", {"hand_drawn": True}, weights_sha256=printed)
    assert f"the project {PROJECT} wants weights for hand-drawn structures, and this worker has none of that" in said
    assert f"./build_snapshot.sh {PROJECT} CONFIG" in said
    assert check("both", {"hand_drawn": True}, weights_sha256=drawn.upper()) == ""
    said = check("both", {}, weights_sha256=drawn)
    assert f"wants weights for printed structures, and this worker has those of sha256 {printed}" in said
    assert f"where {drawn} is pinned" in said


def test_the_projects_own_pin_is_looked_at_too(check: Check, homes: Path) -> None:
    pin = sha256(homes / "both", hand_drawn=False)
    assert check("printed", {"weights_sha256": pin}, may_write=True) == ""
    assert f"{'0' * 64} is pinned" in check("printed", {"weights_sha256": "0" * 64}, may_write=True)


def test_weights_that_can_be_downloaded_may_be_missing(check: Check, homes: Path) -> None:
    assert check("none", {}, may_write=True) == ""
    assert check("none", {}, may_write=True, weights_sha256="0" * 64) == ""
    assert check("none", {}, may_write=True, weights_home=str(homes / "none" / "not there yet")) == ""
    assert "has none of that model" in check("none", {})


def test_weights_that_nothing_here_could_read_are_not_to_be_downloaded(check: Check, homes: Path) -> None:
    said = check("none", {}, may_write=True, tensorflow=False)
    assert "there is no prepared model at" in said
    assert "TensorFlow is not installed" in said
    assert check("both", {}, tensorflow=False) == ""
    prepared_directory(homes / "none", hand_drawn=False).mkdir(parents=True)
    assert "TensorFlow is not installed" in check("none", {}, may_write=True, tensorflow=False)


def test_a_source_that_the_worker_would_not_read_is_refused(check: Check) -> None:
    assert "lies in none of the folders in UWORKER_SOURCE_ALLOW" in check("both", {}, source_allow="/elsewhere")
    assert check("both", {}, source_allow="/data") == ""
    assert check("both", {}, source_allow="/elsewhere", source_root="/mnt") == ""


def test_an_option_that_the_worker_will_refuse_is_refused(check: Check) -> None:
    assert "decimer's option prepared is true or false, not 'no'" in check("both", {"prepared": "no"})
    assert check("both", {"prepared": False}) == ""


@pytest.mark.timeout(900)
def test_a_prepared_model_alone_is_weights_for_those_who_do_not_turn_it_off(
    check: Check, homes: Path, prepared_home: Path
) -> None:
    shutil.copytree(prepared_home, homes / "prepared", ignore=shutil.ignore_patterns("*_model", "*HandDrawn*", ".*"))
    made_of = sha256(prepared_home, hand_drawn=False)
    for may_write in (False, True):
        pinned: dict[str, Any] = {"weights_sha256": made_of.upper(), "may_write": may_write}
        assert check("prepared", {"prepared": True}, **pinned) == ""
        said = check("prepared", {}, may_write=may_write, weights_sha256="0" * 64)
        assert f"this worker has those of sha256 {made_of}" in said
    assert check("prepared", {}) == ""
    for options, settings in ({"prepared": False}, {}), ({}, {"prepared": "false"}):
        said = check("prepared", options, weights_sha256=made_of, **settings)
        assert "this worker has a prepared model alone" in said
        assert "build the snapshot with --as-shipped" in said
        assert check("prepared", options, may_write=True, weights_sha256=made_of, **settings) == "", "downloads them"
    assert "has none of that model" in check("prepared", {"hand_drawn": True})


def test_an_engine_apart_is_not_asked_for_its_weights_here(check: Check) -> None:
    assert check("none", {}, engine_socket="/run/engine.sock") == ""


def test_a_program_that_is_the_engine_must_be_here(check: Check, service: RunningService) -> None:
    service.client("admin").put_project(PROJECT, ProjectSettings(engine="mine"))
    known = {"engine_command": "echo C {image}", "engine_command_name": "mine"}
    assert check("none", {}, **known) == ""
    assert "no engine is called 'mine'" in (said := check("none", {}))
    assert "set UWORKER_ENGINE_COMMAND and UWORKER_ENGINE_COMMAND_NAME=mine" in said
    known["engine_command"] = "no-such-program {image}"
    assert "the engine mine needs the program no-such-program: correct UWORKER_ENGINE_COMMAND" in check(
        "none", {}, **known
    )
    assert check("none", {}, engine_socket="/run/engine.sock", **known) == ""
