"""The job's life: the only writer of a job's state, together with `claiming`, `steering` and `quarantine`.

Each public function is one transition of the table in docs/design.md, one short transaction, on the database's clock.
A worker's writes pass the fence: whoever does not hold (job, lease_seq, worker_id) changes nothing. Those that come
often are one statement with the fence in it; where that finds no such lease, `hold` says why, or takes back one that
merely ran out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from asyncpg import UniqueViolationError

from job_api import queue_sql as sql
from job_api.counters import Tally, slot_of
from job_api.db import Connection, Database
from job_api.errors import LeaseLost, NotFound, ResultsMissing
from job_api.schemas import (
    ClaimRequest,
    HeldLease,
    JobState,
    Lease,
    LeaseStatus,
    LeaseVerdict,
    Outcome,
)

MAX_BACKOFF_SECONDS = 3600.0
FREE_RELEASES = 2
SWEEP_BATCH = 500
FINISHED = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class LeaseKey:
    """What a holder must name: the fence."""

    project: str
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
    await Tally(queued=added).settle(connection, project_id, priority=priority)
    return added


async def leases_of_claim(connection: Connection, request: ClaimRequest, pace: Pace) -> list[Lease]:
    """The leases that a claim's key still has."""
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
                key = LeaseKey(fate["project"], job_id, worker_id, lease_seq)
                status = LeaseStatus.HELD if await _revive(database, key, pace) else status
        verdicts.append(LeaseVerdict(job_id=job_id, lease_seq=lease_seq, status=status))
    return verdicts


async def _fates(connection: Connection, worker_id: str, ids: list[int], seqs: list[int]) -> dict[int, Any]:
    return {row["job_id"]: row for row in await connection.fetch(sql.LEASE_FATES, worker_id, ids, seqs)}


async def _revive(database: Database, key: LeaseKey, pace: Pace) -> bool:
    try:
        async with database.transaction() as connection:
            return (await hold(connection, key, pace))["outcome"] is None
    except (LeaseLost, NotFound):
        return False


async def hold(connection: Connection, key: LeaseKey, pace: Pace, tally: Tally | None = None) -> dict[str, Any]:
    """Lock the job and attempt of a lease for its holder: the fence before every write of a worker.

    A lease that merely expired comes back to its holder here, its charge refunded, unless the job was claimed,
    cancelled, run again or released by force since.

    Args:
        connection: in a transaction.
        key: what the holder names.
        pace: how long a lease lasts.
        tally: takes the change of the counters, for a caller that settles itself; else it is settled here.

    Returns:
        The row of `HOLD`; its `outcome` is None while the lease is held.

    Raises:
        NotFound: the project has no such job.
        LeaseLost: the caller never held that lease, or another holds the job since.
    """
    row = await connection.fetchrow(sql.HOLD, key.job_id, key.project, key.lease_seq, key.worker_id)
    if row is None:
        if await connection.fetchval(sql.JOB_EXISTS, key.job_id, key.project):
            raise LeaseLost(f"job {key.job_id}: worker {key.worker_id} never held lease {key.lease_seq}")
        raise NotFound(f"there is no job {key.job_id} in a project {key.project!r}")
    held = dict(row)
    if held["outcome"] == Outcome.EXPIRED:
        if held["newest_lease_seq"] != key.lease_seq:
            raise LeaseLost(f"job {key.job_id}: lease {key.lease_seq} expired and the job was taken by another since")
        refund = int(held["charged"])
        try:
            await connection.execute(sql.TAKE_BACK, key.job_id, key.worker_id, held["claim_key"], pace.lease, refund)
        except UniqueViolationError:
            # Its claim was sent again when it had expired, and got another job.
            raise LeaseLost(f"job {key.job_id}: lease {key.lease_seq} expired and its claim has another job") from None
        await connection.execute(sql.REOPEN_ATTEMPT, key.job_id, key.lease_seq)
        changes = Tally() if tally is None else tally
        changes.move(held["state"], JobState.CLAIMED)
        if tally is None:
            await changes.settle(connection, held["project_id"], slot_of(key.job_id))
        held |= {"outcome": None, "state": JobState.CLAIMED, "failures": max(held["failures"] - refund, 0)}
    return held


def require_open(held: dict[str, Any]) -> None:
    """Refuse a write through a lease that has ended.

    Raises:
        LeaseLost: says how it ended.
    """
    if held["outcome"] is not None:
        raise LeaseLost(f"job {held['job_id']}: lease {held['lease_seq']} has ended: {held['outcome']}")


async def complete(connection: Connection, key: LeaseKey, image_count: int) -> bool | None:
    """Complete a job whose images are all stored, through a lease that is held.

    Returns:
        Whether it is completed: False where fewer rows are stored than images were listed; None where the lease is
        not held as named, and `hold` says why.
    """
    row = await connection.fetchrow(
        sql.COMPLETE, key.job_id, key.project, key.lease_seq, key.worker_id, image_count, slot_of(key.job_id)
    )
    if row is None or not row["held"]:
        return None
    completed: bool = row["completed"]
    return completed


async def results_missing(connection: Connection, job_id: int, image_count: int) -> ResultsMissing:
    """The refusal to complete a job, with the number of rows that are there."""
    present = await connection.fetchval(sql.COUNT_PRESENT, job_id)
    return ResultsMissing(
        f"job {job_id}: {image_count} images were listed and {present} are stored; send the missing ones"
    )


async def fail(
    connection: Connection,
    held: dict[str, Any],
    reason: str,
    message: str,
    *,
    retryable: bool,
    pace: Pace,
    tally: Tally,
) -> JobState:
    """End a lease whose job cannot be done; it waits and is tried again, or has failed for good.

    Called by `quarantine.fail`, which judges the worker as well and settles the tally.
    """
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
    connection: Connection, held: dict[str, Any], reason: str, message: str, *, pace: Pace, counted: bool = True
) -> JobState:
    """End a lease uncharged; from the third release in a row without a new result the job waits a while first.

    Args:
        connection: in the transaction in which the lease was held.
        held: what `hold` gave.
        reason: a word for the attempt's entry.
        message: says more.
        pace: how long a job waits.
        counted: whether this is a release in a row; not where the worker never had the job.
    """
    if held["outcome"] == Outcome.RELEASED:
        return JobState(held["state"])
    require_open(held)
    releases = held["releases"]
    if counted:
        releases = releases + 1 if held["new_results"] == 0 else 0
    state = JobState.WAITING if counted and releases > FREE_RELEASES else JobState.QUEUED
    held = {**held, "releases": releases}
    wait = pace.backoff(releases - FREE_RELEASES)
    tally = Tally()
    await _end(connection, held, Outcome.RELEASED, tally, state=state, wait=wait, reason=reason, message=message)
    await tally.settle(connection, held["project_id"], slot_of(held["job_id"]), priority=held["priority"])
    return state


async def undo_claim(database: Database, worker_id: str, leases: Sequence[Lease], pace: Pace) -> None:
    """Take back a claim whose answer nobody was there to hear."""
    for lease in leases:
        key = LeaseKey(lease.project, lease.job_id, worker_id, lease.lease_seq)
        try:
            async with database.transaction() as connection:
                held = await hold(connection, key, pace)
                if held["outcome"] is None:
                    await release(
                        connection, held, "client-gone", "the claim's client hung up", pace=pace, counted=False
                    )
        except (LeaseLost, NotFound):
            continue


async def _end(
    connection: Connection,
    held: dict[str, Any],
    outcome: Outcome,
    tally: Tally,
    *,
    state: JobState,
    wait: timedelta,
    reason: str,
    message: str,
    charged: bool = False,
) -> None:
    await connection.execute(sql.END_ATTEMPT, held["job_id"], held["lease_seq"], outcome, charged, reason, message)
    await _put(connection, held, tally, state, wait=wait, reason=reason, message=message)


async def _put(
    connection: Connection,
    job: dict[str, Any],
    tally: Tally,
    state: JobState,
    *,
    wait: timedelta | None = None,
    reason: str | None = None,
    message: str | None = None,
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
