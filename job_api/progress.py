"""How far a project is: the status document, the samples its pace is read from, and the time its workers spent.

Samples and time are noted by each sweep, in any number of API processes, by the database's clock. Changes no job.
"""

from typing import Any

import asyncpg

from job_api.counters import COLUMNS, REPLACED, SUMS
from job_api.db import Connection
from job_api.projects import row_of
from job_api.schemas import ImageCounts, JobCounts, JobState, ProjectCost, ProjectStatus

RATE_WINDOW_SECONDS = 300.0
# Busy projects are sampled by each sweep: where two samples are further apart, nobody was at work in between.
IDLE_SECONDS = 30.0
SAMPLES_KEPT_SECONDS = 3600.0
# Of the time between two sweeps, however long it was: while the service was away nobody knows who worked.
LONGEST_GAP_SECONDS = 60.0

ACTIVE_WORKERS = "SELECT count(DISTINCT worker_id) FROM jobs WHERE project_id = $1 AND state = 'claimed'"
# Since which sample in the window work goes on without a gap, and its age. After a gap nobody knows when it began, for
# that was between two sweeps: the sample before tells how many rows there were, and the sample itself is the beginning.
SAMPLE = """
SELECT coalesce(before, images_stored) AS images_stored, extract(epoch FROM now() - sampled_at)::float8 AS age_seconds
FROM (SELECT images_stored, sampled_at, lag(images_stored) OVER w AS before, lag(sampled_at) OVER w AS before_at
      FROM project_samples
      WHERE project_id = $1 AND sampled_at >= now() - $2 * interval '1 second' WINDOW w AS (ORDER BY sampled_at)) s
WHERE before_at IS NULL OR sampled_at - before_at > $3 * interval '1 second'
ORDER BY sampled_at DESC LIMIT 1
"""
# Sample the projects that somebody works on, or whose rows changed since the last sample.
TAKE_SAMPLES = """
INSERT INTO project_samples (project_id, sampled_at, images_stored)
SELECT n.project_id, date_bin('5 seconds', now(), 'epoch'), n.images_stored
FROM (SELECT project_id, sum(images_stored + images_replaced)::bigint AS images_stored, sum(claimed) AS claimed
      FROM project_slots GROUP BY project_id) AS n
-- A project that is just being deleted is passed over: its row would have to be waited for.
JOIN (SELECT id FROM projects FOR KEY SHARE SKIP LOCKED) AS p ON p.id = n.project_id
WHERE n.claimed > 0 OR n.images_stored IS DISTINCT FROM (
    SELECT s.images_stored FROM project_samples s WHERE s.project_id = n.project_id ORDER BY sampled_at DESC LIMIT 1)
ON CONFLICT DO NOTHING
"""
DROP_SAMPLES = "DELETE FROM project_samples WHERE sampled_at < now() - $1 * interval '1 second'"
USAGE = "SELECT worker_seconds, busy_seconds, images_before FROM project_usage WHERE project_id = $1"
# Add the time since the last count, at most $1 seconds of it, to the projects whose jobs are held now: a worker's time
# is shared by its leases. Whoever has the clock counts; who sweeps at the same moment finds it locked, or moved.
COUNT_USAGE = """
WITH clock AS MATERIALIZED (
    SELECT least(extract(epoch FROM now() - counted_until)::float8, $1::float8) AS seconds
    FROM usage_clock WHERE counted_until < now() FOR UPDATE SKIP LOCKED),
moved AS (UPDATE usage_clock SET counted_until = now() FROM clock),
shares AS (
    SELECT project_id, (count(*) / sum(count(*)) OVER (PARTITION BY worker_id))::float8 AS share
    FROM jobs WHERE state = 'claimed' GROUP BY worker_id, project_id)
INSERT INTO project_usage AS u (project_id, worker_seconds, busy_seconds)
SELECT s.project_id, c.seconds * sum(s.share), c.seconds
FROM clock c CROSS JOIN shares s GROUP BY s.project_id, c.seconds
ON CONFLICT (project_id) DO UPDATE SET worker_seconds = u.worker_seconds + EXCLUDED.worker_seconds,
                                       busy_seconds = u.busy_seconds + EXCLUDED.busy_seconds
"""


async def status(connection: Connection, name: str) -> ProjectStatus:
    """The status document of a project.

    Raises:
        NotFound: there is no such project.
    """
    row = await row_of(connection, name)
    sums = dict(await connection.fetchrow(SUMS, row["id"]) or dict.fromkeys(COLUMNS, 0))
    sample = await connection.fetchrow(SAMPLE, row["id"], RATE_WINDOW_SECONDS, IDLE_SECONDS)
    usage = await connection.fetchrow(USAGE, row["id"])
    # A row that a rerun replaces was as much work as any.
    replaced = await connection.fetchval(REPLACED, row["id"])
    made = sums["images_stored"] + replaced
    rate = None
    if sample is not None and sample["age_seconds"] >= 1:
        # Fewer than before where rows were deleted.
        rate = max(made - sample["images_stored"], 0) / sample["age_seconds"]
    left = _images_left(sums, replaced)
    eta_seconds, eta_assumes = _eta(sums, left, rate, paused=row["paused"], is_rerun=replaced > 0)
    cost, cost_assumes = _cost(row["price_per_worker_hour"], usage, made, left if eta_seconds is not None else None)
    base = f"/v4/{name}"
    return ProjectStatus(
        **dict(row),
        jobs=JobCounts(**{state.value: sums[state] for state in JobState}),
        images=ImageCounts(
            stored=sums["images_stored"],
            recognised=sums["images_recognised"],
            not_recognised=sums["images_stored"] - sums["images_recognised"],
        ),
        images_per_second=rate,
        rate_window_seconds=sample["age_seconds"] if sample is not None and rate is not None else None,
        images_per_second_overall=_overall(usage, made),
        worker_seconds=usage["worker_seconds"] if usage else 0,
        busy_seconds=usage["busy_seconds"] if usage else 0,
        eta_seconds=eta_seconds,
        eta_assumes=eta_assumes,
        cost=cost,
        cost_assumes=cost_assumes,
        active_workers=await connection.fetchval(ACTIVE_WORKERS, row["id"]),
        links={
            "self": base,
            "jobs": f"{base}/jobs",
            "slowest": f"{base}/directories?order=slowest",
            "failing": f"{base}/directories?order=failing",
            "results": f"{base}/results",
            "logs": f"{base}/logs",
        },
    )


def _unfinished(sums: dict[str, Any]) -> int:
    unfinished: int = sums[JobState.QUEUED] + sums[JobState.WAITING] + sums[JobState.CLAIMED]
    return unfinished


def _images_left(sums: dict[str, Any], replaced: int) -> float | None:
    """Images that are still to be recognised, by the mean of the completed directories; None while there are none."""
    unfinished = _unfinished(sums)
    if unfinished == 0:
        return 0.0
    if not sums[JobState.COMPLETED]:
        return None
    mean = sums["images_listed"] / sums[JobState.COMPLETED]
    # Rows beyond the completed directories' are of those in work, or of another engine; after a rerun those of the run
    # before are among them, and nobody knows how many.
    begun = 0 if replaced else min(max(sums["images_stored"] - sums["images_listed"], 0), sums[JobState.CLAIMED] * mean)
    left: float = max(unfinished * mean - begun, unfinished)
    return left


def _eta(
    sums: dict[str, Any], left: float | None, rate: float | None, *, paused: bool, is_rerun: bool
) -> tuple[float | None, str]:
    """Seconds until all jobs are finished, and what that rests on; or None, and why nothing can be said."""
    unfinished = _unfinished(sums)
    if unfinished == 0:
        return 0.0, "no job is unfinished"
    if paused:
        return None, "nothing can be said: the project is paused"
    if left is None:
        return None, "nothing can be said before the first directory is completed: how many images they hold is unknown"
    if rate is None:
        return None, "nothing can be said: nobody was at work in the last 5 minutes, or has only just begun"
    if rate <= 0:
        return None, "nothing can be said: no result was stored in the last 5 minutes"
    mean = sums["images_listed"] / sums[JobState.COMPLETED]
    assumes = (
        f"each of the {unfinished} unfinished directories holds {mean:.1f} images, as the completed ones do on "
        "average, and the rate stays as it is"
    )
    if is_rerun:
        assumes += "; where of a rerun not all images are done again, it takes less"
    return left / rate, assumes


def _images_counted(usage: asyncpg.Record | None, made: int) -> int:
    """Rows that were made while the workers' time was counted; none also when more were deleted since."""
    return max(made - usage["images_before"], 0) if usage else 0


def _overall(usage: asyncpg.Record | None, made: int) -> float | None:
    """Rows a second, over all the time in which a worker worked."""
    images = _images_counted(usage, made)
    return images / usage["busy_seconds"] if usage and images and usage["busy_seconds"] else None


def _cost(
    price: float | None, usage: asyncpg.Record | None, made: int, left: float | None
) -> tuple[ProjectCost | None, str | None]:
    """What the workers' time cost, and what that rests on; nothing where there is no price."""
    if price is None:
        return None, None
    spent = price * (usage["worker_seconds"] if usage else 0) / 3600
    images = _images_counted(usage, made)
    each = spent / images if images else None
    expected = spent if left == 0 else spent + left * each if left is not None and each else None
    assumes = (
        f"{price:g} for each hour in which a worker held leases of this project (of several: shared by its leases); "
        "machines that start or idle are not in it"
    )
    if usage and usage["images_before"]:
        assumes += f"; {usage['images_before']} images are older than this count and not in it"
    if expected is not None and left:
        assumes += f"; the {left:.0f} images that may be left cost as much each as the others did"
    return ProjectCost(spent=spent, per_1000_images=1000 * each if each else None, expected_total=expected), assumes


async def take_samples(connection: Connection) -> None:
    """Note how many rows each busy project has now and how long workers worked for it, and forget old notes."""
    await connection.execute(COUNT_USAGE, LONGEST_GAP_SECONDS)
    await connection.execute(TAKE_SAMPLES)
    await connection.execute(DROP_SAMPLES, SAMPLES_KEPT_SECONDS)
