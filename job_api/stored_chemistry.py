"""Writes what clients have computed again of stored rows; what an engine said is never changed here.

A changed row takes a new `seq`, as a stored one does. A row that was named with another `seq` than it has is another
row by now and is left alone.
"""

from collections.abc import Sequence

from pydantic import TypeAdapter

from job_api.db import Connection
from job_api.results import ANNOUNCE, LOCK_JOBS, SAID
from job_api.schemas import ChemistryStored, RowChemistry

_NAMED_BY = ("job_id", "image", "engine", "seq")
_KINDS = {name: SAID[name] for name in RowChemistry.model_fields if name not in _NAMED_BY}
# The LIMIT makes each row be looked up by itself; its job is locked, so that it stays where it is found.
# That RDKit had failed on an answer is no longer so, where it says whether it is valid.
STORE = f"""
WITH changed AS (
    UPDATE results r SET seq = nextval('result_seq'), {", ".join(f"{name} = s.{name}" for name in _KINDS)},
        error_message = CASE WHEN s.is_valid IS NULL OR r.error_message NOT LIKE 'RDKit: %' THEN r.error_message END
    FROM json_to_recordset($1::json) AS s (
        job_id bigint, image text, engine text, seq bigint, {", ".join(f"{name} {k}" for name, k in _KINDS.items())})
    CROSS JOIN LATERAL (SELECT f.ctid AS place FROM results f WHERE f.job_id = s.job_id AND f.image = s.image
        AND f.engine = s.engine AND f.seq = s.seq AND f.project_id = $2 LIMIT 1) f
    WHERE r.ctid = f.place
    RETURNING 1)
SELECT count(*) FROM changed
"""  # noqa: S608 - built from constants

_ROWS = TypeAdapter(list[RowChemistry])


async def store(connection: Connection, project_id: int, rows: Sequence[RowChemistry]) -> ChemistryStored:
    """Store the chemistry of rows that are as they were read, in a transaction that keeps the project."""
    await connection.execute(LOCK_JOBS, project_id, list({row.job_id for row in rows}))
    await connection.execute(ANNOUNCE)
    changed: int = await connection.fetchval(STORE, _ROWS.dump_json(list(rows)).decode(), project_id)
    return ChemistryStored(changed=changed, replaced=len(rows) - changed)
