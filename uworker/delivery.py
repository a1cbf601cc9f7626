"""One batch of a lease at a time put to the service: its rows, and with the last of them the end of the lease."""

import logging
import time

from job_api.client import Client, ClientError, ResultsMissing
from job_api.schemas import Complete, EngineRun, NewResult, NewResults, RefusedRow, Release, ResultStatus
from job_api.text import clean_text
from uworker.holding import Batch, Ending, Holding
from uworker.keeper import Keeper

log = logging.getLogger(__name__)


class Delivery:
    """Puts batches to the service. Whatever the client raises comes through, and the batch stays where it was.

    Args:
        client: the way to the service; tries again by itself for a while.
        keeper: has the batches that were kept on disk.
        snapshot: named in every row, also in those that no engine had a part in.
    """

    def __init__(self, client: Client, keeper: Keeper, *, snapshot: str | None) -> None:
        self._client = client
        self._keeper = keeper
        self._snapshot = snapshot
        self._runs: dict[tuple[str, str], EngineRun] = {}

    def use(self, engine_key: tuple[str, str], run: EngineRun) -> None:
        """Rows of jobs with this engine are made with `run`."""
        self._runs[engine_key] = run.model_copy(update={"snapshot": self._snapshot})

    def run_of(self, holding: Holding) -> EngineRun:
        """With what the rows of a holding in memory are made."""
        plain = EngineRun(engine=holding.lease.engine, snapshot=self._snapshot)
        return plain if holding.adopted else self._runs.get(holding.engine_key, plain)

    def post(self, holding: Holding, batch: Batch) -> bool:
        """Post a batch, and end the lease if it is the last; returns whether the lease has ended."""
        lease = holding.lease
        run = batch.run or self.run_of(holding)
        if batch.ending is Ending.COMPLETE:
            return self._complete(holding, batch, run)
        if batch.rows:
            self._post_rows(holding, batch, run)
        if batch.ending is None or holding.rows_waiting():
            return False
        if batch.ending is Ending.RELEASE:
            given = Release(worker_id=holding.worker_id, lease_seq=lease.lease_seq, reason="restarted")
            self._client.release(lease.project, lease.job_id, given)
            log.info("%s is given back; its rows are posted", holding, extra=holding.log_context)
        elif holding.failure is not None:
            ended = self._client.fail(lease.project, lease.job_id, holding.failure)
            log.warning(
                "%s cannot be done (%s), it is now %s: %s",
                holding,
                holding.failure.reason,
                ended.state,
                holding.failure.message,
                extra=holding.log_context,
            )
        return True

    def was_completed(self, holding: Holding) -> bool:
        """Ask whether this lease completed its job before, by a request whose answer never came."""
        if holding.everything_left().ending is not Ending.COMPLETE:
            return False
        lease = holding.lease
        done = Complete(worker_id=holding.worker_id, lease_seq=lease.lease_seq, image_count=holding.image_count)
        try:
            self._client.complete(lease.project, lease.job_id, done)
        except ClientError:
            return False
        return True

    def _post_rows(self, holding: Holding, batch: Batch, run: EngineRun) -> list[RefusedRow]:
        """Post a batch on its own, and put replacements for the rows that were refused in line; returns those."""
        lease = holding.lease
        posted = NewResults(worker_id=holding.worker_id, lease_seq=lease.lease_seq, run=run, rows=batch.rows)
        refused = self._client.post_results(lease.project, lease.job_id, posted).refused
        if batch.last_id is not None:
            self._keeper.acknowledge(holding, batch.last_id)
        holding.acknowledge(batch.rows, self._replacements(holding, batch, refused))
        return refused

    def _complete(self, holding: Holding, batch: Batch, run: EngineRun) -> bool:
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
                return False
            holding.fail("results-missing", str(error), retryable=True)
            return False
        holding.acknowledge(batch.rows)
        for refused_row in answer.refused:
            log.error("%s: a row was refused: %s", holding, refused_row.reason, extra=holding.log_context)
        self._say_completed(holding)
        return True

    def _say_completed(self, holding: Holding) -> None:
        directory = clean_text(holding.lease.directory)
        if holding.adopted:
            log.info(
                "%s completed with the rows that worker %s left: %d images: %s",
                holding,
                holding.worker_id,
                holding.image_count,
                directory,
                extra=holding.log_context,
            )
            return
        log.info(
            "%s completed: %d images, %d recognised in %.1f s: %s",
            holding,
            holding.image_count,
            holding.recognised,
            time.monotonic() - holding.began,
            directory,
            extra=holding.log_context,
        )

    def _replacements(self, holding: Holding, batch: Batch, refused: list[RefusedRow]) -> list[NewResult]:
        """A row for each that was refused, saying so; or the image would be missing for ever."""
        replacements = []
        for refusal in refused:
            row = batch.rows[refusal.index]
            context = {**holding.log_context, "image": row.image}
            log.error("%s: the row of an image was refused: %s", holding, refusal.reason, extra=context)
            if row.status is not ResultStatus.ENGINE_ERROR:
                message = clean_text(f"the service refused the row: {refusal.reason}", 1000)
                kept = row.model_dump(include={"image", "engine", "sequence", "sub_sequence", "part"})
                replacements.append(NewResult(**kept, status=ResultStatus.ENGINE_ERROR, error_message=message))
        return replacements
