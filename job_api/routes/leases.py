"""Endpoints for workers: claiming jobs, and writing through a lease."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from job_api import fleet, projects, queue, results
from job_api.auth import Principal
from job_api.counters import Tally
from job_api.db import Connection
from job_api.errors import ResultsMissing
from job_api.queue import LeaseKey
from job_api.routes.context import (
    AfterNameQuery,
    CallerDep,
    JobPath,
    LimitQuery,
    ProjectPath,
    Service,
    ServiceDep,
    caller_of,
    link_next,
    route,
)
from job_api.schemas import (
    MAX_INT8,
    MAX_PAGE_SIZE,
    PENDING_JOBS_HEADER,
    Claimed,
    ClaimRequest,
    Complete,
    EngineRun,
    Fail,
    Heartbeat,
    Held,
    Lease,
    LeaseEnded,
    NewResults,
    Outcome,
    Page,
    Release,
    ResultsStored,
    Role,
    WorkerId,
)

router = APIRouter(prefix="/v4", tags=["workers' leases"])

# Another API process may have queued something without ringing this one's bell.
LOOK_AGAIN_SECONDS = 1.0

_CLAIM = route(
    Role.WORKER,
    404,
    409,
    responses={
        204: {
            "description": "Nothing to claim",
            "headers": {
                PENDING_JOBS_HEADER: {
                    "description": "jobs that are queued or waiting all the same",
                    "schema": {"type": "integer"},
                },
                "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}},
            },
        }
    },
    response_model=Claimed,
)


@router.post("/claim", **_CLAIM)
async def claim_any(request: Request, running: ServiceDep, principal: CallerDep, wanted: ClaimRequest) -> Any:
    """Claim jobs of the project with the highest priority that the caller may see; equals share.

    Waits up to `wait_seconds` for one. The same `claim_key` again gives the same leases again.
    """
    return await _claim(request, running, principal, principal.project, wanted)


@router.post("/{project}/claim", **_CLAIM)
async def claim_of_project(
    request: Request, running: ServiceDep, principal: CallerDep, project: ProjectPath, wanted: ClaimRequest
) -> Any:
    """Claim jobs of one project. As `POST /v4/claim` otherwise."""
    return await _claim(request, running, principal, project, wanted)


async def _claim(
    request: Request, running: Service, principal: Principal, project: str | None, wanted: ClaimRequest
) -> Claimed | Response:
    deadline = time.monotonic() + wanted.wait_seconds
    pending = 0
    while not await request.is_disconnected():
        # Asked at each look: the token may have been revoked while the claim waited.
        await caller_of(request, running)
        leases, pending = await _claim_once(running, principal, project, wanted)
        left = deadline - time.monotonic()
        if leases:
            return Claimed(leases=leases)
        if left <= 0:
            break
        await running.bell.wait(min(left, LOOK_AGAIN_SECONDS))
    return Response(status_code=204, headers={PENDING_JOBS_HEADER: str(pending), "Retry-After": "1"})


async def _claim_once(
    running: Service, principal: Principal, project: str | None, wanted: ClaimRequest
) -> tuple[list[Lease], int]:
    async with running.database.transaction() as connection:
        project_id = None if project is None else await projects.project_id(connection, project)
        seen = Heartbeat(hostname=wanted.hostname, version=wanted.version)
        state = await fleet.touch(connection, wanted.worker_id, principal.owner, seen)
        fleet.require_running(wanted.worker_id, state)
        leases = await queue.claim(connection, project_id, wanted, running.pace)
        return leases, 0 if leases else await queue.pending(connection, project_id)


@router.get("/{project}/jobs/{job_id}/images-done", **route(Role.WORKER, 404, 409))
async def images_done(
    request: Request,
    response: Response,
    running: ServiceDep,
    principal: CallerDep,
    project: ProjectPath,
    job_id: JobPath,
    worker_id: WorkerId,
    lease_seq: Annotated[int, Query(ge=1, le=MAX_INT8)],
    after: AfterNameQuery = "",
    limit: LimitQuery = MAX_PAGE_SIZE,
) -> Page[str]:
    """Images of a leased job that need no work, by name."""
    async with _write(running, principal, project, job_id, Held(worker_id=worker_id, lease_seq=lease_seq)) as write:
        queue.require_open(write.held)
        items = await results.images_done(write.connection, job_id, after, limit)
    link_next(request, response, items, limit, after=items[-1] if items else "")
    return Page(items=items)


@router.post("/{project}/jobs/{job_id}/results", **route(Role.WORKER, 404, 409, 413))
async def post_results(
    running: ServiceDep, principal: CallerDep, project: ProjectPath, job_id: JobPath, new: NewResults
) -> ResultsStored:
    """Store a batch of rows, judged one by one: refused ones are named, the others stored.

    A newer lease replaces an image's row; within one lease the first row stays.
    """
    batch = results.judge(new.rows, new.run)
    async with _write(running, principal, project, job_id, new) as write:
        queue.require_open(write.held)
        stored = await _store(running, write, batch, new.run)
    _remember(running, write, new.run)
    return stored


@router.post("/{project}/jobs/{job_id}/complete", **route(Role.WORKER, 404, 409, 413))
async def complete_job(
    running: ServiceDep, principal: CallerDep, project: ProjectPath, job_id: JobPath, done: Complete
) -> LeaseEnded:
    """End a lease whose images are all stored; the last rows may ride along.

    409 `results-missing` when fewer rows are stored than images were listed; the rows that came along stay.
    """
    batch = results.judge(done.rows, done.run)
    missing: ResultsMissing | None = None
    async with _write(running, principal, project, job_id, done) as write:
        if write.held["outcome"] is None:
            await _store(running, write, batch, done.run)
        try:
            state = await queue.complete(write.connection, write.held, done.image_count, write.tally)
        except ResultsMissing as refusal:
            # The rows that came along are good and stay.
            missing = refusal
    _remember(running, write, done.run)
    if missing is not None:
        raise missing
    return LeaseEnded(job_id=job_id, state=state, outcome=Outcome.COMPLETED, refused=batch.refused)


@router.post("/{project}/jobs/{job_id}/fail", **route(Role.WORKER, 404, 409))
async def fail_job(
    running: ServiceDep, principal: CallerDep, project: ProjectPath, job_id: JobPath, failure: Fail
) -> LeaseEnded:
    """End a lease whose job cannot be done; it backs off and is tried again, or has failed for good."""
    async with _write(running, principal, project, job_id, failure) as write:
        state = await queue.fail(
            write.connection,
            write.held,
            failure.reason,
            failure.message,
            retryable=failure.retryable,
            tally=write.tally,
            pace=running.pace,
        )
    return LeaseEnded(job_id=job_id, state=state, outcome=Outcome.FAILED)


@router.post("/{project}/jobs/{job_id}/release", **route(Role.WORKER, 404, 409))
async def release_job(
    running: ServiceDep, principal: CallerDep, project: ProjectPath, job_id: JobPath, given: Release
) -> LeaseEnded:
    """Give a job back uncharged."""
    async with _write(running, principal, project, job_id, given) as write:
        state = await queue.release(
            write.connection, write.held, given.reason, given.message, tally=write.tally, pace=running.pace
        )
    running.bell.ring()
    return LeaseEnded(job_id=job_id, state=state, outcome=Outcome.RELEASED)


@dataclass
class Write:
    """A write by the holder of a lease, in its transaction."""

    connection: Connection
    held: dict[str, Any]
    tally: Tally
    provenance_id: int | None = None


@asynccontextmanager
async def _write(
    running: Service, principal: Principal, project: str, job_id: int, holder: Held
) -> AsyncIterator[Write]:
    """One transaction, fenced at its begin, its counters settled at its end."""
    await running.authenticator.own_worker(principal, holder.worker_id)
    async with running.database.transaction() as connection:
        project_id = await projects.project_id(connection, project)
        key = LeaseKey(project_id, job_id, holder.worker_id, holder.lease_seq)
        tally = Tally()
        yield Write(connection, await queue.hold(connection, key, tally, running.pace), tally)
        await tally.settle(connection, project_id)


async def _store(running: Service, write: Write, batch: results.Batch, run: EngineRun) -> ResultsStored:
    write.provenance_id = await running.provenances.find(write.connection, write.held["worker_id"], run)
    return await results.store(write.connection, write.held, batch, write.provenance_id, write.tally)


def _remember(running: Service, write: Write, run: EngineRun) -> None:
    if write.provenance_id is not None:
        running.provenances.remember(write.held["worker_id"], run, write.provenance_id)
