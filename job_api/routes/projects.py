"""Endpoints about projects."""

from typing import Annotated

from fastapi import Query, Request, Response

from job_api import directories, progress, projects, steering
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
from job_api.schemas import (
    DirectoryOrder,
    DirectoryReport,
    FailureKind,
    Failures,
    Page,
    Project,
    ProjectName,
    ProjectSettings,
    ProjectStatus,
    Role,
)

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
    """Create a project, or change the given settings of an existing one.

    With another `engine` its jobs that are being worked on go back to the queue, uncharged: they are claimed again with
    the new one. Rows of the engine before stay.
    """
    async with running.database.transaction() as connection:
        put, has_other_engine = await projects.put(connection, project, settings)
        project_id = await projects.project_id(connection, project)
    running.claims.forget(project)
    if has_other_engine:
        await steering.release_claimed(running.database, project_id)
    return put


@router.get("/{project}", **route(Role.READ, 404))
async def project_status(running: ServiceDep, project: ProjectPath) -> ProjectStatus:
    """The status document: counts, speed, time left, cost."""
    async with running.database.connection() as connection:
        return await progress.status(connection, project)


@router.get("/{project}/directories", **route(Role.READ, 404))
async def worst_directories(
    running: ServiceDep,
    project: ProjectPath,
    order: DirectoryOrder = DirectoryOrder.SLOWEST,
    limit: Annotated[int, Query(description="how many", ge=1, le=100)] = 20,
) -> Page[DirectoryReport]:
    """The directories that take longest or fail most often, worst first; there is no next page.

    `slowest`: among those that a worker holds, by how long it has them, and those completed, by how long their last
    attempt took. `failing`: those that failed, or failed before and are to be tried again, by the number of failures.
    At most 1,000 of each state are looked at: of those that are held the first, of completed, failed and waiting ones
    the last by id, of queued ones the last in the queue, where those stand that failed.
    """
    async with running.database.connection() as connection:
        project_id = await projects.project_id(connection, project)
        return Page(items=await directories.worst(connection, project_id, order, limit))


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


@router.get("/{project}/failures", **route(Role.READ, 404))
async def project_failures(
    running: ServiceDep,
    project: ProjectPath,
    kind: Annotated[FailureKind | None, Query(description="only failed images, or only failed jobs")] = None,
    limit: LimitQuery = 100,
) -> Failures:
    """What has failed, in groups of messages that are alike but for numbers, paths, names and ids; rare ones first.

    Images are those with an error message or another status than recognised, as their rows stand now: a group goes
    away when its images are done again. Jobs are those in the state failed. It takes a few seconds at most: `exact` and
    `complete` say what was cut off.
    """
    async with running.database.connection() as connection:
        project_id = await projects.project_id(connection, project)
    return await running.failures.read(running.database, project_id, kind, limit)
