"""The figures: what each is called, what it should reach, what others reach, and how they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
