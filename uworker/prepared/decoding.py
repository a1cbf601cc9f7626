"""Reads images with a prepared model: encoder and decoder in ONNX Runtime, several images a step. No TensorFlow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from uworker.prepared.files import ENCODER, STEP, About, picture_names, told_names

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What the decoder said of an image.

    Attributes:
        tokens: With `start` at the beginning, and `end` at the end unless it came to the longest.
        probabilities: One for each token; that of `start` is 0, as the shipped model has it.
    """

    tokens: list[int]
    probabilities: list[float]


class PreparedModel:
    """A loaded model; several threads may use it at once, each with a core of its own.

    Args:
        directory: Where its files lie.
        about: Its `model.json`.
    """

    def __init__(self, directory: Path, about: About) -> None:
        self.about = about
        self._encoder = _session(directory / ENCODER)
        self._step = _session(directory / STEP)
        self.picture_names = picture_names(about.layers)
        self.before_names, self._after_names = told_names(about.layers, "before"), told_names(about.layers, "after")

    def encode(self, image: Floats) -> list[Floats]:
        """What is to be known of an image f32[height, width, 3] when it is read: for each layer keys and values."""
        given = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
        return list(self._encoder.run(self.picture_names, {"image": given}))

    def read(self, pictures: Sequence[list[Floats]]) -> list[Answer]:
        """Say what was encoded, all at once; an image that is done leaves, so that it costs nothing more."""
        if not pictures:
            return []
        said = [[self.about.start] for _ in pictures]
        sure = [[0.0] for _ in pictures]
        steps = Steps(self, pictures)
        active = list(range(len(pictures)))
        for _ in range(self.about.longest):
            probabilities = steps.next([said[image] for image in active])
            for image, token, row in zip(active, probabilities.argmax(axis=1).tolist(), probabilities, strict=True):
                said[image].append(token)
                sure[image].append(float(row[token]))
            unfinished = [at for at, image in enumerate(active) if said[image][-1] != self.about.end]
            if not unfinished:
                break
            if len(unfinished) < len(active):
                steps.keep(unfinished)
                active = [active[at] for at in unfinished]
        return [Answer(*both) for both in zip(said, sure, strict=True)]

    def step(self, feed: dict[str, Any]) -> list[Any]:
        """Run one step; values stay where ONNX Runtime has them."""
        return list(self._step.run_with_ort_values(["probabilities", *self._after_names], feed))


class Steps:
    """The steps of one reading: holds the keys and values of pictures and tokens, and says probabilities.

    Args:
        model: Whose steps.
        pictures: What `encode` returned for each.
    """

    def __init__(self, model: PreparedModel, pictures: Sequence[list[Floats]]) -> None:
        self._model = model
        about = model.about
        size = about.width // about.heads
        stacked: Iterable[Floats] = (np.concatenate(layer) for layer in zip(*pictures, strict=True))
        self._pictures = [_value(array) for array in stacked]
        nothing = [(len(pictures), about.heads, size, 0), (len(pictures), about.heads, 0, size)]
        self._told = [_value(np.zeros(nothing[at % 2], np.float32)) for at in range(2 * about.layers)]

    def next(self, said: Sequence[Sequence[int]]) -> Floats:
        """Probabilities f32[images, vocabulary] of the token after those that were said, as many for each image."""
        feed = dict(zip(self._model.picture_names, self._pictures, strict=True))
        feed |= dict(zip(self._model.before_names, self._told, strict=True))
        feed["said"] = _value(np.array(said, np.int64))
        probabilities, *self._told = self._model.step(feed)
        return np.asarray(probabilities.numpy())

    def keep(self, places: Sequence[int]) -> None:
        """Go on with those images only."""
        self._pictures = [_value(value.numpy()[places]) for value in self._pictures]
        self._told = [_value(value.numpy()[places]) for value in self._told]


def _value(array: npt.NDArray[Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    # A core for each thread that calls; see `uworker.engines.decimer`.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
