"""Who calls, and what they may do: users with passwords, opaque tokens, roles, and the binding of worker ids.

Passwords are hashed with argon2id, tokens (256 random bits) with SHA-256. No secret is logged or kept in clear.
"""

import asyncio
import base64
import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import argon2
from cachetools import LRUCache, TTLCache
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from job_api.db import Connection, Database
from job_api.errors import Forbidden, NotFound, TooManyRequests, Unauthenticated, WorkerIdTaken
from job_api.schemas import IssuedToken, NewToken, NewUser, Role, Token, User

TOKEN_PREFIX = "dj_"  # noqa: S105 - says what the string is, for secret scanners
# How long a revoked token may still be honoured by another process than the one that revoked it.
TOKEN_CACHE_SECONDS = 5.0
FAILED_LOGINS_PER_MINUTE = 10
# Over all names together: each try of any name costs a slow hash.
FAILED_LOGINS_OF_HOST_PER_MINUTE = 60
PARALLEL_HASHES = 2

# What each role may do, by the role an endpoint asks for. Worker stands apart.
GRANTS: dict[Role, frozenset[Role]] = {
    Role.ADMIN: frozenset({Role.ADMIN, Role.SUBMIT, Role.READ}),
    Role.SUBMIT: frozenset({Role.SUBMIT, Role.READ}),
    Role.READ: frozenset({Role.READ}),
    Role.WORKER: frozenset({Role.WORKER}),
}
# For which roles a login may make tokens: its own, lesser ones, and workers of projects it may submit to.
MAY_ISSUE: dict[Role, frozenset[Role]] = {
    Role.ADMIN: frozenset(Role),
    Role.SUBMIT: frozenset({Role.SUBMIT, Role.READ, Role.WORKER}),
    Role.READ: frozenset({Role.READ}),
    Role.WORKER: frozenset({Role.WORKER}),
}

USER = "SELECT id, name, password_hash, role, project FROM users WHERE name = $1"
USERS = "SELECT name, role, project, created_at FROM users WHERE name > $1 ORDER BY name LIMIT $2"
PUT_USER = """
INSERT INTO users (name, password_hash, role, project) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE SET password_hash = $2, role = $3, project = $4
RETURNING id, name, role, project, created_at
"""
DELETE_USER = "DELETE FROM users WHERE name = $1 RETURNING id"
# Two that take each other's administration at once must follow one another.
LOCK_USERS = "LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE"
ADMINS = "SELECT count(*) FROM users WHERE role = 'admin' AND project IS NULL"
REVOKE_TOKENS_OF_USER = "UPDATE tokens SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL"
FIND_BY_HASH = """
SELECT t.id, t.name, t.role, t.project, t.user_id, u.name AS username,
       extract(epoch FROM t.expires_at - now())::float8 AS seconds_left
FROM tokens t LEFT JOIN users u ON u.id = t.user_id
WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())
"""
ISSUE = """
INSERT INTO tokens (token_hash, name, role, project, user_id, expires_at)
VALUES ($1, $2, $3, $4, $5, now() + $6::interval)
RETURNING id, name, role, project, created_at, expires_at, revoked_at,
          (SELECT u.name FROM users u WHERE u.id = user_id) AS username
"""
# Which tokens a caller may see and revoke: all, or those of workers (no sessions of users) in the projects it may see.
_WITHIN_REACH = """
({all} OR (t.role = 'worker' AND t.user_id IS NULL AND ({project}::text IS NULL OR t.project = {project}::text)))
"""
TOKENS = f"""
SELECT t.id, t.name, t.role, t.project, u.name AS username, t.created_at, t.expires_at, t.revoked_at
FROM tokens t LEFT JOIN users u ON u.id = t.user_id
WHERE t.id > $1 AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())
  AND {_WITHIN_REACH.format(all="$3::boolean", project="$4")}
ORDER BY t.id LIMIT $2
"""  # noqa: S608 - as below
REVOKE_TOKEN = f"""
UPDATE tokens t SET revoked_at = coalesce(t.revoked_at, now())
WHERE t.id = $1 AND {_WITHIN_REACH.format(all="$2::boolean", project="$3")} RETURNING t.id
"""  # noqa: S608 - of constants
OWNER_OF_WORKER = "SELECT owner FROM workers WHERE id = $1"
PREDECESSOR = """
SELECT project, revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) AS in_force FROM tokens WHERE id = $1
"""


@dataclass(frozen=True)
class Principal:
    """A caller: its role, the one project it may see (None: all), and whom its worker ids belong to.

    Attributes:
        name: as refusals call it, such as "user 'ada'".
        signature: what it signs with: the user's name, also through a token, or that of a token that is nobody's.
    """

    name: str
    signature: str
    role: Role
    project: str | None
    user_id: int | None
    token_id: int | None

    @property
    def owner(self) -> str:
        """The key a worker id is bound to.

        The same for all tokens a user has for one project, so that a renewed token fits, and one for another project
        does not.
        """
        if self.user_id is None:
            return f"token:{self.token_id}"
        return f"user:{self.user_id}:{self.project or ''}"

    @property
    def rules_tokens(self) -> bool:
        """Whether it may make, see and revoke tokens of any role and project, and not those of workers alone."""
        return self.role is Role.ADMIN and self.project is None

    def require(self, role: Role) -> None:
        """Refuse a caller whose role does not include `role`.

        Raises:
            Forbidden: says which role is needed.
        """
        if role not in GRANTS[self.role]:
            raise Forbidden(f"this needs the role {role}, and {self.name} has the role {self.role}")

    def require_project(self, project: str) -> None:
        """Refuse a caller that is bound to another project.

        Raises:
            Forbidden: also when there is no such project, so that names cannot be tried out.
        """
        if self.project is not None and self.project != project:
            raise Forbidden(
                f"{self.name} may only see the project {self.project}; ask for a token that may see {project}"
            )


class Authenticator:
    """Finds out who calls; remembers tokens for a few seconds, so that the hot path rarely asks the database."""

    def __init__(self, database: Database, token_seconds: float) -> None:
        self._database = database
        self._token_seconds = token_seconds
        self._hasher = argon2.PasswordHasher()
        self._nobodys_hash = _nobodys_hash()
        self._hashing = asyncio.Semaphore(PARALLEL_HASHES)
        self._tokens: TTLCache[bytes, Principal] = TTLCache(maxsize=10_000, ttl=TOKEN_CACHE_SECONDS)
        self._owners: LRUCache[str, str] = LRUCache(maxsize=10_000)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._limit = RateLimitItemPerMinute(FAILED_LOGINS_PER_MINUTE)
        self._host_limit = RateLimitItemPerMinute(FAILED_LOGINS_OF_HOST_PER_MINUTE)

    async def authenticate(self, authorization: str | None, client_host: str) -> Principal:
        """The caller of a request, by its Authorization header.

        Raises:
            Unauthenticated: there is none, or it is not valid.
            TooManyRequests: too many logins of that name from that address have failed.
        """
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            return await self._by_token(credentials.strip())
        if scheme.lower() == "basic":
            return await self.by_login(credentials.strip(), client_host)
        raise Unauthenticated("send a token (Authorization: Bearer …) or a login (Basic)")

    async def _by_token(self, secret: str) -> Principal:
        token_hash = hashlib.sha256(secret.encode(errors="replace")).digest()
        if (known := self._tokens.get(token_hash)) is not None:
            return known
        async with self._database.connection() as connection:
            row = await connection.fetchrow(FIND_BY_HASH, token_hash)
        if row is None:
            raise Unauthenticated("the token is not valid, was revoked or has expired; get a new one")
        principal = Principal(
            f"token {row['name']!r}",
            row["username"] or row["name"],
            Role(row["role"]),
            row["project"],
            user_id=row["user_id"],
            token_id=row["id"],
        )
        if row["seconds_left"] is None or row["seconds_left"] > TOKEN_CACHE_SECONDS:
            self._tokens[token_hash] = principal
        return principal

    async def by_login(self, credentials: str, client_host: str) -> Principal:
        """The user of a Basic login. Raises as `authenticate`."""
        try:
            name, separator, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:
            raise Unauthenticated("the Basic login cannot be read") from None
        if not separator or "\0" in name:
            raise Unauthenticated("the Basic login cannot be read")
        bucket = (name, client_host)
        async with self._database.connection() as connection:
            user = await connection.fetchrow(USER, name)
        # An unknown name costs the same time as a wrong password.
        stored = user["password_hash"] if user is not None else self._nobodys_hash
        # Counted where they queue, or a thousand tries at once would all pass before the first has failed.
        async with self._hashing:
            if not (
                await self._limiter.test(self._limit, *bucket)
                and await self._limiter.test(self._host_limit, client_host)
            ):
                raise TooManyRequests(f"too many failed logins as {name!r}; wait a minute", retry_after_seconds=60)
            if not await asyncio.to_thread(self._matches, stored, password) or user is None:
                await self._limiter.hit(self._limit, *bucket)
                await self._limiter.hit(self._host_limit, client_host)
                raise Unauthenticated("the user name or the password is wrong")
        return Principal(f"user {name!r}", name, Role(user["role"]), user["project"], user_id=user["id"], token_id=None)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    async def own_worker(self, principal: Principal, worker_id: str) -> None:
        """Refuse a caller that writes through the leases of somebody else's worker process.

        Raises:
            WorkerIdTaken: the id is bound to another user, or to another token that this one does not succeed. An id
                nobody has used yet is not refused.
        """
        owner = self._owners.get(worker_id)
        if owner is None:
            async with self._database.connection() as connection:
                owner = await connection.fetchval(OWNER_OF_WORKER, worker_id)
            if owner is None:
                return
            self._owners[worker_id] = owner
        if owner == principal.owner:
            return
        kind, _, number = owner.partition(":")
        if kind != "token":
            raise WorkerIdTaken(f"the worker id {worker_id} belongs to another user")
        if not await self._succeeds(principal, int(number)):
            raise WorkerIdTaken(
                f"the worker id {worker_id} belongs to token {number}; once that has ended (revoke it), one of its "
                "project may speak for it"
            )

    async def _succeeds(self, principal: Principal, token_id: int) -> bool:
        """Whether a caller may speak for the workers of a token that has ended: its successor posts what they left.

        Asked only where owners differ, and never remembered: a token may end at any time.
        """
        async with self._database.connection() as connection:
            token = await connection.fetchrow(PREDECESSOR, token_id)
        # Of a token that was cleared away nobody knows the project any more. Whoever writes must still name a lease of
        # that worker, on a job of a project that the caller may see.
        return token is None or (not token["in_force"] and principal.project in (None, token["project"]))

    # --- users and tokens ---

    async def put_user(self, name: str, user: NewUser) -> User:
        """Create a user or change its password and role; its tokens are revoked.

        Raises:
            Forbidden: nobody would be left who may make users.
        """
        async with self._hashing:
            password_hash = await asyncio.to_thread(self._hasher.hash, user.password)
        async with self._database.transaction() as connection:
            await connection.execute(LOCK_USERS)
            row = await connection.fetchrow(PUT_USER, name, password_hash, user.role, user.project)
            if row is None:
                raise RuntimeError("a user that was just stored is not there")
            await connection.execute(REVOKE_TOKENS_OF_USER, row["id"])
            await _keep_an_admin(connection, name)
        self._tokens.clear()
        return User.model_validate(dict(row))

    async def delete_user(self, principal: Principal, name: str) -> None:
        """Delete a user with its tokens.

        Raises:
            NotFound: there is no such user.
            Forbidden: it is the caller itself, or the only administrator; somebody must be left to let others in.
        """
        async with self._database.connection() as connection:
            user = await connection.fetchrow(USER, name)
        if user is not None and user["id"] == principal.user_id:
            raise Forbidden("one cannot delete oneself; ask another administrator")
        async with self._database.transaction() as connection:
            await connection.execute(LOCK_USERS)
            if await connection.fetchval(DELETE_USER, name) is None:
                raise NotFound(f"there is no user {name!r}")
            await _keep_an_admin(connection, name)
        self._tokens.clear()

    async def issue(self, principal: Principal, wanted: NewToken, *, tied: bool) -> IssuedToken:
        """Make a token; `tied` to the caller's user, it ends with the user and counts as the same owner of workers.

        Raises:
            Forbidden: the caller may not make a token of that role or for that project.
        """
        role = wanted.role or principal.role
        if role not in MAY_ISSUE[principal.role]:
            raise Forbidden(f"{principal.name} with the role {principal.role} may not make a token of the role {role}")
        project = wanted.project or principal.project
        if project is not None:
            principal.require_project(project)
        seconds = wanted.expires_in_seconds or (self._token_seconds if tied else None)
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                ISSUE,
                hashlib.sha256(secret.encode()).digest(),
                wanted.name,
                role,
                project,
                principal.user_id if tied else None,
                None if seconds is None else timedelta(seconds=seconds),
            )
        return IssuedToken(token=secret, **_fields(row))

    async def revoke(self, principal: Principal, token_id: int) -> None:
        """Revoke a token; a second time changes nothing.

        Raises:
            NotFound: there never was such a token, or the caller may not know of it.
        """
        async with self._database.connection() as connection:
            found = await connection.fetchval(REVOKE_TOKEN, token_id, principal.rules_tokens, principal.project)
        if found is None:
            raise NotFound(f"there is no token {token_id}" + ("" if principal.rules_tokens else " that you may revoke"))
        self._tokens.clear()


@cache
def _nobodys_hash() -> str:
    """What the password of an unknown name is compared with: made once in a process, for a hash takes its time."""
    return argon2.PasswordHasher().hash(secrets.token_urlsafe())


async def _keep_an_admin(connection: Connection, changed: str) -> None:
    if not await connection.fetchval(ADMINS):
        raise Forbidden(f"{changed!r} is the only administrator; make another one first")


async def users(connection: Connection, after: str, limit: int) -> list[User]:
    """Users after a name, by name."""
    return [User.model_validate(dict(row)) for row in await connection.fetch(USERS, after, limit)]


async def tokens(connection: Connection, principal: Principal, after: int, limit: int) -> list[Token]:
    """Tokens in force that a caller may revoke, after an id, by id."""
    rows = await connection.fetch(TOKENS, after, limit, principal.rules_tokens, principal.project)
    return [Token.model_validate(dict(row)) for row in rows]


def _fields(row: Any) -> dict[str, Any]:
    if row is None:
        raise RuntimeError("a row that was just stored is not there")
    return dict(row)
