"""The DECIMER engine over a prepared model: the same answers without TensorFlow. Imported in recognisers only."""

from collections.abc import Iterator, Sequence
from traceback import clear_frames

from uworker.engines import EngineError, Pixels, Recognition
from uworker.engines.preprocessing import preprocess
from uworker.engines.spelling import spell_smiles, spell_tokens
from uworker.prepared.decoding import Answer, Floats, PreparedModel
from uworker.prepared.files import Prepared

MAX_BATCH = 8
"""Images that are decoded together: of more, each saves little and all wait longer."""


class PreparedEngine:
    """DECIMER's printed or hand-drawn model, prepared, loaded and warm."""

    name = "decimer"
    max_batch = MAX_BATCH

    def __init__(self, found: Prepared) -> None:
        self.version: str | None = found.about.decimer
        self.weights: str | None = found.about.weights
        self.weights_sha256: str | None = found.about.weights_sha256
        self.prepared: str | None = found.sha256
        self._model = PreparedModel(found.directory, found.about)
        self._vocabulary = found.about.vocabulary

    def recognise(self, pixels: Pixels) -> Recognition:
        """Return DECIMER's SMILES for uint8[height, width, 3], with the softmax probability of each token."""
        [answer] = self._model.read([self._model.encode(preprocess(pixels))])
        return self._spell(answer)

    def recognise_batch(self, pictures: Iterator[Pixels]) -> Sequence[Recognition | Exception]:
        """Encode one image after the other and decode all together."""
        # By `map`, which holds on to no pixels while it asks for the next.
        encoded = list(map(self._encode, pictures))
        answers = iter(self._model.read([picture for picture in encoded if not isinstance(picture, Exception)]))
        return [picture if isinstance(picture, Exception) else self._spelt(next(answers)) for picture in encoded]

    def _encode(self, pixels: Pixels) -> list[Floats] | Exception:
        try:
            return self._model.encode(preprocess(pixels))
        except Exception as error:  # noqa: BLE001 (whatever it is: it costs this image only)
            # Its traceback would keep the image, of 200 MB perhaps, as long as the batch takes.
            del pixels
            clear_frames(error.__traceback__)
            return error

    def _spelt(self, answer: Answer) -> Recognition | Exception:
        try:
            return self._spell(answer)
        except Exception as error:  # noqa: BLE001 (as above)
            return error

    def _spell(self, answer: Answer) -> Recognition:
        words = [self._vocabulary[token] for token in answer.tokens]
        if None in words:
            raise EngineError(f"the model said token {answer.tokens[words.index(None)]}, which has no word")
        known = [word for word in words if word is not None]
        return Recognition(smiles=spell_smiles(known), tokens=spell_tokens(known, answer.probabilities))
