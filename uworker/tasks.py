"""What a worker's loop and its supervisor say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_api.schemas import EngineRun
from uworker.commands import EngineCommand

MAX_BATCHED_BYTES = 64_000_000
"""What images that are in hand for the sake of full batches may come to; drawings have some ten kilobytes each."""


def engine_key(engine: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """What recognisers must be loaded with for a job; jobs of equal keys share them."""
    return engine, repr(sorted(options.items()))


@dataclass(frozen=True)
class EngineOrder:
    """The recognisers that a worker wants: the engine of a job, and limits of the worker's own.

    Attributes:
        engine: Name of the engine.
        engine_options: The engine's own options.
        max_pixels: See `uworker.screening.screen`.
        image_timeout_seconds: See `RecogniserConfig`.
        weights_sha256: The only weights to accept; None: any.
    """

    engine: str
    engine_options: dict[str, Any]
    max_pixels: int
    image_timeout_seconds: float
    weights_sha256: str | None

    @property
    def key(self) -> tuple[str, str]:
        """Whose jobs these recognisers are for."""
        return engine_key(self.engine, self.engine_options)


@dataclass(frozen=True)
class RecogniserConfig:
    """What every recogniser process is started with.

    Attributes:
        engine: Name of the engine.
        engine_options: The engine's own options.
        threads: How many of a process's threads recognise, each an image or a batch at a time.
        weights_home: Where the weights are, complete and checked.
        max_pixels: See `uworker.screening.screen`.
        image_timeout_seconds: From when a process takes an image up until it must have answered.
        load_timeout_seconds: From a process's start until it must be ready.
        end_timeout_seconds: From when a retiring process is told to end until it must be gone.
        command: What the engine is, where it is a program of this machine.
    """

    engine: str
    engine_options: dict[str, Any]
    threads: int
    weights_home: Path
    max_pixels: int
    image_timeout_seconds: float
    load_timeout_seconds: float = 600
    end_timeout_seconds: float = 10
    command: EngineCommand | None = None


@dataclass(frozen=True)
class ImageTask:
    """An image to recognise. `task_id` is never used twice; `solo`: it must have a process to itself."""

    task_id: int
    name: str
    data: bytes
    solo: bool = False


@dataclass(frozen=True)
class Room:
    """How many images recognisers may have, in hand or waiting.

    Attributes:
        images: However large they are.
        most: As long as all of them together have less than `MAX_BATCHED_BYTES`: as many as fill the batches of an
            engine that is handed several at once. Equal to `images` where there is none.
    """

    images: int
    most: int

    def limit(self, held_bytes: int) -> int:
        """Return how many they may have, where those that they have are of so many bytes."""
        return self.most if held_bytes < MAX_BATCHED_BYTES else self.images

    @property
    def for_batches(self) -> int:
        """How many of them are for batches alone."""
        return self.most - self.images


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


def words_of(run: EngineRun) -> str:
    """What rows are made with, for the log: the engine, its weights, and the prepared model where there is one."""
    digest = "" if run.weights_sha256 is None else f" ({run.weights_sha256[:12]})"
    prepared = "" if run.prepared is None else f", prepared model: {run.prepared[:12]}"
    return f"{run.engine} {run.engine_version}, weights: {run.weights}{digest}{prepared}"


Report = Finished | EngineReady | CannotLoad
