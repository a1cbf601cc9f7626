"""The posting thread: sends rows in small batches, ends leases, and keeps what the service could not take yet."""

import logging
import threading
import time
from collections.abc import Callable

from job_api.client import ApiError, Client, ClientError, LeaseLost, NotFound, Refused, ResultsMissing, Unreachable
from job_api.schemas import Complete, EngineRun, NewResult, NewResults, RefusedRow, ResultStatus
from job_api.text import clean_text
from uworker.holding import Batch, Ending, Holding

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 0.2
RETRY_SECONDS = 2.0
# Answers of the kind 500 for one job's rows after which they count as rows that it will never take.
MAX_SERVER_ERRORS = 30


class Poster:
    """Posts for one worker.

    Args:
        client: the way to the service; tries again by itself for a while.
        on_end: told of each holding that is over, by the posting thread.
        on_refusal: told when the service does not let the worker in any more.
        snapshot: named in every row, also in those that no engine had a part in.
    """

    def __init__(
        self,
        client: Client,
        on_end: Callable[[Holding], None],
        on_refusal: Callable[[Refused], None],
        *,
        snapshot: str | None = None,
    ) -> None:
        self._client = client
        self._on_end = on_end
        self._on_refusal = on_refusal
        self._snapshot = snapshot
        self._changed = threading.Condition()
        self._holdings: list[Holding] = []
        self._runs: dict[tuple[str, str], EngineRun] = {}
        self._flushing = False
        self._stopped = False
        self._flushed = threading.Event()
        self._thread = threading.Thread(target=self._post_for_ever, name="poster", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, holding: Holding) -> None:
        """Post the rows of this job and end its lease."""
        with self._changed:
            self._holdings.append(holding)

    def wake(self) -> None:
        """There may be something to post."""
        with self._changed:
            self._changed.notify_all()

    def use(self, engine_key: tuple[str, str], run: EngineRun) -> None:
        """Rows of jobs with this engine are made with `run`."""
        self._runs[engine_key] = run.model_copy(update={"snapshot": self._snapshot})

    def rows_waiting(self) -> int:
        """Rows the service has not acknowledged."""
        with self._changed:
            return sum(holding.rows_waiting() for holding in self._holdings)

    def flush(self, seconds: float) -> bool:
        """Post all rows that are there, at most for `seconds`; False when some are left."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
        return self._flushed.wait(seconds) and not self.rows_waiting()

    def stop(self, seconds: float = 0) -> None:
        """Post no more; waits at most `seconds` for a request that is on its way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _post_for_ever(self) -> None:
        while not self._stopped:
            with self._changed:
                holdings = list(self._holdings)
            posted = False
            for holding in holdings:
                posted |= not self._stopped and self._post_from(holding)
            if posted:
                continue
            if self._flushing:
                self._flushed.set()
            with self._changed:
                self._changed.wait(LOOK_AGAIN_SECONDS)

    def _post_from(self, holding: Holding) -> bool:
        """Post one batch of a holding; False when there was none, or it could not be posted."""
        if holding.lost:
            self._end(holding)
            return False
        batch = holding.next_batch(flush=self._flushing)
        if batch is None:
            return False
        try:
            self._post(holding, batch)
        except (LeaseLost, NotFound) as error:
            log.warning(
                "%s: %s; %d rows are left to its next worker",
                holding,
                error,
                holding.rows_waiting(),
                extra=holding.log_context,
            )
            holding.lose()
            self._end(holding)
        except Refused as error:
            self._on_refusal(error)
            self._pause()
            return False
        except Unreachable as error:
            log.warning("rows are kept until the service can be reached: %s", error)
            self._pause()
            return False
        except ClientError as error:
            holding.posts_failed += 1
            if isinstance(error, ApiError) and error.status >= 500 and holding.posts_failed < MAX_SERVER_ERRORS:
                # The service's own fault, which may pass; a result is not thrown away for it.
                log.warning("%s: rows are kept and sent again: %s", holding, error, extra=holding.log_context)
            else:
                log.exception("%s: the service cannot take the rows", holding, extra=holding.log_context)
                self._give_up(holding, error)
            self._pause()
            return False
        holding.posts_failed = 0
        return True

    def _post(self, holding: Holding, batch: Batch) -> None:
        lease = holding.lease
        run = self._runs.get(holding.engine_key, EngineRun(engine=lease.engine, snapshot=self._snapshot))
        if batch.ending is Ending.COMPLETE:
            self._complete(holding, batch, run)
            return
        if batch.rows:
            self._post_rows(holding, batch, run)
        if batch.ending is Ending.FAIL and not holding.rows_waiting() and holding.failure is not None:
            ended = self._client.fail(lease.project, lease.job_id, holding.failure)
            log.warning(
                "%s cannot be done (%s), it is now %s: %s",
                holding,
                holding.failure.reason,
                ended.state,
                holding.failure.message,
                extra=holding.log_context,
            )
            self._end(holding)

    def _post_rows(self, holding: Holding, batch: Batch, run: EngineRun) -> list[RefusedRow]:
        """Post a batch on its own, and put replacements for the rows that were refused in line; returns those."""
        lease = holding.lease
        posted = NewResults(worker_id=holding.worker_id, lease_seq=lease.lease_seq, run=run, rows=batch.rows)
        refused = self._client.post_results(lease.project, lease.job_id, posted).refused
        holding.acknowledge(len(batch.rows), self._replacements(holding, batch, refused))
        return refused

    def _complete(self, holding: Holding, batch: Batch, run: EngineRun) -> None:
        lease = holding.lease
        done = Complete(
            worker_id=holding.worker_id,
            lease_seq=lease.lease_seq,
            image_count=holding.image_count,
            run=run,
            rows=batch.rows,
        )
        try:
            answer = self._client.complete(lease.project, lease.job_id, done)
        except ResultsMissing as error:
            # Those that rode along may be refused ones; alone they are answered by name.
            if batch.rows and self._post_rows(holding, batch, run):
                return
            holding.fail("results-missing", str(error), retryable=True)
            return
        holding.acknowledge(len(batch.rows))
        for refused_row in answer.refused:
            log.error("%s: a row was refused: %s", holding, refused_row.reason, extra=holding.log_context)
        log.info(
            "%s completed: %d images, %d recognised in %.1f s: %s",
            holding,
            holding.image_count,
            holding.recognised,
            time.monotonic() - holding.began,
            clean_text(lease.directory),
            extra=holding.log_context,
        )
        self._end(holding)

    def _replacements(self, holding: Holding, batch: Batch, refused: list[RefusedRow]) -> list[NewResult]:
        """A row for each that was refused, saying so; or the image would be missing for ever."""
        replacements = []
        for refusal in refused:
            row = batch.rows[refusal.index]
            context = {**holding.log_context, "image": row.image}
            log.error("%s: the row of an image was refused: %s", holding, refusal.reason, extra=context)
            if row.status is not ResultStatus.ENGINE_ERROR:
                message = clean_text(f"the service refused the row: {refusal.reason}", 1000)
                replacements.append(
                    NewResult(
                        image=row.image, engine=row.engine, status=ResultStatus.ENGINE_ERROR, error_message=message
                    )
                )
        return replacements

    def _give_up(self, holding: Holding, error: ClientError) -> None:
        """End a lease whose rows the service will not take as they are, so that it does not stay here for ever."""
        if holding.failure is not None and not holding.rows_waiting():
            # Not even its failure is taken; without heartbeats for it the lease runs out.
            holding.lose()
            return
        holding.fail("service", str(error), retryable=True)
        if isinstance(error, ApiError):
            holding.acknowledge(holding.rows_waiting())

    def _end(self, holding: Holding) -> None:
        with self._changed:
            if holding in self._holdings:
                self._holdings.remove(holding)
        self._on_end(holding)

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._flushing or self._stopped, RETRY_SECONDS)
