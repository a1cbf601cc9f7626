"""The prepared model of a replica: made and proved once as `uworker prepare` does, and kept beside the replica.

`python -m benchmarks.recognition.prepared HOME` makes it, in a process of its own: the model must be loaded with the
Keras that workers have, and not with that of the replica's build.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from benchmarks.recognition.module import run_module
from benchmarks.stage import ROOT, BenchmarkError
from uworker.prepared import cli
from uworker.prepared.files import (
    LEAST_IMAGES,
    LEAST_TOKENS,
    REPORT,
    Report,
    Unusable,
    find_prepared,
    prepared_directory,
)
from uworker.weights import find_weights

PREPARE_SECONDS = 1800.0
_KEY = "prepared.key"


def prepare(home: Path, images: list[Path], say: Callable[[str], None]) -> Report:
    """Return the proof of the prepared model below `home`, which is made if it is not there.

    Args:
        home: what `PYSTOW_HOME` names.
        images: what it is proved on.
        say: told a line.

    Raises:
        BenchmarkError: it cannot be made, or is not proved.
    """
    if (found := _find(home)) is not None and found.images >= len(images):
        say(f"prepared model, proved before: {found.prepared}")
        return found
    say(f"preparing the model in {home}")
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    run_module(
        __spec__.name,
        [home],
        ("the model", "prepared"),
        environment=environment | {"PYSTOW_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"},
        seconds=PREPARE_SECONDS,
        given=json.dumps(list(map(str, images))),
    )
    home.joinpath(_KEY).write_text(_key(), encoding="utf-8")
    if (found := _find(home)) is None:
        raise BenchmarkError(f"there is no prepared model in {home}")
    say(f"prepared and proved: {found.prepared}")
    return found


def images_needed(tokens: int) -> int:
    """How many images prove a model whose answers have so many tokens."""
    return max(LEAST_IMAGES, -(-LEAST_TOKENS // tokens))


def _find(home: Path) -> Report | None:
    key = home / _KEY
    if not key.is_file() or key.read_text(encoding="utf-8") != _key():
        return None
    try:
        found = find_prepared(home, hand_drawn=False)
    except Unusable as why:
        raise BenchmarkError(str(why)) from None
    if found is None:
        return None
    return Report.model_validate_json(prepared_directory(home, hand_drawn=False).joinpath(REPORT).read_bytes())


def _key() -> str:
    """Names all that a prepared model depends on beside the weights: the code that makes it, and its packages."""
    sources = sorted((ROOT / "uworker" / "prepared").glob("*.py"))
    parts = [path.read_text(encoding="utf-8") for path in sources]
    return sha256(json.dumps([version("onnx"), version("onnxruntime"), *parts]).encode()).hexdigest()


def main() -> None:
    """Prepare the model; the images to prove it on are a JSON list on standard input."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("home", type=Path, help="directory that PYSTOW_HOME names")
    weights = find_weights(parser.parse_args().home, hand_drawn=False)
    if weights is None:
        raise SystemExit("there are no weights")
    cli.make(weights, [(Path(file).name, Path(file)) for file in json.load(sys.stdin)], hand_drawn=False)


if __name__ == "__main__":
    main()
