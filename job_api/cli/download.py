"""The command that reads results out, into a file that is whole or not there."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from job_api.cli.options import Config, ProjectArgument, given
from job_api.client import ClientError
from job_api.config import connect
from job_api.schemas import ExportFormat, ResultStatus
from job_api.terminal import progress_bar

app = typer.Typer()


@app.command()
def results(
    project: ProjectArgument,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="out.csv or out.jsonl; - is standard output.")
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
    wanted = _format_of(output) if export_format is None else export_format
    filters = given(status=statuses or None, directory=directory, since=since)
    last, count = since or 0, 0
    with connect(config) as client, progress_bar() as progress:
        total = None if filters else client.project(project).images.stored
        task = progress.add_task("results", total=total)
        try:
            with _whole_file(output) as file:
                for seq, record in client.export_records(project, wanted, **filters):
                    file.write(record)
                    if seq is not None:
                        last, count = seq, count + 1
                        progress.update(task, completed=count)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise ClientError(f"cannot write {output}: {error.strerror}") from None
    where = "" if output == "-" else f" in {output}"
    typer.echo(f"{count} rows{where}; newer ones later: --since {last}", err=True)


def _format_of(output: str) -> ExportFormat:
    ending = Path(output).suffix.lower().removeprefix(".")
    if ending not in {known.value for known in ExportFormat}:
        raise typer.BadParameter(f"say --format csv or --format jsonl; the name {output} does not end in either")
    return ExportFormat(ending)


@contextmanager
def _whole_file(output: str) -> Iterator[BinaryIO]:
    """A file that takes its name, and the place of an older one, only when all of it is written."""
    if output == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
