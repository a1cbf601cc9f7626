"""The DECIMER engine, over the `decimer` package as it is. Imported in recogniser processes only: it is TensorFlow."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from uworker import weights as weight_files
from uworker.engines import EngineLoadError, Pixels, Recognition

OPTIONS = frozenset({"hand_drawn", "weights_sha256"})


class DecimerEngine:
    """DECIMER's printed or hand-drawn model, loaded and warm."""

    name = "decimer"

    def __init__(self, predict: Any, *, hand_drawn: bool, weights: weight_files.Weights) -> None:
        self.version: str | None = version("decimer")
        self.weights: str | None = weights.name
        self.weights_sha256: str | None = weights.sha256
        self._predict = predict
        self._hand_drawn = hand_drawn

    def recognise(self, pixels: Pixels) -> Recognition:
        """Return DECIMER's SMILES for uint8[height, width, 3], with the softmax probability of each token."""
        smiles, tokens = self._predict(pixels, confidence=True, hand_drawn=self._hand_drawn)
        return Recognition(smiles=smiles, tokens=[(token, float(probability)) for token, probability in tokens])


def load(options: Mapping[str, Any], home: Path, threads: int) -> DecimerEngine:
    """Load DECIMER and recognise one drawn image, because the first takes 5 s more than the rest.

    Args:
        options: `hand_drawn` (bool, default False) and `weights_sha256`, a digest that the weights must have.
        home: What `PYSTOW_HOME` would name. The weights must be there: nothing is downloaded in a child.
        threads: How many images are recognised at once. TensorFlow gets a thread for each and none to split an
            operation over: with one inter-op thread in all, two images at once took as long as one after the other.

    Raises:
        EngineLoadError: unknown options, no weights, weights that the package would download anew, or a wrong digest.
    """
    hand_drawn, pin = _read_options(options)
    found = weight_files.find_weights(home, hand_drawn=hand_drawn)
    if found is None:
        raise EngineLoadError(f"DECIMER's weights are not complete below {home / weight_files.FOLDER}")
    if pin is not None and found.sha256 != pin.lower():
        raise EngineLoadError(f"DECIMER's weights have sha256 {found.sha256}, but {pin.lower()} is asked for")
    package = _import_decimer(home, threads)
    if package.model_urls != weight_files.MODEL_URLS:
        raise EngineLoadError(f"decimer {version('decimer')} expects other weights than this worker knows")
    package.load_models(printed=not hand_drawn, hand_drawn=hand_drawn)
    engine = DecimerEngine(package.predict_SMILES, hand_drawn=hand_drawn, weights=found)
    engine.recognise(_drawn_hexagon())
    return engine


def _read_options(options: Mapping[str, Any]) -> tuple[bool, str | None]:
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise EngineLoadError(f"decimer has no option {', '.join(unknown)}; there is {', '.join(sorted(OPTIONS))}")
    hand_drawn, pin = options.get("hand_drawn", False), options.get("weights_sha256")
    if not isinstance(hand_drawn, bool):
        raise EngineLoadError(f"decimer's option hand_drawn is true or false, not {hand_drawn!r}")
    if pin is not None and not isinstance(pin, str):
        raise EngineLoadError(f"decimer's option weights_sha256 is a text, not {pin!r}")
    return hand_drawn, pin


def _import_decimer(home: Path, threads: int) -> Any:
    """Import TensorFlow, set it up, and then the package, which reads `PYSTOW_HOME` and fails without a home."""
    os.environ["PYSTOW_HOME"] = str(home)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf  # noqa: PLC0415 (the environment above must be set first)

    tf.get_logger().setLevel("ERROR")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    # The package sets CUDA_VISIBLE_DEVICES=0 when imported; devices that TensorFlow has listed before stay as they are.
    tf.config.list_physical_devices()
    from DECIMER import decimer  # noqa: PLC0415

    return decimer


def _drawn_hexagon() -> Pixels:
    """Draw a plain ring, uint8[200, 200, 3]: something that passes through all of the package's steps."""
    corners = [(100 + 60 * np.cos(angle), 100 + 60 * np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 7)]
    pixels = np.full((200, 200, 3), 255, dtype=np.uint8)
    for (x0, y0), (x1, y1) in pairwise(corners):
        for part in np.linspace(0, 1, 120):
            x, y = round(x0 + (x1 - x0) * part), round(y0 + (y1 - y0) * part)
            pixels[y : y + 2, x : x + 2] = 0
    return pixels
