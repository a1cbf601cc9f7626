"""The command that reads results out."""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any

import typer
from rich.progress import Progress

from job_api import smi
from job_api.cli.destinations import Destination, destination
from job_api.cli.files import MADE_HERE, MadeFile
from job_api.cli.options import Config, ProjectArgument, given
from job_api.client import RETRY_SECONDS, Client
from job_api.config import connect
from job_api.formats import Counts
from job_api.schemas import Agreement, ExportFormat, KnownFlag, ResultStatus, ReviewedAs
from job_api.terminal import progress_bar

app = typer.Typer()

GZIP_ENDING = ".gz"


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
            help="out.csv, out.jsonl, out.smi, out.parquet, out.sdf, out.xlsx or out.zip, packed where .gz follows, "
            "also in az://container/path, s3://bucket/path or gs://bucket/path; - is standard output.",
        ),
    ],
    export_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Where the file's name does not say it.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="NAMES", help="Only these columns, such as smiles,confidence,image."),
    ] = None,
    statuses: Annotated[
        list[ResultStatus] | None, typer.Option("--status", help="Only rows of this status; may be repeated.")
    ] = None,
    directory: Annotated[str | None, typer.Option(help="Only rows of this directory.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Only rows of directories with this text in their name.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Only rows of this engine.")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Only rows with this confidence or a higher one.")
    ] = None,
    flags: Annotated[
        list[KnownFlag] | None, typer.Option("--flag", help="Only rows with this flag; repeated: with any.")
    ] = None,
    without_flags: Annotated[
        list[KnownFlag] | None,
        typer.Option("--without-flag", help="Only rows without this flag; may be repeated."),
    ] = None,
    valid: Annotated[
        bool | None, typer.Option("--valid/--invalid", help="Only rows whose SMILES can be read, or cannot.")
    ] = None,
    reviews: Annotated[
        list[ReviewedAs] | None,
        typer.Option("--review-status", help="Only rows that a person said this of; may be repeated."),
    ] = None,
    agreements: Annotated[
        list[Agreement] | None,
        typer.Option("--agreement", help="Only rows that stand so to other engines' answers; may be repeated."),
    ] = None,
    since: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only rows newer than row N.")] = None,
    retry_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="How long a service that is away is tried again.")
    ] = RETRY_SECONDS,
    config: Config = None,
) -> None:
    """Read the results of a project out, as what the file's ending says. A download that breaks is taken up again."""
    target = destination(output)
    wanted = _format_of(target.name) if export_format is None else export_format
    filters = given(
        status=statuses or None,
        directory=directory,
        text=text,
        engine=engine,
        min_confidence=min_confidence,
        flag=flags or None,
        without_flag=without_flags or None,
        valid=valid,
        review_status=reviews or None,
        agreement=agreements or None,
        since=since,
    )
    if columns and wanted is ExportFormat.SMI:
        raise typer.BadParameter("an smi has no columns to choose")
    with connect(config, retry_seconds=retry_seconds) as client, progress_bar() as progress:
        download = Download(client, project, filters, progress, last=since or 0)
        said = _write_records(target, download, wanted, columns or None)
        rows, semicolon, left_out = said.partition(";")
        where = "" if output == "-" else f" in {target.name}"
        typer.echo(f"{rows}{where}{semicolon}{left_out}; newer ones later: --since {download.last}", err=True)


@dataclass
class Download:
    """The rows of one download as they come, counted and shown.

    Args:
        last: the number of the last row that has come.
        count: how many have come.
        omitted: those of them that were not written, for the format cannot hold them, by reason.
    """

    client: Client
    project: str
    filters: Mapping[str, Any]
    progress: Progress
    last: int
    count: int = 0
    omitted: Counter[str] = field(default_factory=Counter)

    def records(self, export_format: ExportFormat, columns: list[str] | None) -> Iterator[bytes]:
        """Rows as the service writes them."""
        task = self.progress.add_task("results", total=self._total())
        asked = {**self.filters, "columns": columns}
        for seq, record in self.client.export_records(self.project, export_format, **asked):
            if seq is not None:
                self.last, self.count = seq, self.count + 1
                self.progress.update(task, completed=self.count)
            yield record

    def rows(self, columns: list[str] | None) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries, for a format that is written here."""
        return map(json.loads, self.records(ExportFormat.JSONL, columns))

    def _total(self) -> int | None:
        """How many rows will come, where the counts of the project say so."""
        if self.filters and self.filters != {"status": [ResultStatus.RECOGNISED]}:
            return None
        images = self.client.project(self.project).images
        return images.recognised if self.filters else images.stored


def _write_records(target: Destination, download: Download, wanted: ExportFormat, columns: list[str] | None) -> str:
    """Write the rows, and say how many they are and what was left out."""
    made = None
    if wanted in MADE_HERE:
        made = MadeFile(download.client, download.project, wanted, columns, download.filters)
        records = made.blocks(download.records(ExportFormat.JSONL, made.columns), lambda: download.last)
    else:
        records = _smi(download) if wanted is ExportFormat.SMI else download.records(wanted, columns)
    target.write(_packed(records) if target.name.endswith(GZIP_ENDING) else records)
    if made is not None:
        return str(made)
    return str(Counts(download.count - download.omitted.total(), download.omitted))


def _smi(download: Download) -> Iterator[bytes]:
    for row in download.rows(list(smi.COLUMNS)):
        line = smi.line(row)
        if line is None:
            download.omitted[smi.why_not(row)] += 1
        else:
            yield line.encode()


def _packed(records: Iterable[bytes]) -> Iterator[bytes]:
    """The records as one gzip file, the same for the same records."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    for record in records:
        if piece := packer.compress(record):
            yield piece
    yield packer.flush()


def _format_of(name: str) -> ExportFormat:
    ending = PurePosixPath(name.lower().removesuffix(GZIP_ENDING)).suffix.removeprefix(".")
    known = [export_format.value for export_format in ExportFormat]
    if ending not in known:
        raise typer.BadParameter(
            f"say --format {', '.join(known)}: {name} ends in none of {', '.join(f'.{one}' for one in known)}"
        )
    return ExportFormat(ending)
