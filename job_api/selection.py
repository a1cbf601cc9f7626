"""Which jobs of a project a filter names, page by page in the order of their ids.

Owns the SQL that the browsing of jobs and the actions on many of them share; writes nothing. There is no index by
project and id: a page is merged from one run of `jobs_browse_idx` (project, state, id) for each state, so that it costs
the same wherever it begins and however many jobs there are. PostgreSQL would not find that way by itself.
"""

from collections.abc import Sequence
from typing import Any

from job_api.db import Connection
from job_api.failures import IMAGE_FAILED_NOW, IMAGE_KEY, JOB_FAILED, JOB_KEY, key_of
from job_api.schemas import FailureKind, JobFilter, JobState

# Jobs of project $1 in one state after id $2, at most $3.
_OF_STATE = """
(SELECT * FROM jobs WHERE project_id = $1 AND state = '{state}' AND id > $2{condition} ORDER BY id LIMIT $3)"""
# The condition of a page: which worker holds the job ($4), and a part of the directory's name ($5).
_OF_PAGE = " AND ($4::text IS NULL OR worker_id = $4) AND ($5::text IS NULL OR position($5 IN directory) > 0)"


def _merged(states: Sequence[JobState], condition: str = "") -> str:
    """A subquery of the next $3 jobs of project $1 after id $2 that are in one of some states, by id."""
    runs = [_OF_STATE.format(state=state.value, condition=condition) for state in states]
    return runs[0] if len(runs) == 1 else f"({' UNION ALL'.join(runs)} ORDER BY id LIMIT $3)"


def page(states: Sequence[JobState]) -> str:
    """A subquery of the next $3 jobs of project $1 after id $2 in one of some states, by id.

    Where they are given, only those that the worker $4 holds, and whose directory holds the text $5.
    """
    return _merged(states, _OF_PAGE)


# Whether a job `j` is what a filter asks for beside its state: worker $4, text $5, reason $6, the group of failed jobs
# $7, of failed images $8. Asked of the candidates, not of the index, so that no statement reads more than its share of
# the table however rare the text is.
_MATCHES = f"""
($4::text IS NULL OR worker_id = $4) AND ($5::text IS NULL OR position($5 IN directory) > 0)
    AND ($6::text IS NULL OR reason IS NOT DISTINCT FROM $6)
    AND ($7::bigint IS NULL OR ({JOB_FAILED} AND {JOB_KEY} = $7))
    AND ($8::bigint IS NULL OR EXISTS (SELECT FROM results r WHERE r.project_id = $1 AND r.job_id = j.id
        AND {IMAGE_FAILED_NOW} AND {IMAGE_KEY} = $8))"""
_CANDIDATES = """
SELECT id, state, directory, coalesce({matches}, false) AS matches FROM {jobs} AS j ORDER BY id
"""
# The next jobs of a group of failures, whose indexes have them in the order of their ids; $9 are the states.
_OF_FAILED_JOBS = f"""
(SELECT * FROM jobs WHERE project_id = $1 AND {JOB_FAILED} AND {JOB_KEY} = $7 AND id > $2 ORDER BY id LIMIT $3)"""  # noqa: S608 - built from constants, as all statements here
_OF_FAILED_IMAGES = f"""
(SELECT j.* FROM (SELECT DISTINCT job_id FROM results WHERE project_id = $1 AND {IMAGE_FAILED_NOW}
    AND {IMAGE_KEY} = $8 AND job_id > $2 ORDER BY job_id LIMIT $3) AS f
 CROSS JOIN LATERAL (SELECT * FROM jobs WHERE id = f.job_id OFFSET 0) AS j)"""  # noqa: S608
_NAMED = """
(SELECT * FROM jobs WHERE project_id = $1 AND id > $2 AND id = ANY($3::bigint[]) AND state = ANY($9::text[]))"""

# Lock those of the jobs $2 that still are what the filter asks for, in the order of their ids.
_LOCK = f"""
SELECT id, state, lease_seq, image_count, coalesce(finished_at, added_at) AS since FROM jobs j
WHERE project_id = $1 AND id = ANY($2::bigint[]) AND state = ANY($3::text[]) AND {_MATCHES}
ORDER BY id
"""  # noqa: S608


def _arguments(wanted: JobFilter) -> tuple[str | int | None, ...]:
    groups = (key_of(wanted.failure, kind) for kind in (FailureKind.JOB, FailureKind.IMAGE))
    return (wanted.worker_id, wanted.text, wanted.reason, *groups)


def states_of(states: Sequence[JobState] | None, worker_id: str | None) -> list[JobState]:
    """The states that jobs of a filter can be in: only a claimed job has a worker."""
    held = {JobState.CLAIMED} if worker_id is not None else set(JobState)
    return sorted(held & set(states or JobState))


async def candidates(
    connection: Connection, project_id: int, wanted: JobFilter, after: int, limit: int
) -> tuple[list[Any], int | None]:
    """The next jobs that a filter may name, at most `limit`, and the id to go on after (None: these are the last).

    Returns:
        Rows of id, state, directory, and whether the job `matches`; the id to go on after.
    """
    states = states_of(wanted.states, wanted.worker_id)
    if not states:
        return [], None
    if wanted.ids is not None:
        named = sorted({one for one in wanted.ids if one > after})[: limit + 1]
        names = [state.value for state in states]
        rows = await connection.fetch(
            _CANDIDATES.format(matches=_MATCHES, jobs=_NAMED),
            project_id,
            after,
            named[:limit],
            *_arguments(wanted),
            names,
        )
        return rows, named[limit - 1] if len(named) > limit else None
    arguments: list[Any] = [project_id, after, limit, *_arguments(wanted)]
    if wanted.failure is None:
        statement = _CANDIDATES.format(matches=_MATCHES, jobs=_merged(states))
    else:
        jobs = _OF_FAILED_JOBS if key_of(wanted.failure, FailureKind.JOB) is not None else _OF_FAILED_IMAGES
        statement = _CANDIDATES.format(matches=f"state = ANY($9::text[]) AND {_MATCHES}", jobs=jobs)
        arguments.append([state.value for state in states])
    rows = await connection.fetch(statement, *arguments)
    return rows, rows[-1]["id"] if len(rows) == limit else None


async def lock(
    connection: Connection, project_id: int, wanted: JobFilter, ids: Sequence[int], *, deleting: bool
) -> list[Any]:
    """Lock jobs in the order of their ids; those that a filter does not name any more are left out.

    Returns:
        Rows of id, state, lease_seq, image_count, and the time since when a job that is finished is so.
    """
    strength = "FOR UPDATE" if deleting else "FOR NO KEY UPDATE"
    names = [state.value for state in states_of(wanted.states, wanted.worker_id)]
    return await connection.fetch(_LOCK + strength, project_id, ids, names, *_arguments(wanted))
