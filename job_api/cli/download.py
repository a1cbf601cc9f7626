"""The command that reads results out."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated

import typer

from job_api.cli.destinations import destination
from job_api.cli.options import Config, ProjectArgument, given
from job_api.config import connect
from job_api.schemas import ExportFormat, ResultStatus
from job_api.terminal import progress_bar

app = typer.Typer()


@app.command()
def results(
    project: ProjectArgument,
    *,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="out.csv or out.jsonl, also in az://container/path, s3://bucket/path or gs://bucket/path; "
            "- is standard output.",
        ),
    ],
    export_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Where the file's name does not say it.")
    ] = None,
    statuses: Annotated[
        list[ResultStatus] | None, typer.Option("--status", help="Only rows of this status; may be repeated.")
    ] = None,
    directory: Annotated[str | None, typer.Option(help="Only rows of this directory.")] = None,
    since: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only rows newer than row N.")] = None,
    config: Config = None,
) -> None:
    """Read the results of a project out as CSV or JSON lines. A download that breaks is taken up again."""
    target = destination(output)
    wanted = _format_of(target.name) if export_format is None else export_format
    filters = given(status=statuses or None, directory=directory, since=since)
    last, count = since or 0, 0
    with connect(config) as client, progress_bar() as progress:
        total = None if filters else client.project(project).images.stored
        task = progress.add_task("results", total=total)

        def records() -> Iterator[bytes]:
            nonlocal last, count
            for seq, record in client.export_records(project, wanted, **filters):
                if seq is not None:
                    last, count = seq, count + 1
                    progress.update(task, completed=count)
                yield record

        target.write(records())
    where = "" if output == "-" else f" in {target.name}"
    typer.echo(f"{count} rows{where}; newer ones later: --since {last}", err=True)


def _format_of(name: str) -> ExportFormat:
    ending = PurePosixPath(name).suffix.lower().removeprefix(".")
    if ending not in {known.value for known in ExportFormat}:
        raise typer.BadParameter(f"say --format csv or --format jsonl: {name} ends in neither .csv nor .jsonl")
    return ExportFormat(ending)
