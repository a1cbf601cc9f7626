"""Measure the service: `make bench-queue`, or `python -m benchmarks --help`."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import exports, measurements, report, seeding
from benchmarks.measurements import PROJECT, Findings
from benchmarks.sizes import QUICK, Sizes
from benchmarks.stage import BenchmarkError, Stage, open_stage

# Each on a service and a database of its own.
ALONE: dict[str, Callable[[Stage, Sizes], Findings]] = {
    "cycles": measurements.measure_cycles,
    "claims": measurements.measure_claims,
    "bulk": measurements.measure_bulk_add,
    "snapshot": measurements.measure_old_snapshot,
}
# All on one that is large.
LARGE = ("export", "status", "growth")
NAMES = (*ALONE, *LARGE)

SMALL_DISK_BYTES = 20e9
FINISHED_ON_A_SMALL_DISK = 1_000_000
# Of one result row: in the tables, in the log, and as text in a file.
ROW_BYTES = 1_800


def say(line: str) -> None:
    """Print a line of progress."""
    typer.echo(line)


def main(
    only: Annotated[str, typer.Option(help=f"Some of {','.join(NAMES)}, with commas between.")] = ",".join(NAMES),
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Everything at small sizes.")] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the large export. [10,000,000]")] = None,
    finished: Annotated[int | None, typer.Option(min=1, help="Finished jobs of the large project. [5,000,000]")] = None,
    added: Annotated[int | None, typer.Option(min=1, help="Directories added in bulk. [1,000,000]")] = None,
    churned: Annotated[int | None, typer.Option(min=8, help="Jobs completed under an old snapshot. [100,000]")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Length of one round of a load. [5]")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds, of which the median counts. [3]")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Passed on to `job-api serve --processes`.")] = None,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Exports and \\copy write files.")] = True,
    directory: Annotated[Path | None, typer.Option(help="Folder for data and files. [the temporary one]")] = None,
) -> None:
    """Measure the service under load: a table, and as the last line one JSON object.

    The databases are embedded ones in temporary directories; with JOB_API_DATABASE_URL they are made on that server,
    whose login must be allowed to create them, and dropped at the end.
    """
    chosen = only.split(",")
    if unknown := set(chosen) - set(NAMES):
        raise typer.BadParameter(f"--only knows {', '.join(NAMES)}; not {', '.join(sorted(unknown))}")
    given = {
        "exported": rows,
        "exported_few": None if rows is None else max(rows // 10, 1),
        "finished": finished,
        "added": added,
        "churned": churned,
        "seconds": seconds,
        "rounds": rounds,
    }
    sizes = replace(QUICK if quick else Sizes(), **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    try:
        sizes = _fitted(sizes, directory)
        findings = _measure(chosen, sizes, directory, quick=quick, processes=processes, files=files)
    except BenchmarkError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    report.show(findings.figures)
    figures = {figure.name: None for figure in report.FIGURES} | {
        name: float(f"{value:.5g}") for name, value in findings.figures.items()
    }
    external = "JOB_API_DATABASE_URL" in os.environ
    setting = report.setting(sizes=asdict(sizes), processes=processes or 1, external_database=external)
    typer.echo(json.dumps({**figures, "details": findings.details, "setting": setting}))


def _measure(
    chosen: list[str], sizes: Sizes, directory: Path | None, *, quick: bool, processes: int | None, files: bool
) -> Findings:
    found = Findings()
    with ExitStack() as stack:
        # What is small disturbs nobody: a quick run starts one service less for each measurement.
        shared = stack.enter_context(open_stage(directory, processes=processes)) if quick else None

        def stage() -> AbstractContextManager[Stage]:
            return open_stage(directory, processes=processes) if shared is None else nullcontext(shared)

        for name, measure in ALONE.items():
            if name in chosen:
                with _announced(name), stage() as alone:
                    found.take(measure(alone, sizes))
        if set(chosen) & set(LARGE):
            large = stack.enter_context(stage())
            with _announced("preparing"):
                _prepare(large, sizes, results="export" in chosen or "status" in chosen)
            if "export" in chosen:
                with _announced("export"):
                    found.take(exports.measure_exports(large, sizes, say, keep=files))
            if "status" in chosen:
                with _announced("status"):
                    found.take(measurements.measure_status(large, sizes))
            if "growth" in chosen:
                with _announced("growth"), open_stage(directory, processes=processes) as small:
                    found.take(measurements.measure_growth(small, large, sizes))
    return found


def _prepare(large: Stage, sizes: Sizes, *, results: bool) -> None:
    large.put_project(PROJECT)
    seeding.seed_finished(large, PROJECT, sizes.finished, sizes.exported if results else 1, say)
    if results:
        large.put_project(exports.SMALL_PROJECT)
        seeding.seed_finished(large, exports.SMALL_PROJECT, 1, sizes.exported_few, say)
    seeding.settle(large)


@contextmanager
def _announced(name: str) -> Iterator[None]:
    say(f"{name} ...")
    began = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - began:.0f} s")


def _fitted(sizes: Sizes, directory: Path | None) -> Sizes:
    """Sizes that the disk can hold."""
    free = shutil.disk_usage(directory or tempfile.gettempdir()).free
    if free < SMALL_DISK_BYTES and sizes.finished > FINISHED_ON_A_SMALL_DISK:
        say(f"only {free / 1e9:.0f} GB are free: {FINISHED_ON_A_SMALL_DISK:,} finished jobs")
        sizes = replace(sizes, finished=FINISHED_ON_A_SMALL_DISK)
    if sizes.exported * ROW_BYTES > free:
        raise BenchmarkError(
            f"{sizes.exported:,} rows need {sizes.exported * ROW_BYTES / 1e9:.0f} GB and {free / 1e9:.0f} GB are free; "
            "ask for fewer with --rows, or for another disk with --directory"
        )
    return sizes


if __name__ == "__main__":
    report.run(main)
