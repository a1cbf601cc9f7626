"""The job's life: the only writer of a job's state.

Each public function is one transition of the table in docs/design.md, one short transaction, on the database's clock.
A worker's writes go through `hold`, the fence: whoever does not hold (job, lease_seq, worker_id) changes nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from job_api import queue_sql as sql
from job_api.counters import Tally
from job_api.db import Connection, Database
from job_api.errors import LeaseLost, NotFound, ResultsMissing, WrongState
from job_api.schemas import (
    ClaimRequest,
    HeldLease,
    JobState,
    Lease,
    LeaseStatus,
    LeaseVerdict,
    Outcome,
    ResultStatus,
)

MAX_BACKOFF_SECONDS = 3600.0
FREE_RELEASES = 2
SWEEP_BATCH = 500
FINISHED = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class LeaseKey:
    """What a holder must name: the fence."""

    project_id: int
    job_id: int
    worker_id: str
    lease_seq: int


@dataclass(frozen=True)
class Pace:
    """How long leases last and jobs back off."""

    lease_seconds: float
    backoff_seconds: float

    @property
    def lease(self) -> timedelta:
        """The length of a lease."""
        return timedelta(seconds=self.lease_seconds)

    def backoff(self, failures: int) -> timedelta:
        """Full jitter below an exponential ceiling (Brooker, AWS Architecture Blog, 2015)."""
        ceiling = min(MAX_BACKOFF_SECONDS, self.backoff_seconds * 2.0 ** min(max(failures, 1) - 1, 20))
        return timedelta(seconds=random.uniform(0, ceiling))  # noqa: S311 - jitter, no secret


async def add(connection: Connection, project_id: int, directories: Sequence[str], priority: int) -> int:
    """Add directories to a project's queue, all in one transaction; returns how many were new."""
    if await connection.fetchval(sql.LOCK_PROJECT, project_id) is None:
        raise NotFound("the project was deleted")
    added: int = await connection.fetchval(sql.ADD, project_id, directories, priority)
    await Tally(queued=added).settle(connection, project_id)
    return added


async def claim(connection: Connection, project_id: int | None, request: ClaimRequest, pace: Pace) -> list[Lease]:
    """Hand out jobs of one project, or of the best one.

    The caller has locked the worker's row, which makes claims of one worker follow one another; a claim whose key
    still has leases is answered with those.
    """
    if leases := await _leases(connection, request, pace):
        return leases
    for candidate in await connection.fetch(sql.CLAIMABLE, project_id):
        claimed = await connection.fetchval(
            sql.CLAIM, candidate["id"], request.max_jobs, request.worker_id, request.claim_key, pace.lease
        )
        # One project for each claim: slots of two would have to be locked in a common order.
        if claimed:
            tally = Tally()
            tally.move(JobState.QUEUED, JobState.CLAIMED, claimed)
            await tally.settle(connection, candidate["id"])
            return await _leases(connection, request, pace)
    return []


async def _leases(connection: Connection, request: ClaimRequest, pace: Pace) -> list[Lease]:
    rows = await connection.fetch(sql.LEASES_OF_CLAIM, request.worker_id, request.claim_key)
    return [Lease(lease_seconds=pace.lease_seconds, **row) for row in rows]


async def pending(connection: Connection, project_id: int | None) -> int:
    """How many jobs of a project, or of all, are queued or wait for the end of their back-off."""
    count: int = await connection.fetchval(sql.PENDING, project_id)
    return count


async def unnamed_leases(connection: Connection, worker_id: str, named: Sequence[int], pace: Pace) -> list[Lease]:
    """Leases held in a worker's name that it did not name itself."""
    rows = await connection.fetch(sql.LEASES_UNNAMED, worker_id, named)
    return [Lease(lease_seconds=pace.lease_seconds, **row) for row in rows]


async def heartbeat(database: Database, worker_id: str, named: Sequence[HeldLease], pace: Pace) -> list[LeaseVerdict]:
    """Extend all leases of a worker that it still holds, and say what became of the others."""
    lease_seqs = {lease.job_id: lease.lease_seq for lease in named}
    ids, seqs = list(lease_seqs), list(lease_seqs.values())
    async with database.connection() as connection:
        held = {row["id"] for row in await connection.fetch(sql.HEARTBEAT, worker_id, ids, seqs, pace.lease)}
        fates = {} if len(held) == len(ids) else await _fates(connection, worker_id, ids, seqs)
    verdicts = []
    for job_id, lease_seq in lease_seqs.items():
        status = LeaseStatus.HELD if job_id in held else LeaseStatus.LOST
        fate = fates.get(job_id)
        if status is LeaseStatus.LOST and fate is not None:
            if fate["outcome"] == Outcome.CANCELLED:
                status = LeaseStatus.CANCELLED
            elif fate["outcome"] in (None, Outcome.EXPIRED):
                key = LeaseKey(fate["project_id"], job_id, worker_id, lease_seq)
                status = LeaseStatus.HELD if await _revive(database, key, pace) else status
        verdicts.append(LeaseVerdict(job_id=job_id, lease_seq=lease_seq, status=status))
    return verdicts


async def _fates(connection: Connection, worker_id: str, ids: list[int], seqs: list[int]) -> dict[int, Any]:
    return {row["job_id"]: row for row in await connection.fetch(sql.LEASE_FATES, worker_id, ids, seqs)}


async def _revive(database: Database, key: LeaseKey, pace: Pace) -> bool:
    async with database.transaction() as connection:
        tally = Tally()
        try:
            held = await hold(connection, key, tally, pace)
        except (LeaseLost, NotFound):
            return False
        await tally.settle(connection, key.project_id)
        return held["outcome"] is None


async def hold(connection: Connection, key: LeaseKey, tally: Tally, pace: Pace) -> dict[str, Any]:
    """Lock the job and attempt of a lease for its holder: the fence before every write of a worker.

    A lease that merely expired comes back to its holder here, its charge refunded, unless the job was claimed,
    cancelled, run again or released by force since.

    Returns:
        The row of `HOLD`; its `outcome` is None while the lease is held.

    Raises:
        NotFound: the project has no such job.
        LeaseLost: the caller never held that lease, or another holds the job since.
    """
    row = await connection.fetchrow(sql.HOLD, key.job_id, key.project_id, key.lease_seq, key.worker_id)
    if row is None:
        if await connection.fetchval(sql.JOB_EXISTS, key.job_id, key.project_id):
            raise LeaseLost(f"job {key.job_id}: worker {key.worker_id} never held lease {key.lease_seq}")
        raise NotFound(f"there is no job {key.job_id} in this project")
    held = dict(row)
    if held["outcome"] == Outcome.EXPIRED:
        if held["newest_lease_seq"] != key.lease_seq:
            raise LeaseLost(f"job {key.job_id}: lease {key.lease_seq} expired and the job was taken by another since")
        refund = int(held["charged"])
        await connection.execute(sql.TAKE_BACK, key.job_id, key.worker_id, held["claim_key"], pace.lease, refund)
        await connection.execute(sql.REOPEN_ATTEMPT, key.job_id, key.lease_seq)
        tally.move(held["state"], JobState.CLAIMED)
        held |= {"outcome": None, "state": JobState.CLAIMED, "failures": max(held["failures"] - refund, 0)}
    return held


def require_open(held: dict[str, Any]) -> None:
    """Refuse a write through a lease that has ended.

    Raises:
        LeaseLost: says how it ended.
    """
    if held["outcome"] is not None:
        raise LeaseLost(f"job {held['job_id']}: lease {held['lease_seq']} has ended: {held['outcome']}")


async def complete(connection: Connection, held: dict[str, Any], image_count: int, tally: Tally) -> JobState:
    """End a lease whose images are all stored.

    Raises:
        ResultsMissing: fewer rows are stored than images were listed; nothing changes.
    """
    if held["outcome"] == Outcome.COMPLETED:
        return JobState.COMPLETED
    require_open(held)
    present = await connection.fetchval(sql.COUNT_PRESENT, held["job_id"])
    if present < image_count:
        raise ResultsMissing(
            f"job {held['job_id']}: {image_count} images were listed and {present} are stored; send the missing ones"
        )
    tally["images_listed"] += image_count
    await _end(connection, held, Outcome.COMPLETED, tally, state=JobState.COMPLETED, image_count=image_count)
    return JobState.COMPLETED


async def fail(
    connection: Connection,
    held: dict[str, Any],
    reason: str,
    message: str,
    *,
    retryable: bool,
    tally: Tally,
    pace: Pace,
) -> JobState:
    """End a lease whose job cannot be done; it waits and is tried again, or has failed for good."""
    if held["outcome"] == Outcome.FAILED:
        return JobState(held["state"])
    require_open(held)
    charged = held["new_results"] == 0
    failures = held["failures"] + charged
    final = not retryable or (charged and failures >= held["max_failures"])
    state = JobState.FAILED if final else JobState.WAITING
    held = {**held, "failures": failures}
    await _end(
        connection,
        held,
        Outcome.FAILED,
        tally,
        state=state,
        wait=pace.backoff(failures),
        charged=charged,
        reason=reason,
        message=message,
    )
    return state


async def release(
    connection: Connection, held: dict[str, Any], reason: str, message: str, *, tally: Tally, pace: Pace
) -> JobState:
    """End a lease uncharged; from the third release in a row without a new result the job waits a while first."""
    if held["outcome"] == Outcome.RELEASED:
        return JobState(held["state"])
    require_open(held)
    releases = held["releases"] + 1 if held["new_results"] == 0 else 0
    state = JobState.WAITING if releases > FREE_RELEASES else JobState.QUEUED
    held = {**held, "releases": releases}
    wait = pace.backoff(releases - FREE_RELEASES)
    await _end(connection, held, Outcome.RELEASED, tally, state=state, wait=wait, reason=reason, message=message)
    return state


async def _end(
    connection: Connection,
    held: dict[str, Any],
    outcome: Outcome,
    tally: Tally,
    *,
    state: JobState,
    wait: timedelta | None = None,
    charged: bool = False,
    reason: str | None = None,
    message: str | None = None,
    image_count: int | None = None,
) -> None:
    await connection.execute(sql.END_ATTEMPT, held["job_id"], held["lease_seq"], outcome, charged, reason, message)
    await _put(connection, held, tally, state, wait=wait, reason=reason, message=message, image_count=image_count)


async def _put(
    connection: Connection,
    job: dict[str, Any],
    tally: Tally,
    state: JobState,
    *,
    wait: timedelta | None = None,
    reason: str | None = None,
    message: str | None = None,
    image_count: int | None = None,
    fence: bool = False,
) -> None:
    """Put a locked job into a state in which nobody holds it; `fence` shuts out the last lease for good."""
    await connection.execute(
        sql.PUT,
        job["job_id"],
        state,
        wait or timedelta(),
        job["failures"],
        job["releases"],
        reason,
        message,
        image_count,
        int(fence),
    )
    tally.move(job["state"], state)


# --- what the clock does ---


async def overdue_projects(connection: Connection, *, judge_leases: bool) -> list[int]:
    """Projects that a sweep has work in."""
    return [row["project_id"] for row in await connection.fetch(sql.OVERDUE, judge_leases)]


async def sweep(connection: Connection, project_id: int, *, judge_leases: bool) -> dict[str, int]:
    """Queue a project's jobs that are due and, with `judge_leases`, end its expired leases; a bounded number of each.

    Returns:
        How many jobs each state gained: those whose wait is over, and expired ones that were queued again or failed.
    """
    tally = Tally()
    if judge_leases:
        for row in await connection.fetch(sql.EXPIRE, project_id, SWEEP_BATCH):
            tally.move(JobState.CLAIMED, row["state"], row["jobs"])
    due = await connection.fetchval(sql.QUEUE_DUE, project_id, SWEEP_BATCH)
    tally.move(JobState.WAITING, JobState.QUEUED, due)
    await tally.settle(connection, project_id)
    return {state: jobs for state, jobs in tally.items() if jobs > 0}


# --- what people do ---


async def _lock(connection: Connection, project_id: int, job_id: int) -> dict[str, Any]:
    row = await connection.fetchrow(sql.LOCK_JOB, job_id, project_id)
    if row is None:
        raise NotFound(f"there is no job {job_id} in this project")
    return dict(row)


async def _cut_off(connection: Connection, job: dict[str, Any], outcome: Outcome, reason: str) -> None:
    """End the open attempt of a claimed job in its holder's absence."""
    if job["state"] == JobState.CLAIMED:
        await connection.execute(sql.END_ATTEMPT, job["job_id"], job["lease_seq"], outcome, False, reason, None)


async def cancel(connection: Connection, project_id: int, job_id: int, tally: Tally) -> None:
    """Cancel an unfinished job; its holder, if any, loses it.

    Raises:
        WrongState: the job is completed or failed.
    """
    job = await _lock(connection, project_id, job_id)
    if job["state"] == JobState.CANCELLED:
        return
    if job["state"] in FINISHED:
        raise WrongState(f"job {job_id} is {job['state']} and cannot be cancelled")
    await _cut_off(connection, job, Outcome.CANCELLED, "cancelled")
    await _put(connection, job, tally, JobState.CANCELLED, reason="cancelled", fence=True)


async def retry(connection: Connection, project_id: int, job_id: int, tally: Tally) -> None:
    """Queue a failed or cancelled job again, its charges forgotten.

    Raises:
        WrongState: the job has neither failed nor been cancelled.
    """
    job = await _lock(connection, project_id, job_id)
    if job["state"] == JobState.QUEUED:
        return
    if job["state"] not in (JobState.FAILED, JobState.CANCELLED):
        raise WrongState(f"job {job_id} is {job['state']}; only a failed or cancelled job can be retried")
    await _put(connection, {**job, "failures": 0, "releases": 0}, tally, JobState.QUEUED)


async def rerun(
    connection: Connection, project_id: int, job_id: int, statuses: Sequence[ResultStatus] | None, tally: Tally
) -> None:
    """Queue a finished job again for a new run over all its images, or over those with given statuses.

    Stored rows stay until a new row replaces them.

    Raises:
        WrongState: the job is not finished.
    """
    job = await _lock(connection, project_id, job_id)
    if job["state"] not in FINISHED:
        raise WrongState(f"job {job_id} is {job['state']}; only a finished job can be run again")
    if job["state"] == JobState.COMPLETED:
        tally["images_listed"] -= job["image_count"]
    await connection.execute(sql.BEGIN_RUN, job_id, statuses is None)
    if statuses is not None:
        await connection.execute(sql.MARK_STALE, job_id, [str(status) for status in statuses])
    await _put(connection, {**job, "failures": 0, "releases": 0}, tally, JobState.QUEUED, fence=True)


async def force_release(connection: Connection, project_id: int, job_id: int, tally: Tally) -> None:
    """Take a claimed job from its holder and queue it again, uncharged.

    Raises:
        WrongState: nobody holds the job.
    """
    job = await _lock(connection, project_id, job_id)
    if job["state"] == JobState.QUEUED:
        # Its last lease may have expired just now, and must not come back.
        await connection.execute(sql.SHUT_OUT, job_id)
        return
    if job["state"] != JobState.CLAIMED:
        raise WrongState(f"job {job_id} is {job['state']}; only a claimed job can be released")
    await _cut_off(connection, job, Outcome.FORCE_RELEASED, "force-release")
    await _put(connection, job, tally, JobState.QUEUED, reason="force-release", fence=True)
