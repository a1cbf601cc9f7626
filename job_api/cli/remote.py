"""Commands that list projects, jobs, workers and logs, and steer single jobs."""

import itertools
from collections.abc import Callable
from typing import Annotated

import typer

from job_api import schemas
from job_api.cli.options import AsJson, Config, ProjectArgument, print_json, print_table
from job_api.client import Client
from job_api.config import connect
from job_api.schemas import JobState, LogLevel, ResultStatus
from job_api.terminal import printable

app = typer.Typer()
job = typer.Typer(help="Steer a single job.", no_args_is_help=True)

JobId = Annotated[int, typer.Argument(metavar="ID", min=1, help="Number of the job, as `job-api jobs` shows it.")]


@app.command()
def projects(*, config: Config = None, as_json: AsJson = False) -> None:
    """The projects and their settings."""
    with connect(config) as client:
        found = client.projects()
    if as_json:
        print_json(found)
        return
    columns = [
        "project",
        "source",
        "engine",
        "options",
        "priority",
        "max failures",
        "results file",
        "paused",
        "created",
    ]
    print_table(
        columns,
        (
            [
                p.name,
                p.source,
                p.engine,
                p.engine_options or None,
                p.priority,
                p.max_failures,
                p.results_file,
                p.paused,
                p.created_at,
            ]
            for p in found
        ),
    )


@app.command()
def jobs(
    project: ProjectArgument,
    *,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    text: Annotated[str | None, typer.Option(help="Only jobs whose directory holds this text.")] = None,
    worker: Annotated[str | None, typer.Option(metavar="ID", help="Only jobs of this worker.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show at most this many in the table.")] = 100,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The jobs of a project. JSON has all of them, the table the first ones."""
    with connect(config) as client:
        found = client.jobs(project, state=state, text=text, worker_id=worker)
        if as_json:
            print_json(found)
            return
        rows = [
            [j.id, j.state.value, j.directory, j.image_count, j.failures, j.worker_id, j.reason, j.message]
            for j in itertools.islice(found, limit + 1)
        ]
    print_table(["id", "state", "directory", "images", "failures", "worker", "reason", "message"], rows[:limit])
    if len(rows) > limit:
        typer.echo(f"and more; --limit shows more than {limit}", err=True)


@app.command()
def workers(
    *,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Only those.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The workers, what they are doing and when they were last heard of."""
    with connect(config) as client:
        found = client.workers(active=active)
        if as_json:
            print_json(found)
            return
        rows = [
            [
                w.id,
                w.hostname,
                w.version,
                w.state.value,
                "yes" if w.active else "no",
                w.leases,
                _load(w),
                w.last_seen_at,
                w.state_since,
                w.reason,
            ]
            for w in found
        ]
    columns = ["worker", "host", "version", "state", "active", "leases", "load", "last seen", "state since", "reason"]
    print_table(columns, rows)


def _load(worker: schemas.Worker) -> str | None:
    load = worker.load
    if load is None:
        return None
    known = (
        (load.cpu_percent, "{:.0f}% CPU"),
        (load.memory_percent, "{:.0f}% memory"),
        (load.processes, "{} processes"),
        (load.images_per_second, "{:.2f} images/s"),
    )
    return ", ".join(form.format(value) for value, form in known if value is not None)


@app.command()
def logs(
    project: Annotated[str | None, typer.Argument(metavar="[PROJECT]", help="A project; without it, all.")] = None,
    *,
    level: Annotated[LogLevel | None, typer.Option(help="Only lines at least this severe.")] = None,
    worker: Annotated[str | None, typer.Option(metavar="ID", help="Only lines of this worker.")] = None,
    job_id: Annotated[
        int | None, typer.Option("--job", metavar="ID", min=1, help="Only lines of this job of PROJECT.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="NAME", help="Only lines about this image.")] = None,
    text: Annotated[str | None, typer.Option(help="Only lines that hold this text.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The workers' log lines, oldest first."""
    if job_id is not None and project is None:
        raise typer.BadParameter("--job needs the PROJECT it belongs to")
    with connect(config) as client:
        found = client.logs(project, level=level, worker_id=worker, job_id=job_id, image=image, text=text)
        if as_json:
            print_json(found)
            return
        for line in found:
            where = "/".join(str(part) for part in (line.project, line.job_id, line.image) if part is not None)
            said = f"{line.received_at:%Y-%m-%d %H:%M:%S} {line.level.value:8} {line.worker_id} {where}: {line.message}"
            typer.echo(printable(said, 5000))
            for row in (line.traceback or "").splitlines():
                typer.echo("    " + printable(row, 1000))


# --- single jobs ---


def _steer(action: Callable[[Client], schemas.Job], config: Config) -> None:
    with connect(config) as client:
        changed = action(client)
    typer.echo(f"job {changed.id} ({printable(changed.directory)}) is {changed.state.value}")


@job.command()
def show(project: ProjectArgument, job_id: JobId, *, config: Config = None, as_json: AsJson = False) -> None:
    """One job with its attempts and the number of its results."""
    with connect(config) as client:
        found = client.job(project, job_id)
    if as_json:
        print_json([found])
        return
    typer.echo(f"job {found.id} ({printable(found.directory)}) is {found.state.value}")
    typer.echo("results: " + (", ".join(f"{n} {s.value}" for s, n in found.results_by_status.items()) or "none"))
    print_table(
        ["lease", "worker", "claimed", "ended", "outcome", "charged", "new results", "reason", "message"],
        (
            [
                a.lease_seq,
                a.worker_id,
                a.claimed_at,
                a.ended_at,
                a.outcome,
                a.charged,
                a.new_results,
                a.reason,
                a.message,
            ]
            for a in found.attempts
        ),
    )


@job.command()
def retry(project: ProjectArgument, job_id: JobId, *, config: Config = None) -> None:
    """Queue a failed or cancelled job again."""
    _steer(lambda client: client.retry(project, job_id), config)


@job.command()
def cancel(project: ProjectArgument, job_id: JobId, *, config: Config = None) -> None:
    """Cancel an unfinished job."""
    _steer(lambda client: client.cancel(project, job_id), config)


@job.command()
def rerun(
    project: ProjectArgument,
    job_id: JobId,
    *,
    statuses: Annotated[
        list[ResultStatus] | None, typer.Option("--status", help="Only images whose result is this; may be repeated.")
    ] = None,
    config: Config = None,
) -> None:
    """Queue a finished job again: all its images, or some."""
    _steer(lambda client: client.rerun(project, job_id, statuses or None), config)


@job.command()
def force_release(project: ProjectArgument, job_id: JobId, *, config: Config = None) -> None:
    """Take a claimed job from its worker and queue it again."""
    _steer(lambda client: client.force_release(project, job_id), config)
