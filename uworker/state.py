"""The state file: what a worker does now, for whoever looks at its machine. Written by the main loop and nobody else.

Its age tells whether the main loop goes on, so it is written also when nothing has changed. A health check looks at
the age alone; `uworker state` reads it for people.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ValidationError

log = logging.getLogger(__name__)

WRITE_SECONDS = 5.0
# Counts change with each image; in between they are not worth a write.
COUNTS_SECONDS = 1.0
STALE_SECONDS = 30.0


class StateError(Exception):
    """There is no state to be read; the message says why."""


class State(StrEnum):
    """What a worker is at."""

    STARTING = "starting"
    """The service has not let it in yet."""
    WAITING = "waiting"
    """It may claim, and holds nothing."""
    WORKING = "working"
    QUARANTINED = "quarantined"
    """The service lets it claim no more until somebody lifts that."""
    DRAINING = "draining"
    """Told to end; works off what it holds."""
    ENDING = "ending"
    ENDED = "ended"
    """Nothing comes after it, until another worker starts here."""


READY = (State.WAITING, State.WORKING)


class WorkerReport(BaseModel):
    """What stands in the file.

    Attributes:
        doing: `state` in more words, and what keeps the worker from its work.
        plan: How many recognisers the machine would bear.
        processes: Recogniser processes at the moment; `threads` are images they may have in hand at once.
        jobs_done: Since the start, as `images_done`.
    """

    worker_id: str
    state: State
    doing: str
    plan: str
    processes: int
    threads: int
    project: str | None
    job_api_root: str
    jobs_done: int
    images_done: int
    updated_at: AwareDatetime

    def __str__(self) -> str:
        where = f"{self.job_api_root}, project {self.project}" if self.project else f"{self.job_api_root}, any project"
        return (
            f"{self.worker_id}: {self.state}, {self.doing}; {self.jobs_done} jobs, {self.images_done} images; "
            f"recogniser processes: {self.processes}, threads: {self.threads} ({self.plan}); {where}"
        )


class StateFile:
    """Keeps a worker's state in a file. One that cannot be written is told once and hurts nobody.

    Args:
        path: the file; None: none is kept.
        clock: seconds that never go back.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._path = path
        self._written: WorkerReport | None = None
        self._written_at = 0.0
        self._failed = False

    def show(self, report: WorkerReport) -> None:
        """Write it, where it says something new or the last is some seconds old."""
        if self._path is None or not self._is_due(report):
            return
        self._written, self._written_at = report, self._clock()
        half = self._path.with_name(f".{self._path.name}.half")
        try:
            half.write_text(report.model_dump_json() + "\n", encoding="utf-8")
            half.replace(self._path)
        except OSError as error:
            if not self._failed:
                log.warning("the worker's state cannot be written: %s; it goes on without", error)
            self._failed = True
        else:
            self._failed = False

    def _is_due(self, report: WorkerReport) -> bool:
        if self._written is None:
            return True
        age = self._clock() - self._written_at
        same = report.model_copy(update={"updated_at": self._written.updated_at})
        if same == self._written:
            return age >= WRITE_SECONDS
        counts = {"jobs_done": self._written.jobs_done, "images_done": self._written.images_done}
        return same.model_copy(update=counts) != self._written or age >= COUNTS_SECONDS


def read_state(path: Path) -> WorkerReport:
    """Read what a worker wrote.

    Raises:
        StateError: nothing is there, or nothing that was written lately.
    """
    try:
        report = WorkerReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StateError(f"there is no {path}; the worker has not started yet, or it runs elsewhere") from None
    except (OSError, ValidationError) as error:
        raise StateError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    age = datetime.now(UTC) - report.updated_at
    if report.state is not State.ENDED and age > timedelta(seconds=STALE_SECONDS):
        raise StateError(
            f"stale: {report.worker_id} was {report.state} {age.total_seconds():.0f} s ago and is silent since"
        )
    return report
