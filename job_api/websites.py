"""The directories that a web server shows at a place: what `add_jobs.py --list https://…` adds.

The place was typed by whoever runs the command, with their own rights and logins, so it is followed to wherever it
leads; what a worker reads because a project says so is judged by uworker's own `sources`.
"""

import netrc
import os
from collections.abc import Iterator
from functools import cached_property

import httpx
import tenacity

from job_api.faults import Denied, NotThere, Unavailable
from job_api.indexes import BadIndex, IndexPage, TooMuch, index_page
from job_api.locations import BadLocation, Location
from job_api.sending import jitter_seconds, retry_after_seconds, why
from job_api.stores import Listing, StoredObject

TIMEOUT = httpx.Timeout(30, connect=10)
HEADERS = {"User-Agent": "decimer-jobs", "Accept": "text/html, application/json;q=0.9, */*;q=0.1"}
MAX_INDEX_BYTES = 250_000_000
MAX_ENTRIES = 1_500_000


class _Transient(Exception):
    """A failure worth another try; says which, and how long the server asks to wait."""

    def __init__(self, said: str, wait_seconds: float = 0) -> None:
        super().__init__(said)
        self.wait_seconds = wait_seconds


class WebListing(Listing):
    """See `Listing`. One page is read, once: the index of the place itself.

    Args:
        location: of a web server that shows directory indexes.
        patience_seconds: for how long what fails is tried again.
    """

    def __init__(self, location: Location, patience_seconds: float) -> None:
        super().__init__(location)
        self._patience_seconds = patience_seconds
        self._login = login_of(httpx.URL(location.url).host)

    def directories(self) -> list[str]:
        """See `Listing`."""
        return [name.rstrip("/") for name in self._names if name.endswith("/")]

    def objects(self, directory: str) -> Iterator[StoredObject]:
        """The files that lie directly at the place; of a web server nothing else is listed here."""
        if directory:
            raise BadLocation(f"{self.location}/{directory} is on a web server, which workers alone list")
        # Sizes are not asked for.
        return (StoredObject(name, 0) for name in self._names if not name.endswith("/"))

    @cached_property
    def _names(self) -> list[str]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            wait=_wait_seconds,
            stop=tenacity.stop_before_delay(self._patience_seconds),
            reraise=True,
        )
        try:
            return retrying(self._ask)
        except _Transient as error:
            raise Unavailable(f"{self.location} cannot be read: {error}") from None

    def _ask(self) -> list[str]:
        try:
            with (
                httpx.Client(auth=self._login, follow_redirects=True, timeout=TIMEOUT, headers=HEADERS) as client,
                client.stream("GET", self.location.url + "/") as answer,
            ):
                self._require_shown(answer)
                return self._read(answer)
        except httpx.TransportError as error:
            raise _Transient(why(error)) from error
        except (httpx.TooManyRedirects, httpx.DecodingError, httpx.InvalidURL) as error:
            raise Unavailable(f"{self.location} cannot be read: {type(error).__name__}") from None

    def _require_shown(self, answer: httpx.Response) -> None:
        status = answer.status_code
        if status in (408, 429) or status >= 500:
            raise _Transient(f"HTTP {status}", retry_after_seconds(answer.headers) or 0)
        if status in (401, 403):
            raise Denied(
                f"the web server does not show {self.location} (HTTP {status}): put a login for its host into "
                "~/.netrc, or let the server show directory indexes"
            )
        if status in (404, 410):
            raise NotThere(
                f"the web server has nothing at {self.location} (HTTP {status}); is it spelled as it should be?"
            )
        if status != 200:
            raise Unavailable(f"the web server answers HTTP {status} for {self.location}")

    def _read(self, answer: httpx.Response) -> list[str]:
        try:
            page = index_page(answer, max_entries=MAX_ENTRIES)
            for data in answer.iter_bytes():
                page.feed(data)
                _require_bound(page)
            return page.listing().names
        except BadIndex as error:
            raise BadLocation(
                f"what the web server shows at {self.location} is no index of files ({error}); let it show directory "
                "indexes (nginx: autoindex on; Apache: Options +Indexes), or give the directories by --jobs-file"
            ) from None
        except TooMuch:
            raise BadLocation(
                f"the index at {self.location} lists more than {MAX_ENTRIES} names, or has more than {MAX_INDEX_BYTES} "
                "bytes; give the directories by --jobs-file"
            ) from None


def _require_bound(page: IndexPage) -> None:
    if page.size > MAX_INDEX_BYTES:
        raise TooMuch


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return jitter_seconds(state.attempt_number) + getattr(error, "wait_seconds", 0.0)


def login_of(host: str) -> httpx.BasicAuth | None:
    """The login for a host in ~/.netrc, or in the file that NETRC names; its `default` would go to any host.

    Raises:
        Denied: that file cannot be used; says nothing of what is in it.
    """
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or None).hosts
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError, netrc.NetrcParseError) as error:
        # What it says of a broken line may be a password.
        line = f", line {error.lineno}" if isinstance(error, netrc.NetrcParseError) and error.lineno else ""
        raise Denied(f"the file of logins (~/.netrc) cannot be read{line}: {type(error).__name__}") from None
    found = logins.get(host) if host != "default" else None
    return httpx.BasicAuth(found[0], found[2]) if found is not None and found[2] else None
