"""The named statements of what people do to jobs, each with its purpose. Only `steering.py` runs them.

All go by lists of ids: one job is a list of one. The jobs are locked before, in the order of their ids.
"""

from job_api.failures import IMAGE_FAILED, IMAGE_KEY

# Keep a project from being deleted until the transaction ends; nothing comes back where it was.
KEEP_PROJECT = "SELECT id FROM projects WHERE id = $1 AND deleted_at IS NULL FOR KEY SHARE"

# One job, locked.
LOCK_JOB = """
SELECT id, state, lease_seq, image_count FROM jobs WHERE id = $1 AND project_id = $2 FOR NO KEY UPDATE
"""

# Since when claimed jobs are claimed; asked after they were locked, to see the newest attempt.
CLAIMED_SINCE = """
SELECT a.job_id, a.claimed_at FROM attempts a JOIN jobs j ON j.id = a.job_id AND j.lease_seq = a.lease_seq
WHERE j.id = ANY($1::bigint[])
"""

# End the open attempts of claimed jobs in their holders' absence.
CUT_OFF = """
UPDATE attempts a SET outcome = $2, ended_at = now(), charged = false, reason = $3, message = NULL
FROM jobs j WHERE j.id = ANY($1::bigint[]) AND j.state = 'claimed' AND a.job_id = j.id AND a.lease_seq = j.lease_seq
"""

# Put jobs into a state in which nobody holds them. $4: their charges are forgotten; $5: 1 shuts out the last lease for
# good. They are queued in the order in which they are named.
PUT_ALL = """
UPDATE jobs j SET
    state = $2, worker_id = NULL, claim_key = NULL, lease_expires_at = NULL, due_at = NULL,
    queue_pos = coalesce(n.queue_pos, j.queue_pos),
    finished_at = CASE WHEN $2 IN ('completed', 'failed', 'cancelled') THEN now() END,
    failures = CASE WHEN $4 THEN 0 ELSE j.failures END, refunds = CASE WHEN $4 THEN 0 ELSE j.refunds END,
    releases = CASE WHEN $4 THEN 0 ELSE j.releases END,
    reason = $3, message = NULL, lease_seq = j.lease_seq + $5
FROM (SELECT id, CASE WHEN $2 = 'queued' THEN nextval('queue_pos_seq') END AS queue_pos
      FROM unnest($1::bigint[]) AS id) AS n
WHERE j.id = n.id
"""

# Let a lease that expired never come back to jobs that nobody holds.
SHUT_OUT = """
UPDATE jobs j SET lease_seq = j.lease_seq + 1
FROM attempts a
WHERE j.id = ANY($1::bigint[]) AND a.job_id = j.id AND a.lease_seq = j.lease_seq AND a.outcome = 'expired'
"""

# Begin a new run; rows of earlier runs no longer count as present: all of them, or of the project's engine's those with
# given statuses or of a group of failures. Those of other engines are not done again.
BEGIN_RUN = """
UPDATE jobs SET run = run + 1, present_from_run = CASE WHEN $2 THEN run + 1 ELSE present_from_run END
WHERE id = ANY($1::bigint[])
"""
MARK_STALE = """
UPDATE results r SET stale = true FROM projects p
WHERE r.job_id = ANY($1::bigint[]) AND r.status = ANY($2::text[]) AND p.id = r.project_id AND r.engine = p.engine
"""
MARK_FAILURE_STALE = f"""
UPDATE results SET stale = true
WHERE project_id = (SELECT project_id FROM jobs WHERE id = ($1::bigint[])[1])
      AND engine = (SELECT p.engine FROM jobs j JOIN projects p ON p.id = j.project_id WHERE j.id = ($1::bigint[])[1])
      AND job_id = ANY($1::bigint[]) AND {IMAGE_FAILED} AND {IMAGE_KEY} = $2
"""  # noqa: S608 - built from constants

# How many rows each of some jobs has, counted no further than $2.
SIZES = """
SELECT id, (SELECT count(*) FROM (SELECT 1 FROM results r WHERE r.job_id = id LIMIT $2) AS r) AS rows
FROM unnest($1::bigint[]) AS id
"""

# Delete jobs with all that is theirs, children first. Their log lines stay until their own time is up.
DELETE_RESULTS = """
WITH deleted AS (DELETE FROM results WHERE job_id = ANY($1::bigint[]) RETURNING status)
SELECT count(*) AS stored, count(*) FILTER (WHERE status = 'recognised') AS recognised FROM deleted
"""
DELETE_REVIEWS = "DELETE FROM reviews WHERE job_id = ANY($1::bigint[])"
DELETE_ATTEMPTS = "DELETE FROM attempts WHERE job_id = ANY($1::bigint[])"
DELETE_JOBS = "DELETE FROM jobs WHERE id = ANY($1::bigint[])"
