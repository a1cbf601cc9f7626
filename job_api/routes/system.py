"""Endpoints about the service itself."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Query, Response
from fastapi.responses import PlainTextResponse

from job_api import metrics, projects
from job_api.errors import JobApiError
from job_api.routes.context import CallerDep, ProblemAnswer, ServiceDep, door, route
from job_api.schemas import Caller, Limits, ProjectEngine, ProjectName, ServerInfo
from job_api.version import VERSION

router = door("", "service")


@router.get("/v4", **route(None, 404))
async def server_info(
    running: ServiceDep,
    principal: CallerDep,
    project: Annotated[
        ProjectName | None,
        Query(description="refuse unless it is there and the caller may see it; answers what is said of it below"),
    ] = None,
) -> ServerInfo:
    """The service's version, limits and pace, who asks, and of the project its engine, its source and its pause."""
    about_project: dict[str, Any] = {}
    if project is not None:
        principal.require_project(project)
        async with running.database.connection() as connection:
            row = await projects.row_of(connection, project)
        engine = ProjectEngine(engine=row["engine"], engine_options=row["engine_options"])
        about_project = {
            "project_engine": engine,
            "project_source": row["source"],
            "project_paused": row["paused"],
        }
    settings = running.settings
    return ServerInfo(
        version=VERSION,
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        limits=Limits(max_body_bytes=settings.max_body_bytes),
        caller=Caller(name=principal.name, role=principal.role, project=principal.project),
        **about_project,
    )


@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """Whether the process lives; never asks the database."""
    return "ok\n"


@router.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "Not ready", **ProblemAnswer}})
async def readyz(running: ServiceDep) -> str:
    """Whether the service can serve: the database answers."""
    async with running.database.connection() as connection:
        await connection.fetchval("SELECT 1", timeout=5)
    return "ok\n"


@router.get("/metrics", response_class=PlainTextResponse)
async def prometheus_metrics(running: ServiceDep) -> Response:
    """Counters and gauges in the Prometheus text format; those of the queue are left out while the database is away."""
    queue: Mapping[str, Any] = {}
    with suppress(JobApiError):
        async with running.database.connection() as connection:
            queue = await metrics.read_queue(connection)
    body, content_type = metrics.exposition(queue)
    return Response(body, media_type=content_type)
