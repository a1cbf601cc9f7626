"""What people say of the engines' answers: stored beside the result rows, listed; exported with them by `columns.py`.

A result row that is reviewed, or whose review is taken back, takes a new `seq`, so that `since` brings it; nothing else
of it changes. Its review stays when the row is replaced (docs/decisions/0014-reviews-and-chemistry.md).
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from job_api.db import Connection
from job_api.results import ANNOUNCE, LOCK_JOBS
from job_api.schemas import InvalidRow, NewReview, RefusedRow, Review, ReviewsStored, ReviewStatus
from job_api.terminal import printable

FIND_JOBS = "SELECT id, directory FROM jobs WHERE project_id = $1 AND directory = ANY($2::text[])"

_NAMED = "unnest($1::bigint[], $2::text[], $3::text[]) AS n (job_id, image, engine)"

# The answers that reviews name, with what was said of them before.
ANSWERS = f"""
SELECT n.job_id, n.image, n.engine, r.smiles, w.review_status, w.corrected_smiles, w.note, w.reviewed_smiles
FROM {_NAMED}
CROSS JOIN LATERAL (SELECT r.smiles FROM results r
    WHERE r.job_id = n.job_id AND r.image = n.image AND r.engine = n.engine LIMIT 1) r
LEFT JOIN LATERAL (SELECT w.* FROM reviews w
    WHERE w.job_id = n.job_id AND w.image = n.image AND w.engine = n.engine LIMIT 1) w ON true
"""  # noqa: S608 - built from constants, as all statements here

STORE = """
INSERT INTO reviews (job_id, image, engine, project_id, review_status, corrected_smiles, reviewed_smiles, note,
                     reviewed_by)
SELECT s.job_id, s.image, s.engine, $2, s.review_status, s.corrected_smiles, s.reviewed_smiles, s.note, $3
FROM json_to_recordset($1::json) AS s (
    job_id bigint, image text, engine text, review_status text, corrected_smiles text, reviewed_smiles text, note text)
ON CONFLICT (job_id, image, engine) DO UPDATE SET
    review_status = EXCLUDED.review_status, corrected_smiles = EXCLUDED.corrected_smiles,
    reviewed_smiles = EXCLUDED.reviewed_smiles, note = EXCLUDED.note, reviewed_by = EXCLUDED.reviewed_by,
    reviewed_at = EXCLUDED.reviewed_at
"""
REMOVE = f"""
DELETE FROM reviews w USING {_NAMED} WHERE w.job_id = n.job_id AND w.image = n.image AND w.engine = n.engine
"""  # noqa: S608
RENUMBER = f"""
UPDATE results r SET seq = nextval('result_seq')
FROM {_NAMED} WHERE r.job_id = n.job_id AND r.image = n.image AND r.engine = n.engine
"""  # noqa: S608

# A page of a project's reviews, by job, image and engine. Older services delete jobs and leave their reviews, which are
# passed over before the page is full.
PAGE = """
SELECT w.job_id, w.directory, w.image, w.engine, w.review_status, w.corrected_smiles, w.note, w.reviewed_smiles,
       r.smiles, w.reviewed_smiles IS DISTINCT FROM r.smiles AS review_outdated, w.reviewed_by, w.reviewed_at
FROM (SELECT w.*, j.directory FROM reviews w
      CROSS JOIN LATERAL (SELECT j.directory FROM jobs j WHERE j.id = w.job_id OFFSET 0) j
      WHERE w.project_id = $1 AND (w.job_id, w.image, w.engine) > ($2, $3, $4)
        AND ($5::text IS NULL OR w.review_status = $5)
      ORDER BY w.job_id, w.image, w.engine LIMIT $6) w
LEFT JOIN LATERAL (SELECT r.smiles FROM results r
    WHERE r.job_id = w.job_id AND r.image = w.image AND r.engine = w.engine LIMIT 1) r ON true
ORDER BY w.job_id, w.image, w.engine
"""

Key = tuple[int, str, str]
"""Of a result row: its job, image and engine."""


@dataclass
class _Judged:
    """A batch of reviews, as far as it is judged."""

    stored: dict[Key, dict[str, Any]] = field(default_factory=dict)
    removed: list[Key] = field(default_factory=list)
    unchanged: int = 0
    refused: list[RefusedRow] = field(default_factory=list)


async def put(
    connection: Connection, project: asyncpg.Record, reviews: Sequence[NewReview | InvalidRow], reviewed_by: str
) -> ReviewsStored:
    """Store the good reviews of a batch, in a transaction.

    Args:
        connection: in the transaction.
        project: its id and engine, as `projects.keep` gives them.
        reviews: each for an answer of its own; of the same answer the first counts.
        reviewed_by: who says so.
    """
    good = {index: review for index, review in enumerate(reviews) if isinstance(review, NewReview)}
    jobs = await _lock_jobs(connection, project["id"], good.values())
    keys: dict[int, Key] = {}
    for index, review in good.items():
        # No job has the id 0.
        job_id = jobs.get(review.directory if review.job_id is None else review.job_id, 0)
        keys[index] = (job_id, review.image, review.engine or project["engine"])
    rows = await connection.fetch(ANSWERS, *_columns(keys.values()))
    answers = {(row["job_id"], row["image"], row["engine"]): row for row in rows}
    judged, first = _Judged(), dict[Key, int]()
    for index, row in enumerate(reviews):
        if isinstance(row, InvalidRow):
            judged.refused.append(RefusedRow(index=index, image=row.image, reason=row.reason))
        elif reason := _objection(row, keys[index], answers, first):
            judged.refused.append(RefusedRow(index=index, image=row.image, reason=reason))
        else:
            first[keys[index]] = index
            _sort(judged, row, keys[index], answers[keys[index]])
    await _write(connection, project["id"], judged, reviewed_by)
    return ReviewsStored(
        stored=len(judged.stored), removed=len(judged.removed), unchanged=judged.unchanged, refused=judged.refused
    )


async def _lock_jobs(
    connection: Connection, project_id: int, reviews: Collection[NewReview]
) -> dict[int | str | None, int]:
    """The ids of the jobs that reviews name, by what they name; locked, so that no row of theirs is replaced."""
    named = [review.directory for review in reviews if review.directory is not None]
    by_name = {row["directory"]: row["id"] for row in await connection.fetch(FIND_JOBS, project_id, named)}
    wanted = {*by_name.values(), *(review.job_id for review in reviews if review.job_id is not None)}
    locked = {row["id"] for row in await connection.fetch(LOCK_JOBS, project_id, list(wanted))}
    return {job_id: job_id for job_id in locked} | {name: i for name, i in by_name.items() if i in locked}


def _columns(keys: Iterable[Key]) -> list[list[Any]]:
    """Keys as arrays, one for each of their parts."""
    unique = list(dict.fromkeys(keys))
    return [[key[part] for key in unique] for part in range(3)]


def _objection(review: NewReview, key: Key, answers: dict[Key, asyncpg.Record], first: dict[Key, int]) -> str | None:
    """Why a review is not stored."""
    job_id, _, engine = key
    if not job_id:
        named = repr(review.directory) if review.job_id is None else review.job_id
        return f"there is no job {named} in this project"
    if key not in answers:
        return f"there is no result of this image by the engine {engine}"
    if key in first:
        return f"review {first[key]} of this batch is of the same image"
    smiles = answers[key]["smiles"]
    if "smiles" in review.model_fields_set and (review.smiles or None) != smiles:
        return f"smiles: another answer is stored now, {'none' if smiles is None else printable(smiles)}"
    return None


def _sort(judged: _Judged, review: NewReview, key: Key, answer: asyncpg.Record) -> None:
    """Tell what a review changes."""
    said = {
        "review_status": review.review_status,
        "corrected_smiles": review.corrected_smiles,
        "note": review.note or None,
        "reviewed_smiles": answer["smiles"],
    }
    if review.review_status is None and answer["review_status"] is not None:
        judged.removed.append(key)
    elif review.review_status is None or all(answer[name] == value for name, value in said.items()):
        judged.unchanged += 1
    else:
        judged.stored[key] = said


async def _write(connection: Connection, project_id: int, judged: _Judged, reviewed_by: str) -> None:
    changed = [*judged.stored, *judged.removed]
    if not changed:
        return
    rows = [{"job_id": key[0], "image": key[1], "engine": key[2], **said} for key, said in judged.stored.items()]
    await connection.execute(STORE, json.dumps(rows), project_id, reviewed_by)
    await connection.execute(REMOVE, *_columns(judged.removed))
    await connection.execute(ANNOUNCE)
    await connection.execute(RENUMBER, *_columns(changed))


async def page(
    connection: Connection, project_id: int, after: Key, limit: int, status: ReviewStatus | None
) -> list[Review]:
    """Reviews of a project after a row, in the order of job, image and engine."""
    rows = await connection.fetch(PAGE, project_id, *after, status, limit)
    return [Review.model_validate(dict(row)) for row in rows]
