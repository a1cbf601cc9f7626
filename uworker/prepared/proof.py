"""Compares a prepared model with the shipped one, token by token, on images.

After the same tokens (the shipped model's) both must choose the same next one, alone and in a batch, except where the
shipped model itself gives both nearly the same probability: computing in another order than before, as is done here,
decides such a tie anew. A `Difference` is each token that was chosen differently. Where there is none, the prepared
model must say the same when it reads the image by itself; and what it says must be spelt the same, whatever it is.
Near ties are an accident, so that there are few: a model that gives many, or reads few images alike, is another one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from uworker.engines.prepared import MAX_BATCH
from uworker.engines.spelling import spell_smiles
from uworker.prepared.decoding import Answer, Floats, PreparedModel, Steps
from uworker.prepared.files import (
    LEAST_IMAGES,
    LEAST_READ_ALIKE,
    LEAST_TOKENS,
    MOST_NEAR_TIES,
    Difference,
)

PIXEL_TOLERANCE = 1e-3
"""Of values from -2.2 to 2.7. Ours are the same to the last bit where TensorFlow rounds each product."""
_OWN_TOLERANCE = 1e-3


class Original(Protocol):
    """The shipped model, as `shipped.Shipped` is."""

    def answer(self, image: Any) -> tuple[list[int], list[float]]:
        """Tokens and probabilities of an image."""
        ...

    def probabilities(self, image: Any, said: Sequence[int]) -> Floats:
        """What it gives each token after those that were said, f32[vocabulary]."""
        ...

    def spell(self, tokens: Sequence[int]) -> str:
        """The SMILES that the package makes of tokens."""
        ...


@dataclass(frozen=True)
class Shown:
    """An image as both models get it.

    Attributes:
        name: What it is called in the report.
        original: f32[height, width, 3] by the package's own preprocessing.
        ours: The same by `uworker.engines.preprocessing`.
        pixel_difference: The greatest between the two.
    """

    name: str
    original: Any
    ours: Floats
    pixel_difference: float = 0.0


@dataclass
class Proof:
    """What a comparison found; the fields are those of `files.Report`."""

    images: int = 0
    images_equal: int = 0
    tokens: int = 0
    tokens_equal: int = 0
    tokens_equal_batched: int = 0
    longest_answer: int = 0
    greatest_difference: float = 0.0
    greatest_pixel_difference: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def lack(self) -> str | None:
        """Why it says nothing for or against the model; None where enough was compared."""
        if self.images >= LEAST_IMAGES and self.tokens >= LEAST_TOKENS:
            return None
        return (
            f"{self.images} images with {self.tokens} tokens were compared, and at least {LEAST_IMAGES} with "
            f"{LEAST_TOKENS} are needed"
        )

    def fault(self, tolerance: float) -> str | None:
        """Why it proves nothing; None where it proves that the models say the same."""
        real = [found for found in self.differences if not found.is_near_tie]
        if real:
            first = real[0]
            return (
                f"{len(real)} tokens differ without being near ties, the first in {first.image} at {first.position}: "
                f"{first.shipped!r} ({first.shipped_first:.4f}) became {first.prepared!r}"
            )
        # What is no number is not within it.
        if not self.greatest_difference <= tolerance:
            return f"a probability differs by {self.greatest_difference:.2g}, which is more than {tolerance:g}"
        if not self.greatest_pixel_difference <= PIXEL_TOLERANCE:
            return f"the preprocessing differs by {self.greatest_pixel_difference:.2g} in a pixel"
        return self.faults[0] if self.faults else self.lack() or self._too_many_near_ties()

    def _too_many_near_ties(self) -> str | None:
        ties = self.tokens - min(self.tokens_equal, self.tokens_equal_batched)
        if ties > MOST_NEAR_TIES * self.tokens:
            return f"{ties} of {self.tokens} tokens are near ties, which is more than {MOST_NEAR_TIES:.0%}"
        if self.images_equal < LEAST_READ_ALIKE * self.images:
            return (
                f"{self.images_equal} of {self.images} images are read alike from the first token to the last, which "
                f"is less than {LEAST_READ_ALIKE:.0%}"
            )
        return None


@dataclass(frozen=True, eq=False)
class _Told:
    shown: Shown
    tokens: list[int]
    probabilities: list[float]
    picture: list[Floats]


def compare(
    original: Original,
    model: PreparedModel,
    images: Iterable[Shown],
    *,
    margin: float,
    words: Sequence[str | None],
    say: Callable[[str], None],
) -> Proof:
    """Compare what both say of images.

    Args:
        original: The shipped model.
        model: The prepared one.
        images: What they are shown.
        margin: Probabilities that differ by less are a near tie.
        words: The words of the tokens, for the report.
        say: Told a line for each image.
    """
    comparison = _Comparison(original, model, margin, words)
    proof, batch, filling = comparison.proof, list[_Told](), list[_Told]()
    for shown in images:
        tokens, probabilities = original.answer(shown.original)
        told = _Told(shown, tokens, probabilities, model.encode(shown.ours))
        alone = comparison.compare([told], 1)
        proof.tokens_equal += alone
        proof.images += 1
        proof.tokens += len(tokens) - 1
        proof.longest_answer = max(proof.longest_answer, len(tokens) - 1)
        proof.greatest_pixel_difference = float(np.maximum(proof.greatest_pixel_difference, shown.pixel_difference))
        say(f"{proof.images}: {alone} of {len(tokens) - 1} tokens equal ({shown.name})")
        batch.append(told)
        filling = filling if len(filling) == MAX_BATCH else [*filling, told]
        if len(batch) == MAX_BATCH:
            proof.tokens_equal_batched += comparison.compare(batch, MAX_BATCH)
            batch = []
    if batch:
        # As many as there are in a worker's batches.
        filled = batch + [filling[at % len(filling)] for at in range(MAX_BATCH - len(batch))]
        proof.tokens_equal_batched += comparison.compare(filled, len(batch))
    proof.images_equal = proof.images - len(comparison.read_otherwise)
    return proof


class _Comparison:
    def __init__(self, original: Original, model: PreparedModel, margin: float, words: Sequence[str | None]) -> None:
        self._original = original
        self._model = model
        self._margin = margin
        self._words = words
        self.proof = Proof()
        self.read_otherwise: set[str] = set()
        """Names of images, alone or in a batch."""

    def compare(self, batch: Sequence[_Told], count: int) -> int:
        """Compare the first `count` images of a batch; returns how many of their tokens both would have chosen."""
        before = len(self.proof.differences)
        equal = self._follow(batch, count)
        differing = {found.image for found in self.proof.differences[before:]}
        answers = self._model.read([told.picture for told in batch])
        for told, answer in zip(batch[:count], answers, strict=False):
            if told.shown.name in differing:
                # From there on it says something else.
                self.read_otherwise.add(told.shown.name)
            else:
                self._judge_reading(told, answer)
            words = [self._words[token] for token in answer.tokens]
            known = [word for word in words if word is not None]
            if len(known) < len(words) or spell_smiles(known) != self._original.spell(answer.tokens):
                self.proof.faults.append(f"{told.shown.name} is spelt otherwise than by the package")
        return equal

    def _judge_reading(self, told: _Told, answer: Answer) -> None:
        """Judge what it says by itself of an image whose every token it chose as the shipped model did."""
        off = [abs(ours - theirs) for ours, theirs in zip(answer.probabilities, told.probabilities, strict=False)]
        if answer.tokens != told.tokens or len(answer.probabilities) != len(told.probabilities):
            self.read_otherwise.add(told.shown.name)
            self.proof.faults.append(f"{told.shown.name} is read otherwise than token by token")
        else:
            self.proof.greatest_difference = float(np.maximum(self.proof.greatest_difference, max(off)))

    def _follow(self, batch: Sequence[_Told], count: int) -> int:
        """Let the prepared model follow the shipped answers."""
        steps = Steps(self._model, [told.picture for told in batch])
        active, equal = list(range(len(batch))), 0
        for position in range(1, max(len(told.tokens) for told in batch)):
            staying = [at for at, image in enumerate(active) if position < len(batch[image].tokens)]
            if len(staying) < len(active):
                steps.keep(staying)
                active = [active[at] for at in staying]
            rows = steps.next([batch[image].tokens[:position] for image in active])
            for image, row in zip(active, rows, strict=True):
                if image < count:
                    equal += self._judge(batch[image], position, row, len(batch))
        return equal

    def _judge(self, told: _Told, position: int, row: Floats, together: int) -> bool:
        token, chosen = told.tokens[position], int(row.argmax())
        off = abs(float(row[token]) - told.probabilities[position])
        self.proof.greatest_difference = float(np.maximum(self.proof.greatest_difference, off))
        if chosen == token:
            return True
        own = self._original.probabilities(told.shown.original, told.tokens[:position])
        first, second = float(own[token]), float(own[chosen])
        # What it says when it is asked for this one step must be what it said before.
        is_its_own = int(own.argmax()) == token and abs(first - told.probabilities[position]) < _OWN_TOLERANCE
        self.proof.differences.append(
            Difference(
                image=told.shown.name,
                position=position,
                images_at_once=together,
                shipped=self._words[token] or "",
                prepared=self._words[chosen] or "",
                shipped_first=first,
                shipped_second=second,
                is_near_tie=is_its_own and first - second < self._margin,
            )
        )
        return False
