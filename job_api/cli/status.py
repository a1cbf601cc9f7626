"""The command that shows how far projects are: once, or as a table that lives."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from job_api.cli.options import AsJson, Config, console, print_json, table
from job_api.client import ApiError, Client, NotFound, Unreachable
from job_api.config import connect
from job_api.schemas import DirectoryOrder, DirectoryReport, JobState, ProjectStatus
from job_api.terminal import printable

app = typer.Typer()

TOP = 5
"""How many of the slowest and of the failing directories are shown."""


@dataclass(frozen=True)
class Look:
    """What the service said of one project, with its worst directories, or of all."""

    documents: Sequence[ProjectStatus]
    slowest: Sequence[DirectoryReport] = ()
    failing: Sequence[DirectoryReport] = ()
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def finished(self) -> bool:
        """Whether no job is left to be done."""
        return not any(document.jobs.unfinished for document in self.documents)


@app.command()
def status(
    project: Annotated[str | None, typer.Argument(metavar="[PROJECT]", help="A project; without it, all.")] = None,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on showing it until all jobs are finished, or Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.5, max=3600, metavar="SECONDS", help="How often --watch asks the service.")
    ] = 2,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """How far a project is, or all of them: jobs by state, images, pace, time left, cost, what is slow or fails."""
    if watch and as_json:
        raise typer.BadParameter("--watch and --json do not go together")
    if watch:
        _watch(project, interval, config)
        return
    with connect(config) as client:
        look = _look(client, project, worst=not as_json)
    if as_json:
        print_json(look.documents)
    else:
        shown = console()
        shown.print(_view(look, shown.width, alone=project is not None))


def _look(client: Client, project: str | None, *, worst: bool = True) -> Look:
    if project is None:
        return Look(list(_all(client)))
    document = client.project(project)
    # An older service has no list of directories, and no link to one.
    if not worst or "slowest" not in document.links:
        return Look([document])
    slowest, failing = (client.directories(project, order, TOP) for order in DirectoryOrder)
    return Look([document], slowest, failing)


def _all(client: Client) -> Iterator[ProjectStatus]:
    for found in client.projects():
        # One may be deleted meanwhile.
        with suppress(NotFound):
            yield client.project(found.name)


# --- what is shown ---


def _view(look: Look, width: int, *, alone: bool) -> RenderableType:
    if not alone:
        return _overview(look.documents, width)
    [document] = look.documents
    parts: list[RenderableType] = [
        table(["", ""], _rows(document), title=document.name + (" (paused)" if document.paused else ""))
    ]
    for worst, columns, cells in (
        (look.slowest, ["job", "slowest directories", "state", "time", "images", "worker"], _slow),
        (look.failing, ["job", "failing directories", "state", "failures", "reason", "message"], _failing),
    ):
        if worst:
            parts += ["", table(columns, map(cells, worst), cut=[columns[1], "worker", "message"])]
    return Group(*parts)


def _slow(one: DirectoryReport) -> list[Any]:
    return [one.job_id, one.directory, one.state.value, _time(one.seconds), one.new_results, one.worker_id]


def _failing(one: DirectoryReport) -> list[Any]:
    return [one.job_id, one.directory, one.state.value, one.failures, one.reason, one.message]


def _overview(documents: Sequence[ProjectStatus], width: int) -> Table:
    wide = width >= WIDE
    columns = [name for name in OVERVIEW if wide or name not in FOR_WIDE]
    rows = ([OVERVIEW[name](document) for name in columns] for document in documents)
    return table(columns, rows, cut=[] if wide else ["project"])


def _rows(document: ProjectStatus) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("source", document.source),
        ("engine", document.engine),
        ("jobs", _jobs(document)),
        ("images", _images(document)),
        ("images/s", _paces(document)),
        ("time to go", _time(document.eta_seconds)),
        ("  assuming" if document.eta_seconds is not None else "", document.eta_assumes),
        ("active workers", document.active_workers),
    ]
    if document.cost is not None:
        rows.append(("cost", _cost(document)))
        said = (document.cost_assumes or "").split("; ")
        rows += [("" if place else "  assuming", part) for place, part in enumerate(said)]
    return rows


def _jobs(document: ProjectStatus) -> str:
    counts = {state.value: getattr(document.jobs, state.value) for state in JobState}
    return f"{sum(counts.values())}: " + ", ".join(f"{number} {state}" for state, number in counts.items())


def _images(document: ProjectStatus) -> str:
    images = document.images
    return f"{images.stored}: {images.recognised} recognised, {images.not_recognised} not recognised"


def _paces(document: ProjectStatus) -> str | None:
    window, overall = document.rate_window_seconds, document.images_per_second_overall
    said = [
        f"{_pace(document.images_per_second)} in the last {_time(window)}" if window is not None else None,
        f"{_pace(overall)} overall" if overall is not None else None,
    ]
    return ", ".join(part for part in said if part) or None


def _cost(document: ProjectStatus) -> str | None:
    cost = document.cost
    if cost is None:
        return None
    said = [f"{_money(cost.spent)} so far"]
    if cost.per_1000_images is not None:
        said.append(f"{_money(cost.per_1000_images)} for 1,000 images")
    if cost.expected_total is not None:
        said.append(f"{_money(cost.expected_total)} in the end")
    return ", ".join(said)


def _pace(rate: float | None) -> str | None:
    return None if rate is None else f"{rate:.2f}"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else str(timedelta(seconds=round(seconds)))


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%SZ}"


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


OVERVIEW: Mapping[str, Callable[[ProjectStatus], Any]] = {
    "project": lambda document: document.name,
    **{state.value: attrgetter(f"jobs.{state.value}") for state in JobState},
    "images": lambda document: document.images.stored,
    "recognised": lambda document: document.images.recognised,
    "images/s": lambda document: _pace(document.images_per_second),
    "overall": lambda document: _pace(document.images_per_second_overall),
    "ETA": lambda document: _time(document.eta_seconds),
    "workers": lambda document: document.active_workers,
    "cost": lambda document: document.cost and _money(document.cost.spent),
    "": lambda document: "paused" if document.paused else None,
}
"""What is told of each project where several are."""
FOR_WIDE = {"waiting", "cancelled", "recognised", "overall", "cost"}
WIDE = 170
"""Characters of a line; narrower ones are spared some columns."""


# --- watching ---


@dataclass(frozen=True)
class Away:
    """The service cannot be asked."""

    since: datetime
    why: str

    def __str__(self) -> str:
        return f"{_clock(self.since)} the service does not answer, and is asked again: {self.why}"


def _watch(project: str | None, interval: float, config: Config) -> None:
    """Show one look after the other until all jobs are finished; Ctrl-C is no failure."""
    shown = console()
    with suppress(KeyboardInterrupt), connect(config, retry_seconds=0) as client:
        looks = _looks(client, project, interval)
        if shown.is_terminal and not shown.is_dumb_terminal:
            with Live(console=shown, auto_refresh=False) as live:
                for look, away in looks:
                    said = printable(f"since {away}", 1000) if away else f"as of {_clock(look.at)}; Ctrl-C ends this"
                    view = _view(look, shown.width, alone=project is not None)
                    live.update(Group(Text(said), view), refresh=True)
        else:
            for line in _lines(looks):
                typer.echo(line)


def _looks(client: Client, project: str | None, interval: float) -> Iterator[tuple[Look, Away | None]]:
    """What the service says at each look, or what it said last, and since when it says nothing.

    Raises:
        ClientError: it could not be asked at all, or refuses to answer.
    """
    look, away = _look(client, project), None
    while True:
        yield look, away
        if away is None and look.finished:
            return
        time.sleep(interval)
        try:
            look, away = _look(client, project), None
        except (Unreachable, ApiError) as error:
            if isinstance(error, ApiError) and error.status < 500 and error.status != 429:
                raise
            away = away or Away(datetime.now(UTC), str(error))


def _lines(looks: Iterator[tuple[Look, Away | None]]) -> Iterator[str]:
    """A line for each project whose numbers changed, and one when the service goes away and when it is back."""
    known: dict[str, Any] = {}
    was_away = False
    for look, away in looks:
        if (away is not None) != was_away:
            yield printable(str(away), 1000) if away else f"{_clock(look.at)} the service answers again"
        was_away = away is not None
        for document in look.documents:
            numbers = document.model_dump(include={"jobs", "images", "paused", "active_workers"})
            if known.get(document.name) != numbers:
                known[document.name] = numbers
                yield f"{_clock(look.at)} {document.name}: {_summary(document)}"


def _summary(document: ProjectStatus) -> str:
    said = ["paused"] if document.paused else []
    said += [f"jobs {_jobs(document)}", f"images {_images(document)}", f"{document.active_workers} workers"]
    if pace := _paces(document):
        said.append(f"images/s {pace}")
    if left := _time(document.eta_seconds):
        said.append(f"{left} to go")
    if cost := _cost(document):
        said.append(f"cost {cost}")
    return "; ".join(said)
