"""What a worker's loop and its supervisor say to each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_api.schemas import EngineRun


@dataclass(frozen=True)
class RecogniserConfig:
    """What every recogniser process is started with.

    Attributes:
        engine: Name of the engine.
        engine_options: The engine's own options.
        threads: Images that one process recognises at once.
        weights_home: Where the weights are, complete and checked.
        max_pixels: See `uworker.screening.screen`.
        image_timeout_seconds: From when a process takes an image up until it must have answered.
        load_timeout_seconds: From a process's start until it must be ready.
        end_timeout_seconds: From when a retiring process is told to end until it must be gone.
    """

    engine: str
    engine_options: dict[str, Any]
    threads: int
    weights_home: Path
    max_pixels: int
    image_timeout_seconds: float
    load_timeout_seconds: float = 600
    end_timeout_seconds: float = 10


@dataclass(frozen=True)
class ImageTask:
    """An image to recognise. `task_id` is never used twice; `solo`: it must have a process to itself."""

    task_id: int
    name: str
    data: bytes
    solo: bool = False


@dataclass(frozen=True)
class Fault:
    """What an engine raised over an image: `kind` is equal for equal faults, `traceback` as Python writes it."""

    kind: str
    traceback: str


@dataclass(frozen=True)
class Finished:
    """What became of an image: `row` has the fields of `schemas.NewResult` but for `image`; `fault` is for the log."""

    task_id: int
    row: dict[str, Any]
    fault: Fault | None = None


@dataclass(frozen=True)
class EngineReady:
    """A process has loaded its engine; said of each process, also after a restart."""

    run: EngineRun


@dataclass(frozen=True)
class CannotLoad:
    """The engine cannot be loaded on this machine. Said once; no process is started any more."""

    message: str


Report = Finished | EngineReady | CannotLoad
