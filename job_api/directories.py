"""Which directories of a project take long, and which fail: the jobs that a person wants to look at first.

Reads a bounded number of jobs of each state, by the indexes that there are, so that it costs the same however many
jobs a project has. Changes nothing.
"""

from job_api.db import Connection
from job_api.schemas import DirectoryOrder, DirectoryReport

# Jobs of one state that are looked at. Jobs are claimed about in the order of their ids, so that those held longest
# are the first, and those completed just now the last.
LOOKED_AT = 1_000

_JOB = "id AS job_id, directory, state, lease_seq, image_count, failures, reason, message"
_ATTEMPT = """
a.worker_id, a.new_results, extract(epoch FROM coalesce(a.ended_at, now()) - a.claimed_at)::float8 AS seconds
"""
# A state that is said to lie between itself and itself is no constant to PostgreSQL: only `jobs_browse_idx` (project,
# state, id) has this order; it would go through all jobs by their ids, or sort all that wait.
_OF_STATE = f"""(
    SELECT {_JOB} FROM jobs WHERE project_id = $1 AND state BETWEEN '{{state}}' AND '{{state}}'
    ORDER BY state {{way}}, id {{way}} LIMIT $3)"""  # noqa: S608 - built from constants, as all statements here
_CLAIMED = _OF_STATE.format(state="claimed", way="ASC")
_COMPLETED, _FAILED, _WAITING = (_OF_STATE.format(state=s, way="DESC") for s in ("completed", "failed", "waiting"))
# Who has failed is queued again behind all others.
_LAST_QUEUED = f"""(
    SELECT {_JOB} FROM jobs WHERE project_id = $1 AND state = 'queued' ORDER BY priority, queue_pos DESC LIMIT $3)"""  # noqa: S608

# By how long the newest lease is held, or took until the job was completed.
SLOWEST = f"""
SELECT j.*, {_ATTEMPT} FROM ({_CLAIMED} UNION ALL {_COMPLETED}) AS j
JOIN attempts a ON a.job_id = j.job_id AND a.lease_seq = j.lease_seq
ORDER BY seconds DESC, j.job_id LIMIT $2
"""  # noqa: S608
# By how often they failed; of those that failed as often, those that are given up first.
FAILING = f"""
SELECT j.*, {_ATTEMPT} FROM (
    SELECT * FROM ({_FAILED} UNION ALL {_WAITING} UNION ALL {_CLAIMED} UNION ALL {_LAST_QUEUED}) AS all_of_them
    WHERE state = 'failed' OR failures > 0
    ORDER BY failures DESC, state = 'failed' DESC, job_id DESC LIMIT $2) AS j
LEFT JOIN attempts a ON a.job_id = j.job_id AND a.lease_seq = j.lease_seq
ORDER BY j.failures DESC, j.state = 'failed' DESC, j.job_id DESC
"""  # noqa: S608

STATEMENTS = {DirectoryOrder.SLOWEST: SLOWEST, DirectoryOrder.FAILING: FAILING}


async def worst(connection: Connection, project: int, order: DirectoryOrder, limit: int) -> list[DirectoryReport]:
    """The directories of a project that take longest, or fail most often."""
    rows = await connection.fetch(STATEMENTS[order], project, limit, LOOKED_AT)
    return [DirectoryReport.model_validate(dict(row)) for row in rows]
