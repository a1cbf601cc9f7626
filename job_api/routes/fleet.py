"""Endpoints about worker processes and their logs."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Response

from job_api import fleet, projects, quarantine, queue
from job_api.errors import LeaseLost, NotFound
from job_api.queue import LeaseKey
from job_api.routes.context import (
    AfterIdQuery,
    AfterNameQuery,
    CallerDep,
    LimitQuery,
    ProjectPath,
    Service,
    ServiceDep,
    WorkerPath,
    door,
    link_next,
    route,
)
from job_api.schemas import (
    MAX_INT8,
    Heartbeat,
    HeartbeatAnswer,
    LogLevel,
    LogLines,
    Page,
    Role,
    StoredLogLine,
    Worker,
    WorkerState,
)

router = door("/v4", "workers")


@router.get("/workers", **route(Role.READ, unbound=True))
async def list_workers(
    request: Request,
    response: Response,
    running: ServiceDep,
    active: Annotated[bool | None, Query(description="heard of within a lease's length")] = None,
    after: AfterNameQuery = "",
    limit: LimitQuery = 100,
) -> Page[Worker]:
    """The fleet."""
    async with running.database.connection() as connection:
        items = await fleet.list_workers(
            connection, after, active=active, alive_seconds=running.pace.lease_seconds, limit=limit
        )
    link_next(request, response, items, limit, after=items[-1].id if items else "")
    return Page(items=items)


@router.post("/workers/{worker_id}/heartbeat", **route(Role.WORKER))
async def heartbeat(
    running: ServiceDep, principal: CallerDep, worker_id: WorkerPath, beat: Heartbeat
) -> HeartbeatAnswer:
    """Extend all leases of a worker; says for each whether it is held, lost or cancelled, and what the worker shall do.

    A lease that merely expired comes back. `unnamed` are leases held in the worker's name that it did not name: a
    claim's answer was lost; it adopts or releases them.
    """
    async with running.database.connection() as connection:
        state = await fleet.touch(connection, worker_id, principal.owner, beat)
        stopped = state is WorkerState.QUARANTINED
        reason = await fleet.reason_of(connection, worker_id) if stopped else None
    verdicts = await queue.heartbeat(running.database, worker_id, beat.leases, running.pace)
    async with running.database.connection() as connection:
        named = [lease.job_id for lease in beat.leases]
        unnamed = await queue.unnamed_leases(connection, worker_id, named, running.pace)
    return HeartbeatAnswer(
        state=state,
        leases=verdicts,
        unnamed=unnamed,
        heartbeat_seconds=running.settings.heartbeat_seconds,
        reason=reason,
    )


@router.delete("/workers/{worker_id}", status_code=204, **route(Role.WORKER))
async def goodbye(running: ServiceDep, principal: CallerDep, worker_id: WorkerPath) -> None:
    """Release all leases of a worker, uncharged; its id cannot claim any more."""
    async with running.database.transaction() as connection:
        await fleet.touch(connection, worker_id, principal.owner, Heartbeat())
        leases = await fleet.say_goodbye(connection, worker_id)
    # One transaction each: a transaction locks jobs before counters, and counters of one project only.
    for lease in leases:
        await _release(running, LeaseKey(lease["project"], lease["id"], worker_id, lease["lease_seq"]))


async def _release(running: Service, key: LeaseKey) -> None:
    try:
        async with running.database.transaction() as connection:
            held = await queue.hold(connection, key, running.pace)
            if held["outcome"] is None:
                await queue.release(connection, held, "goodbye", "", pace=running.pace)
    except (LeaseLost, NotFound):
        # It ran out, and somebody else has the job, a moment ago.
        return
    running.claims.forget(key.project, held["priority"])


@router.post("/workers/{worker_id}/drain", **route(Role.SUBMIT, 404, 409, unbound=True))
async def drain_worker(running: ServiceDep, worker_id: WorkerPath) -> Worker:
    """Tell a worker to finish what it holds and to stop."""
    async with running.database.connection() as connection:
        return await fleet.steer(connection, worker_id, WorkerState.DRAIN, running.pace.lease_seconds)


@router.post("/workers/{worker_id}/quarantine", **route(Role.SUBMIT, 404, 409, unbound=True))
async def quarantine_worker(running: ServiceDep, worker_id: WorkerPath) -> Worker:
    """Tell a worker to claim no more until it is lifted. What it charged since its last success is taken back."""
    async with running.database.transaction() as connection:
        worker, queued = await quarantine.impose(connection, worker_id, running.pace.lease_seconds)
    for name in queued:
        running.claims.forget(name)
    return worker


@router.post("/workers/{worker_id}/lift", **route(Role.SUBMIT, 404, 409, unbound=True))
async def lift_worker(running: ServiceDep, worker_id: WorkerPath) -> Worker:
    """Let a drained or quarantined worker claim again, with an empty record."""
    async with running.database.transaction() as connection:
        return await quarantine.lift(connection, worker_id, running.pace.lease_seconds)


@router.post("/workers/{worker_id}/logs", status_code=204, **route(Role.WORKER, 413))
async def post_logs(running: ServiceDep, principal: CallerDep, worker_id: WorkerPath, batch: LogLines) -> None:
    """Store log lines; kept whatever became of the worker's leases."""
    async with running.database.transaction() as connection:
        await fleet.touch(connection, worker_id, principal.owner, Heartbeat())
        await fleet.store_lines(connection, worker_id, batch.lines, principal.project)


@dataclass
class LogFilter:
    """Which log lines are wanted, as the query says it."""

    level: Annotated[LogLevel | None, Query(description="at least this severe")] = None
    worker_id: Annotated[str | None, Query(max_length=128)] = None
    job_id: Annotated[int | None, Query(ge=1, le=MAX_INT8)] = None
    text: Annotated[str | None, Query(max_length=200, description="part of the message")] = None
    image: Annotated[str | None, Query(max_length=1024, description="its name as in the results")] = None
    after: AfterIdQuery = 0
    limit: LimitQuery = 100


LogFilterDep = Annotated[LogFilter, Depends()]


@router.get("/logs", **route(Role.READ, unbound=True))
async def all_logs(
    request: Request, response: Response, running: ServiceDep, wanted: LogFilterDep
) -> Page[StoredLogLine]:
    """Log lines of all workers, oldest first."""
    return await _page_of_lines(request, response, running, None, wanted)


@router.get("/{project}/logs", **route(Role.READ, 404))
async def project_logs(
    request: Request, response: Response, running: ServiceDep, project: ProjectPath, wanted: LogFilterDep
) -> Page[StoredLogLine]:
    """Log lines that concern a project, oldest first."""
    return await _page_of_lines(request, response, running, project, wanted)


async def _page_of_lines(
    request: Request, response: Response, running: Service, project: str | None, wanted: LogFilter
) -> Page[StoredLogLine]:
    async with running.database.connection() as connection:
        items = await fleet.lines(
            connection,
            wanted.after,
            project_id=None if project is None else await projects.project_id(connection, project),
            at_least=wanted.level,
            worker_id=wanted.worker_id,
            job_id=wanted.job_id,
            text=wanted.text,
            image=wanted.image,
            limit=wanted.limit,
        )
    link_next(request, response, items, wanted.limit, after=items[-1].id if items else 0)
    return Page(items=items)
