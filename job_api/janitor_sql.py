"""The janitor's named statements, each with its purpose. Each reads and deletes no more than a given number of rows."""

# One janitor at a time over all processes, until its transaction ends. Two keys: those of one key belong to the writers
# of results, for whom the export waits.
ALONE = "SELECT pg_try_advisory_xact_lock(1784769378, 1)"

# --- deleted projects ---

DOOMED = "SELECT id FROM projects WHERE deleted_at IS NOT NULL ORDER BY id LIMIT 1"

# The next jobs of a project, locked: a late writer comes before, or finds nothing afterwards.
DOOMED_JOBS = """
SELECT id, state FROM jobs WHERE project_id = $1 AND (state, id) > ($2, $3) ORDER BY state, id LIMIT $4 FOR UPDATE
"""
DELETE_RESULTS = """
WITH gone AS (
    DELETE FROM results
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM results WHERE job_id = ANY($1::bigint[]) LIMIT $2)) RETURNING 1)
SELECT count(*) FROM gone
"""
DELETE_REVIEWS = """
WITH gone AS (
    DELETE FROM reviews
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM reviews WHERE job_id = ANY($1::bigint[]) LIMIT $2)) RETURNING 1)
SELECT count(*) FROM gone
"""
DELETE_ATTEMPTS = """
WITH gone AS (
    DELETE FROM attempts
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM attempts WHERE job_id = ANY($1::bigint[]) LIMIT $2)) RETURNING 1)
SELECT count(*) FROM gone
"""
DELETE_JOBS = "DELETE FROM jobs WHERE id = ANY($1::bigint[])"
DELETE_LINES = """
WITH gone AS (
    DELETE FROM log_lines
    WHERE id = ANY(ARRAY(SELECT id FROM log_lines WHERE project_id = $1 AND id > $2 ORDER BY id LIMIT $3)) RETURNING id)
SELECT count(*) AS lines, max(id) AS last FROM gone
"""
# The slots and samples are gone already, or go with it.
DELETE_PROJECT = "DELETE FROM projects WHERE id = $1"

# --- what was kept long enough ---
# Each reads the next $2 rows of a table in the order of its primary key and deletes those of them that are older than
# $1. It answers how many were seen and dropped, and the key to go on after.

# Lines are numbered as they come, so the oldest stand first; the walk ends where the first is to be kept.
# $3: the highest number of lines, counted by their ids; $4: go on after this one.
DROP_LINES = """
WITH seen AS (
    SELECT id, coalesce(received_at < now() - $1::interval, false)
               OR coalesce(id <= (SELECT max(id) FROM log_lines) - $3::bigint, false) AS old
    FROM log_lines WHERE id > $4 ORDER BY id LIMIT $2),
gone AS (DELETE FROM log_lines WHERE id = ANY(ARRAY(SELECT id FROM seen WHERE old)) RETURNING id)
SELECT count(*) AS dropped, max(id) AS last FROM gone
"""

# Never the newest attempt of a job, nor one of an unfinished job. Who works on such a job or attempt comes first.
DROP_ATTEMPTS = """
WITH seen AS (
    SELECT job_id, lease_seq, ended_at FROM attempts WHERE (job_id, lease_seq) > ($3, $4)
    ORDER BY job_id, lease_seq LIMIT $2),
old AS (
    SELECT a.job_id, a.lease_seq
    FROM seen s JOIN attempts a USING (job_id, lease_seq) JOIN jobs j ON j.id = a.job_id
    WHERE s.ended_at < now() - $1::interval AND a.ended_at < now() - $1::interval
      AND j.state IN ('completed', 'failed', 'cancelled')
      AND EXISTS (SELECT 1 FROM attempts n WHERE n.job_id = a.job_id AND n.lease_seq > a.lease_seq)
    FOR SHARE OF j SKIP LOCKED FOR UPDATE OF a SKIP LOCKED),
gone AS (
    DELETE FROM attempts a USING old WHERE a.job_id = old.job_id AND a.lease_seq = old.lease_seq RETURNING 1)
SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM gone) AS dropped, job_id, lease_seq
FROM seen ORDER BY job_id DESC, lease_seq DESC LIMIT 1
"""
LAST_JOB_TRIED = "SELECT max(job_id) FROM attempts"

# A worker that is heard of again just now comes first. While jobs are claimed by it, it stays.
DROP_WORKERS = """
WITH seen AS (SELECT id, last_seen_at FROM workers WHERE id > $3 ORDER BY id LIMIT $2),
old AS (
    SELECT w.id FROM seen s JOIN workers w USING (id)
    WHERE s.last_seen_at < now() - $1::interval AND w.last_seen_at < now() - $1::interval
      AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.worker_id = w.id AND j.state = 'claimed')
    FOR UPDATE OF w SKIP LOCKED),
gone AS (DELETE FROM workers w USING old WHERE w.id = old.id RETURNING 1)
SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM gone) AS dropped, id
FROM seen ORDER BY id DESC LIMIT 1
"""

# By when a token ended: it expired or was revoked, whatever came first.
DROP_TOKENS = """
WITH seen AS (
    SELECT id, least(expires_at, revoked_at) AS ended_at FROM tokens WHERE id > $3 ORDER BY id LIMIT $2),
gone AS (
    DELETE FROM tokens WHERE id = ANY(ARRAY(SELECT id FROM seen WHERE ended_at < now() - $1::interval)) RETURNING 1)
SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM gone) AS dropped, id
FROM seen ORDER BY id DESC LIMIT 1
"""
