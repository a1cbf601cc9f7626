"""Which prepared model may be used: one that is whole, proved, and of these weights. Of others it is said why not."""

import json
import logging
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.replica import Replica, copy_home
from uworker import download
from uworker.crew import Crew, plan_for
from uworker.prepared import files, versions
from uworker.prepared.choice import choose, refusal
from uworker.prepared.files import (
    ABOUT,
    ENCODER,
    REPORT,
    STEP,
    Unusable,
    digest_of,
    find_chosen,
    find_prepared,
    prepared_directory,
)
from uworker.prepared.preparing import _replacing
from uworker.prepared.versions import CODE, code_digest, what_differs
from uworker.settings import EngineSettings
from uworker.tasks import EngineOrder
from uworker.weights import AS_SHIPPED_IS_WANTED, Weights, WeightsError, ensure_weights, find_weights

# The first of them may have to wait for the replica, which on a busy machine takes minutes.
pytestmark = pytest.mark.timeout(600)

PLACE = Path("DECIMER-V2") / "DECIMER_prepared"


def rewrite(file: Path, content: bytes) -> None:
    """In place of what other homes have, too."""
    file.unlink()
    file.write_bytes(content)


def change_json(file: Path, **changes: object) -> None:
    rewrite(file, json.dumps(json.loads(file.read_bytes()) | changes).encode())


def truncate(name: str) -> Callable[[Path], None]:
    return lambda home: rewrite(home / PLACE / name, (home / PLACE / name).read_bytes()[:-100])


def remove(name: str) -> Callable[[Path], None]:
    return lambda home: (home / PLACE / name).unlink()


def take_the_other_models(name: str) -> Callable[[Path], None]:
    other = Path("DECIMER-V2") / "DECIMER_HandDrawn_prepared"
    return lambda home: rewrite(home / PLACE / name, (home / other / name).read_bytes())


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    return lambda home: change_json(home / PLACE / name, **changes)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "encoder cut off": (truncate(ENCODER), "is not what its report proves"),
    "step cut off": (truncate(STEP), "is not what its report proves"),
    "no encoder": (remove(ENCODER), "is broken or of another version"),
    "no step": (remove(STEP), "is broken or of another version"),
    "no model.json": (remove(ABOUT), "is broken or of another version"),
    "no report": (remove(REPORT), "is broken or of another version"),
    "model.json cut off": (truncate(ABOUT), "is broken or of another version"),
    "report cut off": (truncate(REPORT), "is broken or of another version"),
    "another longest": (edit(ABOUT, longest=3), "is not what its report proves"),
    "a later format": (edit(ABOUT, format=2), "is broken or of another version"),
    "an unknown field": (edit(ABOUT, alphabet="abc"), "is broken or of another version"),
    "not proved": (edit(REPORT, proved=False, reason="3 tokens differ"), "was not proved .*: 3 tokens differ"),
    "weights of another report": (edit(REPORT, weights_sha256="ab" * 32), "is not what its report proves"),
    "report of the other model": (take_the_other_models(REPORT), "is not what its report proves"),
    "model.json of the other model": (take_the_other_models(ABOUT), "is not what its report proves"),
}


@pytest.fixture
def home(prepared_replica: Replica, tmp_path: Path) -> Path:
    return copy_home(prepared_replica.home, tmp_path / "home")


def weights_of(home: Path, *, hand_drawn: bool = False) -> Weights:
    found = find_weights(home, hand_drawn=hand_drawn)
    assert found is not None
    return found


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, str]]]:
    """The lines that were said, with their levels."""
    caplog.set_level(logging.INFO)
    # As if there were no GPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def take() -> list[tuple[str, str]]:
        told = [(record.levelname, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return told

    return take


@pytest.fixture
def said(lines: Callable[[], list[tuple[str, str]]]) -> Callable[[], tuple[str, str]]:
    """The one line that was said, with its level."""

    def take() -> tuple[str, str]:
        [line] = lines()
        return line

    return take


def test_a_proved_model_of_these_weights_is_chosen(home: Path, said: Callable[[], tuple[str, str]]) -> None:
    digests = set()
    for hand_drawn in (False, True):
        digest = choose(home, weights_of(home, hand_drawn=hand_drawn), hand_drawn=hand_drawn, wanted=True)
        assert said() == ("INFO", f"prepared model: sha256 {digest}")
        digests.add(digest)
    assert len(digests - {None}) == 2


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_or_foreign_is_never_chosen(home: Path, said: Callable[[], tuple[str, str]], name: str) -> None:
    damage, reason = BROKEN[name]
    damage(home)
    assert choose(home, weights_of(home), hand_drawn=False, wanted=True) is None
    level, line = said()
    assert level == "WARNING"
    assert "DECIMER runs as it is shipped, which takes about four times as long" in line
    assert str(home / PLACE) in line
    assert re.search(reason, line)
    # That of the other model is as good as before.
    assert find_prepared(home, hand_drawn=True) is not None


def test_weights_that_were_changed_afterwards_run_as_they_are_shipped(
    home: Path, said: Callable[[], tuple[str, str]]
) -> None:
    (home / "DECIMER-V2" / "DECIMER_model" / "assets" / "more.txt").touch()
    assert choose(home, weights_of(home), hand_drawn=False, wanted=True) is None
    level, line = said()
    assert level == "WARNING"
    assert "was made of other weights; run `uworker prepare` again" in line


def test_where_there_is_none_or_it_is_turned_off_it_is_said_how_to_have_it(
    home: Path, prepared_replica: Replica, said: Callable[[], tuple[str, str]]
) -> None:
    shipped = prepared_replica.shipped
    assert choose(shipped, weights_of(shipped), hand_drawn=False, wanted=True) is None
    assert said()[0] == "INFO"
    assert choose(home, weights_of(home), hand_drawn=False, wanted=False) is None
    level, line = said()
    assert (level, "UWORKER_PREPARED" in line) == ("INFO", True)


def test_a_model_of_another_version_of_the_package_is_not_chosen(
    home: Path, said: Callable[[], tuple[str, str]]
) -> None:
    change_json(home / PLACE / ABOUT, decimer="2.7.0")
    change_json(home / PLACE / REPORT, prepared=digest_of(home / PLACE))
    assert choose(home, weights_of(home), hand_drawn=False, wanted=True) is None
    level, line = said()
    assert level == "WARNING"
    assert "was made with decimer 2.7.0, and 2.8.1 is installed; run `uworker prepare` again" in line


def recorded(home: Path) -> dict[str, str]:
    """What the report says that it was proved with."""
    found: dict[str, str] = json.loads((home / PLACE / REPORT).read_bytes())["versions"]
    return found


def test_a_model_that_was_proved_with_other_versions_is_used_and_it_is_said(
    home: Path, lines: Callable[[], list[tuple[str, str]]]
) -> None:
    digest = files.digest_of(home / PLACE)
    before = recorded(home)
    now = before["numpy"]
    # Where TensorFlow is not, as in a snapshot, nobody can say that it is another one.
    absent = {"not-installed": "1.0"}
    without_code = {name: version for name, version in before.items() if name != CODE}
    for changed, differing in (
        (before | absent | {"numpy": "0.1"}, f"numpy 0.1, now {now};"),
        (before | {CODE: "ab" * 32}, "this project's code;"),
        (without_code, "this project's code;"),
        (before | {CODE: "", "machine": "vax"}, "machine vax, now "),
    ):
        change_json(home / PLACE / REPORT, versions=changed)
        assert choose(home, weights_of(home), hand_drawn=False, wanted=True) == digest
        [(level, warning), chosen] = lines()
        assert level == "WARNING"
        assert differing in warning
        assert "`uworker prepare`" in warning
        assert "not-installed" not in warning
        assert chosen == ("INFO", f"prepared model: sha256 {digest}")
    assert what_differs(before | absent, absent_differs=True) == ["not-installed 1.0, which is not installed"]


def test_the_codes_digest_is_of_what_makes_reads_and_proves_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(versions.__file__).parents[1]
    for folder in ("prepared", "engines"):
        shutil.copytree(package / folder, tmp_path / folder)
    before = code_digest()
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "prepared" / "versions.py"))
    assert code_digest() == before
    matter = ["prepared/encoder.py", "prepared/decoding.py", "prepared/proof.py", "prepared/preparing.py"]
    matter += ["engines/preprocessing.py", "engines/spelling.py", "engines/prepared.py"]
    for name in [*matter, "prepared/choice.py", "prepared/cli.py", "engines/command.py"]:
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept + b"# another\n")
        assert (code_digest() != before) is (name in matter), name
        (tmp_path / name).write_bytes(kept)


@pytest.mark.parametrize("when", ["between the renames", "while it is read"])
def test_a_model_that_is_replaced_meanwhile_is_looked_for_again(
    home: Path, said: Callable[[], tuple[str, str]], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    place, away = home / PLACE, home / "away"
    digest = files.digest_of(place)
    if when == "between the renames":
        place.rename(away)
    else:
        # Some of its files are of the one, and some of the other.
        shutil.copytree(place, away)
        take_the_other_models(STEP)(home)

    def swap(seconds: float) -> None:
        assert seconds < 1
        shutil.rmtree(place, ignore_errors=True)
        away.rename(place)

    monkeypatch.setattr(time, "sleep", swap)
    assert choose(home, weights_of(home), hand_drawn=False, wanted=True) == digest
    assert said() == ("INFO", f"prepared model: sha256 {digest}")


def test_where_a_gpu_is_visible_it_is_said_that_it_is_not_used(
    home: Path, tmp_path: Path, lines: Callable[[], list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = tmp_path / "nvidia0"
    gpu.touch()
    for devices, device, told in (
        (None, gpu, 1),
        ("0,1", gpu, 1),
        ("", gpu, 0),
        ("-1", gpu, 0),
        (None, home / "no", 0),
    ):
        if devices is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        assert choose(home, weights_of(home), hand_drawn=False, wanted=True, gpu=device) is not None
        warnings = [line for level, line in lines() if level == "WARNING"]
        assert len(warnings) == told, (devices, device)
        assert all("UWORKER_PREPARED=false" in line for line in warnings)


@pytest.mark.parametrize("value", ["false", "no", "ab" * 32, 0, 1, None, []])
def test_what_a_project_says_is_true_or_false(value: object) -> None:
    assert refusal({"prepared": value}) == f"decimer's option prepared is true or false, not {value!r}"
    assert refusal({"prepared": True}) is refusal({"prepared": False}) is refusal({}) is None


def test_a_running_worker_goes_on_with_the_model_that_it_chose(home: Path, prepared_replica: Replica) -> None:
    place = prepared_directory(home, hand_drawn=False)
    chosen = find_prepared(home, hand_drawn=False)
    assert chosen is not None
    with _replacing(place) as fresh:
        for file in prepared_directory(prepared_replica.home, hand_drawn=True).iterdir():
            (fresh / file.name).write_bytes(file.read_bytes())
    now = find_prepared(home, hand_drawn=False)
    assert now is not None
    assert now.sha256 != chosen.sha256
    assert find_chosen(home, now.sha256, hand_drawn=False) == now
    before = find_chosen(home, chosen.sha256, hand_drawn=False)
    assert (before.sha256, before.about) == (chosen.sha256, chosen.about)
    # A proof that fails leaves it where it is, too.
    with _replacing(place) as fresh:
        (fresh / REPORT).write_text(json.dumps(json.loads((place / REPORT).read_text()) | {"proved": False}))
    with pytest.raises(Unusable, match="was not proved"):
        find_prepared(home, hand_drawn=False)
    assert find_chosen(home, now.sha256, hand_drawn=False).sha256 == now.sha256
    with pytest.raises(Unusable):
        find_chosen(home, chosen.sha256, hand_drawn=False)


def test_the_same_model_proved_anew_leaves_the_one_that_workers_chose(home: Path, prepared_replica: Replica) -> None:
    place = prepared_directory(home, hand_drawn=False)
    chosen = find_prepared(home, hand_drawn=False)
    assert chosen is not None
    other = prepared_directory(prepared_replica.home, hand_drawn=True)
    for made_at in ("first", "again", "and again"):
        with _replacing(place) as fresh:
            for file in other.iterdir():
                (fresh / file.name).write_bytes(file.read_bytes())
            change_json(fresh / REPORT, made_at=made_at)
        assert json.loads((place / REPORT).read_bytes())["made_at"] == made_at
        assert find_chosen(home, chosen.sha256, hand_drawn=False).about == chosen.about
    now = find_prepared(home, hand_drawn=False)
    assert now is not None
    assert now.sha256 == digest_of(other)
    assert not list(place.parent.glob(".DECIMER_prepared.*/"))
    # The one that others share through links is as it was.
    assert json.loads((other / REPORT).read_bytes())["made_at"] != "and again"


@pytest.mark.parametrize("hand_drawn", [False, True])
def test_a_prepared_model_alone_stands_for_its_weights(
    home: Path, *, hand_drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    before = weights_of(home, hand_drawn=hand_drawn)
    for model in ("DECIMER_model", "DECIMER_HandDrawn_model"):
        (home / "DECIMER-V2" / model).rename(home / model)

    def ensure(pin: str | None = None) -> Weights:
        return ensure_weights(
            home,
            hand_drawn=hand_drawn,
            pinned_sha256=pin,
            on_progress=lambda *_: pytest.fail("something is downloaded"),
            # Nothing listens there.
            base_url="http://127.0.0.1:9",
            prepared_will_do=True,
        )

    found = ensure()
    assert (found.name, found.sha256, found.verified) == (before.name, before.sha256, False)
    # It says itself what it was made of.
    assert not ensure(before.sha256).verified
    with pytest.raises(WeightsError, match="is pinned"):
        ensure("ab" * 32)
    rewrite(prepared_directory(home, hand_drawn=hand_drawn) / ENCODER, b"no model")
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        ensure()


DAMAGES: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "broken": (truncate(ENCODER), True, "is not what its report proves; run `uworker prepare` again"),
    "not proved": (edit(REPORT, proved=False, reason="it is a cat"), True, "was not proved .*: it is a cat"),
    "not there": (lambda home: shutil.rmtree(home / PLACE), True, "there is no prepared model at .*DECIMER_prepared"),
    "turned off": (lambda _: None, False, re.escape(AS_SHIPPED_IS_WANTED)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_without_tensorflow_nothing_is_downloaded_that_nothing_could_read(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A worker says instead why the prepared model does not do, and how to have one."""
    damage, wanted, why = DAMAGES[name]
    damage(home)
    (home / "DECIMER-V2" / "DECIMER_model").rename(home / "away")
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    # Nothing listens there.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    settings: Any = {"weights_home": home, "prepared": wanted}
    is_over = threading.Event()
    machine = EngineSettings(**settings)
    crew = Crew(machine, plan_for(machine), is_over.set)
    order = EngineOrder("decimer", {}, max_pixels=1_000_000, image_timeout_seconds=60, weights_sha256=None)

    def prepare() -> None:
        while not crew.prepare(order):
            assert is_over.wait(60)

    with pytest.raises(WeightsError) as refused:
        prepare()
    text = str(refused.value)
    assert re.match(f".*{why}", text), text
    assert "TensorFlow is not installed, and its weights are not downloaded: install the extra `engine`" in text
    assert "\n" not in text
    assert list((home / "DECIMER-V2").glob(".download.lock")) == []
