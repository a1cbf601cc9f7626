"""What an engine is, and where each is loaded from. Imports no engine: that happens in a recogniser process.

To add an engine, write one file beside this one with a function like `uworker.engines.decimer.load`, and name it in
`_LOADERS`. An engine of your own that lives elsewhere is named `package.module:callable`; such a name can come only
from the worker's own machine, because the wire's pattern of engine names has no colon.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

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
    """

    name: str
    version: str | None
    weights: str | None
    weights_sha256: str | None

    def recognise(self, pixels: Pixels) -> Recognition:
        """Say what structure an image shows. May raise anything: it costs this image only."""
        ...


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
        raise UnknownEngineError(f"no engine is called {name!r}; there is {', '.join(sorted(_LOADERS))}")
    module, _, attribute = target.partition(":")
    try:
        return cast("EngineLoader", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise UnknownEngineError(f"engine {name!r} cannot be imported: {error}") from error
