"""The command that shows what has failed in a project, in groups."""

from typing import Annotated

import typer

from job_api.cli.options import AsJson, Config, ProjectArgument, print_json, print_table
from job_api.config import connect
from job_api.schemas import MAX_PAGE_SIZE, FailureExample, FailureGroup, FailureKind
from job_api.terminal import printable

app = typer.Typer()

MAX_CELL_CHARS = 120


@app.command()
def failures(
    project: ProjectArgument,
    *,
    kind: Annotated[FailureKind | None, typer.Option(help="Only failed images, or only failed jobs.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE_SIZE, metavar="N", help="Show at most this many.")] = 100,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What has failed, in groups of messages that are alike, the rare ones first.

    A group's id goes into `job-api act PROJECT rerun --failure ID` for images, and `retry` for jobs.
    """
    with connect(config) as client:
        found = client.failures(project, kind=kind, limit=limit)
    if as_json:
        print_json(found.items)
    elif not found.items:
        typer.echo("nothing has failed" if kind is None else f"no {kind.value} has failed")
    else:
        columns = ["failure", "count", "jobs", "status/reason", "message", "such as"]
        print_table(columns, (_row(group) for group in found.items))
    if found.total > len(found.items):
        typer.echo(f"and {found.total - len(found.items)} more groups; --limit shows more than {limit}", err=True)
    if not found.complete:
        typer.echo("there are more groups than are looked for; these are some of them", err=True)


def _row(group: FailureGroup) -> list[object]:
    more = "" if group.exact else "+"
    return [
        group.id,
        f"{group.count}{more}",
        f"{group.jobs}{more}",
        group.status or group.reason,
        printable(group.shape, MAX_CELL_CHARS) or "(none)",
        next((_place(example) for example in group.examples), None),
    ]


def _place(example: FailureExample) -> str:
    image = "" if example.image is None else f"/{example.image}"
    return printable(f"job {example.job_id}: {example.directory}{image}", MAX_CELL_CHARS)
