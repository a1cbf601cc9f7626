"""What the endpoints share: the running service's parts, the caller and its role, and the paging."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Response, Security
from fastapi.security.http import HTTPBase

from job_api import schemas
from job_api.auth import Authenticator, Principal
from job_api.db import Database
from job_api.errors import Forbidden
from job_api.queue import Pace
from job_api.results import Provenances
from job_api.schemas import MAX_INT8, MAX_PAGE_SIZE, Role
from job_api.settings import Settings


class Bell:
    """Wakes the claims that wait in this process when there may be something to claim."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake all that wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for the next ring, or for `seconds`."""
        event = self._event
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return


@dataclass
class Service:
    """The parts of a running service."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    pace: Pace
    bell: Bell = field(default_factory=Bell)
    provenances: Provenances = field(default_factory=Provenances)


def service(request: Request) -> Service:
    """The running service."""
    running: Service = request.app.state.service
    return running


ServiceDep = Annotated[Service, Depends(service)]

# Declared for the OpenAPI and /docs; the Authenticator alone judges what a request brings.
_BEARER = HTTPBase(
    scheme="bearer",
    scheme_name="token",
    description="A token, from POST /v4/token or an administrator.",
    auto_error=False,
)
_BASIC = HTTPBase(scheme="basic", scheme_name="login", description="A user's name and password.", auto_error=False)


async def caller(
    request: Request,
    running: ServiceDep,
    _bearer: Annotated[Any, Security(_BEARER)],
    _basic: Annotated[Any, Security(_BASIC)],
) -> Principal:
    """Who calls; refuses a caller that is bound to another project than the path's."""
    return await caller_of(request, running)


async def caller_of(request: Request, running: Service) -> Principal:
    """Who calls, asked again: the answer changes when a token is revoked."""
    host = request.client.host if request.client else ""
    principal = await running.authenticator.authenticate(request.headers.get("Authorization"), host)
    project = request.path_params.get("project")
    if project is not None:
        principal.require_project(project)
    return principal


CallerDep = Annotated[Principal, Depends(caller)]


def _needs(role: Role, *, unbound: bool) -> Callable[[Principal], Awaitable[None]]:
    async def check(principal: CallerDep) -> None:
        principal.require(role)
        if unbound and principal.project is not None:
            raise Forbidden(f"{principal.name} is bound to the project {principal.project} and this concerns them all")

    return check


ProblemAnswer = {"model": schemas.Problem, "content": {"application/problem+json": {}}}
_DESCRIPTIONS = {
    404: "There is no such thing",
    409: "The state of things does not allow it; `type` says why",
    413: "The body is too large",
}
_ANYWHERE: dict[int | str, dict[str, Any]] = {
    401: {"description": "Not logged in", **ProblemAnswer},
    403: {"description": "Not allowed", **ProblemAnswer},
    413: {"description": _DESCRIPTIONS[413], **ProblemAnswer},
    422: {"description": "The request makes no sense", **ProblemAnswer},
    429: {"description": "Too many failed logins", **ProblemAnswer},
    503: {"description": "The database is away; try again", **ProblemAnswer},
}


def route(role: Role | None, *also: int, unbound: bool = False, **options: Any) -> dict[str, Any]:
    """The options of an endpoint: who may call it, and which refusals beside the usual ones it knows.

    Args:
        role: the role a caller needs; None for any role.
        also: further HTTP statuses of refusals.
        unbound: whether a caller bound to one project is refused.
        options: further options of the endpoint.
    """
    check = Depends(caller) if role is None else Depends(_needs(role, unbound=unbound))
    refusals = {status: {"description": _DESCRIPTIONS[status], **ProblemAnswer} for status in also}
    return {
        "dependencies": [check],
        "openapi_extra": {"x-role": str(role or "any"), "x-unbound": unbound},
        "responses": {**_ANYWHERE, **refusals, **options.pop("responses", {})},
        **options,
    }


# The shape of a name in a path is not checked: what is not there is not found.
ProjectPath = Annotated[str, Path(description="name of the project", max_length=64)]
JobPath = Annotated[int, Path(description="id of the job", ge=1, le=MAX_INT8)]
WorkerPath = Annotated[schemas.WorkerId, Path(description="id of the worker process")]
LimitQuery = Annotated[int, Query(description="page size", ge=1, le=MAX_PAGE_SIZE)]
AfterIdQuery = Annotated[int, Query(description="continue after this id", ge=0, le=MAX_INT8)]
AfterNameQuery = Annotated[str, Query(description="continue after this name", max_length=2000, pattern="^[^\\x00]*$")]


def link_next(request: Request, response: Response, items: Sequence[Any], limit: int, **after: Any) -> None:
    """Say where the next page lies, when this one is full."""
    if len(items) == limit:
        url = request.url.include_query_params(**after)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
