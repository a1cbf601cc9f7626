"""The queue's named statements, each with its purpose. Only `queue.py` runs those that write."""

# Whether a row r of job j needs no more work.
PRESENT = "r.run >= j.present_from_run AND NOT r.stale AND r.engine = p.engine"

# What a worker is told of a lease.
LEASES = f"""
SELECT j.id AS job_id, j.lease_seq, p.name AS project, j.directory, p.source, p.engine, p.engine_options,
       (SELECT count(*) FROM results r WHERE r.job_id = j.id AND {PRESENT}) AS results_count
FROM jobs j JOIN projects p ON p.id = j.project_id
WHERE j.worker_id = $1 AND j.state = 'claimed'
"""  # noqa: S608 - built from constants, as all statements here

LEASES_OF_CLAIM = LEASES + " AND j.claim_key = $2 ORDER BY j.priority DESC, j.queue_pos"
LEASES_UNNAMED = LEASES + " AND j.id <> ALL($2::bigint[]) ORDER BY j.id"

# One adder of a project at a time: two with the same directories in another order would deadlock.
LOCK_PROJECT = "SELECT id FROM projects WHERE id = $1 FOR NO KEY UPDATE"

JOB_EXISTS = "SELECT 1 FROM jobs WHERE id = $1 AND project_id = $2"

# Add directories in the order given; those already present are passed over.
ADD = """
WITH added AS (
    INSERT INTO jobs (project_id, directory, priority)
    SELECT $1, n.directory, $3 FROM unnest($2::text[]) WITH ORDINALITY AS n (directory, place) ORDER BY n.place
    ON CONFLICT (project_id, directory) DO NOTHING RETURNING 1)
SELECT count(*) FROM added
"""

# Projects with queued jobs that a worker may be given, best first: by priority, equals by fewest live leases.
CLAIMABLE = """
SELECT p.id
FROM projects p, LATERAL (
    SELECT sum(s.queued) AS queued, sum(s.claimed) AS claimed FROM project_slots s WHERE s.project_id = p.id) AS n
WHERE NOT p.paused AND n.queued > 0 AND ($1::bigint IS NULL OR p.id = $1)
ORDER BY p.priority DESC, n.claimed, p.id
"""

# Jobs that nobody has, and somebody shall; those of a paused project shall not.
PENDING = """
SELECT coalesce(sum(s.queued + s.waiting), 0)::bigint
FROM projects p JOIN project_slots s ON s.project_id = p.id
WHERE NOT p.paused AND ($1::bigint IS NULL OR p.id = $1)
"""

# Hand out the head of a project's queue and open the attempts.
CLAIM = """
WITH picked AS (
    SELECT id FROM jobs WHERE project_id = $1 AND state = 'queued'
    ORDER BY priority DESC, queue_pos LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED),
claimed AS (
    UPDATE jobs j SET state = 'claimed', lease_seq = j.lease_seq + 1, worker_id = $3, claim_key = $4,
                      lease_expires_at = now() + $5::interval
    FROM picked WHERE j.id = picked.id RETURNING j.id, j.lease_seq),
opened AS (
    INSERT INTO attempts (job_id, lease_seq, worker_id, claim_key) SELECT id, lease_seq, $3, $4 FROM claimed)
SELECT count(*) FROM claimed
"""

# Extend the leases that are held as named; locked in id order.
HEARTBEAT = """
WITH held AS (
    SELECT j.id FROM jobs j JOIN unnest($2::bigint[], $3::bigint[]) AS n (id, lease_seq) USING (id, lease_seq)
    WHERE j.worker_id = $1 AND j.state = 'claimed' ORDER BY j.id FOR NO KEY UPDATE OF j)
UPDATE jobs j SET lease_expires_at = now() + $4::interval FROM held WHERE j.id = held.id RETURNING j.id
"""

# Of leases that are not held: their project, and how they ended.
LEASE_FATES = """
SELECT a.job_id, a.lease_seq, j.project_id, a.outcome
FROM attempts a JOIN unnest($2::bigint[], $3::bigint[]) AS n (job_id, lease_seq) USING (job_id, lease_seq)
JOIN jobs j ON j.id = a.job_id
WHERE a.worker_id = $1
"""

# One lease's job and attempt, both locked, whatever became of them.
HOLD = """
SELECT j.id AS job_id, j.project_id, j.state, j.lease_seq AS newest_lease_seq, a.lease_seq, a.worker_id, a.claim_key,
       j.run, j.failures, j.releases, p.max_failures, a.outcome, a.charged, a.new_results
FROM jobs j JOIN attempts a ON a.job_id = j.id JOIN projects p ON p.id = j.project_id
WHERE j.id = $1 AND j.project_id = $2 AND a.lease_seq = $3 AND a.worker_id = $4
FOR NO KEY UPDATE OF j, a
"""

# Give an expired lease back to its holder.
TAKE_BACK = """
UPDATE jobs SET state = 'claimed', worker_id = $2, claim_key = $3, lease_expires_at = now() + $4::interval,
                failures = greatest(failures - $5, 0), due_at = NULL, finished_at = NULL, reason = NULL, message = NULL
WHERE id = $1
"""
REOPEN_ATTEMPT = """
UPDATE attempts SET outcome = NULL, ended_at = NULL, charged = false, reason = NULL, message = NULL
WHERE job_id = $1 AND lease_seq = $2
"""

# Put a job that nobody holds any more into its next state.
PUT = """
UPDATE jobs SET
    state = $2, worker_id = NULL, claim_key = NULL, lease_expires_at = NULL,
    queue_pos = CASE WHEN $2 = 'queued' THEN nextval('queue_pos_seq') ELSE queue_pos END,
    due_at = CASE WHEN $2 = 'waiting' THEN now() + $3::interval END,
    finished_at = CASE WHEN $2 IN ('completed', 'failed', 'cancelled') THEN now() END,
    failures = $4, releases = $5, reason = $6, message = $7,
    image_count = coalesce($8, image_count), lease_seq = lease_seq + $9
WHERE id = $1
"""
# Let the last lease of a job that nobody holds never come back.
SHUT_OUT = "UPDATE jobs SET lease_seq = lease_seq + 1 WHERE id = $1"
END_ATTEMPT = """
UPDATE attempts SET outcome = $3, ended_at = now(), charged = $4, reason = $5, message = $6
WHERE job_id = $1 AND lease_seq = $2
"""

# How many images of a job are stored and need no work.
COUNT_PRESENT = f"""
SELECT count(*) FROM results r JOIN jobs j ON j.id = r.job_id JOIN projects p ON p.id = j.project_id
WHERE r.job_id = $1 AND {PRESENT}
"""  # noqa: S608

# Projects with jobs that are due or, where leases may be judged, leases that have run out.
OVERDUE = """
SELECT DISTINCT project_id FROM jobs WHERE state = 'claimed' AND lease_expires_at < now() AND $1
UNION SELECT DISTINCT project_id FROM jobs WHERE state = 'waiting' AND due_at <= now()
"""

# End leases that have run out; an attempt that stored nothing new is charged, and the last charge fails the job.
EXPIRE = """
WITH expired AS (
    SELECT j.id, j.lease_seq, j.worker_id, a.new_results = 0 AS charged,
           j.failures + (a.new_results = 0)::int AS failures, p.max_failures
    FROM jobs j JOIN attempts a ON a.job_id = j.id AND a.lease_seq = j.lease_seq JOIN projects p ON p.id = j.project_id
    WHERE j.project_id = $1 AND j.state = 'claimed' AND j.lease_expires_at < now()
    ORDER BY j.id LIMIT $2 FOR NO KEY UPDATE OF j, a SKIP LOCKED),
ended AS (
    UPDATE attempts a SET outcome = 'expired', ended_at = now(), charged = e.charged, reason = 'lease-expired'
    FROM expired e WHERE a.job_id = e.id AND a.lease_seq = e.lease_seq),
put AS (
    UPDATE jobs j SET
        state = CASE WHEN e.charged AND e.failures >= e.max_failures THEN 'failed' ELSE 'queued' END,
        finished_at = CASE WHEN e.charged AND e.failures >= e.max_failures THEN now() END,
        queue_pos = nextval('queue_pos_seq'), worker_id = NULL, claim_key = NULL, lease_expires_at = NULL,
        failures = e.failures, reason = 'lease-expired',
        message = 'worker ' || e.worker_id || ' was not heard of any more; it may have died of this directory'
    FROM expired e WHERE j.id = e.id RETURNING j.state)
SELECT state, count(*) AS jobs FROM put GROUP BY state
"""

# Queue the jobs whose back-off is over.
QUEUE_DUE = """
WITH due AS (
    SELECT id FROM jobs WHERE project_id = $1 AND state = 'waiting' AND due_at <= now()
    ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED),
put AS (
    UPDATE jobs j SET state = 'queued', due_at = NULL, queue_pos = nextval('queue_pos_seq')
    FROM due WHERE j.id = due.id RETURNING 1)
SELECT count(*) FROM put
"""

# A job for a person's action, locked.
LOCK_JOB = """
SELECT id AS job_id, project_id, state, lease_seq, worker_id, run, failures, releases, image_count, reason, message
FROM jobs WHERE id = $1 AND project_id = $2 FOR NO KEY UPDATE
"""

# Begin a new run; rows of earlier runs no longer count as present, all of them or those with given statuses.
BEGIN_RUN = """
UPDATE jobs SET run = run + 1, present_from_run = CASE WHEN $2 THEN run + 1 ELSE present_from_run END WHERE id = $1
"""
MARK_STALE = "UPDATE results SET stale = true WHERE job_id = $1 AND status = ANY($2::text[])"
