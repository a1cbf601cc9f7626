"""What an engine is, and where each is loaded from. Imports no engine: that happens in a recogniser process.

To add an engine, write one file beside this one with a function like `uworker.engines.decimer.load`, and name it in
`_LOADERS`. An engine of your own that lives elsewhere is named `package.module:callable`; such a name can come only
from the worker's own machine, because the wire's pattern of engine names has no colon. Programs that print SMILES are
engines without a loader: `command` runs them.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""An image as engines get it: uint8[height, width, 3], RGB."""


class EngineError(Exception):
    """Base of what goes wrong with engines."""


class UnknownEngineError(EngineError):
    """No engine has this name."""


class EngineLoadError(EngineError):
    """An engine is there but cannot be loaded; another try would end the same."""


class EngineTimeout(EngineError):
    """An engine gave up an image that took too long."""


@dataclass(frozen=True)
class Recognition:
    """An engine's answer to one image.

    Attributes:
        smiles: What the engine said, unchanged; may be empty or no SMILES at all.
        tokens: The pieces the answer was made of, each with its probability.
    """

    smiles: str
    tokens: list[tuple[str, float]]


@runtime_checkable
class Engine(Protocol):
    """A loaded engine. Several threads call `recognise` at once.

    Attributes:
        name: Goes into every row; a name as in `schemas.Name`.
        version: Version of the package that does the work.
        weights: Name of the weights.
        weights_sha256: Digest of the weights that were loaded, 64 hexadecimal digits.
        prepared: Digest of the model prepared of these weights, where it is what answers; None: the weights as shipped.
            An engine of your own may lack it, which is as None.
    """

    name: str
    version: str | None
    weights: str | None
    weights_sha256: str | None
    prepared: str | None

    def recognise(self, pixels: Pixels) -> Recognition:
        """Say what structure an image shows. May raise anything: it costs this image only."""
        ...


class BatchEngine(Engine, Protocol):
    """An engine that recognises several images in less time than one after the other; see `takes_batches`.

    Attributes:
        max_batch: The most images that it is handed at once.
    """

    max_batch: int

    def recognise_batch(self, pictures: Iterator[Pixels]) -> Sequence[Recognition | Exception]:
        """Say what structures images show; several threads call it at once, and `recognise` for a single image.

        Args:
            pictures: The pixels of `max_batch` images at most, and perhaps of none. An image is decoded only when it is
                asked for, and counts as taken up then. Bring each into the form that the engine needs and let its
                pixels go before the next is asked for: they may be 200 MB. Those that are not asked for come in another
                call.

        Returns:
            For each picture that was asked for, in that order, its recognition or the exception that it costs. Where
            the call raises, or answers too few or too many, each of several is recognised alone.
        """
        ...


def takes_batches(engine: Engine) -> TypeGuard[BatchEngine]:
    """Whether an engine is handed several images at once. By what that needs: other attributes it may lack."""
    return hasattr(engine, "max_batch") and hasattr(engine, "recognise_batch")


class EngineLoader(Protocol):
    """Loads an engine and warms it up."""

    def __call__(self, options: Mapping[str, Any], home: Path, threads: int) -> Engine:
        """Load.

        Args:
            options: The engine's own options, as given in the project's settings.
            home: Where its weights are.
            threads: How many threads will call it at once.

        Raises:
            EngineLoadError: it cannot be loaded; any other exception means the same.
        """
        ...


_LOADERS = {"decimer": "uworker.engines.decimer:load"}


def find_loader(name: str) -> EngineLoader:
    """Import the loader of the engine `name`, which is a registered one or `package.module:callable`.

    Raises:
        UnknownEngineError: there is none.
    """
    target = name if ":" in name else _LOADERS.get(name)
    if target is None:
        names = ", ".join(sorted(_LOADERS))
        raise UnknownEngineError(f"no engine is called {name!r}; there is {names}, osra, or UWORKER_ENGINE_COMMAND")
    module, _, attribute = target.partition(":")
    try:
        return cast("EngineLoader", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise UnknownEngineError(f"engine {name!r} cannot be imported: {error}") from error
