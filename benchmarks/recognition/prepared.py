"""The prepared model of a replica: made and proved once as `uworker prepare` does, and kept beside the replica.

`python -m benchmarks.recognition.prepared HOME` makes it, in a process of its own: the model must be loaded with the
Keras that workers have, and not with that of the replica's build.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.recognition.module import run_module
from benchmarks.stage import BenchmarkError
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
from uworker.prepared.versions import what_differs
from uworker.weights import find_weights

PREPARE_SECONDS = 1800.0


def prepare(home: Path, images: list[Path], say: Callable[[str], None]) -> Report:
    """Return the proof of the prepared model below `home`, which is made if it is not there.

    It is made anew where it was proved with other code or other packages than there are.

    Args:
        home: what `PYSTOW_HOME` names.
        images: what it is proved on.
        say: told a line.

    Raises:
        BenchmarkError: it cannot be made, or is not proved.
    """
    try:
        known = _find(home)
    except Unusable:
        # Made anew, which says what is wrong if it is still so.
        known = None
    if known is not None and known.images >= len(images):
        say(f"prepared model, proved before: {known.prepared}")
        return known
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
    try:
        found = _find(home)
    except Unusable as why:
        raise BenchmarkError(str(why)) from None
    if found is None:
        raise BenchmarkError(f"there is no prepared model in {home}")
    say(f"prepared and proved: {found.prepared}")
    return found


def images_needed(tokens: int) -> int:
    """How many images prove a model whose answers have so many tokens."""
    return max(LEAST_IMAGES, -(-LEAST_TOKENS // tokens))


def _find(home: Path) -> Report | None:
    found = find_prepared(home, hand_drawn=False)
    if found is None or what_differs(found.proved_with, absent_differs=True):
        return None
    return Report.model_validate_json(prepared_directory(home, hand_drawn=False).joinpath(REPORT).read_bytes())


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
