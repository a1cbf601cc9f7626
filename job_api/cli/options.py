"""Options that several commands share, and the one way to print a table."""

import sys
from collections.abc import Iterable, Mapping, Sequence
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


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table; None is left blank. Nothing in a cell is read as markup: names may well hold `[R1]`."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_shown(cell)) for cell in row))
    console.print(table)


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
