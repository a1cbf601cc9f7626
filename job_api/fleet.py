"""The workers as the service sees them, and their log lines."""

import asyncpg

from job_api.db import Connection
from job_api.errors import NotFound, WorkerGone, WorkerIdTaken, WorkerStopped
from job_api.schemas import Heartbeat, LogLevel, LogLine, MachineLoad, StoredLogLine, Worker, WorkerState

# A worker's row, made at its first word and locked, so that what one worker asks for follows one another. No row comes
# back where the id belongs to somebody else.
TOUCH = """
INSERT INTO workers AS w (id, owner, hostname, version, load) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (id) DO UPDATE SET last_seen_at = now(), hostname = coalesce($3, w.hostname),
                               version = coalesce($4, w.version), load = coalesce($5, w.load)
WHERE w.owner = $2
RETURNING state
"""
# A worker's state, once no claim of it is under way; nothing is changed that would have to be on disk.
LOCK = "SELECT state, set_config('synchronous_commit', 'off', true) FROM workers WHERE id = $1 FOR NO KEY UPDATE"
SET_GONE = "UPDATE workers SET state = 'gone', state_since = now() WHERE id = $1"
# What was said of a worker stays as long as it is said.
STEER = """
UPDATE workers SET state = $2, state_since = CASE WHEN state = $2 THEN state_since ELSE now() END,
                   reason = CASE WHEN state = $2 THEN reason ELSE $3 END
WHERE id = $1 AND state <> 'gone' RETURNING id
"""
REASON = "SELECT reason FROM workers WHERE id = $1"
# Leases of a worker, for its goodbye.
LEASES_OF = """
SELECT j.id, p.name AS project, j.lease_seq FROM jobs j JOIN projects p ON p.id = j.project_id
WHERE j.worker_id = $1 AND j.state = 'claimed' ORDER BY j.id
"""
_WORKER = """
SELECT w.id, w.hostname, w.version, w.state, w.state_since, w.reason, w.load, w.first_seen_at, w.last_seen_at,
       w.state <> 'gone' AND w.last_seen_at > now() - $1 * interval '1 second' AS active,
       (SELECT count(*) FROM jobs j WHERE j.worker_id = w.id AND j.state = 'claimed') AS leases
FROM workers w
"""
WORKERS = (
    _WORKER
    + """WHERE w.id > $2 AND ($3::bool IS NULL
    OR (w.state <> 'gone' AND w.last_seen_at > now() - $1 * interval '1 second') = $3)
ORDER BY w.id LIMIT $4"""
)
WORKER = _WORKER + "WHERE w.id = $2"

# Store log lines; a line that names a project or job that is not there is kept without it.
STORE_LINES = """
INSERT INTO log_lines (worker_id, level, logger, message, traceback, project_id, job_id, lease_seq, image)
SELECT $1, l.level, l.logger, l.message, l.traceback, p.id, l.job_id, l.lease_seq, l.image
FROM ROWS FROM (json_to_recordset($2::json) AS (
    level text, message text, logger text, traceback text, project text, job_id bigint, lease_seq bigint, image text))
WITH ORDINALITY AS l (level, message, logger, traceback, project, job_id, lease_seq, image, place)
LEFT JOIN projects p ON p.name = l.project AND p.deleted_at IS NULL AND ($3::text IS NULL OR p.name = $3)
ORDER BY l.place
"""
LINES = """
SELECT l.id, l.received_at, l.worker_id, l.level, l.logger, l.message, l.traceback, p.name AS project, l.job_id,
       l.lease_seq, l.image
FROM log_lines l LEFT JOIN projects p ON p.id = l.project_id AND p.deleted_at IS NULL
WHERE l.id > $1 AND ($2::bigint IS NULL OR l.project_id = $2) AND ($3::text[] IS NULL OR l.level = ANY($3))
  AND ($4::text IS NULL OR l.worker_id = $4) AND ($5::bigint IS NULL OR l.job_id = $5)
  AND ($6::text IS NULL OR position($6 IN l.message) > 0) AND ($8::text IS NULL OR l.image = $8)
ORDER BY l.id LIMIT $7
"""


async def touch(connection: Connection, worker_id: str, owner: str, seen: Heartbeat) -> WorkerState:
    """Note that a worker lives, and lock its row until the transaction ends.

    Raises:
        WorkerIdTaken: the id belongs to another user or token.
    """
    load = None if seen.load is None else seen.load.model_dump(exclude_none=True)
    row = await connection.fetchrow(TOUCH, worker_id, owner, seen.hostname, seen.version, load)
    if row is None:
        raise WorkerIdTaken(f"the worker id {worker_id} belongs to another user or token")
    return WorkerState(row["state"])


def require_running(worker_id: str, state: WorkerState) -> None:
    """Refuse a claim of a worker that was told to stop.

    Raises:
        WorkerGone: it has said goodbye.
        WorkerStopped: it drains or is quarantined.
    """
    if state is WorkerState.GONE:
        raise WorkerGone(f"worker {worker_id} has said goodbye; a new process takes a new worker id")
    if state is not WorkerState.RUN:
        raise WorkerStopped(f"worker {worker_id} was told to stop claiming ({state}); lift it to let it work again")


async def say_goodbye(connection: Connection, worker_id: str) -> list[asyncpg.Record]:
    """Let a worker claim no more; returns the leases it still holds."""
    await connection.execute(SET_GONE, worker_id)
    return await connection.fetch(LEASES_OF, worker_id)


def _worker(row: asyncpg.Record) -> Worker:
    fields = dict(row)
    load = fields.pop("load")
    return Worker(**fields, load=None if load is None else MachineLoad.model_validate(load))


async def list_workers(
    connection: Connection, after: str, *, active: bool | None, alive_seconds: float, limit: int
) -> list[Worker]:
    """Workers after an id, by id; active ones were heard of within `alive_seconds`."""
    return [_worker(row) for row in await connection.fetch(WORKERS, alive_seconds, after, active, limit)]


async def reason_of(connection: Connection, worker_id: str) -> str | None:
    """Why a worker is quarantined."""
    reason: str | None = await connection.fetchval(REASON, worker_id)
    return reason


async def steer(
    connection: Connection, worker_id: str, state: WorkerState, alive_seconds: float, reason: str | None = None
) -> Worker:
    """Tell a worker to run, drain or stop, and why; it hears of it at its next heartbeat.

    Raises:
        NotFound: there is no such worker.
        WorkerGone: it has said goodbye.
    """
    changed = await connection.fetchval(STEER, worker_id, state, reason)
    row = await connection.fetchrow(WORKER, alive_seconds, worker_id)
    if row is None:
        raise NotFound(f"there is no worker {worker_id}")
    if changed is None:
        raise WorkerGone(f"worker {worker_id} has said goodbye")
    return _worker(row)


async def store_lines(connection: Connection, worker_id: str, lines: list[LogLine], only: str | None) -> None:
    """Store log lines in their order; never fenced. A caller bound to the project `only` names no other."""
    rows = "[" + ",".join(line.model_dump_json() for line in lines) + "]"
    await connection.execute(STORE_LINES, worker_id, rows, only)


async def lines(
    connection: Connection,
    after: int,
    *,
    project_id: int | None,
    at_least: LogLevel | None,
    worker_id: str | None,
    job_id: int | None,
    text: str | None,
    image: str | None,
    limit: int,
) -> list[StoredLogLine]:
    """Log lines after an id, oldest first; `text` is looked for in the message."""
    levels = list(LogLevel)
    wanted = None if at_least is None else [str(level) for level in levels[levels.index(at_least) :]]
    rows = await connection.fetch(LINES, after, project_id, wanted, worker_id, job_id, text, limit, image)
    return [StoredLogLine.model_validate(dict(row)) for row in rows]
