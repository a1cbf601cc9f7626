"""Endpoints for workers: claiming jobs, and writing through a lease."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request, Response

from job_api import projects, quarantine, queue, results
from job_api.auth import Principal
from job_api.db import Connection
from job_api.queue import LeaseKey
from job_api.routes.context import (
    AfterNameQuery,
    CallerDep,
    JobPath,
    LimitQuery,
    ProjectPath,
    Service,
    ServiceDep,
    at_work,
    caller_of,
    door,
    hung_up,
    link_next,
    route,
)
from job_api.schemas import (
    MAX_INT8,
    MAX_PAGE_SIZE,
    PENDING_JOBS_HEADER,
    PROJECT_PAUSED_HEADER,
    Claimed,
    ClaimRequest,
    Complete,
    DoneResult,
    EngineRun,
    Fail,
    Held,
    JobState,
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

router = door("/v4", "workers' leases")

T = TypeVar("T")

# A claim that is answered at once has its client on the line.
SURELY_THERE_SECONDS = 0.01

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
                PROJECT_PAUSED_HEADER: {
                    "description": "true where the project is paused; else absent",
                    "schema": {"type": "string"},
                },
                "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}},
            },
        }
    },
    response_model=Claimed,
)


@router.post("/claim", **_CLAIM)
async def claim_any(request: Request, wanted: ClaimRequest) -> Any:
    """Claim jobs of the project with the highest priority that the caller may see; equals share.

    Waits up to `wait_seconds` for one. The same `claim_key` again gives the same leases again.
    """
    running, principal = at_work(request)
    return await _claim(request, running, principal, principal.project, wanted)


@router.post("/{project}/claim", **_CLAIM)
async def claim_of_project(request: Request, project: ProjectPath, wanted: ClaimRequest) -> Any:
    """Claim jobs of one project. As `POST /v4/claim` otherwise."""
    running, principal = at_work(request)
    return await _claim(request, running, principal, project, wanted)


async def _claim(
    request: Request, running: Service, principal: Principal, project: str | None, wanted: ClaimRequest
) -> Claimed | Response:
    began = time.monotonic()
    leases = await running.claims.claim(principal.owner, project, wanted)
    if not leases and wanted.wait_seconds > 0:
        leases = await _wait_for_jobs(request, running, project, wanted)
    if not leases:
        async with running.database.connection() as connection:
            found = None if project is None else await projects.row_of(connection, project)
            pending = await queue.pending(connection, None if found is None else found["id"])
        paused = {PROJECT_PAUSED_HEADER: "true"} if found is not None and found["paused"] else {}
        return Response(status_code=204, headers={PENDING_JOBS_HEADER: str(pending), "Retry-After": "1", **paused})
    if time.monotonic() - began > SURELY_THERE_SECONDS and await request.is_disconnected():
        await queue.undo_claim(running.database, wanted.worker_id, leases, running.pace)
    return Claimed(leases=leases)


async def _wait_for_jobs(request: Request, running: Service, project: str | None, wanted: ClaimRequest) -> list[Lease]:
    """Claim whenever jobs may have been queued, until there are some, the time is up or the client has gone."""
    deadline = time.monotonic() + wanted.wait_seconds
    gone = asyncio.create_task(hung_up(request))
    with running.room.seat(project) as seat:
        gone.add_done_callback(lambda _: seat.call())
        try:
            while not gone.done():
                # Asked at each look: the token may have been revoked while the claim waited.
                principal = await caller_of(request, running)
                leases = await running.claims.claim(principal.owner, project, wanted)
                seat.has_looked()
                if leases:
                    # Where one job was there may be more.
                    running.room.ring(leases[0].project, 1)
                    return leases
                if running.room.closed or not await seat.wait(deadline - time.monotonic()):
                    return []
                seat.sit_down_again()
        finally:
            gone.cancel()
    return []


@dataclass(frozen=True)
class DoneQuery:
    """What a job's holder asks for of that which is done already."""

    running: ServiceDep
    principal: CallerDep
    project: ProjectPath
    job_id: JobPath
    worker_id: WorkerId
    lease_seq: Annotated[int, Query(ge=1, le=MAX_INT8)]
    after: AfterNameQuery = ""
    limit: LimitQuery = MAX_PAGE_SIZE

    async def ask(self, find: Callable[[Connection, int, str, int], Awaitable[list[T]]]) -> list[T]:
        """A page of it, read while the lease is surely the caller's."""
        held = Held(worker_id=self.worker_id, lease_seq=self.lease_seq)
        key = await _key(self.running, self.principal, self.project, self.job_id, held)
        async with self.running.database.transaction() as connection:
            queue.require_open(await queue.hold(connection, key, self.running.pace))
            return await find(connection, self.job_id, self.after, self.limit)


DoneDep = Annotated[DoneQuery, Depends()]


@router.get("/{project}/jobs/{job_id}/images-done", **route(Role.WORKER, 404, 409))
async def images_done(request: Request, response: Response, query: DoneDep) -> Page[str]:
    """Images of a leased job that need no work, by name."""
    items = await query.ask(results.images_done)
    link_next(request, response, items, query.limit, after=items[-1] if items else "")
    return Page(items=items)


@router.get("/{project}/jobs/{job_id}/results-done", **route(Role.WORKER, 404, 409))
async def results_done(request: Request, response: Response, query: DoneDep) -> Page[DoneResult]:
    """Rows of a leased job that count for it, of this attempt and of earlier ones, by image."""
    items = await query.ask(results.results_done)
    link_next(request, response, items, query.limit, after=items[-1].image if items else "")
    return Page(items=items)


@router.post("/{project}/jobs/{job_id}/results", **route(Role.WORKER, 404, 409, 413))
async def post_results(request: Request, project: ProjectPath, job_id: JobPath, new: NewResults) -> ResultsStored:
    """Store a batch of rows, judged one by one: refused ones are named, the others stored.

    A newer lease replaces an image's row; within one lease the first row stays.
    """
    running, principal = at_work(request)
    key = await _key(running, principal, project, job_id, new)
    batch = results.judge(new.rows, new.run)
    while True:
        provenance_id = running.provenances.known(key.worker_id, new.run)
        if provenance_id is not None:
            async with running.database.connection() as connection:
                stored = await results.store(connection, key, batch, provenance_id)
            if stored is not None:
                return stored
        queue.require_open(await _prepare(running, key, new.run))


@router.post("/{project}/jobs/{job_id}/complete", **route(Role.WORKER, 404, 409, 413))
async def complete_job(request: Request, project: ProjectPath, job_id: JobPath, done: Complete) -> LeaseEnded:
    """End a lease whose images are all stored; the last rows may ride along.

    409 `results-missing` when fewer rows are stored than images were listed; the rows that came along stay.
    """
    running, principal = at_work(request)
    key = await _key(running, principal, project, job_id, done)
    batch = results.judge(done.rows, done.run)
    ended = LeaseEnded(job_id=job_id, state=JobState.COMPLETED, outcome=Outcome.COMPLETED, refused=batch.refused)
    while True:
        provenance_id = running.provenances.known(key.worker_id, done.run)
        if provenance_id is not None or not batch.rows:
            # Two statements that need no common transaction: rows stay, also where the job is not completed.
            async with running.database.connection() as connection:
                stored = not batch.rows or await results.store(connection, key, batch, provenance_id or 0) is not None
                completed = await queue.complete(connection, key, done.image_count) if stored else None
                if completed is False:
                    raise await queue.results_missing(connection, job_id, done.image_count)
            if completed:
                return ended
        held = await _prepare(running, key, done.run)
        if held["outcome"] == Outcome.COMPLETED:
            return ended
        queue.require_open(held)


@router.post("/{project}/jobs/{job_id}/fail", **route(Role.WORKER, 404, 409))
async def fail_job(
    running: ServiceDep, principal: CallerDep, project: ProjectPath, job_id: JobPath, failure: Fail
) -> LeaseEnded:
    """End a lease whose job cannot be done; it backs off and is tried again, or has failed for good.

    A worker that fails too many different jobs in a row is quarantined, and what it failed is queued again.
    """
    key = await _key(running, principal, project, job_id, failure)
    async with running.database.transaction() as connection:
        state, queued = await quarantine.fail(connection, key, failure, running.pace, running.settings.quarantine_after)
    for name in queued:
        running.claims.forget(name)
    return LeaseEnded(job_id=job_id, state=state, outcome=Outcome.FAILED)


@router.post("/{project}/jobs/{job_id}/release", **route(Role.WORKER, 404, 409))
async def release_job(
    running: ServiceDep, principal: CallerDep, project: ProjectPath, job_id: JobPath, given: Release
) -> LeaseEnded:
    """Give a job back uncharged."""
    key = await _key(running, principal, project, job_id, given)
    async with running.database.transaction() as connection:
        held = await queue.hold(connection, key, running.pace)
        state = await queue.release(connection, held, given.reason, given.message, pace=running.pace)
    running.claims.forget(project, held["priority"])
    return LeaseEnded(job_id=job_id, state=state, outcome=Outcome.RELEASED)


async def _key(running: Service, principal: Principal, project: str, job_id: int, holder: Held) -> LeaseKey:
    """What the caller writes through; refuses one that acts for somebody else's worker."""
    await running.authenticator.own_worker(principal, holder.worker_id)
    return LeaseKey(project, job_id, holder.worker_id, holder.lease_seq)


async def _prepare(running: Service, key: LeaseKey, run: EngineRun) -> dict[str, Any]:
    """Take a lease back that merely ran out, and make the provenance of its rows, so that they can be written.

    A transaction of its own: what is written through a lease locks more than the job, and in another order.

    Returns:
        What `queue.hold` gives, for `queue.require_open` to judge.
    """
    async with running.database.transaction() as connection:
        held = await queue.hold(connection, key, running.pace)
        if held["outcome"] is not None:
            return held
        provenance_id = await running.provenances.find(connection, key.worker_id, run)
    running.provenances.remember(key.worker_id, run, provenance_id)
    return held
