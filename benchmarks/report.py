"""The figures: their names and goals, what others reach, where they were measured, and how they are shown."""

import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

BARE = "bare prototype"
SERVICE = "qsmr-style service"


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Args:
        at_least: what it must reach; `at_most`: what it must not exceed. A figure without either is only shown.
        field: what others reach, for comparison.
    """

    name: str
    at_least: float | None = None
    at_most: float | None = None
    field: str = ""

    @property
    def goal(self) -> str:
        """The goal in words."""
        if self.at_least is not None:
            return f">= {self.at_least:,g}"
        return "" if self.at_most is None else f"<= {self.at_most:,g}"

    def verdict(self, value: float) -> str:
        """Whether a value reaches the goal."""
        if self.at_least is not None:
            return "reached" if value >= self.at_least else "NOT reached"
        if self.at_most is not None:
            return "reached" if value <= self.at_most else "NOT reached"
        return ""


FIGURES = (
    Figure(
        "cycles_per_second", 650, field=f"{SERVICE} 54 (5 requests, no results); Celery 811, procrastinate 526 no-ops"
    ),
    Figure("cycles_per_second_two_requests", field=f"{BARE} 858"),
    Figure("claims_per_second", 2500, field=f"{BARE} 3,800"),
    Figure("bulk_add_rows_per_second", 60_000, field=f"{SERVICE} 749"),
    Figure("export_rows_per_second", field=f"{BARE} 1,800,000"),
    Figure("export_small_rows_per_second"),
    Figure("export_jsonl_rows_per_second"),
    Figure("export_gzip_rows_per_second"),
    Figure("copy_rows_per_second"),
    Figure("export_vs_copy", 0.6),
    Figure("export_1m_vs_10m"),
    Figure("api_rss_mb", at_most=150),
    Figure("claim_growth", at_most=1.2),
    Figure("claim_growth_old_snapshot", at_most=1.3),
    Figure("status_ms_at_scale", at_most=10, field=f"{SERVICE} 98 at 1M jobs"),
)
FIELD_NOTE = "Celery with Redis and procrastinate: no-op jobs/s, no HTTP at all."


def show(values: Mapping[str, float], figures: Sequence[Figure] = FIGURES, note: str = FIELD_NOTE) -> None:
    """Print the table of the figures that were measured, and a note on what others reach."""
    table = Table("figure", "measured", "goal", "", "the field")
    table.columns[1].justify = "right"
    for figure in figures:
        if figure.name in values:
            value = values[figure.name]
            shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
            table.add_row(figure.name, shown, figure.goal, figure.verdict(value), figure.field)
    console = Console(width=150)
    console.print(table)
    console.print(note)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def setting(*packages: str, **more: Any) -> dict[str, Any]:
    """Where and when something was measured: what else is said of it, versions of packages, the machine, the day."""
    return {
        **more,
        **{package: version(package) for package in packages},
        "cores": cores(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def run(main: Callable[..., None]) -> None:
    """Run a benchmark's command; told to stop, it takes what it started with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    typer.run(main)
