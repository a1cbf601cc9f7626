"""Kinds of storage that images are read from, and which of them a project's source is."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from uworker.images import Source, SourceNotAllowed, SourceUnsupported
from uworker.settings import WorkerSettings
from uworker.sources.local import LocalSource


def open_source(url: str, settings: WorkerSettings) -> Source:
    """The source of a project, as this worker sees it.

    Raises:
        SourceNotAllowed: the worker may not read there.
        SourceUnsupported: it knows no such kind of storage.
    """
    if settings.source_root is not None:
        return LocalSource(settings.source_root, settings.max_image_bytes)
    parts = urlsplit(url)
    if url.startswith("/"):
        root = Path(url)
    elif parts.scheme == "file" and parts.netloc in ("", "localhost"):
        root = Path(unquote(parts.path))
    else:
        raise SourceUnsupported(
            f"this worker reads local directories only, and the project's source is {url}; "
            "set UWORKER_SOURCE_ROOT to where it is mounted"
        )
    real = Path(os.path.realpath(root))
    allowed = [Path(os.path.realpath(folder)) for folder in settings.source_allow]
    if allowed and not any(real.is_relative_to(folder) for folder in allowed):
        raise SourceNotAllowed(f"the project's source {url} lies in none of the folders in UWORKER_SOURCE_ALLOW")
    return LocalSource(root, settings.max_image_bytes)
