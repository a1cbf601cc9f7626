"""Sends the client's requests: tries again where that may help, keeps the token, names the errors.

Owns every decision about what is retried and how long, and the exceptions that callers see. Knows nothing of what
the calls mean.
"""

import json
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import tenacity
from pydantic import BaseModel, ValidationError

from job_api import schemas
from job_api.schemas import PROBLEM_TYPE_PREFIX, ProblemType
from job_api.text import mistake

RETRIED_STATUS = frozenset({429, 502, 503, 504})
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
TELL_SECONDS = 30.0

Model = TypeVar("Model", bound=BaseModel)


class ClientError(Exception):
    """Root of everything this client raises."""


class Unreachable(ClientError):
    """The service could not be reached, or not usefully, although it was tried again and again."""


class ApiError(ClientError):
    """The service answered with an error document."""

    def __init__(self, status: int, problem_type: str, detail: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.problem_type = problem_type
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.detail} (HTTP {self.status} {self.problem_type})"


class NotFound(ApiError):
    """There is no such project, job, worker, user or token."""


class Refused(ApiError):
    """The login or token is missing, wrong, revoked, expired, or may not do this."""


class LeaseLost(ApiError):
    """The lease is no longer held: another worker, a person or the clock took the job."""


class ResultsMissing(ApiError):
    """The job cannot be completed: fewer rows are stored than images were listed."""


class WorkerStopped(ApiError):
    """The worker was drained, quarantined or has said goodbye: it must not claim any more."""


_BY_TYPE: Mapping[str, type[ApiError]] = {
    ProblemType.NOT_FOUND: NotFound,
    ProblemType.UNAUTHENTICATED: Refused,
    ProblemType.FORBIDDEN: Refused,
    ProblemType.WORKER_ID_TAKEN: Refused,
    ProblemType.LEASE_LOST: LeaseLost,
    ProblemType.RESULTS_MISSING: ResultsMissing,
    ProblemType.WORKER_GONE: WorkerStopped,
    ProblemType.WORKER_STOPPED: WorkerStopped,
}


class _Transient(Exception):
    """A failure worth another try."""

    def __init__(self, cause: ApiError | httpx.RequestError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def jitter_seconds(failures: int) -> float:
    """Full jitter below a ceiling that doubles with each failure."""
    ceiling = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(failures, 20))
    return random.uniform(0, ceiling)  # noqa: S311 - jitter, not a secret


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    """Full jitter, after what the service asked for."""
    wait = jitter_seconds(state.attempt_number)
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(getattr(error, "cause", None), "retry_after_seconds", None)
    # A little is added to what was asked, or all that were refused together would return together.
    return asked + wait if asked is not None else wait


class Sender:
    """The connections to one service, with the login; arguments and errors as of `Client`."""

    def __init__(
        self,
        root: str,
        *,
        username: str | None,
        password: str | None,
        token: str | None,
        retry_seconds: float,
        timeout_seconds: float,
        stop: threading.Event,
        transport: httpx.BaseTransport | None,
        on_retry: Callable[[str], object] | None,
    ) -> None:
        _check_root(root)
        if token is None and (username is None) != (password is None):
            raise ValueError("a username needs a password, and a password a username")
        # Sent as a header: what cannot stand in one would be shown in the error.
        if token is not None and re.fullmatch(r"[!-~]+", token) is None:
            raise ValueError("the token holds a space or another character that no token has; was it copied whole?")
        self.root = root.rstrip("/").removesuffix("/v4")
        self.retry_seconds = retry_seconds
        self._timeout_seconds = timeout_seconds
        self._login = (username, password) if username is not None and password is not None else None
        self._token = token
        self._token_is_ours = token is None
        self._token_lock = threading.Lock()
        self._stop = stop
        self._on_retry = on_retry
        self._told_at = -math.inf
        self._http = httpx.Client(
            base_url=self.root, timeout=timeout_seconds, transport=transport, headers={"User-Agent": "decimer-jobs"}
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def below_root(self, link: str) -> str:
        """A link's path and query without the prefix that a proxy may serve the service under."""
        prefix = self._http.base_url.path.rstrip("/")
        return httpx.URL(link).raw_path.decode().removeprefix(prefix)

    def send(
        self,
        method: str,
        path: str,
        body: BaseModel | Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        extra_seconds: float = 0,
        stream: bool = False,
        repeatable: bool = True,
    ) -> httpx.Response:
        """Send one request, again where that may help.

        Args:
            method: HTTP method.
            path: of the URL.
            body: sent as JSON.
            params: of the query; those that are None are left out.
            extra_seconds: how much longer than usual the answer may take.
            stream: whether the caller reads the body bit by bit.
            repeatable: whether doing it twice is the same as doing it once; if not, it is only sent again while it
                is certain that it did not arrive.

        Raises:
            Unreachable: no useful answer came within `retry_seconds`.
            ApiError: the service refused.
        """
        content = body.model_dump_json(exclude_none=True) if isinstance(body, BaseModel) else json.dumps(body)

        def build() -> httpx.Request:
            return self._http.build_request(
                method,
                path,
                params={key: value for key, value in (params or {}).items() if value is not None} or None,
                content=content if body is not None else None,
                headers={"Content-Type": "application/json"} if body is not None else None,
                timeout=httpx.Timeout(self._timeout_seconds, read=self._timeout_seconds + extra_seconds),
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            wait=_wait_seconds,
            # Before the delay, not after: a `Retry-After` of an hour is not waited for by who has a minute.
            stop=tenacity.stop_any(
                tenacity.stop_before_delay(self.retry_seconds), tenacity.stop_when_event_set(self._stop)
            ),
            before_sleep=self._tell_retry,
            sleep=self.pause,
            reraise=True,
        )
        try:
            answer: httpx.Response = retrying(self._try_once, build, stream, repeatable)
        except _Transient as transient:
            cause = transient.cause
            if isinstance(cause, ApiError) and cause.status == 429:
                raise cause from None
            raise Unreachable(f"the job service at {self.root} cannot be reached: {why(cause)}") from cause
        else:
            return answer

    def tell_retry(self, cause: Exception) -> None:
        """Tell whoever waits why it takes so long, and not at every try."""
        now = time.monotonic()
        if self._on_retry is not None and now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self._on_retry(
                f"the job service at {self.root}: {why(cause)}; trying again, for {self.retry_seconds:g} s in all"
            )

    def _tell_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Transient):
            self.tell_retry(error.cause)

    def pause(self, seconds: float) -> None:
        """Wait before another try.

        Raises:
            Unreachable: the program was told to stop meanwhile.
        """
        if self._stop.wait(seconds):
            raise Unreachable(f"the job service at {self.root} was not reached before this program was told to stop")

    def _try_once(self, build: Callable[[], httpx.Request], stream: bool, repeatable: bool) -> httpx.Response:
        token = self._current_token()
        try:
            answer = self._exchange(build(), token, stream)
        except _Transient as transient:
            if repeatable or isinstance(transient.cause, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            raise self._in_doubt(transient.cause) from transient
        if answer.status_code == 401 and self._login and self._token_is_ours:
            self._forget(token)
            answer = self._exchange(build(), self._current_token(), stream)
        if answer.is_success:
            return answer
        error = _as_error(answer)
        if answer.status_code in RETRIED_STATUS:
            # A proxy answers 502 and 504 also when the service behind it has done what it was asked for.
            if not repeatable and answer.status_code in (502, 504):
                raise self._in_doubt(error)
            raise _Transient(error)
        raise error

    def _in_doubt(self, cause: Exception) -> Unreachable:
        return Unreachable(
            f"the answer of {self.root} did not arrive ({why(cause)}); look whether it was done before you try again"
        )

    def _exchange(self, request: httpx.Request, token: str | None, stream: bool) -> httpx.Response:
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        try:
            answer = self._http.send(request, stream=stream)
            if stream and not answer.is_success:
                with closing(answer):
                    answer.read()
        except httpx.RequestError as error:
            raise _Transient(error) from error
        return answer

    def _current_token(self) -> str | None:
        if self._token is not None or self._login is None:
            return self._token
        with self._token_lock:
            if self._token is None:
                try:
                    answer = self._http.post("/v4/token", auth=self._login, json={})
                except httpx.RequestError as error:
                    raise _Transient(error) from error
                if answer.status_code in RETRIED_STATUS:
                    raise _Transient(_as_error(answer))
                if not answer.is_success:
                    raise _as_error(answer)
                self._token = parse(schemas.IssuedToken, answer).token
            return self._token

    def _forget(self, token: str | None) -> None:
        with self._token_lock:
            if self._token == token:
                self._token = None


def _check_root(root: str) -> None:
    """Refuse an address that cannot be one; a login in it would end up in logs."""
    if "@" in root:
        raise ValueError("do not put a login into the address of the job service; give it as username and password")
    try:
        address = urlsplit(root)
        _ = address.port, httpx.URL(root)
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError(f"{root!r} is no address of a job service: {error}") from None
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"the address of the job service must begin with http:// or https://, not {root!r}")
    if address.query or address.fragment:
        raise ValueError(f"the address of the job service ends before any ? or #, not as {root!r} does")


def why(error: Exception) -> str:
    """What an exception says, or its name where it says nothing."""
    return str(error) or type(error).__name__


def parse(model: type[Model], answer: httpx.Response) -> Model:
    """Read an answer's document.

    Raises:
        ClientError: it is another one.
    """
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        # Not chained: pydantic shows the input, and the input may hold a token.
        raise ClientError(
            f"{answer.request.url} did not answer as a decimer-jobs service does; is the address right? "
            f"({mistake(error)})"
        ) from None


def _as_error(answer: httpx.Response) -> ApiError:
    """The exception for an error answer, also when it came from a proxy and is no problem document."""
    try:
        problem = schemas.Problem.model_validate_json(answer.content)
    except ValidationError:
        said = f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}".rstrip()
        if answer.has_redirect_location:
            said += f", a redirect to {answer.headers['Location']}; is the address right?"
        else:
            said += " without an error document, as a proxy or another service would"
        problem = schemas.Problem(type="about:blank", title="", status=answer.status_code, detail=said)
    kind = problem.type.removeprefix(PROBLEM_TYPE_PREFIX)
    return _BY_TYPE.get(kind, ApiError)(answer.status_code, kind, problem.detail, retry_after_seconds(answer.headers))


def retry_after_seconds(headers: httpx.Headers) -> float | None:
    """What `Retry-After` asks for, as seconds or as a date; a date is compared with the answer's own, not our clock."""
    asked = headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - parsedate_to_datetime(headers.get("Date", ""))).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
