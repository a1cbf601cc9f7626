"""Options that several commands share, and the one way to print a table."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from job_api.terminal import printable

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="File of KEY=value lines with JOB_API_ROOT, and JOB_API_USERNAME and JOB_API_PASSWORD, or JOB_API_TOKEN. "
        "The environment overrides it.",
    ),
]
ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Name of the project.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line.")]

PLAIN_WIDTH = 240
"""Of a table that goes to a file or a pipe."""


def console() -> Console:
    """Standard output, wide enough for a table where it is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    cut: Collection[str] = (),
) -> Table:
    """A table; None is left blank. Nothing in a cell is read as markup: names may well hold `[R1]`.

    The first column is never wrapped. Columns in `cut` share the width that the others leave, and what does not fit
    there is cut off; then no column is wrapped.
    """
    made = Table(
        title=title, title_justify="left", box=None, pad_edge=False, expand=bool(cut), show_header=any(columns)
    )
    for place, column in enumerate(columns):
        made.add_column(column, no_wrap=bool(cut) or place == 0, ratio=1 if column in cut else None)
    for row in rows:
        made.add_row(*(Text(_shown(cell)) for cell in row))
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table."""
    console().print(table(columns, rows, title=title))


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}" if isinstance(cell, datetime) else printable(str(cell))


def print_json(documents: Iterable[BaseModel]) -> None:
    """Print one document per line, each as soon as it is there."""
    for document in documents:
        sys.stdout.write(document.model_dump_json() + "\n")


def given(**filters: Any) -> Mapping[str, Any]:
    """The filters that were set."""
    return {key: value for key, value in filters.items() if value is not None}
