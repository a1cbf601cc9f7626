"""Storing results, and reading those of a job; `export.py` reads those of a project.

A stored row takes the next value of `result_seq`, also when it replaces an older one; the export goes by that number,
and `since` counts in it. A number is given out before its transaction commits, so the export must not run past a
transaction that is still open: each writer first takes a shared advisory lock whose key is the sequence's last value,
and the export reads only up to the smallest key still locked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
from cachetools import LRUCache
from pydantic import TypeAdapter

from job_api.columns import JOINED, select_list
from job_api.counters import settling, slot_of
from job_api.db import Connection
from job_api.queue import LeaseKey
from job_api.queue_sql import AFTER_FORGOTTEN, HELD, PRESENT
from job_api.schemas import (
    DoneResult,
    EngineRun,
    InvalidRow,
    NewResult,
    RefusedRow,
    Result,
    ResultsStored,
    ResultStatus,
)
from job_api.text import MAX_SMILES_CHARS

# With what the rows of a batch were made: found, or made.
PROVENANCE = """
WITH made AS (
    INSERT INTO provenances (worker_id, engine, engine_version, weights, weights_sha256, prepared, snapshot)
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING id)
SELECT id FROM made
UNION ALL
SELECT id FROM provenances
WHERE worker_id = $1 AND engine = $2 AND engine_version IS NOT DISTINCT FROM $3 AND weights IS NOT DISTINCT FROM $4
      AND weights_sha256 IS NOT DISTINCT FROM $5 AND prepared IS NOT DISTINCT FROM $6
      AND snapshot IS NOT DISTINCT FROM $7
LIMIT 1
"""

# What a worker says of an image, as `schemas.NewResult` names it, and how it comes in JSON.
SAID = {
    "image": "text",
    "engine": "text",
    "status": "text",
    "image_sha256": "text",
    "width": "int",
    "height": "int",
    "frames": "int",
    "smiles": "text",
    "confidence": "float8",
    "confidence_mean": "float8",
    "confidence_min": "float8",
    "n_tokens": "int",
    "truncated": "bool",
    "is_valid": "bool",
    "canonical_smiles": "text",
    "normalized_smiles": "text",
    "inchikey": "text",
    "formula": "text",
    "molecular_weight": "float8",
    "fragments": "int",
    "flags": "text[]",
    "error_message": "text",
    "duration_ms": "int",
    "sequence": "text",
    "sub_sequence": "text",
    "part": "text",
    "tokens": "text[]",
    "token_probabilities": "real[]",
}
_SENT = ", ".join(f"{name} {kind}" for name, kind in SAID.items())
_NAMES = ", ".join(SAID)
_VALUES = ", ".join("decode(s.image_sha256, 'hex')" if name == "image_sha256" else f"s.{name}" for name in SAID)
_REPLACED = ", ".join(f"{name} = EXCLUDED.{name}" for name in SAID if name not in ("image", "engine"))

# Store a batch through a lease that is held: a newer lease replaces a row, within one lease the first stays. A writer
# is announced to the exports before it takes its first number. No row comes back where the lease is not held, nor where
# the provenance is not there: a database that crashed or was failed over may have lost one that a process remembers.
# The LIMIT makes each row sent be looked up by itself: a join may read all rows of the job for each batch.
_STORE_SETTLED = settling(
    "(SELECT h.project_id, c.* FROM counted c CROSS JOIN held h WHERE c.stored <> 0) AS n "  # noqa: S608
    + AFTER_FORGOTTEN,
    "$7",
    images_stored="n.added",
    images_recognised="n.recognised",
    images_replaced="n.stored - n.added",
)
STORE = f"""
WITH {HELD},
announced AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared(s.last_value) IS NULL AS done
    FROM held CROSS JOIN (SELECT FROM provenances WHERE id = $6) AS made_with CROSS JOIN result_seq s),
sent AS MATERIALIZED (
    SELECT s.* FROM json_to_recordset($5::json) AS s (
        {_SENT})
    CROSS JOIN announced),
before AS (
    SELECT r.image, r.engine, r.status, r.run >= j.present_from_run AND NOT r.stale AS present
    FROM held j CROSS JOIN sent s CROSS JOIN LATERAL (
        SELECT * FROM results r WHERE r.job_id = $1 AND r.image = s.image AND r.engine = s.engine LIMIT 1) AS r
    -- Of the first lease no row can be replaced.
    WHERE $3 > 1),
stored AS (
    INSERT INTO results AS r (job_id, project_id, provenance_id, lease_seq, run, {_NAMES})
    SELECT j.id, j.project_id, $6, $3, j.run, {_VALUES}
    FROM sent s CROSS JOIN held j
    ON CONFLICT (job_id, image, engine) DO UPDATE SET
        seq = EXCLUDED.seq, provenance_id = EXCLUDED.provenance_id, lease_seq = EXCLUDED.lease_seq,
        processed_at = EXCLUDED.processed_at, run = EXCLUDED.run, stale = false, {_REPLACED}
    WHERE r.lease_seq < EXCLUDED.lease_seq
    RETURNING r.image, r.engine, r.status),
counted AS (
    SELECT count(*) AS stored,
           count(*) FILTER (WHERE b.image IS NULL) AS added,
           count(*) FILTER (WHERE b.present IS NOT TRUE AND s.engine = j.engine) AS new,
           count(*) FILTER (WHERE s.status = 'recognised')
               - count(*) FILTER (WHERE b.status = 'recognised') AS recognised
    FROM stored s LEFT JOIN before b USING (image, engine) CROSS JOIN held j),
credited AS (
    UPDATE attempts a SET new_results = a.new_results + c.new
    FROM counted c WHERE a.job_id = $1 AND a.lease_seq = $3 AND c.new > 0),
relieved AS (
    UPDATE jobs SET releases = 0 FROM counted c WHERE jobs.id = $1 AND c.new > 0 AND jobs.releases > 0),
forgotten AS (DELETE FROM worker_failures f USING counted c WHERE f.worker_id = $4 AND c.new > 0 RETURNING 1),
settled AS ({_STORE_SETTLED})
SELECT c.stored FROM counted c CROSS JOIN announced
"""  # noqa: S608 - built from constants, as all statements here

# What else gives stored rows new numbers: the same word to the exports, before the first of them. The rows' jobs are
# locked before, in the order of their ids, so that nobody else writes them meanwhile.
ANNOUNCE = "SELECT pg_advisory_xact_lock_shared(last_value) FROM result_seq"
LOCK_JOBS = """
SELECT id FROM jobs WHERE project_id = $1 AND id = ANY($2::bigint[]) ORDER BY id FOR NO KEY UPDATE
"""

# Images of a job that need no work, a page of them.
IMAGES_DONE = f"""
SELECT r.image FROM results r JOIN jobs j ON j.id = r.job_id JOIN projects p ON p.id = j.project_id
WHERE r.job_id = $1 AND r.image > $2 AND {PRESENT} ORDER BY r.image LIMIT $3
"""  # noqa: S608 - built from constants

# What is said of them in smiles_output.json.
RESULTS_DONE = f"""
SELECT r.image, r.status, r.smiles, r.confidence_mean, r.confidence_min, r.error_message, r.processed_at, r.tokens,
       r.token_probabilities
FROM results r JOIN jobs j ON j.id = r.job_id JOIN projects p ON p.id = j.project_id
WHERE r.job_id = $1 AND r.image > $2 AND {PRESENT} ORDER BY r.image LIMIT $3
"""  # noqa: S608 - built from constants

# Rows with everything that is joined to them, as `schemas.Result` names it.
ROWS = f"SELECT {select_list(list(Result.model_fields))} FROM {JOINED} "  # noqa: S608
ROWS_OF_JOB = ROWS + "WHERE r.job_id = $1 AND (r.image, r.engine) > ($2, $3) ORDER BY r.image, r.engine LIMIT $4"

COUNT_BY_STATUS = "SELECT status, count(*) AS rows FROM results WHERE job_id = $1 GROUP BY status"


@dataclass
class Batch:
    """A batch of rows, judged: those to store, and those refused with their reasons."""

    rows: list[NewResult]
    refused: list[RefusedRow]
    repeated: int = 0


class Provenances:
    """Finds the number of what rows were made with; remembers those this process has met."""

    def __init__(self) -> None:
        self._known: LRUCache[tuple[str | None, ...], int] = LRUCache(maxsize=100_000)

    def known(self, worker_id: str, run: EngineRun) -> int | None:
        """The id of a provenance, where it is remembered."""
        return self._known.get(_provenance_key(worker_id, run))

    async def find(self, connection: Connection, worker_id: str, run: EngineRun) -> int:
        """The id of a provenance, which is made if there is none.

        Neither looked up in what is remembered, which may be gone from the database, nor remembered, since it may be
        rolled back.
        """
        provenance_id: int | None = None
        while provenance_id is None:
            # Nothing comes back when another transaction made it a moment ago; the next statement sees it.
            provenance_id = await connection.fetchval(PROVENANCE, *_provenance_key(worker_id, run))
        return provenance_id

    def remember(self, worker_id: str, run: EngineRun, provenance_id: int) -> None:
        """Keep what `find` gave, once its transaction has committed."""
        self._known[_provenance_key(worker_id, run)] = provenance_id


def _provenance_key(worker_id: str, run: EngineRun) -> tuple[str | None, ...]:
    made_with = (run.engine, run.engine_version, run.weights, run.weights_sha256, run.prepared, run.snapshot)
    return (worker_id, *made_with)


async def store(connection: Connection, key: LeaseKey, batch: Batch, provenance_id: int) -> ResultsStored | None:
    """Store the good rows of a batch through a lease that is held.

    Returns:
        What became of the batch; None where the lease is not held as named, and `queue.hold` says why, or where the
        provenance is gone.
    """
    stored: int | None = await connection.fetchval(
        STORE,
        key.job_id,
        key.project,
        key.lease_seq,
        key.worker_id,
        _ROWS.dump_json(batch.rows).decode(),
        provenance_id,
        slot_of(key.job_id),
    )
    if stored is None:
        return None
    unchanged = len(batch.rows) - stored + batch.repeated
    return ResultsStored(stored=stored, unchanged=unchanged, refused=batch.refused)


_ROWS = TypeAdapter(list[NewResult])


def judge(rows: Sequence[NewResult | InvalidRow], run: EngineRun) -> Batch:
    """Part a batch into rows to store and rows to refuse; of rows of one image the first is kept."""
    batch = Batch(rows=[], refused=[])
    seen: set[tuple[str, str]] = set()
    for index, row in enumerate(rows):
        if isinstance(row, InvalidRow):
            batch.refused.append(RefusedRow(index=index, image=row.image, reason=row.reason))
        elif reason := _contradiction(row, run):
            batch.refused.append(RefusedRow(index=index, image=row.image, reason=reason))
        elif (row.image, row.engine) in seen:
            batch.repeated += 1
        else:
            seen.add((row.image, row.engine))
            batch.rows.append(row)
    return batch


def _contradiction(row: NewResult, run: EngineRun) -> str | None:
    if row.engine != run.engine:
        return f"engine: the row names {row.engine} and its batch was made by {run.engine}"
    if row.status is ResultStatus.RECOGNISED and not row.smiles:
        return "smiles: is empty; an image without a SMILES is not recognised (status engine_error)"
    if len(row.tokens or ()) != len(row.token_probabilities or ()):
        return "tokens: are not as many as token_probabilities"
    if sum(map(len, row.tokens or ())) > MAX_SMILES_CHARS:
        return f"tokens: have more than {MAX_SMILES_CHARS} characters together"
    if row.status is not ResultStatus.RECOGNISED and row.smiles:
        return f"smiles: is given, but the status is {row.status}"
    return None


async def images_done(connection: Connection, job_id: int, after: str, limit: int) -> list[str]:
    """Images of a job, after one in the order of names, that need no work."""
    return [row["image"] for row in await connection.fetch(IMAGES_DONE, job_id, after, limit)]


async def results_done(connection: Connection, job_id: int, after: str, limit: int) -> list[DoneResult]:
    """Rows of a job that count for it, after an image in the order of names."""
    return [DoneResult.model_validate(dict(row)) for row in await connection.fetch(RESULTS_DONE, job_id, after, limit)]


async def rows_of_job(connection: Connection, job_id: int, after: tuple[str, str], limit: int) -> list[asyncpg.Record]:
    """Rows of a job in the order of image and engine."""
    return await connection.fetch(ROWS_OF_JOB, job_id, *after, limit)


async def count_by_status(connection: Connection, job_id: int) -> dict[ResultStatus, int]:
    """The rows of a job by status."""
    return {ResultStatus(row["status"]): row["rows"] for row in await connection.fetch(COUNT_BY_STATUS, job_id)}
