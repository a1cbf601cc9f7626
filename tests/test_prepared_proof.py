"""How a prepared model is compared: what a near tie is, and what proves nothing. What is shipped is scripted here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.plugins.replica import Replica
from uworker.engines.preprocessing import preprocess
from uworker.engines.spelling import spell_smiles
from uworker.prepared.decoding import Floats, PreparedModel, Steps
from uworker.prepared.files import Difference, find_prepared
from uworker.prepared.proof import Proof, Shown, compare

# The first of them may have to wait for the replica, which on a busy machine takes minutes.
pytestmark = pytest.mark.timeout(600)

WORDS: list[str | None] = ["<pad>", "<start>", "<end>", *map(chr, range(33, 127))]
LAST, OTHER = -1, 40
"""The place of the token that is scripted, and what it is."""


class Script:
    """Says what it is told to: answers by the number of the image, and a distribution whose two highest are `top`.

    The second of them is of the token `other`.
    """

    def __init__(self, answers: list[tuple[list[int], list[float]]], top: tuple[float, float], other: int = 41) -> None:
        self._answers = answers
        self._top = top
        self._other = other
        self.asked: list[tuple[int, list[int]]] = []

    def answer(self, image: Any) -> tuple[list[int], list[float]]:
        return self._answers[int(image)]

    def probabilities(self, image: Any, said: Sequence[int]) -> Floats:
        self.asked.append((image, list(said)))
        row = np.full(97, (1 - sum(self._top)) / 95, np.float32)
        row[[OTHER, self._other]] = self._top
        return row

    def spell(self, tokens: Sequence[int]) -> str:
        return spell_smiles([WORDS[token] or "" for token in tokens])


@pytest.fixture(scope="module")
def model(prepared_replica: Replica) -> PreparedModel:
    found = find_prepared(prepared_replica.home, hand_drawn=False)
    assert found is not None
    return PreparedModel(found.directory, found.about)


@pytest.fixture(scope="module")
def shown(prepared_replica: Replica) -> list[Shown]:
    return [Shown(f"image {at}", at, preprocess(image)) for at, image in enumerate(prepared_replica.pixels()[:9])]


def answers_of(model: PreparedModel, shown: list[Shown]) -> list[tuple[list[int], list[float]]]:
    """What the model itself says, each image alone."""
    said = [model.read([model.encode(image.ours)])[0] for image in shown]
    return [(list(answer.tokens), list(answer.probabilities)) for answer in said]


def run(model: PreparedModel, shown: list[Shown], script: Script, margin: float) -> Proof:
    words = model.about.vocabulary
    return compare(script, model, shown, margin=margin, words=words, say=lambda _: None)


def otherwise(model: PreparedModel, shown: list[Shown], image: int) -> list[tuple[list[int], list[float]]]:
    """Its answers, but for the last token of an image, which is another; its probability is the model's own."""
    answers = answers_of(model, shown)
    tokens, sure = answers[image]
    steps = Steps(model, [model.encode(shown[image].ours)])
    for position in range(1, len(tokens)):
        row = steps.next([tokens[:position]])[0]
    tokens[LAST], sure[LAST] = OTHER, float(row[OTHER])
    return answers


def test_a_model_is_equal_to_itself(model: PreparedModel, shown: list[Shown]) -> None:
    script = Script(answers_of(model, shown), (0.5, 0.4))
    proof = run(model, shown, script, 0)
    assert proof.images == len(shown) == 9
    assert proof.tokens == proof.tokens_equal == proof.tokens_equal_batched > 40
    assert (proof.differences, script.asked, proof.fault(1e-5)) == ([], [], None)
    assert proof.images_equal == 9


@pytest.mark.parametrize(
    ("top", "margin", "is_near_tie"),
    [((0.42, 0.415), 0.0, False), ((0.42, 0.415), 0.01, True), ((0.42, 0.40), 0.01, False), ((0.42, 0.42), 0.0, False)],
)
def test_another_token_is_accepted_only_where_the_shipped_model_has_a_near_tie(
    model: PreparedModel, shown: list[Shown], top: tuple[float, float], margin: float, *, is_near_tie: bool
) -> None:
    chosen = answers_of(model, shown)[2][0][LAST]
    answers = otherwise(model, shown, image=2)
    # What it says when it is asked for one step is what it said before, whatever the prepared model thinks of it.
    answers[2][1][LAST] = top[0]
    script = Script(answers, top, chosen)
    proof = run(model, shown, script, margin)
    tokens = script.answer(2)[0]
    # Once alone and once among eight, and what came before is that of the shipped model.
    assert script.asked == [(2, tokens[:-1])] * 2
    assert [found.images_at_once for found in proof.differences] == [1, 8]
    assert proof.tokens_equal == proof.tokens_equal_batched == proof.tokens - 1
    assert proof.images_equal == proof.images - 1
    for found in proof.differences:
        assert (found.image, found.position, found.shipped) == ("image 2", len(tokens) - 1, "F")
        assert (found.shipped_first, found.shipped_second) == pytest.approx(top)
        assert found.is_near_tie is is_near_tie
    fault = proof.fault(1)
    if is_near_tie:
        assert fault is None
    else:
        assert fault is not None
        assert fault.startswith("2 tokens differ without being near ties, the first in image 2 at ")


@pytest.mark.parametrize("off", [0.02, float("nan")])
def test_probabilities_that_differ_prove_nothing_even_where_tokens_are_equal(
    model: PreparedModel, shown: list[Shown], off: float
) -> None:
    answers = answers_of(model, shown[:2])
    answers[1][1][1] += off
    proof = run(model, shown[:2], Script(answers, (0.5, 0.4)), 0.01)
    assert proof.tokens_equal == proof.tokens
    fault = proof.fault(0.01)
    assert fault is not None
    assert fault.endswith("which is more than 0.01")
    assert proof.fault(0.03) == proof.lack() or off != 0.02


@pytest.mark.parametrize(
    ("equal", "batched", "images_equal", "fault"),
    [
        (200, 200, 8, None),
        (196, 196, 4, None),
        (195, 200, 8, "5 of 200 tokens are near ties, which is more than 2%"),
        (200, 195, 8, "5 of 200 tokens are near ties, which is more than 2%"),
        (0, 0, 0, "200 of 200 tokens are near ties, which is more than 2%"),
        (196, 196, 3, "3 of 8 images are read alike from the first token to the last, which is less than 50%"),
    ],
)
def test_near_ties_are_few_and_most_images_are_read_alike(
    equal: int, batched: int, images_equal: int, fault: str | None
) -> None:
    tie = Difference(
        image="a",
        position=1,
        images_at_once=1,
        shipped="C",
        prepared="N",
        shipped_first=0.401,
        shipped_second=0.4,
        is_near_tie=True,
    )
    proof = Proof(8, images_equal, 200, equal, batched, differences=[tie] * (400 - equal - batched))
    assert proof.fault(0.01) == fault


def test_too_few_prove_nothing_whatever_they_say() -> None:
    proof = Proof(images=7, tokens=40)
    assert proof.fault(0.01) == proof.lack() is not None


def test_an_image_with_a_near_tie_is_spelt_as_the_package_spells_it(model: PreparedModel, shown: list[Shown]) -> None:
    own = answers_of(model, shown)[2][0]

    class Misspelling(Script):
        def spell(self, tokens: Sequence[int]) -> str:
            return super().spell(tokens) + ("C" if list(tokens) == own else "")

    answers = otherwise(model, shown, image=2)
    answers[2][1][LAST] = 0.42
    proof = run(model, shown, Misspelling(answers, (0.42, 0.415), own[LAST]), 0.01)
    assert [found.is_near_tie for found in proof.differences] == [True, True]
    assert proof.fault(1) == "image 2 is spelt otherwise than by the package"


def test_no_image_proves_nothing(model: PreparedModel) -> None:
    fault = run(model, [], Script([], (0.5, 0.4)), 0.01).fault(1)
    assert fault == "0 images with 0 tokens were compared, and at least 8 with 50 are needed"


def test_a_near_tie_is_between_the_two_tokens_that_were_chosen(model: PreparedModel, shown: list[Shown]) -> None:
    # The shipped model's two likeliest are nearly the same, but the prepared one chose a third.
    answers = otherwise(model, shown, image=2)
    answers[2][1][LAST] = 0.42
    proof = run(model, shown, Script(answers, (0.42, 0.415), other=41), 0.01)
    assert [found.is_near_tie for found in proof.differences] == [False, False]


def test_what_is_spelt_otherwise_or_refused_by_ones_own_preprocessing_is_a_fault(
    model: PreparedModel, shown: list[Shown]
) -> None:
    class Misspelling(Script):
        def spell(self, tokens: Sequence[int]) -> str:
            return super().spell(tokens) + "C"

    answers = answers_of(model, shown)
    assert run(model, shown, Misspelling(answers, (0.5, 0.4)), 0.01).fault(1) == (
        "image 0 is spelt otherwise than by the package"
    )
    off = [Shown(image.name, image.original, image.ours, 0.01) for image in shown]
    assert run(model, off, Script(answers, (0.5, 0.4)), 0.01).fault(1) == "the preprocessing differs by 0.01 in a pixel"


def test_what_is_read_otherwise_than_token_by_token_is_a_fault(model: PreparedModel, shown: list[Shown]) -> None:
    answers = answers_of(model, shown)
    # It would go on for longer than the shipped model, which says no more.
    at = max(range(len(answers)), key=lambda image: len(answers[image][0]))
    for said in answers[at]:
        said.pop()
    fault = run(model, shown, Script(answers, (0.5, 0.4)), 0.01).fault(1)
    assert fault == f"image {at} is read otherwise than token by token"
