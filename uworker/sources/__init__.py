"""Kinds of storage that images are read from, and which of them a project's source is."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from job_api.locations import locate
from job_api.stores import BadLocation
from uworker.images import Source, SourceNotAllowed, SourceUnsupported
from uworker.settings import WorkerSettings
from uworker.sources.local import LocalSource
from uworker.sources.objects import open_objects


def open_source(url: str, settings: WorkerSettings) -> Source:
    """The source of a project, as this worker sees it.

    Raises:
        SourceNotAllowed: the worker may not read there.
        SourceUnsupported: it knows no such kind of storage.
    """
    if settings.source_root is not None:
        return LocalSource(settings.source_root, settings.max_image_bytes)
    try:
        location = locate(url)
    except BadLocation as error:
        raise SourceUnsupported(
            f"the project's source cannot be read: {error}; or set UWORKER_SOURCE_ROOT to where it is mounted"
        ) from None
    if location.kind in ("az", "s3", "gs"):
        return open_objects(location, settings.max_image_bytes)
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
