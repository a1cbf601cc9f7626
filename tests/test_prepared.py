"""`uworker prepare`: makes a model of the weights, proves it, and says what it did."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from tests.plugins.replica import HAND_DRAWN_TOKENS, TOKENS, Replica, copy_home
from tests.serving import wait_for
from uworker.cli import app
from uworker.prepared.cli import _find_images, _find_weights
from uworker.prepared.files import Report, find_prepared, prepared_directory
from uworker.prepared.versions import code_digest, what_differs
from uworker.weights import find_weights

# The first of them may have to wait for the replica, which on a busy machine takes minutes.
pytestmark = pytest.mark.timeout(600)

FILES = {"encoder.onnx", "step.onnx", "model.json", "report.json"}


def report_of(home: Path, *, hand_drawn: bool = False) -> Report:
    place = prepared_directory(home, hand_drawn=hand_drawn)
    return Report.model_validate_json(place.joinpath("report.json").read_bytes())


@pytest.mark.parametrize("kind", ["printed", "hand-drawn"])
def test_a_model_is_made_and_proved(prepared_replica: Replica, kind: str) -> None:
    home, hand_drawn = prepared_replica.home, kind == "hand-drawn"
    report = report_of(home, hand_drawn=hand_drawn)
    assert (report.proved, report.reason, report.differences, report.skipped) == (True, None, [], {})
    assert report.images == report.images_equal == (12 if hand_drawn else 9)
    assert report.images < report.tokens == report.tokens_equal == report.tokens_equal_batched
    assert report.greatest_difference is not None
    # Another order of the same sums, and not the same sums.
    assert 0 < report.greatest_difference < 1e-5
    assert report.versions["code"] == code_digest()
    assert {"decimer", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "pillow"} < set(report.versions)
    assert what_differs(report.versions, absent_differs=True) == []
    found, weights = find_prepared(home, hand_drawn=hand_drawn), find_weights(home, hand_drawn=hand_drawn)
    assert found is not None
    assert weights is not None
    assert found.sha256 == report.prepared
    assert found.about.weights_sha256 == report.weights_sha256 == weights.sha256
    assert (found.about.weights, found.about.decimer, found.about.pixels) == (weights.name, "2.8.1", (512, 512))
    assert (found.about.layers, found.about.heads, found.about.width) == (2, 2, 64)
    assert (found.about.vocabulary[:3], found.about.start, found.about.end) == (["<pad>", "<start>", "<end>"], 1, 2)
    assert found.about.longest == (HAND_DRAWN_TOKENS if hand_drawn else TOKENS)
    assert {file.name for file in found.directory.iterdir()} == FILES


def test_the_models_as_shipped_are_left_as_they_are(prepared_replica: Replica) -> None:
    for hand_drawn in (False, True):
        homes = (prepared_replica.shipped, prepared_replica.home)
        shipped, prepared = (find_weights(home, hand_drawn=hand_drawn) for home in homes)
        assert shipped is not None
        assert prepared is not None
        assert shipped.sha256 == prepared.sha256
    # Beside the locks, there is nothing else.
    names = {place.name for place in (prepared_replica.home / "DECIMER-V2").iterdir()}
    models = ("DECIMER", "DECIMER_HandDrawn")
    assert {name for name in names if not name.endswith(".lock")} == {
        f"{model}_{kind}" for model in models for kind in ("model", "prepared")
    }


def test_the_command_says_what_it_does_and_what_came_of_it(prepared_replica: Replica) -> None:
    said = prepared_replica.said["printed"]
    report = report_of(prepared_replica.home)
    assert "loading the model as it is shipped" in said
    assert said.startswith("weights: ")
    assert len(re.findall(r"(?m)^\d+: (\d+) of \1 tokens equal \(.+\.\w+\)$", said)) == 9
    assert f"9 images, {report.tokens} tokens: {report.tokens} chosen alike one image at a time" in said
    last = said.splitlines()[-1]
    assert last.startswith(f"proved: {prepared_directory(prepared_replica.home, hand_drawn=False)} is used")
    assert last.endswith(f"prepared {report.prepared}")


def test_a_prepare_waits_for_another_and_a_killed_one_leaves_what_was_there(
    prepared_replica: Replica, tmp_path: Path
) -> None:
    home = copy_home(prepared_replica.home, tmp_path / "home")
    before = find_prepared(home, hand_drawn=False)
    log = tmp_path / "log"
    command = [sys.executable, "-u", "-m", "uworker", "prepare", "--weights", str(home / "DECIMER-V2"), "--number=40"]
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        with FileLock(home / "DECIMER-V2" / ".DECIMER_prepared.lock"):
            wait_for(lambda: "waiting for its end" in log.read_text() or process.poll() is not None, 400)
            assert "loading" not in log.read_text()
        wait_for(lambda: "comparing both" in log.read_text() or process.poll() is not None, 400)
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(30)
    assert "proved" not in log.read_text()
    assert find_prepared(home, hand_drawn=False) == before
    # The next one removes it: see `test_prepared_structure`.
    assert len(list((home / "DECIMER-V2").glob(".DECIMER_prepared.*/fresh/encoder.onnx"))) == 1


# --- what is asked of the command ------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["prepare", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def paint(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(file)


def test_wrong_options_are_told_apart_from_a_model_that_cannot_be_made(
    prepared_replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(prepared_replica.shipped)
    (tmp_path / "empty" / "folder.png").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").touch()
    for images in (tmp_path / "empty", tmp_path / "nowhere"):
        code, said = run("--weights", home, "--images", str(images))
        assert (code, said) == (2, f"uworker: no image is at {images}\n")
    code, said = run("--weights", home, "--number=1000")
    assert code == 2
    assert "samples can be drawn; for more give --images" in said
    for wrong in ("--number=0", "--margin=0.6", "--tolerance=-1"):
        assert run(wrong)[0] == 2
    code, said = run("--weights", home, "--weights-sha256", "ab" * 32)
    assert code == 1
    assert f"but {'ab' * 32} is pinned" in said
    # Nothing listens there.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    code, said = run("--weights", str(tmp_path / "none"))
    assert code == 1
    assert "DECIMER's weights are not at" in said


@pytest.mark.parametrize("module", ["onnx", "tensorflow"])
def test_what_it_needs_is_missed_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, module, None)
    code, said = run("--weights", str(tmp_path))
    assert code == 1
    assert said == (
        f"uworker: {module} cannot be found: `uworker prepare` needs the extra `engine` (in a clone: make install); "
        "snapshots are prepared when they are built\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_models_may_be_meant_in_any_way(
    prepared_replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens there.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    home = copy_home(prepared_replica.shipped, tmp_path / "home")
    folder, renamed = home / "DECIMER-V2", tmp_path / "linked" / "DECIMER-V2"
    monkeypatch.chdir(folder)
    (tmp_path / "models").symlink_to(folder)
    for given in (home, folder, Path(), Path("assets") / "..", Path(".."), tmp_path / "models"):
        assert _find_weights(given, None, hand_drawn=False).home.resolve() == home
    # Only its link has the name.
    renamed.parent.mkdir()
    renamed.symlink_to(folder.rename(tmp_path / "elsewhere"))
    for given in (renamed.parent, renamed):
        assert _find_weights(given, None, hand_drawn=False).home == renamed.parent


def test_ones_own_images_are_a_file_or_taken_evenly_from_a_folder(tmp_path: Path) -> None:
    files = [tmp_path / "own" / f"{folder}" / f"{number}.PNG" for folder in "ab" for number in range(4)]
    paint(*files)
    for name in ("readme.txt", "0.pdf", "0.svg"):
        (tmp_path / "own" / "a" / name).touch()
    assert _find_images(files[2], 1) == [("2.PNG", files[2])]
    assert _find_images(tmp_path / "own", 4) == [
        (f"{folder}/{number}.PNG", tmp_path / "own" / folder / f"{number}.PNG") for folder in "ab" for number in (0, 2)
    ]
    assert [file for _, file in _find_images(tmp_path / "own", 99)] == files
    # As the worker takes it, which knows more endings than the common ones.
    scanned = files[0].rename(files[0].with_suffix(".JFIF"))
    assert scanned in [file for _, file in _find_images(tmp_path / "own", 99)]


@pytest.mark.parametrize("module", ["files", "choice", "cli"])
def test_importing_the_parents_side_imports_nothing_heavy(module: str) -> None:
    heavy = "{'tensorflow', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'cv2', 'rdkit', 'DECIMER'}"
    program = f"import sys, uworker, uworker.prepared.{module}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"
