"""Measure the formats of the export: `make bench-exports`, or `python -m benchmarks.formats --help`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import exports, report, seeding
from benchmarks.machine import MemoryWatch
from benchmarks.measurements import PROJECT, Findings, behind
from benchmarks.report import Figure
from benchmarks.stage import BenchmarkError, Stage, open_stage
from job_api.schemas import DEFAULT_COLUMNS

ROWS = 1_000_000
# What is streamed, by the name of its figures: the format, and the columns where they are not the usual ones.
STREAMED = {
    "csv": ("csv", ""),
    "jsonl": ("jsonl", ""),
    "smi": ("smi", ""),
    # What looking each image up among all others costs.
    "csv_as_stored": ("csv", ",".join(name for name in DEFAULT_COLUMNS if name not in exports.COMPUTED)),
    "csv_few_columns": ("csv", "image,smiles,confidence"),
    "parquet": ("parquet", ""),
    "zip": ("zip", ""),
    "sdf": ("sdf", ""),
}
# Structures are drawn, a millisecond or so each: of this a tenth of the rows.
DRAWN = "sdf"
DRAWN_PROJECT = "bench-drawn"
MAX_RSS_MB = 300
FIGURES = (
    Figure("copy_rows_per_second"),
    *(Figure(f"{name}_rows_per_second") for name in STREAMED),
    *(Figure(f"{name}_vs_copy") for name in STREAMED),
    *(Figure(f"{name}_rss_mb", at_most=MAX_RSS_MB) for name in STREAMED),
)
NOTE = (
    "copy: psql's, of all columns that are stored, as CSV. rss: of the service's processes while they send, those that "
    "make files among them."
)


def main(
    rows: Annotated[int, typer.Option(min=1, help="Rows of the project.")] = ROWS,
    *,
    only: Annotated[str, typer.Option(help=f"Some of {','.join(STREAMED)}, with commas between.")] = ",".join(STREAMED),
    directory: Annotated[Path | None, typer.Option(help="Folder for data and files. [the temporary one]")] = None,
) -> None:
    """Measure the rate and the memory of each format: a table, and as the last line one JSON object."""
    chosen = only.split(",")
    if unknown := set(chosen) - set(STREAMED):
        raise typer.BadParameter(f"--only knows {', '.join(STREAMED)}; not {', '.join(sorted(unknown))}")
    try:
        with open_stage(directory) as stage:
            findings = _measure(stage, rows, chosen)
    except BenchmarkError as error:
        raise SystemExit(f"benchmarks.formats: {error}") from None
    report.show(findings.figures, FIGURES, NOTE)
    figures = {name: float(f"{value:.5g}") for name, value in findings.figures.items()}
    typer.echo(json.dumps({**figures, "details": findings.details, "setting": report.setting(rows=rows)}))


def _measure(stage: Stage, rows: int, chosen: list[str]) -> Findings:
    stage.put_project(PROJECT)
    seeding.seed_finished(stage, PROJECT, 1, rows, typer.echo)
    seeding.settle(stage)
    if DRAWN in chosen:
        stage.put_project(DRAWN_PROJECT)
        seeding.seed_finished(stage, DRAWN_PROJECT, 1, max(rows // 10, 1), typer.echo)
        seeding.settle(stage)
    copied = exports.copy(stage, PROJECT, keep=False)
    findings = Findings({"copy_rows_per_second": copied.per_second})
    for name in chosen:
        export_format, columns = STREAMED[name]
        with MemoryWatch(stage.service_pid) as memory:
            project = DRAWN_PROJECT if name == DRAWN else PROJECT
            done = exports.export(stage, project, keep=False, export_format=export_format, columns=columns)
        findings.figures[f"{name}_rows_per_second"] = done.per_second
        findings.figures[f"{name}_vs_copy"] = done.per_second / copied.per_second
        findings.figures[f"{name}_rss_mb"] = memory.highest_bytes / 2**20
        findings.details[name] = {"bytes": done.received_bytes, "rows": done.units, **behind([done])}
        typer.echo(f"  {name}: {done.per_second:,.0f} rows/s")
    return findings


if __name__ == "__main__":
    report.run(main)
