"""Which prepared model may be used: one that is whole, proved, and of these weights. Of others it is said why not."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugins.replica import Replica, copy_home
from uworker import download
from uworker.prepared.choice import choose
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
from uworker.weights import Weights, WeightsError, ensure_weights, find_weights

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
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], tuple[str, str]]:
    """The one line that was said, with its level."""
    caplog.set_level(logging.INFO)

    def take() -> tuple[str, str]:
        [record] = caplog.records
        caplog.clear()
        return record.levelname, record.getMessage()

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
