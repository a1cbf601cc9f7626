"""The application: puts the parts together, and turns every failure into a problem document (RFC 9457)."""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from job_api import metrics
from job_api.auth import Authenticator
from job_api.claiming import Claims
from job_api.db import Database
from job_api.errors import JobApiError, TooLarge
from job_api.janitor import tidy_for_ever
from job_api.notices import listen_for_ever
from job_api.queue import Pace
from job_api.routes import chemistry, exports, fleet, jobs, leases, people, projects, reviews, system
from job_api.routes.context import SECURITY_SCHEMES, Service
from job_api.schemas import PROBLEM_TYPE_PREFIX, ExportFormat, NewUser, Problem, ProblemType, Role
from job_api.settings import Settings, StartupError
from job_api.sweeper import sweep_for_ever
from job_api.version import VERSION

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
PASSWORD_FILE = "admin-password"  # noqa: S105 - a file's name
ADMIN = "admin"
ANY_USER = "SELECT EXISTS (SELECT 1 FROM users)"
# Two keys, not one: the locks of one key are those of the writers of results.
LOCK_FIRST_ADMIN = "SELECT pg_advisory_xact_lock(hashtext('decimer-jobs'), hashtext('first admin'))"

# The errors that the framework finds.
KINDS = {
    404: ProblemType.NOT_FOUND,
    405: ProblemType.METHOD_NOT_ALLOWED,
    413: ProblemType.TOO_LARGE,
    422: ProblemType.INVALID_REQUEST,
}

# Compressed in themselves.
COMPRESSED_CONTENT_TYPES = (
    *DEFAULT_EXCLUDED_CONTENT_TYPES,
    *(exports.CONTENT_TYPES[export_format] for export_format in (ExportFormat.PARQUET, ExportFormat.XLSX)),
)

DESCRIPTION = """
A job service that turns directories of chemical-structure images into SMILES. People add directories to a project and
download results; workers claim jobs, hold them by heartbeats, and post results.

Every error is an RFC 9457 problem document whose `type` is `urn:decimer-jobs:` and a word that stays the same. Lists
are pages; follow `Link: rel=next`. `x-role` names the role an endpoint needs.
"""


def create_app(settings: Settings, *, alone: bool = True) -> FastAPI:
    """The application of one process; opens the database when it starts.

    Args:
        settings: of the service.
        alone: whether this process has no siblings below a parent that has looked at the database for all of them.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings, alone=alone)
        try:
            try:
                await database.open()
                authenticator = Authenticator(database, settings.token_seconds)
                await make_first_admin(database, authenticator, settings.data_dir)
            except (StartupError, JobApiError) as error:
                # The server only knows that it could not start; the command says why, in a sentence, no traceback.
                app.state.startup_error = error
                raise
            pace = Pace(settings.lease_seconds, settings.backoff_seconds)
            running = Service(settings, database, authenticator, pace, Claims(database, pace))
            app.state.service = running
            chores = [
                asyncio.create_task(sweep_for_ever(database, settings)),
                asyncio.create_task(listen_for_ever(database, running.queued, running.look)),
                asyncio.create_task(tidy_for_ever(database, settings)),
            ]
            try:
                yield
            finally:
                for chore in chores:
                    chore.cancel()
                await asyncio.gather(*chores, return_exceptions=True)
        finally:
            await database.close()

    # FastAPI's own page loads its scripts from a host that a closed network does not reach.
    app = FastAPIOffline(
        title="decimer-jobs",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        docs_url="/docs",
        # Nobody listens to it, and each request would pay for it; /metrics says what is to be known.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    # Fixed paths come before those that begin with a project's name, and the most wanted ones before all.
    for module in (leases, system, people, fleet, projects, jobs, exports, reviews, chemistry):
        app.include_router(module.router)
    app.add_middleware(
        CompressWhatIsRead, minimum_size=10_000, compresslevel=5, exclude_content_types=COMPRESSED_CONTENT_TYPES
    )
    app.add_middleware(Watch, max_body_bytes=settings.max_body_bytes)
    app.add_exception_handler(JobApiError, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crash)
    app.openapi = partial(_openapi, app, app.openapi)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document; FastAPI files the model of an error under the route's own media type."""
    if app.openapi_schema is None:
        document = build()
        document["components"]["securitySchemes"] = SECURITY_SCHEMES
        for path in document["paths"].values():
            for operation in path.values():
                for response in operation["responses"].values():
                    if PROBLEM_JSON in response.get("content", {}):
                        response["content"] = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return app.openapi_schema or {}


async def make_first_admin(database: Database, authenticator: Authenticator, data_dir: Path) -> None:
    """Make the administrator of an empty database, with a random password in a file that only the owner may read.

    Of several processes that start on one empty database, on this machine or others, one makes it.
    """
    async with database.connection() as connection:
        if await connection.fetchval(ANY_USER):
            return
    # Held while the user is made by another connection; the others wait here, and then find it.
    async with database.transaction() as connection:
        await connection.execute(LOCK_FIRST_ADMIN)
        if not await connection.fetchval(ANY_USER):
            path = await reset_admin(authenticator, data_dir)
            log.warning("made the user %r; its password is in %s", ADMIN, path)


async def reset_admin(authenticator: Authenticator, data_dir: Path) -> Path:
    """Give the administrator, who is made if there is none, a new random password; returns the file it is in."""
    password = secrets.token_urlsafe(18)
    path = await asyncio.to_thread(_write_password, data_dir, password)
    await authenticator.put_user(ADMIN, NewUser(password=password, role=Role.ADMIN))
    return path


def _write_password(data_dir: Path, password: str) -> Path:
    path = data_dir.expanduser().resolve() / PASSWORD_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password + "\n")
    except OSError as error:
        raise StartupError(f"the first password cannot be written to {path}: {error}; set JOB_API_DATA_DIR") from error
    return path


class CompressWhatIsRead(GZipMiddleware):
    """Compresses answers to those who read; what workers get is short, and each of their calls would pay for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["method"] != "GET":
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Watch:
    """Times every request, and refuses a body that is larger than allowed, also one that does not say its size."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if length.isdigit() and int(length) > self._max_body_bytes:
                await _problem_of(self._too_large())(scope, receive, note_status)
            else:
                await self._app(scope, self._limited(receive), note_status)
        finally:
            path = getattr(scope.get("route"), "path", "none")
            metrics.REQUESTS.labels(scope["method"], path, str(status)).observe(time.perf_counter() - began)

    def _limited(self, receive: Receive) -> Callable[[], Awaitable[Message]]:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                # Within the reading of a body FastAPI lets an HTTPException alone pass.
                raise HTTPException(413, str(self._too_large()))
            return message

        return limited

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_body_bytes} bytes; send it in parts")


def _problem(
    status: int,
    problem_type: ProblemType,
    title: str,
    detail: str,
    *,
    errors: list[dict[str, Any]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(type=PROBLEM_TYPE_PREFIX + problem_type, title=title, status=status, detail=detail, errors=errors)
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers=headers, media_type=PROBLEM_JSON)


def _problem_of(error: JobApiError) -> JSONResponse:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = f"{error.retry_after_seconds:.0f}"
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="decimer-jobs", charset="UTF-8"'
    return _problem(error.status, error.problem_type, error.title, str(error), headers=headers)


async def _refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, JobApiError)  # noqa: S101 - registered for it alone
    if error.status == 503:
        log.warning("%s", error)
    return _problem_of(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    # Never the input: it may be a password.
    errors = [{"loc": [str(part) for part in e["loc"]], "msg": e["msg"]} for e in error.errors()]
    detail = "; ".join(".".join(e["loc"]) + ": " + e["msg"] for e in errors[:5])
    return _problem(422, ProblemType.INVALID_REQUEST, "Invalid request", detail, errors=errors[:100])


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    # FastAPI's 400 is a body that cannot be read: the same mistake as JSON that cannot be parsed.
    status = 422 if error.status_code == 400 else error.status_code
    kind = KINDS.get(status, ProblemType.INTERNAL)
    title = kind.replace("-", " ").capitalize()
    return _problem(status, kind, title, str(error.detail), headers=dict(error.headers or {}))


async def _crash(request: Request, _error: Exception) -> JSONResponse:
    # The server logs the traceback.
    return _problem(
        500, ProblemType.INTERNAL, "Internal error", f"{request.method} {request.url.path} failed; the log says why"
    )
