"""Which of DECIMER's models an order gets: the prepared one where it may be used, and otherwise the shipped one."""

import logging
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from uworker.prepared.files import Unusable, find_prepared, prepare_command
from uworker.prepared.versions import what_differs
from uworker.weights import TURNED_OFF, Weights

log = logging.getLogger(__name__)

SLOWER = "DECIMER runs as it is shipped, which takes about four times as long"
GPU = Path("/dev/nvidia0")


def is_wanted(options: Mapping[str, Any]) -> bool:
    """Whether a project's `engine_options` leave the choice; see `refusal` for what is no choice at all."""
    return options.get("prepared") is not False


def refusal(options: Mapping[str, Any]) -> str | None:
    """What is wrong with `prepared` in a project's `engine_options`; the engine itself is told of a digest by it."""
    said = options.get("prepared", True)
    return None if isinstance(said, bool) else f"decimer's option prepared is true or false, not {said!r}"


def _installed_decimer() -> str | None:
    """The version of the package, which does not have to be there."""
    try:
        return version("decimer")
    except PackageNotFoundError:
        return None


def _is_visible(gpu: Path) -> bool:
    """Whether TensorFlow would look for a GPU; an empty list or -1 hides all of them."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return gpu.exists() and first not in ("", "-1", "NoDevFiles")


def choose(home: Path, weights: Weights, *, hand_drawn: bool, wanted: bool, gpu: Path = GPU) -> str | None:
    """Return the digest of the prepared model to use, or None for the shipped one; says in the log which and why.

    Args:
        home: As for `find_prepared`.
        weights: What was found there.
        hand_drawn: Which model.
        wanted: Whether a prepared model may be used at all.
        gpu: Is there where the machine has one.
    """
    if not wanted:
        log.info("%s: %s", SLOWER, TURNED_OFF)
        return None
    command = prepare_command(hand_drawn=hand_drawn)
    try:
        found = find_prepared(home, hand_drawn=hand_drawn)
    except Unusable as why:
        log.warning("%s: %s", SLOWER, why)
        return None
    if found is None:
        log.info("%s: run `%s` once on this machine, or build a snapshot without --as-shipped", SLOWER, command)
        return None
    if found.about.weights_sha256 != weights.sha256:
        log.warning("%s: %s was made of other weights; run `%s` again", SLOWER, found.directory, command)
        return None
    installed = _installed_decimer()
    if installed not in (None, found.about.decimer):
        made_with = found.about.decimer
        log.warning(
            "%s: %s was made with decimer %s, and %s is installed; run `%s` again",
            SLOWER,
            found.directory,
            made_with,
            installed,
            command,
        )
        return None
    if differing := what_differs(found.proved_with, absent_differs=False):
        log.warning(
            "the prepared model was proved with another version of what is here: %s; it is used all the same, and "
            "`%s`, or building the snapshot again, proves it anew",
            ", ".join(differing),
            command,
        )
    if _is_visible(gpu):
        log.warning("the prepared model does not use the GPU; UWORKER_PREPARED=false runs the shipped one on it")
    log.info("prepared model: sha256 %s", found.sha256)
    return found.sha256
