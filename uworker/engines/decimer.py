"""The DECIMER engine: over a prepared model, or over the `decimer` package as it is, which is TensorFlow.

Imported in recogniser processes only, and by `uworker prepare`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uworker import weights as weight_files
from uworker.engines import EngineLoadError, Pixels, Recognition
from uworker.prepared.files import Unusable, find_chosen, is_still_there

if TYPE_CHECKING:
    from uworker.engines.prepared import PreparedEngine

OPTIONS = frozenset({"hand_drawn", "prepared", "weights_sha256"})
_LOOKS = 3


class DecimerEngine:
    """DECIMER's printed or hand-drawn model, loaded and warm."""

    name = "decimer"

    def __init__(self, predict: Any, *, hand_drawn: bool, weights: weight_files.Weights) -> None:
        self.version: str | None = version("decimer")
        self.weights: str | None = weights.name
        self.weights_sha256: str | None = weights.sha256
        self.prepared: str | None = None
        self._predict = predict
        self._hand_drawn = hand_drawn

    def recognise(self, pixels: Pixels) -> Recognition:
        """Return DECIMER's SMILES for uint8[height, width, 3], with the softmax probability of each token."""
        smiles, tokens = self._predict(pixels, confidence=True, hand_drawn=self._hand_drawn)
        return Recognition(smiles=smiles, tokens=[(token, float(probability)) for token, probability in tokens])


def load(options: Mapping[str, Any], home: Path, threads: int) -> "DecimerEngine | PreparedEngine":
    """Load DECIMER and recognise one drawn image, because the first takes 5 s more than the rest.

    Args:
        options: `hand_drawn` (bool, default False); `weights_sha256`, a digest that the weights must have; `prepared`,
            the digest of the prepared model to load; without it, the shipped one is loaded.
        home: What `PYSTOW_HOME` would name. The weights must be there: nothing is downloaded in a child.
        threads: How many images are recognised at once. TensorFlow gets a thread for each and none to split an
            operation over: with one inter-op thread in all, two images at once took as long as one after the other.

    Raises:
        EngineLoadError: unknown options, no weights, weights that the package would download anew, or a wrong digest.
    """
    wanted = _read_options(options)
    engine = _load_shipped(wanted, home, threads) if wanted.prepared is None else _load_prepared(wanted, home)
    engine.recognise(_drawn_hexagon())
    return engine


@dataclass(frozen=True)
class _Options:
    hand_drawn: bool
    weights_sha256: str | None
    prepared: str | None


def _read_options(options: Mapping[str, Any]) -> _Options:
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise EngineLoadError(f"decimer has no option {', '.join(unknown)}; there is {', '.join(sorted(OPTIONS))}")
    hand_drawn, pin = options.get("hand_drawn", False), options.get("weights_sha256")
    if not isinstance(hand_drawn, bool):
        raise EngineLoadError(f"decimer's option hand_drawn is true or false, not {hand_drawn!r}")
    if pin is not None and not isinstance(pin, str):
        raise EngineLoadError(f"decimer's option weights_sha256 is a text, not {pin!r}")
    prepared = options.get("prepared")
    if not isinstance(prepared, str | bool | None):
        raise EngineLoadError(f"decimer's option prepared is true or false, not {prepared!r}")
    # True and false are a project's; the worker has chosen by them, and says which.
    return _Options(hand_drawn, pin and pin.lower(), prepared if isinstance(prepared, str) else None)


def _load_prepared(wanted: _Options, home: Path) -> "PreparedEngine":
    from uworker.engines.prepared import PreparedEngine  # noqa: PLC0415 (ONNX Runtime, where it is used)

    for _ in range(_LOOKS):
        try:
            found = find_chosen(home, wanted.prepared or "", hand_drawn=wanted.hand_drawn)
        except Unusable as why:
            raise EngineLoadError(str(why)) from None
        _check_pin(found.about.weights_sha256, wanted.weights_sha256)
        # While it was loaded another one may have taken its place, and what was checked is elsewhere by now.
        try:
            engine = PreparedEngine(found)
        except Exception:
            if is_still_there(found):
                raise
            continue
        if is_still_there(found):
            return engine
    raise EngineLoadError(f"{found.directory} is changed again and again; start this worker again")


def _load_shipped(wanted: _Options, home: Path, threads: int) -> DecimerEngine:
    found = weight_files.find_weights(home, hand_drawn=wanted.hand_drawn)
    if found is None:
        raise EngineLoadError(f"DECIMER's weights are not complete below {home / weight_files.FOLDER}")
    _check_pin(found.sha256, wanted.weights_sha256)
    package = import_decimer(home, threads)
    if package.model_urls != weight_files.MODEL_URLS:
        raise EngineLoadError(f"decimer {version('decimer')} expects other weights than this worker knows")
    package.load_models(printed=not wanted.hand_drawn, hand_drawn=wanted.hand_drawn)
    return DecimerEngine(package.predict_SMILES, hand_drawn=wanted.hand_drawn, weights=found)


def _check_pin(sha256: str, pin: str | None) -> None:
    if pin is not None and sha256 != pin:
        raise EngineLoadError(f"DECIMER's weights have sha256 {sha256}, but {pin} is asked for")


def import_decimer(home: Path, threads: int) -> Any:
    """Import TensorFlow, set it up, and then the package, which reads `PYSTOW_HOME` and fails without a home.

    Raises:
        EngineLoadError: they are not installed.
    """
    os.environ["PYSTOW_HOME"] = str(home)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf  # noqa: PLC0415 (the environment above must be set first)
    except ModuleNotFoundError:
        raise EngineLoadError(
            "TensorFlow is not installed here, so that only a prepared model can run; make one with `uworker prepare` "
            "where the extra `engine` is installed"
        ) from None

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
