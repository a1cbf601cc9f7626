"""What people do to jobs: cancel, retry, rerun, force-release, delete; to one job, or to all that a filter names.

Beside `queue.py` the only writer of a job's state. One job and many go through the same statements, so that they mean
the same. A transaction keeps the project from being deleted, locks its jobs in the order of their ids, then their
attempts, and settles one counter slot last. Work on many jobs goes chunk by chunk, each a transaction of its own.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from job_api import failures, selection
from job_api import steering_sql as sql
from job_api.counters import Tally
from job_api.db import Connection, Database
from job_api.errors import DatabaseUnavailable, NotFound, WrongState
from job_api.queue import FINISHED
from job_api.schemas import (
    MAX_EXAMPLES,
    FailureKind,
    JobAction,
    JobExample,
    JobFilter,
    JobsActed,
    JobsAction,
    JobState,
    Outcome,
    ResultStatus,
)

log = logging.getLogger(__name__)

# Jobs of one transaction; a dry run, which locks nothing, takes more.
CHUNK = 1_000
DRY_CHUNK = 10_000
# Where an action touches results, the rows of one transaction, but always all those of one job: nothing is done to a
# job by half.
ROWS_IN_CHUNK = 5_000
JOBS_WITH_ROWS = 200
ROWS_SECONDS = 600.0
# After which a request answers and says where to go on.
BUDGET_SECONDS = 5.0


@dataclass(frozen=True)
class Rule:
    """In which states an action changes a job, and in which the job is as wanted already."""

    changes: frozenset[JobState]
    leaves: frozenset[JobState]
    refusal: str


RULES = {
    JobAction.CANCEL: Rule(
        frozenset({JobState.QUEUED, JobState.WAITING, JobState.CLAIMED}),
        frozenset({JobState.CANCELLED}),
        "only an unfinished job can be cancelled",
    ),
    JobAction.RETRY: Rule(
        frozenset({JobState.FAILED, JobState.CANCELLED}),
        frozenset({JobState.QUEUED}),
        "only a failed or cancelled job can be retried",
    ),
    JobAction.RERUN: Rule(frozenset(FINISHED), frozenset(), "only a finished job can be run again"),
    JobAction.FORCE_RELEASE: Rule(
        frozenset({JobState.CLAIMED}), frozenset({JobState.QUEUED}), "only a claimed job can be released"
    ),
    JobAction.DELETE: Rule(frozenset(FINISHED), frozenset(), "only a finished job can be deleted"),
}


@dataclass(frozen=True)
class Images:
    """Which images of its jobs a rerun does again: all, or those with some statuses, or of a group of failures."""

    statuses: Sequence[ResultStatus] | None = None
    failure: int | None = None

    @property
    def are_all(self) -> bool:
        """Whether nothing narrows them."""
        return self.statuses is None and self.failure is None


async def steer(
    connection: Connection,
    project_id: int,
    job_id: int,
    action: JobAction,
    tally: Tally,
    *,
    statuses: Sequence[ResultStatus] | None = None,
) -> None:
    """Do something to one job; a job that is as wanted already stays as it is.

    cancel: an unfinished job; its holder, if any, loses it. retry: a failed or cancelled job is queued, its charges
    forgotten. rerun: a finished job is queued for a new run over all its images, or over those with given `statuses`;
    stored rows stay until a new row replaces them. force-release: a claimed job is taken from its holder and queued,
    uncharged.

    Raises:
        NotFound: the project has no such job, or was deleted.
        WrongState: the job's state does not allow it.
    """
    await _keep_project(connection, project_id)
    job = await connection.fetchrow(sql.LOCK_JOB, job_id, project_id)
    if job is None:
        raise NotFound(f"there is no job {job_id} in this project")
    rule = RULES[action]
    if job["state"] not in rule.changes | rule.leaves:
        raise WrongState(f"job {job_id} is {job['state']}; {rule.refusal}")
    await _apply(connection, action, [job], Images(statuses), tally)


async def _keep_project(connection: Connection, project_id: int) -> None:
    if await connection.fetchval(sql.KEEP_PROJECT, project_id) is None:
        raise NotFound("the project was deleted")


async def _apply(
    connection: Connection,
    action: JobAction,
    jobs: Sequence[Any],
    images: Images,
    tally: Tally,
) -> int:
    """Do something to locked jobs whose states allow it; returns how many were changed."""
    rule = RULES[action]
    if action is JobAction.FORCE_RELEASE and (left := [job["id"] for job in jobs if job["state"] in rule.leaves]):
        # Their last lease may have expired just now, and must not come back.
        await connection.execute(sql.SHUT_OUT, left)
    jobs = [job for job in jobs if job["state"] in rule.changes]
    ids = [job["id"] for job in jobs]
    if not ids:
        return 0
    match action:
        case JobAction.CANCEL:
            await connection.execute(sql.CUT_OFF, ids, Outcome.CANCELLED, "cancelled")
            await _put(connection, jobs, tally, JobState.CANCELLED, reason="cancelled", fence=True)
        case JobAction.FORCE_RELEASE:
            await connection.execute(sql.CUT_OFF, ids, Outcome.FORCE_RELEASED, "force-release")
            await _put(connection, jobs, tally, JobState.QUEUED, reason="force-release", fence=True)
        case JobAction.RETRY:
            await _put(connection, jobs, tally, JobState.QUEUED, forgive=True)
        case JobAction.RERUN:
            await connection.execute(sql.BEGIN_RUN, ids, images.are_all)
            if images.statuses is not None:
                names = [str(status) for status in images.statuses]
                await connection.execute(sql.MARK_STALE, ids, names, timeout=ROWS_SECONDS)
            if images.failure is not None:
                await connection.execute(sql.MARK_FAILURE_STALE, ids, images.failure, timeout=ROWS_SECONDS)
            tally["images_listed"] -= _images_listed(jobs)
            await _put(connection, jobs, tally, JobState.QUEUED, forgive=True, fence=True)
        case JobAction.DELETE:
            await _delete(connection, jobs, tally)
    return len(ids)


def _images_listed(jobs: Sequence[Any]) -> int:
    return sum(job["image_count"] for job in jobs if job["state"] == JobState.COMPLETED)


async def _put(
    connection: Connection,
    jobs: Sequence[Any],
    tally: Tally,
    state: JobState,
    *,
    reason: str | None = None,
    forgive: bool = False,
    fence: bool = False,
) -> None:
    await connection.execute(sql.PUT_ALL, [job["id"] for job in jobs], state, reason, forgive, int(fence))
    for job in jobs:
        tally.move(job["state"], state)


async def _delete(connection: Connection, jobs: Sequence[Any], tally: Tally) -> None:
    ids = [job["id"] for job in jobs]
    rows = await connection.fetchrow(sql.DELETE_RESULTS, ids, timeout=ROWS_SECONDS)
    await connection.execute(sql.DELETE_REVIEWS, ids, timeout=ROWS_SECONDS)
    await connection.execute(sql.DELETE_ATTEMPTS, ids, timeout=ROWS_SECONDS)
    await connection.execute(sql.DELETE_JOBS, ids, timeout=ROWS_SECONDS)
    tally["images_stored"] -= rows["stored"] if rows else 0
    tally["images_recognised"] -= rows["recognised"] if rows else 0
    tally["images_listed"] -= _images_listed(jobs)
    for job in jobs:
        tally[job["state"]] -= 1


# --- many jobs ---


async def steer_many(database: Database, project_id: int, wanted: JobsAction) -> JobsActed:
    """Do something to the jobs that a filter names, in the order of their ids, for a few seconds.

    What is done is done: each chunk commits. A request that is repeated with the same `after` and `as_of` changes
    nothing twice, since what it changed is as wanted, not named any more, or newer than `as_of`.

    Raises:
        NotFound: the project was deleted, or there is no such group of failures when it begins; one that is asked for
            again may be gone for what was done before.
    """
    began = time.monotonic()
    async with database.connection() as connection:
        if wanted.filter.failure is not None and wanted.as_of is None:
            await failures.require(connection, project_id, wanted.filter.failure)
        as_of = wanted.as_of or await connection.fetchval("SELECT now()")
    done = JobsActed(as_of=as_of, next=wanted.after)
    while done.next is not None and (done.next == wanted.after or time.monotonic() - began < BUDGET_SECONDS):
        try:
            async with database.transaction() as connection:
                await _keep_project(connection, project_id)
                step = _count if wanted.dry_run else _change
                chunk = await step(connection, project_id, wanted, done.next, as_of)
        except DatabaseUnavailable:
            if done.next == wanted.after:
                raise
            # The caller shall know what was done before.
            log.warning("%s of many jobs is cut short: the database went away", wanted.action)
            return done
        done += chunk
    return done


async def release_claimed(database: Database, project_id: int) -> None:
    """Take all claimed jobs from their holders, uncharged, since their project has another engine now.

    Their rows would not count for the job, which would fail for want of results.

    Raises:
        NotFound: the project was deleted.
    """
    wanted = JobsAction(action=JobAction.FORCE_RELEASE, filter=JobFilter(states=[JobState.CLAIMED]))
    acted = await steer_many(database, project_id, wanted)
    while acted.next is not None:
        wanted = wanted.model_copy(update={"after": acted.next, "as_of": acted.as_of})
        acted = await steer_many(database, project_id, wanted)


async def _count(connection: Connection, project_id: int, wanted: JobsAction, after: int, as_of: datetime) -> JobsActed:
    """What an action would do to the next jobs."""
    rows, then = await selection.candidates(connection, project_id, wanted.filter, after, DRY_CHUNK)
    rule = RULES[wanted.action]
    rows = [row for row in rows if row["matches"]]
    changing = [row for row in rows if row["state"] in rule.changes]
    unchanged = sum(row["state"] in rule.leaves for row in rows)
    examples = [JobExample(id=r["id"], directory=r["directory"], state=r["state"]) for r in changing[:MAX_EXAMPLES]]
    return JobsActed(
        matched=len(rows),
        changed=len(changing),
        unchanged=unchanged,
        skipped=len(rows) - len(changing) - unchanged,
        next=then,
        as_of=as_of,
        examples=examples,
    )


async def _change(
    connection: Connection, project_id: int, wanted: JobsAction, after: int, as_of: datetime
) -> JobsActed:
    """Do the action to the next jobs; those that have changed since they were found are judged as they are now."""
    deleting = wanted.action is JobAction.DELETE
    images = Images(wanted.statuses, failures.key_of(wanted.images_of, FailureKind.IMAGE))
    touches_rows = deleting or (wanted.action is JobAction.RERUN and not images.are_all)
    limit = JOBS_WITH_ROWS if touches_rows else CHUNK
    rows, then = await selection.candidates(connection, project_id, wanted.filter, after, limit)
    if touches_rows:
        rows, then = await _cut(connection, rows, then)
    ids = [row["id"] for row in rows if row["matches"]]
    jobs = await selection.lock(connection, project_id, wanted.filter, ids, deleting=deleting)
    rule = RULES[wanted.action]
    fresh = await _newer(connection, wanted.action, jobs, as_of)
    allowed = [job for job in jobs if job["state"] in rule.changes | rule.leaves and job["id"] not in fresh]
    tally = Tally()
    changed = await _apply(connection, wanted.action, allowed, images, tally)
    await tally.settle(connection, project_id)
    return JobsActed(
        matched=len(jobs),
        changed=changed,
        unchanged=len(allowed) - changed,
        skipped=len(jobs) - len(allowed),
        next=then,
        as_of=as_of,
    )


async def _newer(connection: Connection, action: JobAction, jobs: Sequence[Any], as_of: datetime) -> set[int]:
    """Locked jobs that an action would change, but that came into their state after it began."""
    changing = [job for job in jobs if job["state"] in RULES[action].changes]
    since = {job["id"]: job["since"] for job in changing}
    if action is JobAction.FORCE_RELEASE and changing:
        rows = await connection.fetch(sql.CLAIMED_SINCE, list(since))
        since |= {row["job_id"]: row["claimed_at"] for row in rows}
    return {job_id for job_id, began in since.items() if began > as_of}


async def _cut(connection: Connection, rows: list[Any], then: int | None) -> tuple[list[Any], int | None]:
    """Cut candidates off where their rows become too many for one transaction."""
    sizes = {
        row["id"]: row["rows"]
        for row in await connection.fetch(sql.SIZES, [row["id"] for row in rows if row["matches"]], ROWS_IN_CHUNK + 1)
    }
    sums = accumulate(sizes.get(row["id"], 0) for row in rows)
    fitting = max(1, sum(total <= ROWS_IN_CHUNK for total in sums))
    if fitting >= len(rows):
        return rows, then
    return rows[:fitting], rows[fitting - 1]["id"]
