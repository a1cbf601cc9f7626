"""The command that does something to many jobs of a project."""

from typing import Annotated

import typer
from pydantic import ValidationError

from job_api.cli.options import Config, ProjectArgument
from job_api.client import Client, ClientError
from job_api.config import connect
from job_api.schemas import JobAction, JobFilter, JobsActed, JobsAction, JobState, ResultStatus
from job_api.terminal import printable, progress_bar
from job_api.text import mistake

app = typer.Typer()

DONE = {
    JobAction.CANCEL: "cancelled",
    JobAction.RETRY: "queued again",
    JobAction.RERUN: "queued for a new run",
    JobAction.FORCE_RELEASE: "taken from their workers and queued",
    JobAction.DELETE: "deleted",
}


@app.command()
def act(
    project: ProjectArgument,
    action: Annotated[JobAction, typer.Argument(metavar="ACTION", help=", ".join(JobAction) + ".")],
    *,
    states: Annotated[
        list[JobState] | None, typer.Option("--state", help="Only jobs in this state; may be repeated.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Only jobs whose directory holds this text.")] = None,
    worker: Annotated[str | None, typer.Option(metavar="ID", help="Only jobs that this worker holds.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only jobs with this reason, such as storage.")] = None,
    ids: Annotated[
        list[int] | None, typer.Option("--id", min=1, metavar="ID", help="Only this job; may be repeated.")
    ] = None,
    failure: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Only jobs of this group of `job-api failures`; rerun does only the images of it again.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All jobs of the project; instead of any of the above.")] = False,
    statuses: Annotated[
        list[ResultStatus] | None,
        typer.Option("--status", help="rerun: only images whose result is this; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the jobs, show some, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really delete; nothing is deleted without it.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="Only jobs after this one, to go on.")] = 0,
    config: Config = None,
) -> None:
    """Do something to all jobs of a project that the options name: cancel, retry, rerun, force-release or delete.

    Jobs whose state does not allow it are passed over. The jobs are counted first; those that come into their state
    afterwards are left alone. Running it again does the rest of what was broken off.
    """
    try:
        named = JobFilter(
            all=every,
            states=states or None,
            worker_id=worker,
            text=text,
            reason=reason,
            ids=ids or None,
            failure=failure,
        )
        wanted = JobsAction(action=action, filter=named, statuses=statuses or None, after=after)
    except ValidationError as error:
        raise ClientError(_wrong(error)) from None
    with connect(config) as client:
        counted = _counted(client, project, wanted)
        if dry_run:
            _show(action, counted)
            return
        if action is JobAction.DELETE and not yes:
            raise ClientError(f"{counted.changed} jobs would be deleted with all their results; say --yes to do it")
        _act(client, project, wanted.model_copy(update={"as_of": counted.as_of}), counted)


def _wrong(error: ValidationError) -> str:
    said = mistake(error)
    if "names no jobs" in said:
        options = "--state, --text, --worker, --reason, --id or --failure"
        return f"say which jobs: {options}, or --all for every job of the project"
    return said


def _counted(client: Client, project: str, wanted: JobsAction) -> JobsActed:
    *_, total = client.act(project, wanted.model_copy(update={"dry_run": True}))
    return total


def _show(action: JobAction, counted: JobsActed) -> None:
    typer.echo(f"dry run: {_summary(action, counted, would='would be ')}")
    for job in counted.examples:
        typer.echo(f"  job {job.id} ({printable(job.directory)}) is {job.state.value}")
    if counted.changed > len(counted.examples):
        typer.echo(f"  and {counted.changed - len(counted.examples)} more")


def _act(client: Client, project: str, wanted: JobsAction, counted: JobsActed) -> None:
    done = JobsActed(as_of=counted.as_of, next=wanted.after)
    try:
        with progress_bar() as progress:
            task = progress.add_task(wanted.action.value, total=counted.matched)
            for done in client.act(project, wanted):
                progress.update(task, completed=done.matched)
    except (ClientError, KeyboardInterrupt):
        typer.echo(f"so far: {_summary(wanted.action, done)}; the rest: --after {done.next}", err=True)
        raise
    typer.echo(_summary(wanted.action, done))


def _summary(action: JobAction, done: JobsActed, would: str = "") -> str:
    return (
        f"{done.matched} jobs: {done.changed} {would}{DONE[action]}, {done.unchanged} as wanted already, "
        f"{done.skipped} passed over because of their state"
    )
