"""Requests to a web server that a project has named: with a login, again where that may help, and within bounds.

Owns what is retried and for how long, where redirects are followed to, and which errors a job ends with. Knows nothing
of directories and images.
"""

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import tenacity

from job_api.faults import Denied
from job_api.sending import jitter_seconds, retry_after_seconds, why
from job_api.websites import login_of
from uworker.images import SourceDenied, SourceNotAllowed, StorageFault
from uworker.sources.allow import SETTING, Allowance, Place, place_of
from uworker.sources.guard import GuardedTransport

MAX_REDIRECTS = 5
TIMEOUT = httpx.Timeout(30, connect=10)
# Compressed answers are taken apart in pieces of this size, so that none swells beyond its bound unseen.
INFLATED_BYTES = 256_000
HEADERS = {"User-Agent": "decimer-jobs", "Accept-Encoding": "identity"}

T = TypeVar("T")


class _Transient(Exception):
    """A failure worth another try."""


class _Turn:
    """When a server may be asked again: what it has told one thread holds for all.

    Args:
        longest_seconds: that a request waits for the server as a whole, and that the server is believed at a time.
    """

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self._lock = threading.Lock()
        self._not_before, self._said = 0.0, ""
        self._closed = threading.Event()

    def put_off(self, seconds: float, said: str) -> None:
        """Let nobody ask for so long, because the server said so."""
        with self._lock:
            self._said = said
            self._not_before = max(self._not_before, time.monotonic() + min(seconds, self._longest_seconds))

    def wait(self, waited_seconds: float) -> float:
        """Wait until the server may be asked; returns for how long a request has waited for that as a whole.

        Raises:
            StorageFault: that is longer than a request waits, or the source was closed.
        """
        while (left := self._not_before - time.monotonic()) > 0:
            if waited_seconds + left > self._longest_seconds:
                raise StorageFault(
                    f"the web server answers {self._said} and asks to wait, as a whole longer than "
                    f"{self._longest_seconds:.0f} s"
                )
            # A little is added to what was asked, or all that were put off together would return together.
            left += jitter_seconds(1)
            self.pause(left)
            waited_seconds += left
        return waited_seconds

    def pause(self, seconds: float) -> None:
        """Wait before another try.

        Raises:
            StorageFault: the source was closed meanwhile.
        """
        if self._closed.wait(seconds):
            raise StorageFault("the source was closed while the web server was waited for")

    def end(self) -> None:
        """Let nobody wait any more."""
        self._closed.set()


class Fetcher:
    """The connections to one source's server, and to where it may redirect. May be used by several threads at once.

    Args:
        url: of the source, admitted already.
        allowance: where the server may lead to.
        answer_seconds: how long one answer may take as a whole.
        patience_seconds: how long a request is tried again, without the time that the server asked to wait for.
        wait_seconds: how long it is waited for where the server asks for that, by each request and in all.

    Raises:
        SourceDenied: the file of logins cannot be used.
    """

    def __init__(
        self, url: str, allowance: Allowance, answer_seconds: float, patience_seconds: float, wait_seconds: float
    ) -> None:
        self._url = url
        self._place = place_of(url)
        self._allowance = allowance
        self._patience_seconds = patience_seconds
        self._turn = _Turn(wait_seconds)
        try:
            self._login = login_of(urlsplit(url).hostname or "")
        except Denied as error:
            raise SourceDenied(str(error)) from None
        self._http = httpx.Client(
            transport=GuardedTransport(allowance.names, answer_seconds),
            headers=HEADERS,
            timeout=TIMEOUT,
            # None are kept: a server could send new ones for ever.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def close(self) -> None:
        """Close the connections, and end all waiting."""
        self._turn.end()
        self._http.close()

    def fetch(self, url: str, use: Callable[[httpx.Response], T], headers: dict[str, str] | None = None) -> T:
        """Ask for a URL and make something of the answer; again where that may help.

        Raises:
            StorageFault: it was of no use, as long as there was patience.
            SourceError: others that `use` raises, at once.
        """
        waited_seconds = 0.0

        def is_out_of_patience(state: tenacity.RetryCallState) -> bool:
            spent = (state.seconds_since_start or 0) - waited_seconds
            return spent + state.upcoming_sleep >= self._patience_seconds

        def try_in_turn() -> T:
            nonlocal waited_seconds
            waited_seconds = self._turn.wait(waited_seconds)
            return self._try_once(url, use, headers or {})

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            wait=lambda state: jitter_seconds(state.attempt_number),
            stop=is_out_of_patience,
            sleep=self._turn.pause,
            reraise=True,
        )
        try:
            return retrying(try_in_turn)
        except _Transient as transient:
            raise StorageFault(f"{shown(url)} cannot be read: {transient}") from transient.__cause__

    def content(self, answer: httpx.Response) -> Iterator[bytes]:
        """The body in pieces, decompressed where it was compressed unasked."""
        coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise StorageFault(
                f"the web server sends {shown(str(answer.url))} in the coding {coding[:20]!r}, which was not asked for"
            )
        inflate = zlib.decompressobj(wbits=31) if "gzip" in coding else None
        for data in answer.iter_raw():
            yield from [data] if inflate is None else _inflated(inflate, data)
        if inflate is not None and not inflate.eof:
            raise _Transient("the compressed answer ends too early")

    def _try_once(self, url: str, use: Callable[[httpx.Response], T], headers: dict[str, str]) -> T:
        try:
            with self._answer(url, headers) as answer:
                status = answer.status_code
                if status in (408, 429) or status >= 500:
                    if asked := retry_after_seconds(answer.headers):
                        self._turn.put_off(asked, f"HTTP {status}")
                    raise _Transient(f"HTTP {status}")
                return use(answer)
        except httpx.TransportError as error:
            raise _Transient(why(error)) from error

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer to a request, after redirects to where this worker may read."""
        place = self._place
        for _ in range(MAX_REDIRECTS + 1):
            # The login is for the source's own host.
            login = self._login if place.origin == self._place.origin else None
            request = self._http.build_request("GET", url, headers=headers)
            with closing(self._http.send(request, stream=True, auth=login)) as answer:
                if answer.next_request is None:
                    yield answer
                    return
                url = str(answer.next_request.url)
                place = self._judge_redirect(url)
        raise StorageFault(f"{shown(url)} was redirected to more than {MAX_REDIRECTS} times in a row")

    def _judge_redirect(self, url: str) -> Place:
        try:
            place = place_of(url)
        except ValueError as error:
            raise SourceNotAllowed(f"the web server redirects to an address that is not followed: {error}") from None
        if not self._allowance.permits(place):
            raise SourceNotAllowed(
                f"the web server redirects to {shown(url)}, where this worker may not read; make that the project's "
                f"source, or list it in {SETTING} beside {self._url}"
            )
        return place


def _inflated(inflate: Any, data: bytes) -> Iterator[bytes]:
    try:
        while piece := inflate.decompress(data, INFLATED_BYTES):
            yield piece
            data = inflate.unconsumed_tail
    except zlib.error as error:
        raise _Transient(f"the compressed answer is damaged: {error}") from None


def shown(url: str) -> str:
    """A URL for people: without a query or a login, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
