"""Projects: their settings, and the browsing of their jobs. How far they are is told by `progress.py`."""

from collections.abc import Sequence

import asyncpg

from job_api import results, selection
from job_api.counters import OPEN_SLOTS, SUMS
from job_api.db import Connection
from job_api.errors import InvalidRequest, NotFound, ProjectBusy
from job_api.listing import ImageChoice
from job_api.locations import SCHEMES, BadLocation, locate
from job_api.models import COUNTER_SLOTS
from job_api.name_patterns import NamePattern
from job_api.notices import announce
from job_api.schemas import (
    Attempt,
    Job,
    JobDetail,
    JobState,
    Project,
    ProjectSettings,
)

_SHOWN = """
id, name, source, engine, engine_options, priority, max_failures, results_file, image_name_pattern, image_include,
image_exclude, keep_tokens, price_per_worker_hour, paused, created_at
"""
PROJECT = f"SELECT {_SHOWN} FROM projects WHERE name = $1 AND deleted_at IS NULL"  # noqa: S608 - built from constants
PROJECTS = f"""
SELECT {_SHOWN} FROM projects
WHERE name > $1 AND ($2::text IS NULL OR name = $2) AND deleted_at IS NULL ORDER BY name LIMIT $3
"""  # noqa: S608
PROJECT_ID = "SELECT id FROM projects WHERE name = $1 AND deleted_at IS NULL"
KEEP = "SELECT id, engine FROM projects WHERE name = $1 AND deleted_at IS NULL FOR KEY SHARE"
CREATE = "INSERT INTO projects (name, source) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING id"
# Of the pattern an empty text is none, and of the price a zero.
CHANGE = f"""
UPDATE projects SET source = coalesce($2, source), engine = coalesce($3, engine),
    engine_options = coalesce($4, engine_options), priority = coalesce($5, priority),
    max_failures = coalesce($6, max_failures), results_file = coalesce($7, results_file),
    image_name_pattern = nullif(coalesce($8, image_name_pattern), ''),
    image_include = coalesce($9, image_include), image_exclude = coalesce($10, image_exclude),
    keep_tokens = coalesce($11, keep_tokens),
    price_per_worker_hour = nullif(coalesce($12, price_per_worker_hour), 0)
WHERE id = $1 AND deleted_at IS NULL
RETURNING {_SHOWN}
"""  # noqa: S608
PAUSE = f"UPDATE projects SET paused = $2 WHERE name = $1 AND deleted_at IS NULL RETURNING {_SHOWN}"  # noqa: S608
LOCK = "SELECT id FROM projects WHERE name = $1 AND deleted_at IS NULL FOR UPDATE"
# Its name is free at once, and nobody can guess the one it gets. That still looks like a name, and without slots the
# project counts for nothing and has nothing to claim: older services that run beside this one need no more.
MARK_DELETED = """
UPDATE projects SET deleted_at = now(), paused = true,
    name = 'deleted-' || id || '-' || replace(gen_random_uuid()::text, '-', '')
WHERE id = $1
"""
DROP_COUNTS = (
    "DELETE FROM project_samples WHERE project_id = $1",
    "DELETE FROM project_usage WHERE project_id = $1",
    # From the last slot to the first: who adds slots up holds the later ones and then wants the first.
    """
    DELETE FROM project_slots WHERE project_id = $1
    AND slot IN (SELECT slot FROM project_slots WHERE project_id = $1 ORDER BY slot DESC FOR UPDATE)
    """,
)
_JOB = """
SELECT j.id, p.name AS project, j.directory, j.state, j.run, j.lease_seq, j.worker_id, j.lease_expires_at, j.due_at,
       j.failures, j.releases, j.image_count, j.reason, j.message, j.added_at, j.finished_at
FROM {jobs} AS j JOIN projects p ON p.id = j.project_id
"""
JOBS = _JOB + "ORDER BY j.id"
JOB = _JOB.format(jobs="jobs") + "WHERE j.project_id = $1 AND j.id = $2"
ATTEMPTS = """
SELECT lease_seq, worker_id, claimed_at, ended_at, outcome, charged, new_results, reason, message
FROM attempts WHERE job_id = $1 ORDER BY lease_seq DESC LIMIT 100
"""


async def project_id(connection: Connection, name: str) -> int:
    """The id of a project.

    Raises:
        NotFound: there is none of that name.
    """
    found: int | None = await connection.fetchval(PROJECT_ID, name)
    if found is None:
        raise NotFound(f"there is no project {name!r}")
    return found


async def keep(connection: Connection, name: str) -> asyncpg.Record:
    """The id and engine of a project, which is kept from being deleted until the transaction ends. Raises as above."""
    row = await connection.fetchrow(KEEP, name)
    if row is None:
        raise NotFound(f"there is no project {name!r}")
    return row


async def row_of(connection: Connection, name: str) -> asyncpg.Record:
    """A project's id and settings.

    Raises:
        NotFound: there is no such project.
    """
    row = await connection.fetchrow(PROJECT, name)
    if row is None:
        raise NotFound(f"there is no project {name!r}")
    return row


def _project(row: asyncpg.Record) -> Project:
    return Project.model_validate(dict(row))


async def list_projects(connection: Connection, after: str, only: str | None, limit: int) -> list[Project]:
    """Projects after a name, by name; `only` restricts them to one."""
    return [_project(row) for row in await connection.fetch(PROJECTS, after, only, limit)]


async def put(connection: Connection, name: str, settings: ProjectSettings) -> tuple[Project, bool]:
    """Create a project, or change the settings that are given; says also whether it has another engine now.

    Raises:
        InvalidRequest: the project is new and no source is given, the source is no URL that workers know or has a
            credential in it, a pattern for images makes no sense, or results are to be written to where nothing can be
            written. What was changed is to be rolled back.
    """
    if settings.source is not None:
        try:
            locate(settings.source)
        except BadLocation as error:
            raise InvalidRequest(f"source: {error}") from None
    if settings.image_name_pattern:
        try:
            NamePattern(settings.image_name_pattern)
        except ValueError as error:
            raise InvalidRequest(f"image_name_pattern: {error}") from None
    for field in ("image_include", "image_exclude"):
        try:
            ImageChoice(getattr(settings, field) or [], [])
        except ValueError as error:
            raise InvalidRequest(f"{field}: {error}") from None
    found = await connection.fetchrow(PROJECT, name)
    if found is None:
        if settings.source is None:
            raise InvalidRequest(f"the project {name!r} is new and needs a source: the URL its directories lie under")
        made = await connection.fetchval(CREATE, name, settings.source)
        if made is not None:
            await connection.execute(OPEN_SLOTS, made, COUNTER_SLOTS)
        found = await connection.fetchrow(PROJECT, name)
    if found is None:
        raise NotFound(f"the project {name!r} was deleted just now")
    changed = await connection.fetchrow(
        CHANGE,
        found["id"],
        settings.source,
        settings.engine,
        settings.engine_options,
        settings.priority,
        settings.max_failures,
        settings.results_file,
        settings.image_name_pattern,
        settings.image_include,
        settings.image_exclude,
        settings.keep_tokens,
        settings.price_per_worker_hour,
    )
    project = _project(changed or found)
    if project.results_file and SCHEMES.get(project.source.partition(":")[0].lower()) == "http":
        raise InvalidRequest(
            "results_file: nothing can be written beside the images on a web server; set results_file to false, or "
            "let the source be where the images can be written to (file, az, s3, gs)"
        )
    return project, project.engine != found["engine"]


async def pause(connection: Connection, name: str, *, paused: bool) -> Project:
    """Stop or resume the handing out of a project's jobs.

    Raises:
        NotFound: there is no such project.
    """
    row = await connection.fetchrow(PAUSE, name, paused)
    if row is None:
        raise NotFound(f"there is no project {name!r}")
    if not paused:
        sums = await connection.fetchrow(SUMS, row["id"])
        await announce(connection, row["id"], 0 if sums is None else sums["queued"], None)
    return _project(row)


async def delete(connection: Connection, name: str) -> None:
    """Delete a project: nobody finds it any more, and its name is free. The janitor deletes its rows afterwards.

    Raises:
        NotFound: there is no such project.
        ProjectBusy: jobs of it are unfinished.
    """
    found = await connection.fetchval(LOCK, name)
    if found is None:
        raise NotFound(f"there is no project {name!r}")
    # Nobody can add jobs or queue them again meanwhile: both keep the project from being locked.
    sums = await connection.fetchrow(SUMS, found)
    if unfinished := sum(sums[state] for state in (JobState.QUEUED, JobState.WAITING, JobState.CLAIMED)) if sums else 0:
        raise ProjectBusy(f"{unfinished} jobs of {name!r} are unfinished; wait for them or cancel them first")
    await connection.execute(MARK_DELETED, found)
    for statement in DROP_COUNTS:
        await connection.execute(statement, found)


async def list_jobs(
    connection: Connection,
    project: int,
    after: int,
    *,
    state: JobState | None,
    worker_id: str | None,
    text: str | None,
    limit: int,
) -> list[Job]:
    """Jobs of a project after an id, by id; `text` is looked for in the directory's name."""
    states = selection.states_of([state] if state is not None else None, worker_id)
    if not states:
        return []
    statement = JOBS.format(jobs=selection.page(states))
    rows = await connection.fetch(statement, project, after, limit, worker_id, text)
    return [Job.model_validate(dict(row)) for row in rows]


async def job(connection: Connection, project: int, job_id: int) -> Job:
    """One job.

    Raises:
        NotFound: the project has no such job.
    """
    row = await connection.fetchrow(JOB, project, job_id)
    if row is None:
        raise NotFound(f"there is no job {job_id} in this project")
    return Job.model_validate(dict(row))


async def job_detail(connection: Connection, project: int, job_id: int) -> JobDetail:
    """One job with its latest 100 attempts and its rows counted. Raises as `job`."""
    found = await job(connection, project, job_id)
    attempts: Sequence[asyncpg.Record] = await connection.fetch(ATTEMPTS, job_id)
    return JobDetail(
        **found.model_dump(),
        attempts=[Attempt.model_validate(dict(row)) for row in attempts],
        results_by_status=await results.count_by_status(connection, job_id),
    )
