"""The engine over a prepared model answers as the engine over the shipped one, with neither TensorFlow nor decimer."""

import json
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from job_api.chemistry import is_truncated
from tests.plugins.replica import TOKENS, Replica, copy_home
from tests.test_recogniser import Talk
from uworker.engines import EngineError, EngineLoadError, Pixels, Recognition
from uworker.engines import prepared as prepared_engine
from uworker.engines.decimer import load
from uworker.engines.prepared import MAX_BATCH, PreparedEngine
from uworker.engines.preprocessing import NoInk, preprocess
from uworker.prepared.decoding import PreparedModel, Steps
from uworker.prepared.files import (
    ABOUT,
    REPORT,
    About,
    Prepared,
    digest_of,
    find_prepared,
    former_directory,
    prepared_directory,
)
from uworker.prepared.preparing import _replacing

# The first of them may have to wait for the replica, which on a busy machine takes minutes.
pytestmark = pytest.mark.timeout(600)

KINDS = ("printed", "hand-drawn")
CLOSE = 1e-5


def prepared(home: Path, kind: str = "printed") -> Prepared:
    found = find_prepared(home, hand_drawn=kind == "hand-drawn")
    assert found is not None
    return found


def assert_same(answers: Sequence[Recognition | Exception], wanted: Sequence[Recognition], within: float) -> None:
    assert len(answers) == len(wanted)
    for answer, other in zip(answers, wanted, strict=True):
        assert isinstance(answer, Recognition), answer
        assert answer.smiles == other.smiles
        assert [token for token, _ in answer.tokens] == [token for token, _ in other.tokens]
        assert [p for _, p in answer.tokens] == pytest.approx([p for _, p in other.tokens], abs=within)


@pytest.fixture(scope="module")
def engines(prepared_replica: Replica) -> dict[str, PreparedEngine]:
    return {kind: PreparedEngine(prepared(prepared_replica.home, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def pixels(prepared_replica: Replica) -> list[Pixels]:
    return prepared_replica.pixels()


def test_answers_differ_enough_to_be_compared(prepared_replica: Replica) -> None:
    for answers in prepared_replica.answers.values():
        assert len({answer.smiles for answer in answers}) > 8
        assert len({len(answer.tokens) for answer in answers}) > 4
    assert prepared_replica.answers["printed"] != prepared_replica.answers["hand-drawn"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_the_shipped_engine(
    prepared_replica: Replica, engines: dict[str, PreparedEngine], pixels: list[Pixels], kind: str
) -> None:
    assert_same([engines[kind].recognise(image) for image in pixels], prepared_replica.answers[kind], CLOSE)


def test_images_that_end_at_different_tokens_answer_together_as_alone(
    prepared_replica: Replica, engines: dict[str, PreparedEngine], pixels: list[Pixels]
) -> None:
    for kind in KINDS:
        assert_same(engines[kind].recognise_batch(iter(pixels)), prepared_replica.answers[kind], CLOSE)
    # Whoever they are together with, and in whatever order.
    backwards = engines["printed"].recognise_batch(iter(pixels[::-2]))
    assert_same(backwards, prepared_replica.answers["printed"][::-2], CLOSE)


def test_an_answer_that_is_cut_at_the_longest_is_the_shipped_one(
    prepared_replica: Replica, engines: dict[str, PreparedEngine], pixels: list[Pixels]
) -> None:
    answers = [engines["printed"].recognise(image) for image in pixels]
    cut = [is_truncated(answer.smiles, answer.tokens) for answer in answers]
    assert cut == [is_truncated(answer.smiles, answer.tokens) for answer in prepared_replica.answers["printed"]]
    lengths = {len(answer.tokens) for answer, is_cut in zip(answers, cut, strict=True) if is_cut}
    assert lengths == {TOKENS - 1}
    assert 0 < cut.count(True) < len(cut)


def test_an_image_without_ink_costs_itself_alone(
    prepared_replica: Replica, engines: dict[str, PreparedEngine], pixels: list[Pixels]
) -> None:
    inkless = np.full((40, 50, 3), (0, 255, 255), np.uint8)
    engine = engines["printed"]
    with pytest.raises(NoInk):
        engine.recognise(inkless)
    first, nothing, last = engine.recognise_batch(iter([pixels[1], inkless, pixels[2]]))
    assert isinstance(nothing, NoInk)
    assert_same([first, last], prepared_replica.answers["printed"][1:3], CLOSE)
    [alone] = engine.recognise_batch(iter([inkless]))
    assert isinstance(alone, NoInk)
    assert list(engine.recognise_batch(iter([]))) == []


def test_images_that_cannot_be_preprocessed_are_not_held_while_the_others_are_read(
    prepared_replica: Replica, pixels: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have 200 MB, and an exception holds on to what it went through."""
    engine = PreparedEngine(prepared(prepared_replica.home))
    made: list[weakref.ref[Pixels]] = []
    alive: list[bool] = []

    def pictures() -> Iterator[Pixels]:
        for _ in range(3):
            inkless = np.full((40, 50, 3), (0, 255, 255), np.uint8)
            made.append(weakref.ref(inkless))
            yield inkless
            del inkless
        yield pixels[0]

    read = PreparedModel.read

    def watched(model: PreparedModel, seen: Sequence[Any]) -> Any:
        alive.extend(ref() is not None for ref in made)
        return read(model, seen)

    monkeypatch.setattr(PreparedModel, "read", watched)
    *lost, answer = engine.recognise_batch(pictures())
    assert all(isinstance(one, NoInk) and one.__traceback__ is not None for one in lost)
    assert_same([answer], prepared_replica.answers["printed"][:1], CLOSE)
    assert alive == [False] * 3


def test_a_token_without_a_word_costs_its_image_alone(
    prepared_replica: Replica, pixels: list[Pixels], tmp_path: Path
) -> None:
    found = prepared(copy_home(prepared_replica.home, tmp_path / "home"))
    # A token of the third answer, and of neither that before it nor that after it.
    [word] = {token for token, _ in prepared_replica.answers["printed"][2].tokens} & {"`"}
    words = [None if known == word else known for known in found.about.vocabulary]
    engine = PreparedEngine(found.model_copy(update={"about": found.about.model_copy(update={"vocabulary": words})}))
    with pytest.raises(EngineError, match="which has no word"):
        engine.recognise(pixels[2])
    first, lost, last = engine.recognise_batch(iter(pixels[1:4]))
    assert isinstance(lost, EngineError)
    assert_same([first, last], prepared_replica.answers["printed"][1:4:2], CLOSE)


def test_several_threads_use_one_model_at_once(prepared_replica: Replica, pixels: list[Pixels]) -> None:
    found = prepared(prepared_replica.home)
    model = PreparedModel(found.directory, found.about)
    seen = [preprocess(image) for image in pixels]
    wanted = [model.read([model.encode(image)])[0] for image in seen]

    def read(first: int) -> bool:
        """As one thread of a recogniser does: batches of different sizes."""
        chosen = range(first, len(seen), 3)
        answers = model.read([model.encode(seen[at]) for at in chosen])
        return [answer.tokens for answer in answers] == [wanted[at].tokens for at in chosen]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, [*range(6)] * 4))
    assert model.read([]) == []


def test_what_a_step_returned_stays_as_it_is(prepared_replica: Replica, pixels: list[Pixels]) -> None:
    found = prepared(prepared_replica.home)
    model = PreparedModel(found.directory, found.about)
    steps = Steps(model, [model.encode(preprocess(image)) for image in pixels[:3]])
    start = found.about.start
    first = steps.next([[start]] * 3)
    kept = first.copy()
    steps.next([[start, 60]] * 3)
    steps.keep([2, 0])
    third = steps.next([[start, 60, 61]] * 2)
    np.testing.assert_array_equal(first, kept)
    # Each goes on with its own, in the order that was asked for.
    alone = Steps(model, [model.encode(preprocess(pixels[2]))])
    for said in ([start], [start, 60]):
        alone.next([said])
    np.testing.assert_allclose(third[0], alone.next([[start, 60, 61]])[0], atol=CLOSE)
    assert np.abs(third[0] - third[1]).max() > 100 * CLOSE


# --- in a recogniser -------------------------------------------------------------------------------------------------


def test_a_recogniser_answers_with_it_and_never_maps_tensorflow(prepared_replica: Replica) -> None:
    found = prepared(prepared_replica.home)
    talk = Talk(prepared_replica.home, engine="decimer", engine_options={"prepared": found.sha256})
    try:
        ready = talk.hear()
        assert ready["kind"] == "ready", ready
        run = ready["run"]
        assert (run["prepared"], run["weights_sha256"]) == (found.sha256, found.about.weights_sha256)
        assert (run["engine"], run["engine_version"]) == ("decimer", "2.8.1")
        assert ready["max_batch"] == MAX_BATCH > 1
        for image, wanted in zip(prepared_replica.images[:4], prepared_replica.answers["printed"], strict=False):
            row = talk.ask(image.read_bytes())
            assert (row["status"], row["smiles"]) == ("recognised", wanted.smiles)
            assert row["tokens"] == [token for token, _ in wanted.tokens]
            assert row["token_probabilities"] == pytest.approx([p for _, p in wanted.tokens], abs=CLOSE)
            assert row["truncated"] == is_truncated(wanted.smiles, wanted.tokens)
        mapped = {file.path for file in psutil.Process(talk.process.pid).memory_maps()}
        assert any("onnxruntime" in path for path in mapped)
        assert not any("tensorflow" in path or "/onnx/" in path for path in mapped)
    finally:
        talk.end()


def test_a_recogniser_decodes_images_that_wait_together(prepared_replica: Replica) -> None:
    found = prepared(prepared_replica.home)
    talk = Talk(prepared_replica.home, engine="decimer", engine_options={"prepared": found.sha256})
    try:
        assert talk.hear()["kind"] == "ready"
        for task_id, image in enumerate(prepared_replica.images[:MAX_BATCH], start=1):
            # Its one thread takes none before all are there.
            talk.send(task_id, image.read_bytes(), more=task_id < MAX_BATCH)
        heard = [talk.hear() for _ in range(2 * MAX_BATCH)]
        assert heard[:MAX_BATCH] == [
            {"kind": "started", "task_id": task_id, "batch": 1} for task_id in range(1, MAX_BATCH + 1)
        ]
        rows = {message["task_id"]: message["row"] for message in heard[MAX_BATCH:]}
        answers = prepared_replica.answers["printed"]
        assert {at: row["smiles"] for at, row in rows.items()} == {at: answers[at - 1].smiles for at in rows}
        assert len(rows) == MAX_BATCH
    finally:
        talk.end()


def test_it_needs_neither_tensorflow_nor_decimer_nor_onnx(prepared_replica: Replica) -> None:
    found = prepared(prepared_replica.home)
    script = (
        "import json, sys\n"
        "sys.modules.update(dict.fromkeys(('tensorflow', 'DECIMER', 'onnx', 'keras', 'tf_keras', 'pystow')))\n"
        "from pathlib import Path\n"
        "from uworker.engines.decimer import load\n"
        "from uworker.screening import screen\n"
        "home, image, digest = sys.argv[1:]\n"
        "engine = load({'prepared': digest}, Path(home), 1)\n"
        "print(json.dumps(engine.recognise(screen(Path(image).read_bytes()).pixels).smiles))\n"
        "try:\n"
        "    load({}, Path(home), 1)\n"
        "except Exception as error:\n"
        "    print(f'{type(error).__name__}: {error}')\n"
    )
    arguments = [str(prepared_replica.home), str(prepared_replica.images[2]), found.sha256]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    smiles, refused = done.stdout.splitlines()
    assert json.loads(smiles) == prepared_replica.answers["printed"][2].smiles
    assert refused.startswith("EngineLoadError: TensorFlow is not installed here")


@pytest.mark.parametrize("option", [3, 1.5, ["a"]])
def test_a_choice_that_is_none_is_refused(prepared_replica: Replica, option: object) -> None:
    with pytest.raises(EngineLoadError, match="option prepared is true or false"):
        load({"prepared": option}, prepared_replica.home, 1)


def test_another_model_than_was_chosen_is_not_loaded(prepared_replica: Replica, tmp_path: Path) -> None:
    """It was prepared anew after the worker had looked, or the weights are not those that are pinned."""
    home = copy_home(prepared_replica.home, tmp_path / "home")
    found = prepared(home)
    with pytest.raises(EngineLoadError, match="the prepared model abcd is no longer at"):
        load({"prepared": "abcd"}, home, 1)
    with pytest.raises(EngineLoadError, match="have sha256"):
        load({"prepared": found.sha256, "weights_sha256": "ab" * 32}, home, 1)
    (found.directory / REPORT).unlink()
    with pytest.raises(EngineLoadError, match="is broken"):
        load({"prepared": found.sha256}, home, 1)
    found.directory.rename(tmp_path / "away")
    with pytest.raises(EngineLoadError, match="is no longer at"):
        load({"prepared": found.sha256}, home, 1)
    assert digest_of(tmp_path / "away") == found.sha256
    assert (tmp_path / "away" / ABOUT).is_file()


class Swapping(PreparedModel):
    """Is loaded just after another model, that for hand-drawn structures, has taken the place of the one chosen."""

    swaps: int
    other: Path
    place: Path
    loaded: list[Path]

    def __init__(self, directory: Path, about: About) -> None:
        Swapping.loaded.append(directory)
        if Swapping.swaps:
            Swapping.swaps -= 1
            with _replacing(Swapping.place) as fresh:
                for file in Swapping.other.iterdir():
                    (fresh / file.name).write_bytes(file.read_bytes())
                # Another one each time.
                model = json.loads((fresh / ABOUT).read_bytes())
                (fresh / ABOUT).write_text(json.dumps(model | {"weights": f"{Swapping.swaps}"}))
                report = json.loads((fresh / REPORT).read_bytes())
                (fresh / REPORT).write_text(json.dumps(report | {"prepared": digest_of(fresh)}))
        super().__init__(directory, about)


@pytest.fixture
def swapped_home(prepared_replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = copy_home(prepared_replica.home, tmp_path / "home")
    monkeypatch.setattr(prepared_engine, "PreparedModel", Swapping)
    monkeypatch.setattr(Swapping, "other", prepared_directory(prepared_replica.home, hand_drawn=True), raising=False)
    monkeypatch.setattr(Swapping, "place", prepared_directory(home, hand_drawn=False), raising=False)
    monkeypatch.setattr(Swapping, "loaded", [], raising=False)
    return home


def test_a_model_that_is_replaced_while_it_is_loaded_is_loaded_from_where_it_is_now(
    prepared_replica: Replica, swapped_home: Path, pixels: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = prepared(swapped_home)
    monkeypatch.setattr(Swapping, "swaps", 1, raising=False)
    engine = load({"prepared": chosen.sha256}, swapped_home, 1)
    former = former_directory(Swapping.place)
    assert Swapping.loaded == [Swapping.place, former]
    assert engine.prepared == chosen.sha256 == digest_of(former) != digest_of(Swapping.place)
    assert_same([engine.recognise(image) for image in pixels[:4]], prepared_replica.answers["printed"][:4], CLOSE)


def test_a_model_that_is_replaced_and_gone_is_not_loaded(swapped_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = prepared(swapped_home)
    monkeypatch.setattr(Swapping, "swaps", 2, raising=False)
    with pytest.raises(EngineLoadError, match="is no longer at"):
        load({"prepared": chosen.sha256}, swapped_home, 1)
