"""How many images an engine reads right: `make bench-opinions`, or `python -m benchmarks.opinions --help`.

The images are anybody's: a folder of directories as users have them, and a CSV that says of each image (`directory`,
`image`) which structure it shows (`inchikey`). They go through a real service and worker.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import report
from benchmarks.recognition.worker import clean_environment
from benchmarks.report import Figure
from benchmarks.stage import ROOT, BenchmarkError, Stage, open_stage
from job_api.schemas import ProjectSettings

PROJECT = "opinions"
SKELETON_CHARS = 14

FIGURES = (
    Figure("images"),
    Figure("recognised", field="a SMILES, right or wrong"),
    Figure("right", field="the InChIKey of the reference"),
    Figure("right_skeleton", field="its first block, the right ones included"),
    Figure("median_seconds_per_image"),
    Figure("mean_seconds_per_image"),
)
NOTE = "Structures without an InChIKey, as those with a place that has no name (*), are not right."

Reference = Mapping[tuple[str, str], str]
"""(directory, image) -> InChIKey."""


def main(
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder that holds the directories.")],
    reference: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="CSV with the columns directory, image and inchikey.")
    ],
    engine: Annotated[str, typer.Option(help="The project's; UWORKER_ENGINE_COMMAND… are the worker's.")] = "osra",
) -> None:
    """Have a worker recognise images whose structures are known: a table, and a line of JSON."""
    with reference.open(encoding="utf-8", newline="") as file:
        known = {(row["directory"], row["image"]): row["inchikey"] for row in csv.DictReader(file)}
    try:
        with open_stage() as stage:
            rows = recognise(stage, images, sorted({directory for directory, _ in known}), engine)
            figures = figures_of(rows, known)
    except BenchmarkError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    report.show(figures, FIGURES, NOTE)
    version = next((row["engine_version"] for row in rows), None)
    typer.echo(json.dumps({**figures, "setting": report.setting(engine=engine, engine_version=version)}))


def recognise(stage: Stage, images: Path, directories: list[str], engine: str) -> list[dict[str, Any]]:
    """The rows that a worker makes of directories.

    Raises:
        BenchmarkError: it failed.
    """
    with stage.client() as client:
        client.put_project(PROJECT, ProjectSettings(source=images.resolve().as_uri(), engine=engine))
        client.add_jobs(PROJECT, directories)
    commands = {name: value for name, value in os.environ.items() if name.startswith("UWORKER_ENGINE_COMMAND")}
    environment = clean_environment() | commands
    environment |= {"UWORKER_JOB_API_ROOT": stage.root, "UWORKER_JOB_API_TOKEN": stage.worker_token}
    done = subprocess.run(
        [sys.executable, "-m", "uworker", "--once"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    with stage.client() as client:
        jobs = client.project(PROJECT).jobs
        if done.returncode != 0 or jobs.completed != len(directories):
            raise BenchmarkError(f"the worker ended with {done.returncode}, {jobs}: {done.stdout[-2000:]}")
        return list(client.results(PROJECT))


def figures_of(rows: Iterable[Mapping[str, Any]], known: Reference) -> dict[str, float]:
    """Count what is right.

    Raises:
        BenchmarkError: some image of the reference has no row.
    """
    found = {(row["directory"], row["image"]): row for row in rows}
    if missing := sorted(set(known) - set(found)):
        raise BenchmarkError(f"{len(missing)} images of the reference are not there, the first: {missing[0]}")
    pairs = [(found[key]["inchikey"] or "none", inchikey) for key, inchikey in known.items()]
    # No image that was never in an engine's hands: unread, or a copy of one that was.
    seconds = [duration / 1000 for key in known if (duration := found[key]["duration_ms"])]
    times = {"median": statistics.median, "mean": statistics.mean} if seconds else {}
    return {
        "images": len(known),
        "recognised": sum(found[key]["status"] == "recognised" for key in known),
        "right": sum(read == right for read, right in pairs),
        "right_skeleton": sum(read[:SKELETON_CHARS] == right[:SKELETON_CHARS] for read, right in pairs),
        **{f"{name}_seconds_per_image": round(average(seconds), 3) for name, average in times.items()},
    }


if __name__ == "__main__":
    report.run(main)
