"""Images on web servers, in directories that the server shows an index of.

The server is somebody else's and may mean harm: what it sends is bounded in bytes and time, folders in depth and
number, and it is followed only to where this worker may read (allow.py, guard.py). How it is asked is fetching.py's
matter, how its folders are gone through that of folders.py.
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from job_api.indexes import BadIndex, TooMuch, index_page
from job_api.locations import segments_of
from job_api.schemas import ResultStatus
from uworker.images import (
    DirectoryDenied,
    ImageFile,
    NoImages,
    SourceDenied,
    SourceNotAllowed,
    StorageFault,
    Verdict,
    storable,
    unique,
)
from uworker.sources.allow import Allowance
from uworker.sources.fetching import Fetcher, shown
from uworker.sources.folders import Bounds, Walk, quoted

INDEX_HEADERS = {"Accept": "text/html, application/json;q=0.9, */*;q=0.1"}

# Of a page that is only to show whether it is an index that lists anything.
GLANCE_BYTES = 1_000_000

T = TypeVar("T")


class _Refused(Exception):
    """A folder is not shown to this worker; says which, and by which status."""


class WebSource:
    """Directories on a web server. May be read by several threads at once; its connections are kept.

    Args:
        url: of the folder that the jobs' directories lie in; admitted already.
        allowance: where the server may lead to.
        max_image_bytes: larger files are not read.
        bounds: of the server's answers.

    Raises:
        SourceDenied: the file of logins cannot be used.
    """

    def __init__(self, url: str, allowance: Allowance, max_image_bytes: int, bounds: Bounds | None = None) -> None:
        parts = urlsplit(url)
        path = "".join("/" + quoted(segment) for segment in segments_of(parts.path))
        self._root = f"{parts.scheme.lower()}://{parts.netloc}{path}"
        self._max_image_bytes = max_image_bytes
        self._bounds = bounds or Bounds()
        self._server = Fetcher(
            self._root,
            allowance,
            self._bounds.answer_seconds,
            self._bounds.patience_seconds,
            self._bounds.wait_seconds,
        )
        # Whoever has shown one directory or file knows this worker.
        self._was_let_in = False
        self._has_read = False
        self._large_pages = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def list_images(self, directory: str) -> Iterator[ImageFile]:
        """All images below a directory, in the order of their paths. See `Source`."""
        segments = [part for part in directory.split("/") if part]
        if any(piece in (".", "..") for part in segments for piece in part.split("\\")):
            raise NoImages(f"the directory's name {directory!r} leads out of the source")
        top = self._root + "".join("/" + quoted(part) for part in segments) + "/"
        names, found = set[str](), False
        walk = Walk(
            directory, self._bounds, partial(self._ask_for_folder, directory), self._server.content, self._large_pages
        )
        for path, url, size in walk.images(top):
            found = True
            yield ImageFile(unique(storable(path), names), url, size=size)
        if not found:
            raise NoImages(f"no image lies in the directory {directory!r} or below it")

    def _ask_for_folder(self, directory: str, url: str, use: Callable[[httpx.Response], T]) -> T:
        """Ask for a folder; where it is refused or not there, tell its own matter from that of the whole source."""

        def use_if_shown(answer: httpx.Response) -> T:
            self._require_shown(answer, directory)
            return use(answer)

        try:
            result = self._server.fetch(url, use_if_shown, INDEX_HEADERS)
        except NoImages:
            self._require_root()
            raise
        except _Refused as refused:
            if not self._was_let_in and self._look_at_root()[1] is None:
                raise SourceDenied(
                    f"the web server does not let this worker see {refused}: put a login for its host into the "
                    "worker's ~/.netrc, or let the server show directory indexes"
                ) from None
            raise DirectoryDenied(
                f"the web server lets this worker in, but not into the directory {directory!r} ({refused}): permit it "
                "there, or let the server show an index of it"
            ) from None
        self._was_let_in = True
        return result

    def _require_root(self) -> None:
        """Tell a source that is away, which must not cost its jobs, from a directory or file that is not there."""
        status, has_entries = self._look_at_root()
        if status in (404, 410) or has_entries is False:
            raise StorageFault(
                f"the web server shows nothing at {shown(self._root)}/, the source's root (HTTP {status}): is what it "
                "serves mounted?"
            )

    def _look_at_root(self) -> tuple[int, bool | None]:
        """How the server answers for the source's root, and whether its index lists anything; None: it shows none."""
        try:
            return self._server.fetch(self._root + "/", self._glance, INDEX_HEADERS)
        except SourceNotAllowed:
            # It leads elsewhere.
            return 302, None

    def _glance(self, answer: httpx.Response) -> tuple[int, bool | None]:
        if answer.status_code != 200:
            return answer.status_code, None
        try:
            page = index_page(answer)
            for data in self._server.content(answer):
                page.feed(data)
                if page.size > GLANCE_BYTES:
                    return 200, None
            page.listing()
        except BadIndex:
            return 200, None
        except TooMuch:
            return 200, True
        return 200, False

    def _require_shown(self, answer: httpx.Response, directory: str) -> None:
        status = answer.status_code
        if status in (404, 410):
            raise NoImages(
                f"there is no directory {directory!r} under {self._root}, or the server shows no index of it "
                f"(HTTP {status})"
            )
        if status in (401, 403):
            raise _Refused(f"{shown(str(answer.url))} (HTTP {status})")
        if status != 200:
            raise StorageFault(_said(answer))

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image. See `Source`."""
        if image.verdict is not None:
            return image.verdict
        status, data = self._server.fetch(image.key, self._read_image)
        if data is not None:
            return data
        # The file's fault, as long as the server goes on showing the directory.
        folder = image.key.rpartition("/")[0] + "/"
        directory = unquote(folder.removeprefix(self._root).strip("/"))
        try:
            self._ask_for_folder(directory, folder, lambda _: None)
        except NoImages:
            return Verdict(ResultStatus.MISSING, "the file was listed and is gone, and so is its directory")
        if status in (404, 410):
            return Verdict(ResultStatus.MISSING, f"the file was listed and is gone (HTTP {status})")
        if status == 401 and not self._has_read:
            # An open index of files that all want a login: none of them is at fault.
            raise DirectoryDenied(
                f"the web server shows the directory {directory!r} and wants a login for its files (HTTP 401): put "
                "one for its host into the worker's ~/.netrc"
            )
        return Verdict(ResultStatus.UNREADABLE, f"the web server refuses this file (HTTP {status})")

    def _read_image(self, answer: httpx.Response) -> tuple[int, bytes | Verdict | None]:
        # What of these is worth another try never comes here.
        if 400 <= answer.status_code < 500 and answer.status_code != 407:
            return answer.status_code, None
        if answer.status_code != 200:
            raise StorageFault(_said(answer))
        self._was_let_in = self._has_read = True
        declared = answer.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > self._max_image_bytes:
            return 200, self._too_large(f"has {declared} bytes")
        data = bytearray()
        for piece in self._server.content(answer):
            data += piece
            if len(data) > self._max_image_bytes:
                return 200, self._too_large("has more bytes")
        return 200, bytes(data)

    def _too_large(self, said: str) -> Verdict:
        return Verdict(ResultStatus.TOO_LARGE, f"the file {said}; at most {self._max_image_bytes} are read")


def _said(answer: httpx.Response) -> str:
    return f"the web server answers HTTP {answer.status_code} for {shown(str(answer.url))}"
