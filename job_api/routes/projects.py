"""Endpoints about projects."""

from fastapi import Request, Response

from job_api import projects
from job_api.routes.context import (
    AfterNameQuery,
    CallerDep,
    LimitQuery,
    ProjectPath,
    ServiceDep,
    door,
    link_next,
    route,
)
from job_api.schemas import Page, Project, ProjectName, ProjectSettings, ProjectStatus, Role

router = door("/v4", "projects")


@router.get("/projects", **route(Role.READ))
async def list_projects(
    request: Request,
    response: Response,
    running: ServiceDep,
    principal: CallerDep,
    after: AfterNameQuery = "",
    limit: LimitQuery = 100,
) -> Page[Project]:
    """The projects the caller may see."""
    async with running.database.connection() as connection:
        items = await projects.list_projects(connection, after, principal.project, limit)
    link_next(request, response, items, limit, after=items[-1].name if items else "")
    return Page(items=items)


@router.put("/{project}", **route(Role.SUBMIT))
async def put_project(running: ServiceDep, project: ProjectName, settings: ProjectSettings) -> Project:
    """Create a project, or change the given settings of an existing one."""
    async with running.database.transaction() as connection:
        put = await projects.put(connection, project, settings)
    running.claims.forget(project)
    return put


@router.get("/{project}", **route(Role.READ, 404))
async def project_status(running: ServiceDep, project: ProjectPath) -> ProjectStatus:
    """The status document: counts, speed, time left."""
    async with running.database.connection() as connection:
        return await projects.status(connection, project)


@router.delete("/{project}", status_code=204, **route(Role.SUBMIT, 404, 409))
async def delete_project(running: ServiceDep, project: ProjectPath) -> None:
    """Delete a project with its jobs, results and log lines; refused while jobs are unfinished."""
    async with running.database.transaction() as connection:
        await projects.delete(connection, project)


@router.post("/{project}/pause", **route(Role.SUBMIT, 404))
async def pause_project(running: ServiceDep, project: ProjectPath) -> Project:
    """Hand out no more jobs; running ones finish."""
    async with running.database.connection() as connection:
        return await projects.pause(connection, project, paused=True)


@router.post("/{project}/resume", **route(Role.SUBMIT, 404))
async def resume_project(running: ServiceDep, project: ProjectPath) -> Project:
    """Hand out jobs again."""
    async with running.database.transaction() as connection:
        resumed = await projects.pause(connection, project, paused=False)
    running.claims.forget(project)
    return resumed
