"""The queue's named statements, each with its purpose. Only `queue.py` runs those that write."""

from job_api.counters import settling

# Whether a row r of job j needs no more work.
PRESENT = "r.run >= j.present_from_run AND NOT r.stale AND r.engine = p.engine"

# What a worker is told of a lease.
_LEASE = f"""
j.id AS job_id, j.lease_seq, p.name AS project, j.directory, p.source, p.engine, p.engine_options,
CASE WHEN j.lease_seq = 1 THEN 0 ELSE (SELECT count(*) FROM results r WHERE r.job_id = j.id AND {PRESENT}) END
    AS results_count, p.results_file, p.image_name_pattern, p.image_include, p.image_exclude, p.keep_tokens"""  # noqa: S608 - built from constants, as all statements here
LEASES = (
    f"SELECT {_LEASE} FROM jobs j JOIN projects p ON p.id = j.project_id WHERE j.worker_id = $1 AND j.state = 'claimed'"  # noqa: S608
)

LEASES_OF_CLAIM = LEASES + " AND j.claim_key = $2 ORDER BY j.priority DESC, j.queue_pos"
LEASES_UNNAMED = LEASES + " AND j.id <> ALL($2::bigint[]) ORDER BY j.id"

# One adder of a project at a time: two with the same directories in another order would deadlock.
LOCK_PROJECT = "SELECT id FROM projects WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE"

JOB_EXISTS = """
SELECT 1 FROM jobs j JOIN projects p ON p.id = j.project_id AND p.deleted_at IS NULL WHERE j.id = $1 AND p.name = $2
"""

# Add directories in the order given; those already present are passed over.
ADD = """
WITH added AS (
    INSERT INTO jobs (project_id, directory, priority)
    SELECT $1, n.directory, $3 FROM unnest($2::text[]) WITH ORDINALITY AS n (directory, place) ORDER BY n.place
    ON CONFLICT (project_id, directory) DO NOTHING RETURNING 1)
SELECT count(*) FROM added
"""

# Projects with queued jobs, and how many leases of theirs live.
OPEN_PROJECTS = """
SELECT p.name, p.priority, n.claimed
FROM projects p, LATERAL (
    SELECT sum(s.queued) AS queued, sum(s.claimed)::bigint AS claimed
    FROM project_slots s WHERE s.project_id = p.id) AS n
WHERE NOT p.paused AND n.queued > 0 ORDER BY p.id
"""

# Jobs that nobody has, and somebody shall; those of a paused project shall not.
PENDING = """
SELECT coalesce(sum(s.queued + s.waiting), 0)::bigint
FROM projects p JOIN project_slots s ON s.project_id = p.id
WHERE NOT p.paused AND ($1::bigint IS NULL OR p.id = $1)
"""

# Lets a statement's transaction be answered before it is on disk. For what a crash may take back: a claim's job is
# queued again, an extended lease is extended again, a completed job is completed again from its rows. Whatever is
# written to disk later is there only if this is.
AT_ONCE = "SELECT set_config('synchronous_commit', 'off', true)"

# Hand out the head of a project's queue: open the attempts, settle the counters, tell of the leases. One row comes back
# at least, which says whether the worker may claim, the project is there, and the claim's key has leases already. The
# share lock on the worker follows its goodbye or comes before it, and makes no dead row as an update would.
_CLAIM_SETTLED = settling(
    "(SELECT p.id AS project_id, count(*) AS jobs FROM project p CROSS JOIN claimed GROUP BY p.id) AS n",
    "$7",
    queued="-n.jobs",
    claimed="n.jobs",
)
_CLAIM = f"""
WITH worker AS MATERIALIZED (
    SELECT w.id FROM workers w WHERE w.id = $2 AND w.owner = $3 AND w.state = 'run' FOR SHARE),
project AS MATERIALIZED (SELECT p.* FROM projects p WHERE p.name = $1 AND p.deleted_at IS NULL),
repeated AS MATERIALIZED (
    SELECT EXISTS (SELECT 1 FROM jobs j WHERE j.worker_id = $2 AND j.claim_key = $4 AND j.state = 'claimed') AS yes),
picked AS MATERIALIZED (
    SELECT j.id FROM jobs j
    WHERE j.project_id = (SELECT p.id FROM project p WHERE NOT p.paused) AND j.state = 'queued' {{beyond}}
      AND EXISTS (SELECT 1 FROM worker) AND NOT (SELECT yes FROM repeated)
    ORDER BY j.priority DESC, j.queue_pos LIMIT $5 FOR NO KEY UPDATE SKIP LOCKED),
placed AS MATERIALIZED (SELECT ARRAY(SELECT id FROM picked) AS ids),
claimed AS (
    UPDATE jobs j SET state = 'claimed', lease_seq = j.lease_seq + 1, worker_id = $2, claim_key = $4,
                      claim_place = -array_position((SELECT ids FROM placed), j.id),
                      lease_expires_at = now() + $6::interval
    WHERE j.id = ANY((SELECT ids FROM placed)::bigint[]) RETURNING j.*),
opened AS (
    INSERT INTO attempts (job_id, lease_seq, worker_id, claim_key) SELECT id, lease_seq, $2, $4 FROM claimed),
settled AS ({_CLAIM_SETTLED})
SELECT EXISTS (SELECT 1 FROM worker) AS welcome, EXISTS (SELECT 1 FROM project) AS known,
       (SELECT yes FROM repeated) AS repeated, j.priority, j.queue_pos, {_LEASE}
FROM ({AT_ONCE}) AS one LEFT JOIN claimed j ON true LEFT JOIN project p ON true
ORDER BY j.priority DESC, j.queue_pos
"""  # noqa: S608
CLAIM = _CLAIM.format(beyond="")
# The same, begun behind the entries of jobs that were claimed before: an index keeps them until the oldest transaction
# in the database has ended, and each claim would walk over them all.
CLAIM_BEYOND = _CLAIM.format(beyond="AND j.priority = $8 AND j.queue_pos >= $9")

# Extend the leases that are held as named; locked in id order.
HEARTBEAT = """
WITH held AS (
    SELECT j.id FROM jobs j JOIN unnest($2::bigint[], $3::bigint[]) AS n (id, lease_seq) USING (id, lease_seq)
    WHERE j.worker_id = $1 AND j.state = 'claimed' ORDER BY j.id FOR NO KEY UPDATE OF j)
UPDATE jobs j SET lease_expires_at = now() + $4::interval FROM held WHERE j.id = held.id RETURNING j.id
"""

# Of leases that are not held: their project, and how they ended.
LEASE_FATES = """
SELECT a.job_id, a.lease_seq, p.name AS project, a.outcome
FROM attempts a JOIN unnest($2::bigint[], $3::bigint[]) AS n (job_id, lease_seq) USING (job_id, lease_seq)
JOIN jobs j ON j.id = a.job_id JOIN projects p ON p.id = j.project_id AND p.deleted_at IS NULL
WHERE a.worker_id = $1
"""

# One lease's job and attempt, both locked, whatever became of them.
HOLD = """
SELECT j.id AS job_id, j.project_id, j.state, j.lease_seq AS newest_lease_seq, a.lease_seq, a.worker_id, a.claim_key,
       j.priority, j.run, j.failures, j.refunds, j.releases, p.max_failures, a.outcome, a.charged, a.new_results
FROM jobs j JOIN attempts a ON a.job_id = j.id JOIN projects p ON p.id = j.project_id
WHERE j.id = $1 AND p.name = $2 AND p.deleted_at IS NULL AND a.lease_seq = $3 AND a.worker_id = $4
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
    failures = $4, releases = $5, reason = $6, message = $7, lease_seq = lease_seq + $8
WHERE id = $1
"""
END_ATTEMPT = """
UPDATE attempts SET outcome = $3, ended_at = now(), charged = $4, reason = $5, message = $6
WHERE job_id = $1 AND lease_seq = $2
"""

# A lease that is held as named, its job and attempt locked: the fence in front of what a holder writes.
HELD = """
held AS MATERIALIZED (
    SELECT j.id, j.project_id, j.run, j.present_from_run, j.releases, p.engine
    FROM jobs j JOIN attempts a ON a.job_id = j.id JOIN projects p ON p.id = j.project_id
    WHERE j.id = $1 AND p.name = $2 AND p.deleted_at IS NULL AND a.lease_seq = $3 AND a.worker_id = $4
      AND a.outcome IS NULL
    FOR NO KEY UPDATE OF j, a)
"""

# A success forgets the worker's failures (`quarantine.py`), and does so before it locks a slot: else two could wait for
# each other.
AFTER_FORGOTTEN = "CROSS JOIN (SELECT count(*) FROM forgotten) AS f"

# Complete a job whose images are all stored. Its rows are named by $1 and not by what was held: planned on an empty
# table, a join would be looked up from the wrong end, and read all attempts there are. Says whether the lease is held,
# and whether the job is completed.
COMPLETE = f"""
WITH {HELD},
present AS MATERIALIZED (
    SELECT count(*) AS rows FROM held j JOIN results r ON r.job_id = $1
    WHERE r.run >= j.present_from_run AND NOT r.stale AND r.engine = j.engine),
ended AS (
    UPDATE attempts a SET outcome = 'completed', ended_at = now() FROM held h, present
    WHERE a.job_id = $1 AND a.lease_seq = $3 AND h.id = $1 AND present.rows >= $5 RETURNING a.job_id),
put AS (
    UPDATE jobs j SET state = 'completed', worker_id = NULL, claim_key = NULL, lease_expires_at = NULL,
                      finished_at = now(), reason = NULL, message = NULL, image_count = $5
    FROM ended e WHERE j.id = $1 AND e.job_id = $1 RETURNING j.project_id),
forgotten AS (DELETE FROM worker_failures f USING put WHERE f.worker_id = $4 RETURNING 1),
settled AS ({settling(f"put AS n {AFTER_FORGOTTEN}", "$6", claimed="-1", completed="1", images_listed="$5")})
SELECT EXISTS (SELECT 1 FROM held) AS held, EXISTS (SELECT 1 FROM put) AS completed FROM ({AT_ONCE}) AS one
"""  # noqa: S608

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
