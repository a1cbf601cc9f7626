"""What the demo shows of its results, and how it judges those of the sample images."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from job_api.schemas import Job
from job_api.terminal import printable

SHOWN_ROWS = 8
SHOWN_DIRECTORIES = 40

Row = Mapping[str, str]
Outcome = tuple[str, str | None]


def read_rows(csv_path: Path) -> list[Row]:
    """The rows of an exported CSV."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def show_directories(console: Console, jobs: Iterable[Job], rows: Iterable[Row]) -> None:
    """Print a table of directories with their images by status."""
    by_directory: dict[str, Counter[str]] = {}
    for row in rows:
        by_directory.setdefault(row["directory"], Counter())[row["status"]] += 1
    table = Table("directory", "images", "recognised", "not recognised", "state")
    left_out = 0
    for job in jobs:
        if table.row_count >= SHOWN_DIRECTORIES:
            left_out += 1
            continue
        counts = by_directory.get(job.directory, Counter())
        other = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "recognised")
        state = job.state + (f": {job.reason}" if job.reason else "")
        # As Text: a name in square brackets is a name, and no markup.
        table.add_row(
            Text(printable(job.directory)), str(counts.total()), str(counts["recognised"]), other or "0", state
        )
    console.print(table)
    if left_out:
        console.print(f"and {left_out} directories more")


def show_recognised(console: Console, rows: Iterable[Row]) -> list[str]:
    """Print some SMILES with their confidences; returns which models made them all."""
    recognised = [row for row in rows if row["status"] == "recognised"]
    table = Table("image", "SMILES", "confidence")
    for row in recognised[:: max(1, len(recognised) // SHOWN_ROWS)][:SHOWN_ROWS]:
        image = f"{row['directory']}/{row['image']}"
        confidence = f"{float(row['confidence']):.3f}" if row["confidence"] else ""
        table.add_row(Text(printable(image)), Text(row["smiles"]), confidence)
    console.print(table)
    return sorted({_model(row) for row in recognised})


def _model(row: Row) -> str:
    prepared = f"; prepared: {row['prepared']}" if row["prepared"] else ""
    return f"{row['weights']}, sha256 {row['weights_sha256']}{prepared}"


def compare(expected: Mapping[tuple[str, str], Outcome], rows: list[Row]) -> str | None:
    """Hold the rows against what was drawn: each image once, with its own SMILES or the right status.

    Args:
        expected: (directory, image) -> status and SMILES.
        rows: those of the CSV.

    Returns:
        What is wrong, or None.
    """
    read = {(row["directory"], row["image"]): (row["status"], row["smiles"] or None) for row in rows}
    right = sum(read.get(key) == outcome for key, outcome in expected.items())
    if right == len(expected) == len(rows):
        return None
    return f"{right} of {len(expected)} sample images came out as they must, in {len(rows)} rows"
