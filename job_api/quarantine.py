"""Quarantine: when failures speak against the worker and not against the directories, and how they are taken back.

The part of the queue that ends leases by failure, and puts jobs back that a worker failed which is not trusted any
more. A failure counts against its worker where the job had not failed before: else the directory is likely at fault.
That also makes jobs that truly cannot be done end as failed, since each counts against one worker, once.

What a worker failed since its last success stands in `worker_failures`. A transaction that changes it goes one at a
time for each worker, and locks in this order: the projects and jobs concerned, in the order of their ids, the worker,
its failures, and last the counters, one slot of each project in the order of their ids. A success forgets the failures
within its own statement (`queue_sql.COMPLETE`, `results.STORE`).
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from job_api import fleet, queue
from job_api.counters import Tally
from job_api.db import Connection
from job_api.queue import LeaseKey, Pace
from job_api.schemas import NONE_CHOSEN, Fail, JobState, LogLevel, LogLine, Worker, WorkerState
from job_api.text import clean_text

log = logging.getLogger(__name__)

BY_HAND = "by hand"
MAX_REASON_CHARS = 500

# What changes a worker's failures, one after another; the lock comes before all others.
ALONE = "SELECT pg_advisory_xact_lock(1784769379, hashtext($1))"
# A worker's state and what it failed, one row at least where there is such a worker. The newest of very many: more than
# a thousand jobs are not locked at once.
RECORD = """
SELECT w.state, f.job_id, f.lease_seq, f.counts
FROM workers w LEFT JOIN LATERAL (
    SELECT * FROM worker_failures WHERE worker_id = w.id ORDER BY counts DESC, failed_at DESC LIMIT 1000) AS f ON true
WHERE w.id = $1
"""
NOTE = """
INSERT INTO worker_failures (worker_id, job_id, lease_seq, counts)
SELECT id, $2, $3, $4 FROM workers WHERE id = $1 FOR KEY SHARE
"""
FORGET = "DELETE FROM worker_failures WHERE worker_id = $1"
# One that drains goes on to its end.
IMPOSE = """
UPDATE workers SET state = 'quarantined', state_since = now(), reason = $2 WHERE id = $1 AND state = 'run' RETURNING id
"""

# Keep the projects of some jobs from being deleted until the transaction ends: none of their jobs is queued afterwards.
KEEP_PROJECTS = """
SELECT id FROM projects
WHERE id IN (SELECT project_id FROM jobs WHERE id = ANY($1::bigint[])) AND deleted_at IS NULL
ORDER BY id FOR KEY SHARE
"""
LOCK_JOBS = """
SELECT id FROM jobs WHERE id = ANY($1::bigint[]) AND project_id = ANY($2::bigint[]) ORDER BY id FOR NO KEY UPDATE
"""

# Take back the charges of attempts that failed, whose jobs are locked. A job whose state is the work of such an attempt
# is queued; one that went on since, or that somebody has, stays where it is. One row for each job that is queued.
REFUND = """
WITH taken AS (
    UPDATE attempts a SET charged = false, message = concat_ws('; ', nullif(a.message, ''), $4::text)
    FROM unnest($1::bigint[], $2::bigint[]) AS n (job_id, lease_seq)
    WHERE a.job_id = n.job_id AND a.lease_seq = n.lease_seq AND a.outcome = 'failed' AND a.charged
    RETURNING a.job_id, a.lease_seq),
counted AS MATERIALIZED (SELECT job_id, count(*)::int AS charges, max(lease_seq) AS newest FROM taken GROUP BY job_id),
before AS MATERIALIZED (
    SELECT j.id, j.project_id, j.state, c.charges,
           j.state IN ('waiting', 'failed') AND j.lease_seq = c.newest AS again
    -- They are queued again in their order.
    FROM counted c JOIN jobs j ON j.id = c.job_id ORDER BY j.id),
put AS (
    UPDATE jobs j SET
        failures = greatest(j.failures - b.charges, 0), refunds = j.refunds + b.charges,
        state = CASE WHEN b.again THEN 'queued' ELSE j.state END,
        queue_pos = CASE WHEN b.again THEN nextval('queue_pos_seq') ELSE j.queue_pos END,
        due_at = CASE WHEN b.again THEN NULL ELSE j.due_at END,
        finished_at = CASE WHEN b.again THEN NULL ELSE j.finished_at END,
        reason = CASE WHEN b.again THEN 'worker-quarantined' ELSE j.reason END,
        message = CASE WHEN b.again THEN $3 ELSE j.message END
    FROM before b WHERE j.id = b.id)
SELECT b.id, b.project_id, b.state, p.name AS project
FROM before b JOIN projects p ON p.id = b.project_id WHERE b.again
"""


@dataclass
class Record:
    """What a worker is told to do, and what it failed since its last success: jobs and their leases."""

    state: WorkerState | None
    leases: list[tuple[int, int]]
    counting: set[int]

    @property
    def jobs(self) -> set[int]:
        """The jobs that it failed."""
        return {job_id for job_id, _ in self.leases}


@dataclass
class Changes:
    """What a transaction does to the counters of projects, and which jobs it queues in which of them."""

    tallies: defaultdict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))
    queued: set[int] = field(default_factory=set)
    projects: set[str] = field(default_factory=set)

    async def settle(self, connection: Connection) -> None:
        """Write the counters, in the order of the projects; the last thing that is locked."""
        for project_id in sorted(self.tallies):
            await self.tallies[project_id].settle(connection, project_id)


async def fail(
    connection: Connection, key: LeaseKey, failure: Fail, pace: Pace, quarantine_after: int
) -> tuple[JobState, set[str]]:
    """End a lease whose job cannot be done, and quarantine its worker where that is one failure too many.

    What a worker fails that is quarantined already is not charged, and its job is queued.

    Args:
        connection: in a transaction.
        key: the lease.
        failure: what the worker says.
        pace: how long jobs back off.
        quarantine_after: how many different jobs must fail in a row; 0: no matter how many.

    Returns:
        The job's state, and the names of projects in which jobs were queued.

    Raises:
        NotFound, LeaseLost: as `queue.hold`.
    """
    record = await _record(connection, key.worker_id)
    distrusted = record.state is WorkerState.QUARANTINED
    different = len(record.counting | {key.job_id})
    may_be_last = 0 < quarantine_after <= different
    kept: set[int] = set()
    if distrusted or may_be_last:
        kept = await _lock(connection, {key.job_id} | (record.jobs if may_be_last else set()))
    changes, tally = Changes(), Tally()
    held = await queue.hold(connection, key, pace, tally)
    changes.tallies[held["project_id"]] = tally
    reason, message, retryable = failure.reason, failure.message, failure.retryable
    state = await queue.fail(connection, held, reason, message, retryable=retryable, pace=pace, tally=tally)
    if held["outcome"] is None and held["new_results"] == 0 and record.state is not None:
        counts = _speaks_against_worker(held, failure.reason)
        if distrusted:
            await _refund(connection, key.worker_id, [(key.job_id, key.lease_seq)], kept, changes)
        elif counts and may_be_last:
            leases = [*record.leases, (key.job_id, key.lease_seq)]
            await _refund(connection, key.worker_id, leases, kept, changes)
            await _impose(connection, key, failure, failed=different, queued=len(changes.queued))
            await connection.execute(FORGET, key.worker_id)
        else:
            await connection.execute(NOTE, key.worker_id, key.job_id, key.lease_seq, counts)
    await changes.settle(connection)
    return JobState.QUEUED if key.job_id in changes.queued else state, changes.projects


def _speaks_against_worker(held: dict[str, Any], reason: str) -> bool:
    """Whether a failure is no setting's doing, and the first of its job since it was added, retried or run again."""
    return reason != NONE_CHOSEN and not (held["failures"] or held["refunds"])


async def impose(connection: Connection, worker_id: str, alive_seconds: float) -> tuple[Worker, set[str]]:
    """Quarantine a worker by hand; what it charged since its last success is taken back.

    Returns:
        The worker, and the names of projects in which jobs were queued.

    Raises:
        NotFound, WorkerGone: as `fleet.steer`.
    """
    record = await _record(connection, worker_id)
    changes = Changes()
    kept = await _lock(connection, record.jobs)
    await _refund(connection, worker_id, record.leases, kept, changes)
    worker = await fleet.steer(connection, worker_id, WorkerState.QUARANTINED, alive_seconds, BY_HAND)
    await connection.execute(FORGET, worker_id)
    await changes.settle(connection)
    return worker, changes.projects


async def lift(connection: Connection, worker_id: str, alive_seconds: float) -> Worker:
    """Let a worker run again, with an empty record.

    Raises:
        NotFound, WorkerGone: as `fleet.steer`.
    """
    await connection.execute(ALONE, worker_id)
    worker = await fleet.steer(connection, worker_id, WorkerState.RUN, alive_seconds)
    await connection.execute(FORGET, worker_id)
    return worker


async def _record(connection: Connection, worker_id: str) -> Record:
    await connection.execute(ALONE, worker_id)
    # A statement of its own: it must see what was done while this one waited.
    rows = await connection.fetch(RECORD, worker_id)
    failed = [row for row in rows if row["job_id"] is not None]
    return Record(
        state=WorkerState(rows[0]["state"]) if rows else None,
        leases=[(row["job_id"], row["lease_seq"]) for row in failed],
        counting={row["job_id"] for row in failed if row["counts"]},
    )


async def _lock(connection: Connection, jobs: Collection[int]) -> set[int]:
    """Lock jobs, and keep their projects; returns those that are still there."""
    projects = await connection.fetch(KEEP_PROJECTS, jobs)
    rows = await connection.fetch(LOCK_JOBS, jobs, [row["id"] for row in projects])
    return {row["id"] for row in rows}


async def _refund(
    connection: Connection, worker_id: str, leases: Iterable[tuple[int, int]], kept: set[int], changes: Changes
) -> None:
    """Take back what was charged through leases of a worker, as far as their jobs are locked."""
    named = [lease for lease in leases if lease[0] in kept]
    job_ids, lease_seqs = [job_id for job_id, _ in named], [lease_seq for _, lease_seq in named]
    said = f"its worker {worker_id} is quarantined; what it failed is tried again"
    for row in await connection.fetch(REFUND, job_ids, lease_seqs, said, "not charged: the worker is quarantined"):
        changes.tallies[row["project_id"]].move(row["state"], JobState.QUEUED)
        changes.queued.add(row["id"])
        changes.projects.add(row["project"])


async def _impose(connection: Connection, key: LeaseKey, failure: Fail, *, failed: int, queued: int) -> None:
    """Tell a worker to stop, and everybody why."""
    reason = clean_text(
        f"{failed} different jobs failed one after another; the last, job {key.job_id}: {failure.reason}"
        + (f" ({failure.message})" if failure.message else ""),
        MAX_REASON_CHARS,
    )
    if await connection.fetchval(IMPOSE, key.worker_id, reason) is None:
        return
    said = (
        f"worker {key.worker_id} is quarantined: {reason}; {queued} jobs are queued again. "
        f"Look after its machine, then: job-api worker lift {key.worker_id}"
    )
    log.error("%s", said)
    line = LogLine(
        level=LogLevel.ERROR,
        message=said,
        logger=__name__,
        project=key.project,
        job_id=key.job_id,
        lease_seq=key.lease_seq,
    )
    await fleet.store_lines(connection, key.worker_id, [line], None)
