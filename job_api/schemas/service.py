"""The service itself, its errors, people and tokens."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    Field,
    StringConstraints,
)

from job_api.schemas.fields import ProjectName, Request, ShortText, Wire
from job_api.schemas.limits import (
    MAX_JOBS_PER_ADD,
    MAX_LOG_LINES_PER_POST,
    MAX_RESULTS_PER_POST,
    MAX_WAIT_SECONDS,
    SESSION_TOKEN_NAME,
)
from job_api.schemas.words import Role


class Limits(Wire):
    """What one request may hold."""

    max_jobs_per_add: int = MAX_JOBS_PER_ADD
    max_results_per_post: int = MAX_RESULTS_PER_POST
    max_log_lines_per_post: int = MAX_LOG_LINES_PER_POST
    max_wait_seconds: int = MAX_WAIT_SECONDS
    max_body_bytes: int


class Caller(Wire):
    """Who asks, as the service sees it; without a project it may see all."""

    name: str
    role: Role
    project: str | None


class ProjectEngine(Wire):
    """What a project's images are to be recognised with."""

    engine: str
    engine_options: dict[str, Any]


class ServerInfo(Wire):
    """The service's version, the pace it dictates, and who asks."""

    version: str
    lease_seconds: float
    heartbeat_seconds: float
    limits: Limits
    caller: Caller | None = None
    """Absent in answers of older services."""
    project_engine: ProjectEngine | None = None
    project_source: str | None = None
    """Where its images lie; absent as `project_engine`."""
    """Of the project that was asked for; absent without one, and in answers of older services."""
    project_paused: bool | None = None
    """Whether the project that was asked for hands out no jobs at the moment; absent as `project_engine`."""


class Problem(Wire):
    """An RFC 9457 error document."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


class NewToken(Request):
    """Asks for a token; nothing given: the caller's own role, for a day."""

    name: ShortText = SESSION_TOKEN_NAME
    role: Role | None = None
    project: ProjectName | None = None
    expires_in_seconds: float | None = Field(default=None, gt=0, le=10 * 365 * 86400)


class Token(Wire):
    """A token as listed: never its secret."""

    id: int
    name: str
    role: Role
    project: str | None
    username: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class IssuedToken(Token):
    """A token just made; the only time its secret is shown."""

    token: str


class NewUser(Request):
    """A user to create, or a new password or role for an existing one."""

    password: Annotated[str, StringConstraints(min_length=12, max_length=200)]
    role: Role
    project: ProjectName | None = None


class User(Wire):
    """A user as listed."""

    name: str
    role: Role
    project: str | None
    created_at: datetime
