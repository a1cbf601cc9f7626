"""One lease in the worker's hands: which of its images are on their way, and which rows the service lacks.

Three threads meet here, under the holding's lock: the reader adds images, the main thread adds rows, the poster takes
them. How a holding ends is decided once: completed, failed, released, or lost. While the service is away the poster
moves rows to a spool on disk; a holding can be made again from the spool of a process that has ended.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from job_api.name_patterns import NamePattern
from job_api.schemas import EngineRun, Fail, Lease, NewResult, ResultStatus
from job_api.text import clean_text
from uworker.images import Verdict
from uworker.spool import Spool, SpooledLease
from uworker.tasks import engine_key

log = logging.getLogger(__name__)

MAX_BATCH_ROWS = 50
MAX_BATCH_AGE_SECONDS = 2.0


class Ending(StrEnum):
    """How the worker must end a lease."""

    COMPLETE = "complete"
    FAIL = "fail"
    RELEASE = "release"


@dataclass(frozen=True)
class Batch:
    """Rows to post, and whether and how the lease ends with them.

    Attributes:
        rows: In the order in which they were made.
        ending: None while the lease goes on.
        run: With what rows out of a spool were made; None for those in memory.
        last_id: Of rows out of a spool, the last one's.
    """

    rows: list[NewResult]
    ending: Ending | None
    run: EngineRun | None = None
    last_id: int | None = None


class Holding:
    """A lease and all that belongs to it."""

    def __init__(self, lease: Lease, worker_id: str) -> None:
        self.lease = lease
        self.worker_id = worker_id
        self.began = time.monotonic()
        self.image_count = 0
        self.recognised = 0
        self.posts_failed = 0
        """Posts in a row that the service answered with an error; this and what follows is the poster's own."""
        self.try_again_at = 0.0
        self.spool: Spool | None = None
        """Where rows of it lie that are older than those in memory."""
        self.spooled_ending: Ending | None = None
        """The ending that lies there, too."""
        self.adopted = False
        """Whether the process that made its rows has ended."""
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._rows: deque[NewResult] = deque()
        self._oldest_row_at = 0.0
        self._listed = False
        self._lost = False
        self._rows_lost = 0
        self._given_back = False
        self._failure: Fail | None = None
        self._file_due = lease.results_file
        self._file_begun = False
        self._pattern: NamePattern | None = None
        try:
            if lease.image_name_pattern:
                self._pattern = NamePattern(lease.image_name_pattern)
        except ValueError as error:
            # The service knows another RE2 than this worker; others may know it, too.
            self.fail("name-pattern", f"the project's image_name_pattern {error}", retryable=True)

    @classmethod
    def restored(cls, spool: Spool, spooled: SpooledLease) -> "Holding":
        """A lease of a process that has ended, out of its spool; given back after its rows where it was not done."""
        holding = cls(spooled.lease, spool.worker_id)
        holding.spool, holding.adopted = spool, True
        holding._failure = spooled.failure
        holding.image_count = spooled.image_count or 0
        holding._listed = spooled.image_count is not None
        holding._given_back = not holding._listed and holding._failure is None
        return holding

    def __str__(self) -> str:
        return f"job {self.lease.job_id}"

    @property
    def log_context(self) -> dict[str, Any]:
        """What the central log shall know of a line about this job, as logging's `extra`."""
        return {"lease": self.lease}

    @property
    def engine_key(self) -> tuple[str, str]:
        """What recognisers must be loaded with for this job; equal keys share them."""
        return engine_key(self.lease.engine, self.lease.engine_options)

    # --- the reader ---

    def expect(self, task_id: int) -> None:
        """An image is on its way to the engine."""
        with self._lock:
            self._open.add(task_id)

    def refuse(self, image: str, verdict: Verdict) -> None:
        """An image is not given to the engine."""
        row = {"status": verdict.status, "error_message": verdict.message, "engine": self.lease.engine}
        self._add(NewResult(image=image, **row, **self._parts(image)))

    def finish_listing(self) -> None:
        """All images are on their way, and `image_count` is right."""
        with self._lock:
            self._listed = True

    def fail(self, reason: str, message: str, *, retryable: bool) -> None:
        """The job cannot be done; rows that are there already are posted first."""
        with self._lock:
            if self._failure is None:
                self._failure = Fail(
                    worker_id=self.worker_id,
                    lease_seq=self.lease.lease_seq,
                    reason=reason,
                    retryable=retryable,
                    message=clean_text(message),
                )

    # --- the main thread ---

    def finish(self, task_id: int, image: str, row: Mapping[str, Any]) -> None:
        """The engine has answered for an image."""
        fields = {"engine": self.lease.engine, **row, **self._parts(image), "image": image}
        result = self._checked(self._with_tokens(fields) if self.lease.keep_tokens else _without_tokens(fields))
        self.recognised += result.status is ResultStatus.RECOGNISED
        # At once: an image that is neither open nor has a row would let the job be completed without it.
        self._add(result, done=task_id)

    def _with_tokens(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with the tokens of its SMILES; the recogniser leaves out what does not fit, and the log says so."""
        if row.get("smiles") is None:
            return _without_tokens(row)
        if row.get("tokens") is None and row.get("n_tokens"):
            # No error_message: nothing has failed.
            said = "%s: %s: its %d tokens are not kept: too many, too long, or with a probability that is no number"
            log.warning(said, self, row["image"], row["n_tokens"], extra={**self.log_context, "image": row["image"]})
        return row

    def _parts(self, image: str) -> dict[str, str | None]:
        """The columns that the project finds in an image's name."""
        return {} if self._pattern is None else vars(self._pattern.find(image))

    def _checked(self, row: Mapping[str, Any]) -> NewResult:
        """The row, or one that says what is wrong with it: the image must have one in either case."""
        try:
            return NewResult.model_validate(row)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
            context = {**self.log_context, "image": row["image"]}
            log.exception("%s: the row of an image is not valid", self, extra=context)
            message = clean_text(f"the recogniser's answer is not valid: {wrong}", 1000)
            return NewResult(
                image=row["image"],
                engine=self.lease.engine,
                status=ResultStatus.ENGINE_ERROR,
                error_message=message,
                **self._parts(row["image"]),
            )

    def _add(self, row: NewResult, *, done: int | None = None) -> None:
        with self._lock:
            if done is not None:
                self._open.discard(done)
            if not self._rows:
                self._oldest_row_at = time.monotonic()
            self._rows.append(row)

    # --- any thread ---

    def lose(self) -> None:
        """The lease is not ours any more: nothing of it may be posted."""
        with self._lock:
            self._lost = True
            self._rows_lost += len(self._rows)
            self._rows.clear()
            self._open.clear()

    @property
    def abandoned(self) -> bool:
        """Whether further images of it are in vain."""
        return self._lost or self._failure is not None

    @property
    def lost(self) -> bool:
        """Whether the lease is not ours any more."""
        return self._lost

    @property
    def rows_lost(self) -> int:
        """Rows that were in memory when the lease was lost."""
        return self._rows_lost

    @property
    def has_open(self) -> bool:
        """Whether images of it are on their way to the engine or in its hands."""
        return bool(self._open)

    @property
    def failure(self) -> Fail | None:
        """What it fails with, if it does."""
        return self._failure

    def rows_waiting(self) -> int:
        """Rows that the service has not acknowledged."""
        with self._lock:
            return len(self._rows)

    # --- the poster ---

    def next_batch(self, *, flush: bool) -> Batch | None:
        """The rows to post now, or None while it is better to wait for more.

        Args:
            flush: whether to post what is there, because the worker stops.
        """
        with self._lock:
            if self._lost:
                return None
            rows = [row for row, _ in zip(self._rows, range(MAX_BATCH_ROWS), strict=False)]
            ending = self._ending() if len(rows) == len(self._rows) else None
            old = bool(rows) and time.monotonic() - self._oldest_row_at >= MAX_BATCH_AGE_SECONDS
            # For its file it has to wait until all rows are stored; then they need not wait for more.
            soon = flush or old or self._is_done
            if ending is not None or len(rows) == MAX_BATCH_ROWS or (rows and soon):
                return Batch(rows, ending)
            return None

    def everything_left(self) -> Batch:
        """All rows in memory, and the ending if it is decided; what a spool must keep."""
        with self._lock:
            return Batch([], None) if self._lost else Batch(list(self._rows), self._ending())

    def _ending(self) -> Ending | None:
        if self._failure is not None:
            return Ending.FAIL
        if self._given_back:
            return Ending.RELEASE
        return Ending.COMPLETE if self._is_done and not self._file_due else None

    @property
    def _is_done(self) -> bool:
        """Whether each image has its row, here or posted."""
        return self._listed and not self._open

    def begin_file(self) -> bool:
        """Whether the job's results file is to be written now: once, when no row of the job is left in memory.

        Until it is written the job does not count as done, on disk neither: another worker will write it.
        """
        with self._lock:
            begins = self._file_due and not self._file_begun and self._is_done and not self._rows
            if not begins or self.abandoned or self._given_back:
                return False
            self._file_begun = True
            return True

    def finish_file(self) -> None:
        """The results file is in its place, and the job may be completed."""
        with self._lock:
            self._file_due = False

    def acknowledge(self, rows: Sequence[NewResult], replacements: Iterable[NewResult] = ()) -> None:
        """These rows, the oldest, are the service's or the spool's; `replacements` stand for those that it refused."""
        # By what they are and not by their number: a post may be answered when its rows have gone to the spool.
        sent = {id(row) for row in rows}
        with self._lock:
            while self._rows and id(self._rows[0]) in sent:
                self._rows.popleft()
            self._rows.extend(replacements)
            self._oldest_row_at = time.monotonic()

    def drop_rows(self) -> None:
        """The service will never take the rows that are in memory."""
        with self._lock:
            self._rows.clear()


def _without_tokens(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "tokens": None, "token_probabilities": None}
