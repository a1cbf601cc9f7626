"""Endpoints about jobs, for people: adding, browsing, steering."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query, Request, Response

from job_api import projects, queue, results, steering
from job_api.counters import Tally
from job_api.routes.context import (
    AfterIdQuery,
    AfterNameQuery,
    JobPath,
    LimitQuery,
    ProjectPath,
    Service,
    ServiceDep,
    door,
    link_next,
    route,
)
from job_api.schemas import (
    Job,
    JobAction,
    JobDetail,
    JobsActed,
    JobsAction,
    JobsAdded,
    JobState,
    NewJobs,
    Page,
    Rerun,
    Result,
    ResultStatus,
    Role,
)

router = door("/v4/{project}/jobs", "jobs")


@router.post("", **route(Role.SUBMIT, 404, 413))
async def add_jobs(running: ServiceDep, project: ProjectPath, new: NewJobs) -> JobsAdded:
    """Add up to 10,000 directories, all or none; those already present are counted and stay as they are."""
    async with running.database.transaction() as connection:
        project_id = await projects.project_id(connection, project)
        added = await queue.add(connection, project_id, new.directories, new.priority)
    running.claims.forget(project, new.priority)
    return JobsAdded(added=added, present=len(new.directories) - added)


@router.get("", **route(Role.READ, 404))
async def list_jobs(
    request: Request,
    response: Response,
    running: ServiceDep,
    project: ProjectPath,
    state: JobState | None = None,
    worker_id: Annotated[str | None, Query(max_length=128)] = None,
    text: Annotated[str | None, Query(max_length=1024, description="part of the directory's name")] = None,
    after: AfterIdQuery = 0,
    limit: LimitQuery = 100,
) -> Page[Job]:
    """Jobs in the order of their ids."""
    async with running.database.connection() as connection:
        project_id = await projects.project_id(connection, project)
        items = await projects.list_jobs(
            connection, project_id, after, state=state, worker_id=worker_id, text=text, limit=limit
        )
    link_next(request, response, items, limit, after=items[-1].id if items else 0)
    return Page(items=items)


@router.get("/{job_id}", **route(Role.READ, 404))
async def job_detail(running: ServiceDep, project: ProjectPath, job_id: JobPath) -> JobDetail:
    """One job with its attempts and its rows counted by status."""
    async with running.database.connection() as connection:
        return await projects.job_detail(connection, await projects.project_id(connection, project), job_id)


@router.get("/{job_id}/results", **route(Role.READ, 404))
async def job_results(
    request: Request,
    response: Response,
    running: ServiceDep,
    project: ProjectPath,
    job_id: JobPath,
    after: AfterNameQuery = "",
    after_engine: AfterNameQuery = "",
    limit: LimitQuery = 100,
) -> Page[Result]:
    """The stored rows of one job, by image."""
    async with running.database.connection() as connection:
        await projects.job(connection, await projects.project_id(connection, project), job_id)
        rows = await results.rows_of_job(connection, job_id, (after, after_engine), limit)
    items = [Result.model_validate(dict(row)) for row in rows]
    if items:
        link_next(request, response, items, limit, after=items[-1].image, after_engine=items[-1].engine)
    return Page(items=items)


@router.post("/actions", **route(Role.SUBMIT, 404, 413))
async def act_on_jobs(running: ServiceDep, project: ProjectPath, wanted: JobsAction) -> JobsActed:
    """Cancel, retry, rerun, force-release or delete all jobs that a filter names, or count them (`dry_run`).

    Works for a few seconds, in the order of the jobs' ids, and says as `next` where it came to; ask again with that as
    `after`, and with the `as_of` of the first answer, until `next` is null. What was done stays done. Asking for the
    same part again with `as_of` changes nothing twice.
    """
    async with running.database.connection() as connection:
        project_id = await projects.project_id(connection, project)
    acted = await steering.steer_many(running.database, project_id, wanted)
    running.claims.forget(project)
    return acted


async def _act(
    running: Service,
    project: str,
    job_id: int,
    action: JobAction,
    statuses: Sequence[ResultStatus] | None = None,
) -> Job:
    async with running.database.transaction() as connection:
        project_id = await projects.project_id(connection, project)
        tally = Tally()
        await steering.steer(connection, project_id, job_id, action, tally, statuses=statuses)
        await tally.settle(connection, project_id)
        job = await projects.job(connection, project_id, job_id)
    running.claims.forget(project)
    return job


@router.post("/{job_id}/cancel", **route(Role.SUBMIT, 404, 409))
async def cancel_job(running: ServiceDep, project: ProjectPath, job_id: JobPath) -> Job:
    """Cancel an unfinished job; a worker that holds it loses it."""
    return await _act(running, project, job_id, JobAction.CANCEL)


@router.post("/{job_id}/retry", **route(Role.SUBMIT, 404, 409))
async def retry_job(running: ServiceDep, project: ProjectPath, job_id: JobPath) -> Job:
    """Queue a failed or cancelled job again, its charges forgotten."""
    return await _act(running, project, job_id, JobAction.RETRY)


@router.post("/{job_id}/rerun", **route(Role.SUBMIT, 404, 409))
async def rerun_job(running: ServiceDep, project: ProjectPath, job_id: JobPath, which: Rerun) -> Job:
    """Queue a finished job again: all its images, or those whose result has one of the given statuses."""
    return await _act(running, project, job_id, JobAction.RERUN, which.statuses)


@router.post("/{job_id}/force-release", **route(Role.SUBMIT, 404, 409))
async def force_release_job(running: ServiceDep, project: ProjectPath, job_id: JobPath) -> Job:
    """Take a claimed job from its worker and queue it again, uncharged."""
    return await _act(running, project, job_id, JobAction.FORCE_RELEASE)
