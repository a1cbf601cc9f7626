"""Endpoints about users and tokens."""

from typing import Annotated

from fastapi import Path, Request, Response

from job_api import auth
from job_api.errors import Forbidden
from job_api.routes.context import (
    AfterIdQuery,
    AfterNameQuery,
    CallerDep,
    LimitQuery,
    ServiceDep,
    door,
    link_next,
    route,
)
from job_api.schemas import MAX_INT8, IssuedToken, Name, NewToken, NewUser, Page, Role, Token, User

router = door("/v4", "users and tokens")


@router.post("/token", **route(None))
async def token_from_login(running: ServiceDep, principal: CallerDep, wanted: NewToken) -> IssuedToken:
    """Turn a login into a token: with the same role, or a lesser one, or for a worker of a project one may submit to.

    Needs a user's name and password; a token cannot make tokens here.
    """
    if principal.token_id is not None:
        raise Forbidden("a token cannot make another token; use a user's name and password")
    # A worker's token made by somebody else than a worker outlives the session: it ends by itself or is revoked.
    tied = wanted.role is not Role.WORKER or principal.role is Role.WORKER
    return await running.authenticator.issue(principal, wanted, tied=tied)


@router.get("/tokens", **route(Role.SUBMIT))
async def list_tokens(
    request: Request,
    response: Response,
    running: ServiceDep,
    principal: CallerDep,
    after: AfterIdQuery = 0,
    limit: LimitQuery = 100,
) -> Page[Token]:
    """Tokens in force, without their secrets: all for an administrator, else those of workers in one's projects."""
    async with running.database.connection() as connection:
        items = await auth.tokens(connection, principal, after, limit)
    link_next(request, response, items, limit, after=items[-1].id if items else 0)
    return Page(items=items)


@router.post("/tokens", status_code=201, **route(Role.SUBMIT))
async def new_token(running: ServiceDep, principal: CallerDep, wanted: NewToken) -> IssuedToken:
    """Make a token: of any role as an administrator, else for a worker of a project one may submit to.

    It shows its secret this once; without an expiry it lasts until it is revoked.
    """
    if wanted.role is not Role.WORKER and not principal.rules_tokens:
        raise Forbidden(
            f"{principal.name} may only make tokens of the role worker here; others are made by an administrator"
        )
    return await running.authenticator.issue(principal, wanted, tied=False)


@router.delete("/tokens/{token_id}", status_code=204, **route(Role.SUBMIT, 404))
async def revoke_token(
    running: ServiceDep, principal: CallerDep, token_id: Annotated[int, Path(ge=1, le=MAX_INT8)]
) -> None:
    """Revoke a token: any as an administrator, else one that the list shows.

    Other API processes may honour it for 5 seconds more.
    """
    await running.authenticator.revoke(principal, token_id)


@router.get("/users", **route(Role.ADMIN, unbound=True))
async def list_users(
    request: Request, response: Response, running: ServiceDep, after: AfterNameQuery = "", limit: LimitQuery = 100
) -> Page[User]:
    """All users."""
    async with running.database.connection() as connection:
        items = await auth.users(connection, after, limit)
    link_next(request, response, items, limit, after=items[-1].name if items else "")
    return Page(items=items)


@router.put("/users/{name}", **route(Role.ADMIN, unbound=True))
async def put_user(running: ServiceDep, name: Name, user: NewUser) -> User:
    """Create a user, or give an existing one a new password and role; its tokens are revoked."""
    return await running.authenticator.put_user(name, user)


@router.delete("/users/{name}", status_code=204, **route(Role.ADMIN, 404, unbound=True))
async def delete_user(running: ServiceDep, principal: CallerDep, name: Name) -> None:
    """Delete a user and its tokens; not oneself."""
    await running.authenticator.delete_user(principal, name)
