"""An engine that takes a known time for each image, and nothing of the processor: what is measured is the way to it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uworker.engines import Pixels, Recognition

NAME = "timed"
SECONDS_PER_IMAGE = 0.02


class TimedEngine:
    """Waits, and says methane."""

    name = NAME
    version: str | None = "1"
    weights: str | None = None
    weights_sha256: str | None = None
    prepared: str | None = None

    def recognise(self, pixels: Pixels) -> Recognition:  # noqa: ARG002 - it knows the answer
        """Wait."""
        time.sleep(SECONDS_PER_IMAGE)
        return Recognition("C", [("C", 0.5)])


def load(options: Mapping[str, Any], home: Path, threads: int) -> TimedEngine:  # noqa: ARG001 - as every engine's
    """Load it; see `uworker.engines.EngineLoader`."""
    return TimedEngine()


def register(folder: Path) -> str:
    """Make it known under its name to workers and their children; returns what PYTHONPATH must begin with."""
    lines = f"import uworker.engines\nuworker.engines._LOADERS[{NAME!r}] = {__name__ + ':load'!r}\n"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(lines)
    return str(folder)
