"""What the endpoints share: the running service's parts, the caller and its role, and the paging."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from job_api import schemas
from job_api.auth import Authenticator, Principal
from job_api.claiming import Claims
from job_api.db import Database
from job_api.encoding import Encoders
from job_api.errors import Forbidden
from job_api.export import Exports
from job_api.failures import Groups
from job_api.queue import Pace
from job_api.results import Provenances
from job_api.schemas import MAX_INT8, MAX_PAGE_SIZE, Role
from job_api.settings import Settings
from job_api.waiting import LANES, WaitingRoom


@dataclass
class Service:
    """The parts of a running service."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    pace: Pace
    claims: Claims
    room: WaitingRoom = field(default_factory=WaitingRoom)
    provenances: Provenances = field(default_factory=Provenances)
    exports: Exports = field(default_factory=Exports)
    encoders: Encoders = field(default_factory=Encoders)
    failures: Groups = field(default_factory=Groups)

    def queued(self, project: str, jobs: int, priority: int | None) -> None:
        """Let waiting claims of this process look: some API process said that jobs of a project were queued."""
        self.claims.forget(project, priority)
        self.room.ring(project, jobs)

    async def look(self) -> None:
        """Let waiting claims look where jobs are queued whose notice was missed."""
        if len(self.room):
            for project in await self.claims.open_projects():
                self.room.ring(project, LANES)


async def service(request: Request) -> Service:
    """The running service."""
    running: Service = request.app.state.service
    return running


ServiceDep = Annotated[Service, Depends(service)]

# What a request may bring, for the OpenAPI and /docs; the Authenticator alone judges it. As dependencies, the
# framework's way to declare them, every request would pay for them.
SECURITY_SCHEMES = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token, from POST /v4/token or an administrator.",
    },
    "login": {"type": "http", "scheme": "basic", "description": "A user's name and password."},
}


async def caller_of(request: Request, running: Service) -> Principal:
    """Who calls, asked again: the answer changes when a token is revoked."""
    host = request.client.host if request.client else ""
    principal = await running.authenticator.authenticate(request.headers.get("Authorization"), host)
    project = request.path_params.get("project")
    if project is not None:
        principal.require_project(project)
    return principal


async def caller(request: Request) -> Principal:
    """Who calls, as `Door` found out."""
    principal: Principal = request.state.caller
    return principal


CallerDep = Annotated[Principal, Depends(caller)]


async def hung_up(request: Request) -> None:
    """Wait until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def while_on_the_line(request: Request) -> AsyncIterator[None]:
    """Cut short what is done in here when the client hangs up.

    Raises:
        ClientDisconnect: it did.
    """

    async def listen(done: asyncio.Timeout) -> None:
        await hung_up(request)
        done.reschedule(0)

    try:
        async with asyncio.timeout(None) as done:
            listening = asyncio.create_task(listen(done))
            try:
                yield
            finally:
                listening.cancel()
    except TimeoutError:
        if done.expired():
            raise ClientDisconnect from None
        raise


def at_work(request: Request) -> tuple[Service, Principal]:
    """The running service and the caller, for endpoints that are called thousands of times a second.

    As dependencies the two cost such a request a tenth of its time.
    """
    return request.app.state.service, request.state.caller


class Door(APIRoute):
    """An endpoint that lets in who may call it, before it looks at what was sent.

    Who that is stands in the OpenAPI document, `x-role` and `x-unbound`; an endpoint without a role is open to all.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the check."""
        handle = super().get_route_handler()
        wanted = self.openapi_extra or {}
        if "x-role" not in wanted:
            return handle
        role = None if wanted["x-role"] == ANY_ROLE else Role(wanted["x-role"])

        async def check(request: Request) -> Response:
            principal = await caller_of(request, request.app.state.service)
            if role is not None:
                principal.require(role)
            if wanted["x-unbound"] and principal.project is not None:
                raise Forbidden(
                    f"{principal.name} is bound to the project {principal.project} and this concerns them all"
                )
            request.state.caller = principal
            return await handle(request)

        return check


def door(prefix: str, tag: str) -> APIRouter:
    """A router whose endpoints check who calls."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=Door)


ANY_ROLE = "any"
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
    refusals = {status: {"description": _DESCRIPTIONS[status], **ProblemAnswer} for status in also}
    return {
        "openapi_extra": {
            "x-role": str(role or ANY_ROLE),
            "x-unbound": unbound,
            "security": [{name: []} for name in SECURITY_SCHEMES],
        },
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
