"""Images on web servers, in directories that the server shows an index of.

The server is somebody else's and may mean harm: what it sends is bounded in bytes and time, folders in depth and
number, and it is followed only to where this worker may read (allow.py, guard.py). What it lists is read in indexes.py.
"""

import netrc
import os
import posixpath
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import tenacity

from job_api.schemas import ResultStatus
from job_api.sending import jitter_seconds, retry_after_seconds, why
from uworker.images import (
    IGNORED_DIRECTORIES,
    IMAGE_ENDINGS,
    ImageFile,
    NoImages,
    SourceDenied,
    SourceNotAllowed,
    StorageFault,
    Verdict,
    storable,
    unique,
)
from uworker.sources.allow import SETTING, Allowance, Place, place_of
from uworker.sources.guard import GuardedTransport
from uworker.sources.indexes import Entry, IndexPage, NoIndex

MAX_REDIRECTS = 5
TIMEOUT = httpx.Timeout(30, connect=10)
# Compressed answers are taken apart in pieces of this size, so that none swells beyond its bound unseen.
INFLATED_BYTES = 256_000
HEADERS = {"User-Agent": "decimer-jobs", "Accept-Encoding": "identity"}
INDEX_HEADERS = {"Accept": "text/html, application/json;q=0.9, */*;q=0.1"}

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """How much of a web server's answers is taken before it is given up."""

    depth: int = 32
    pages: int = 10_000
    page_bytes: int = 200_000_000
    answer_seconds: float = 300
    patience_seconds: float = 60


class _Transient(Exception):
    """A failure worth another try."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


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
        self._place = place_of(url)
        parts = urlsplit(url)
        self._root = f"{parts.scheme.lower()}://{parts.netloc}" + "".join(
            "/" + _quoted(s) for s in self._place.segments
        )
        self._allowance = allowance
        self._max_image_bytes = max_image_bytes
        self._bounds = bounds or Bounds()
        self._login = _login_of(parts.hostname or "")
        # Whoever has shown one directory knows this worker.
        self._was_let_in = False
        self._http = httpx.Client(
            transport=GuardedTransport(allowance.names),
            headers=HEADERS,
            timeout=TIMEOUT,
            # None are kept: a server could send new ones for ever.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def list_images(self, directory: str) -> Iterator[ImageFile]:
        """All images below a directory, in the order of their paths. See `Source`."""
        segments = [part for part in directory.split("/") if part]
        if any(piece in (".", "..") for part in segments for piece in part.split("\\")):
            raise NoImages(f"the directory's name {directory!r} leads out of the source")
        top = self._root + "".join("/" + _quoted(part) for part in segments) + "/"
        names, found = set[str](), False
        for path, url, size in self._walk(top, directory):
            found = True
            yield ImageFile(unique(storable(path), names), url, size=size)
        if not found:
            raise NoImages(f"no image lies in the directory {directory!r} or below it")

    def _walk(self, top: str, directory: str) -> Iterator[tuple[str, str, int | None]]:
        """Paths of images below a folder, their URLs and sizes; a page at a time, in the order of the paths."""
        pages = 0
        ahead: list[tuple[str, str, bool, int | None]] = [("", top, True, None)]
        while ahead:
            path, url, is_folder, size = ahead.pop()
            if not is_folder:
                yield path, url, size
                continue
            pages += 1
            if path.count("/") > self._bounds.depth or pages > self._bounds.pages:
                raise NoIndex(
                    f"below the directory {directory!r} the server lists folders more than {self._bounds.depth} deep, "
                    f"or more than {self._bounds.pages} of them; a link may lead round in circles"
                )
            try:
                base, entries = self._fetch(url, lambda answer: self._read_index(answer, directory), INDEX_HEADERS)
            except NoImages:
                if path == "":
                    raise
                continue  # it has gone since its parent was listed
            ahead += [
                (path + e.name + "/" * e.is_folder, base + _quoted(e.name) + "/" * e.is_folder, e.is_folder, e.size)
                for e in reversed(entries)
                if not e.name.startswith(".") and e.name not in IGNORED_DIRECTORIES
                if e.is_folder or posixpath.splitext(e.name)[1].lower() in IMAGE_ENDINGS
            ]

    def _read_index(self, answer: httpx.Response, directory: str) -> tuple[str, list[Entry]]:
        """What an index lists, and the URL that its names are below."""
        self._require_shown(answer, directory)
        base = str(answer.url.copy_with(query=None, fragment=None)).rstrip("/") + "/"
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        try:
            entries = self._entries(IndexPage(base, media_type), answer)
        except NoIndex as error:
            raise NoIndex(
                f"what the server shows at {_shown(base)} is no index of files ({error}); let it show directory "
                "indexes (nginx: autoindex on; Apache: Options +Indexes), or use another kind of source"
            ) from None
        self._was_let_in = True
        return base, entries

    def _entries(self, page: IndexPage, answer: httpx.Response) -> list[Entry]:
        size = 0
        for data in self._content(answer):
            size += len(data)
            if size > self._bounds.page_bytes:
                raise NoIndex(f"it has more than {self._bounds.page_bytes} bytes")
            page.feed(data)
        return page.entries()

    def _require_shown(self, answer: httpx.Response, directory: str) -> None:
        status = answer.status_code
        if status in (404, 410):
            raise NoImages(
                f"there is no directory {directory!r} under {self._root}, or the server shows no index of it "
                f"(HTTP {status})"
            )
        if status == 401 or (status == 403 and not self._was_let_in):
            raise SourceDenied(
                f"the web server does not let this worker see {_shown(str(answer.url))} (HTTP {status}): put a login "
                "for its host into the worker's ~/.netrc, or let the server show directory indexes"
            )
        if status != 200:
            raise StorageFault(f"the web server answers HTTP {status} for {_shown(str(answer.url))}")

    def read(self, image: ImageFile) -> bytes | Verdict:
        """The bytes of an image. See `Source`."""
        if image.verdict is not None:
            return image.verdict
        status, data = self._fetch(image.key, self._read_image)
        if data is not None:
            return data
        # The file's fault, as long as the server goes on showing the directory.
        folder = image.key.rpartition("/")[0] + "/"
        try:
            self._fetch(folder, lambda answer: self._require_shown(answer, folder), INDEX_HEADERS)
        except NoImages:
            return Verdict(ResultStatus.MISSING, "the file was listed and is gone, and so is its directory")
        if status in (404, 410):
            return Verdict(ResultStatus.MISSING, f"the file was listed and is gone (HTTP {status})")
        return Verdict(ResultStatus.UNREADABLE, f"the web server refuses this file (HTTP {status})")

    def _read_image(self, answer: httpx.Response) -> tuple[int, bytes | Verdict | None]:
        # What of these is worth another try never comes here.
        if 400 <= answer.status_code < 500 and answer.status_code not in (401, 407):
            return answer.status_code, None
        if answer.status_code != 200:
            self._require_shown(answer, "")
        declared = answer.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > self._max_image_bytes:
            return 200, self._too_large(f"has {declared} bytes")
        data = bytearray()
        for piece in self._content(answer):
            data += piece
            if len(data) > self._max_image_bytes:
                return 200, self._too_large("has more bytes")
        return 200, bytes(data)

    def _too_large(self, said: str) -> Verdict:
        return Verdict(ResultStatus.TOO_LARGE, f"the file {said}; at most {self._max_image_bytes} are read")

    # --- requests ---

    def _fetch(self, url: str, use: Callable[[httpx.Response], T], headers: dict[str, str] | None = None) -> T:
        """Ask for a URL and make something of the answer; again where that may help.

        Raises:
            StorageFault: it was of no use, as long as there was patience.
            SourceError: others that `use` raises, at once.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            wait=_wait_seconds,
            stop=tenacity.stop_before_delay(self._bounds.patience_seconds),
            reraise=True,
        )
        try:
            result: T = retrying(self._try_once, url, use, headers or {})
        except _Transient as transient:
            raise StorageFault(f"{_shown(url)} cannot be read: {transient}") from transient.__cause__
        return result

    def _try_once(self, url: str, use: Callable[[httpx.Response], T], headers: dict[str, str]) -> T:
        try:
            with self._answer(url, headers) as answer:
                status = answer.status_code
                if status in (408, 429) or status >= 500:
                    raise _Transient(f"HTTP {status}", retry_after_seconds(answer.headers))
                return use(answer)
        except httpx.TransportError as error:
            raise _Transient(why(error)) from error

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer to a request, after redirects to where this worker may read."""
        place = self._place
        for _ in range(MAX_REDIRECTS + 1):
            # The login is for the source's own host.
            login = (
                self._login if (place.scheme, place.authority) == (self._place.scheme, self._place.authority) else None
            )
            request = self._http.build_request("GET", url, headers=headers)
            with closing(self._http.send(request, stream=True, auth=login)) as answer:
                if answer.next_request is None:
                    yield answer
                    return
                url = str(answer.next_request.url)
                place = self._judge_redirect(url)
        raise StorageFault(f"{_shown(url)} was redirected to more than {MAX_REDIRECTS} times in a row")

    def _judge_redirect(self, url: str) -> Place:
        try:
            place = place_of(url)
        except ValueError as error:
            raise SourceNotAllowed(f"the web server redirects to an address that is not followed: {error}") from None
        if not self._allowance.permits(place):
            raise SourceNotAllowed(
                f"the web server redirects to {_shown(url)}, where this worker may not read; make that the project's "
                f"source, or list it in {SETTING} beside {self._root}"
            )
        return place

    def _content(self, answer: httpx.Response) -> Iterator[bytes]:
        """The body in pieces, decompressed where it was compressed unasked, for as long as an answer may take."""
        latest = time.monotonic() + self._bounds.answer_seconds
        coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise StorageFault(
                f"the web server sends {_shown(str(answer.url))} in the coding {coding[:20]!r}, which was not asked for"
            )
        inflate = zlib.decompressobj(wbits=31) if "gzip" in coding else None
        for data in answer.iter_raw():
            if time.monotonic() > latest:
                raise _Transient(f"the answer took more than {self._bounds.answer_seconds:.0f} s")
            yield from [data] if inflate is None else _inflated(inflate, data)
        if inflate is not None and not inflate.eof:
            raise _Transient("the compressed answer ends too early")


def _inflated(inflate: Any, data: bytes) -> Iterator[bytes]:
    try:
        while piece := inflate.decompress(data, INFLATED_BYTES):
            yield piece
            data = inflate.unconsumed_tail
    except zlib.error as error:
        raise _Transient(f"the compressed answer is damaged: {error}") from None


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    """Full jitter, after what the server asked for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_seconds if isinstance(error, _Transient) else None
    return (asked or 0) + jitter_seconds(state.attempt_number)


def _quoted(segment: str) -> str:
    return quote(segment, safe="", errors="surrogateescape")


def _shown(url: str) -> str:
    """A URL for people: without a query or a login, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _login_of(host: str) -> httpx.BasicAuth | None:
    """The login for a host in ~/.netrc, or in the file that NETRC names; its `default` would go to any host."""
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or None).hosts
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError, netrc.NetrcParseError) as error:
        # What it says of a broken line may be a password.
        line = f", line {error.lineno}" if isinstance(error, netrc.NetrcParseError) and error.lineno else ""
        raise SourceDenied(
            f"the worker's file of logins (~/.netrc) cannot be read{line}: {type(error).__name__}"
        ) from None
    found = logins.get(host) if host != "default" else None
    return httpx.BasicAuth(found[0], found[2]) if found is not None and found[2] else None
