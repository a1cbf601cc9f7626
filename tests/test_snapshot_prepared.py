"""The prepared model of a snapshot: taken where it is, made where it is not, done without where it cannot be had."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from job_api.schemas import ProjectSettings
from tests.plugins.service import RunningService
from tests.serving import LOAD_SECONDS, wait_for
from uworker.prepared.files import REPORT, Prepared, find_prepared, prepared_directory
from uworker.prepared.versions import code_digest
from uworker.snapshot.cli import Wanted, _prepared
from uworker.snapshot.preparing import AS_SHIPPED, cache_home, prepared_for
from uworker.snapshot.steps import Steps
from uworker.weights import FOLDER, Weights, find_weights

PROJECT = "patents"


def weights_of(home: Path) -> Weights:
    found = find_weights(home, hand_drawn=False)
    assert found is not None
    return found


def model_of(home: Path) -> Prepared:
    found = find_prepared(home, hand_drawn=False)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shipped_home(tmp_path: Path, prepared_home: Path) -> Path:
    """A copy of the replica as it is shipped."""
    home = tmp_path / "shipped"
    shutil.copytree(prepared_home, home, ignore=shutil.ignore_patterns("*_prepared*"))
    return home


def ask(weights: Weights) -> tuple[Prepared | None, list[str]]:
    said: list[str] = []
    return prepared_for(weights, hand_drawn=False, say=said.append), said


def test_one_beside_the_weights_is_taken(prepared_home: Path) -> None:
    found, [said] = ask(weights_of(prepared_home))
    assert found == model_of(prepared_home)
    assert f"made before: {found.directory}, sha256 {found.sha256}" == said


def test_one_is_made_beside_weights_that_have_none_and_none_that_may_be_used(
    prepared_home: Path, shipped_home: Path
) -> None:
    broken = prepared_directory(shipped_home, hand_drawn=False)
    shutil.copytree(prepared_directory(prepared_home, hand_drawn=False), broken)
    with (broken / "step.onnx").open("ab") as file:
        file.write(b"damaged")
    found, said = ask(weights_of(shipped_home))
    assert found is not None
    assert found == model_of(shipped_home)
    assert found.sha256 == model_of(prepared_home).sha256, "the same weights, the same model"
    assert any(re.match(r" *24: \d+ of \d+ tokens equal ", line) for line in said), said
    assert "proved: " in said[-1]


def test_one_that_was_proved_with_other_code_or_packages_is_made_anew(prepared_home: Path, shipped_home: Path) -> None:
    older = prepared_directory(shipped_home, hand_drawn=False)
    shutil.copytree(prepared_directory(prepared_home, hand_drawn=False), older)
    report = json.loads((older / REPORT).read_bytes())
    del report["versions"]["code"]
    report["versions"] |= {"numpy": "0.1", "not-installed": "2.0"}
    (older / REPORT).write_text(json.dumps(report))
    found, said = ask(weights_of(shipped_home))
    assert f"not taken: {older} was proved, on {report['images']} images, with another version of " in said[0]
    assert "to prove it on images of yours: uworker prepare --images …, and build again" in said[1]
    for differing in ("this project's code", "numpy 0.1, now ", "not-installed 2.0, which is not installed"):
        assert differing in said[0]
    assert found is not None
    assert found == model_of(shipped_home)
    assert found.proved_with["code"] == code_digest()
    assert found.sha256 == model_of(prepared_home).sha256
    # It is taken the next time, and as the same model it has left none behind.
    again, [line] = ask(weights_of(shipped_home))
    assert again == found
    assert line.startswith("made before")
    assert [path.name for path in older.parent.glob("*_before")] == []


# Root may write everywhere unless it gives that up.
_WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
_ASK = """
import sys
from pathlib import Path
from uworker.snapshot.preparing import prepared_for
from uworker.weights import find_weights
weights = find_weights(Path(sys.argv[1]), hand_drawn=False)
print("found", prepared_for(weights, hand_drawn=False, say=print).directory)
"""


def test_where_nothing_can_be_put_beside_the_weights_it_is_made_elsewhere_once(
    prepared_home: Path, shipped_home: Path, cache: Path
) -> None:
    (shipped_home / FOLDER).chmod(0o555)
    place = prepared_directory(cache_home(weights_of(shipped_home)), hand_drawn=False)
    assert place.is_relative_to(cache)
    command = [*(_WITHOUT_RIGHTS if os.geteuid() == 0 else ()), sys.executable, "-c", _ASK, str(shipped_home)]
    try:
        for begins in ("making it", "made before"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
            assert done.stdout.startswith(begins), done.stdout
            assert done.stdout.endswith(f"found {place}\n")
    finally:
        (shipped_home / FOLDER).chmod(0o755)
    assert [path.name for path in (shipped_home / FOLDER).iterdir() if "prepared" in path.name] == []
    assert model_of(cache_home(weights_of(shipped_home))).sha256 == model_of(prepared_home).sha256


def test_a_model_that_is_not_built_as_decimers_is_taken_as_it_is(miniature_home: Path, tmp_path: Path) -> None:
    shutil.copytree(miniature_home, tmp_path / "miniature")
    found, said = ask(weights_of(tmp_path / "miniature"))
    assert found is None
    [why] = [line for line in said if line.startswith(f"{AS_SHIPPED}: ")]
    assert "the model is not built as DECIMER's" in why
    assert "--as-shipped" in said[-1]
    assert not any("Traceback" in line for line in said), said


def test_one_of_other_weights_is_not_taken(prepared_home: Path) -> None:
    found, said = ask(replace(weights_of(prepared_home), sha256="0" * 64))
    assert found is None
    assert f"{'0' * 64} is pinned" in said[-2]


def test_who_wants_decimer_as_it_is_gets_no_prepared_model(
    service: RunningService, prepared_home: Path, tmp_path: Path
) -> None:
    admin, weights = service.client("admin"), weights_of(prepared_home)
    admin.put_project(PROJECT, ProjectSettings(source="file:///data/patents"))
    wanted = Wanted(PROJECT, tmp_path, None, None, None, None, None, False, False, False, None, 1, tmp_path)
    said: list[str] = []
    steps = Steps(9, said.append)
    assert _prepared(wanted, None, weights, steps) == model_of(prepared_home)
    assert _prepared(wanted, admin.project(PROJECT), weights, steps) == model_of(prepared_home)
    said.clear()
    assert _prepared(replace(wanted, as_shipped=True), admin.project(PROJECT), weights, steps) is None
    assert said == [], "there is no such step"
    admin.put_project(PROJECT, ProjectSettings(engine_options={"prepared": False}))
    assert _prepared(wanted, admin.project(PROJECT), weights, steps) is None
    assert f"the engine_options of the project {PROJECT} say so" in said[1]


_ENDED_WHILE_IT_IS_MADE = """
import signal, sys
from pathlib import Path
from uworker.snapshot.preparing import prepared_for
from uworker.weights import find_weights
signal.signal(signal.SIGTERM, signal.default_int_handler)
weights = find_weights(Path(sys.argv[1]), hand_drawn=False)
prepared_for(weights, hand_drawn=False, say=lambda line: print(line, flush=True))
"""


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether the process was sent a signal that it has not taken yet."""
    [mask] = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_build_that_is_ended_ends_the_making_and_leaves_nothing_half(shipped_home: Path) -> None:
    command = [sys.executable, "-c", _ENDED_WHILE_IT_IS_MADE, str(shipped_home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as build:
        assert build.stdout is not None
        for line in build.stdout:
            # Told when it is over, and the model is being written.
            if "loading the model" in line:
                break
        [making] = psutil.Process(build.pid).children()
        # It must not be through before it hears of it.
        making.suspend()
        build.terminate()
        wait_for(lambda: is_pending(making.pid, signal.SIGTERM), LOAD_SECONDS)
        making.resume()
        assert build.wait(90) != 0
    assert not making.is_running()
    left = [path.name for path in (shipped_home / FOLDER).iterdir() if path.is_dir() and "prepared" in path.name]
    assert left == []
