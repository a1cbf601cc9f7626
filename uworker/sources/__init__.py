"""Kinds of storage that images are read from, and which of them a project's source is."""

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from job_api.locations import Location, locate
from job_api.stores import BadLocation
from uworker.images import Source, SourceUnsupported
from uworker.sources.allow import Allowance
from uworker.sources.local import LocalSource
from uworker.sources.objects import open_objects
from uworker.sources.web import WebSource

if TYPE_CHECKING:
    # The settings look at what may be allowed, which is a matter of this package.
    from uworker.settings import WorkerSettings

# More than a worker has projects at a time, as a rule; each may keep some connections.
MAX_OPEN = 32


class Sources:
    """The sources of one worker, for its life: which it may read, and those that are open. Safe from several threads.

    Args:
        settings: of the worker.
    """

    def __init__(self, settings: "WorkerSettings") -> None:
        self._settings = settings
        self._allowance = Allowance(settings.source_allow, bound=settings.job_api_project is not None)
        self._lock = threading.Lock()
        self._open: dict[Location, Source] = {}

    def open(self, url: str) -> Source:
        """The source of a project, as this worker sees it. Remote ones stay open, with their connections.

        Raises:
            SourceNotAllowed: the worker may not read there.
            SourceUnsupported: it knows no such kind of storage.
            SourceDenied: a credential is missing or makes no sense.
        """
        settings = self._settings
        if settings.source_root is not None:
            return LocalSource(settings.source_root, settings.max_image_bytes)
        try:
            location = locate(url)
        except BadLocation as error:
            raise SourceUnsupported(
                f"the project's source cannot be read: {error}; or set UWORKER_SOURCE_ROOT to where it is mounted"
            ) from None
        if location.kind == "file":
            root = Path(os.sep, location.prefix)
            self._allowance.admit_folder(root)
            return LocalSource(root, settings.max_image_bytes)
        self._allowance.admit(location.url)
        with self._lock:
            if location not in self._open:
                source = self._open_remote(location)
                if len(self._open) >= MAX_OPEN:
                    # Not closed: another thread may be reading from it. It goes with its last reader.
                    del self._open[next(iter(self._open))]
                self._open[location] = source
            return self._open[location]

    def _open_remote(self, location: Location) -> Source:
        if location.kind == "http":
            return WebSource(location.url, self._allowance, self._settings.max_image_bytes)
        return open_objects(location, self._settings.max_image_bytes)


def open_source(url: str, settings: "WorkerSettings") -> Source:
    """The source of a project, as a worker sees it that has just begun. See `Sources.open`."""
    return Sources(settings).open(url)
