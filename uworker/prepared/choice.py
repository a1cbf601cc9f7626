"""Which of DECIMER's models an order gets: the prepared one where it may be used, and otherwise the shipped one."""

import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from uworker.prepared.files import Unusable, find_prepared, prepare_command
from uworker.weights import TURNED_OFF, Weights

log = logging.getLogger(__name__)

SLOWER = "DECIMER runs as it is shipped, which takes about four times as long"


def is_wanted(options: Mapping[str, Any]) -> bool:
    """Whether a project's `engine_options` leave the choice."""
    return options.get("prepared") is not False


def _installed_decimer() -> str | None:
    """The version of the package, which does not have to be there."""
    try:
        return version("decimer")
    except PackageNotFoundError:
        return None


def choose(home: Path, weights: Weights, *, hand_drawn: bool, wanted: bool) -> str | None:
    """Return the digest of the prepared model to use, or None for the shipped one; says in the log which and why.

    Args:
        home: As for `find_prepared`.
        weights: What was found there.
        hand_drawn: Which model.
        wanted: Whether a prepared model may be used at all.
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
    log.info("prepared model: sha256 %s", found.sha256)
    return found.sha256
