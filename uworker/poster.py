"""The posting thread: whose turn it is, what each answer means, and that nothing is lost while there is none.

How a batch is put to the service is `delivery`'s; where rows lie meanwhile is `keeper`'s.
"""

import logging
import math
import threading
import time
from collections.abc import Callable

from job_api.client import ApiError, Client, ClientError, LeaseLost, NotFound, Refused
from job_api.schemas import EngineRun
from uworker.away import is_away
from uworker.delivery import Delivery
from uworker.holding import Batch, Holding
from uworker.keeper import Keeper
from uworker.spool import SpoolError

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 0.2
RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 60.0
# How often the spools of workers that have ended meanwhile are looked for.
ADOPT_SECONDS = 60.0
# After how long a spool that is another token's to post is tried again: that token may have ended meanwhile.
NOT_OURS_SECONDS = 3600.0
# Answers of the kind 500 for one job's rows after which they count as rows that it will never take: two hours of them.
MAX_SERVER_ERRORS = 125


class Poster:
    """Posts for one worker.

    Args:
        client: the way to the service; tries again by itself for a while.
        on_end: told of each holding that is over, by the posting thread.
        on_refusal: told when the service does not let the worker in any more.
        keeper: keeps rows while the service is away.
        on_stored: told of each holding whose rows are all stored and whose results file is due.
        snapshot: named in every row, also in those that no engine had a part in.
    """

    def __init__(
        self,
        client: Client,
        on_end: Callable[[Holding], None],
        on_refusal: Callable[[Refused], None],
        *,
        keeper: Keeper,
        on_stored: Callable[[Holding], None] = lambda _: None,
        snapshot: str | None = None,
    ) -> None:
        self._on_stored = on_stored
        self._delivery = Delivery(client, keeper, snapshot=snapshot)
        self._keeper = keeper
        self._on_end = on_end
        self._on_refusal = on_refusal
        self._changed = threading.Condition()
        self._holdings: list[Holding] = []
        self._away = False
        self._adopt_at = 0.0
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
        self._delivery.use(engine_key, run)

    def rows_waiting(self) -> int:
        """Rows in memory, which neither the service nor the spool has."""
        with self._changed:
            return sum(holding.rows_waiting() for holding in self._holdings)

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to post, in memory or on disk."""
        with self._changed:
            return any(holding.rows_waiting() or holding.spool is not None for holding in self._holdings)

    @property
    def full(self) -> bool:
        """Whether no more results should be made, since there is no room for them."""
        return self._keeper.full

    @property
    def settling(self) -> bool:
        """Whether rows of processes that have ended go first: a claim now might take their jobs from them."""
        with self._changed:
            first_look = self._adopt_at == 0.0 and not self._stopped
            return first_look or any(h.adopted and not h.posts_failed for h in self._holdings)

    def flush(self, seconds: float) -> bool:
        """Post all rows that are there, at most for `seconds`; False when some are left in memory."""
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

    def keep(self) -> list[Holding]:
        """Put on disk what was not posted, once it is stopped; returns the holdings of which something lies there."""
        with self._changed:
            holdings = list(self._holdings)
        self._keeper.put_away(holdings, self._delivery.run_of)
        kept = [h for h in holdings if not h.adopted and (h.spooled_ending is not None or self._keeper.rows_of(h))]
        self._keeper.close()
        return kept

    def _post_for_ever(self) -> None:
        while not self._stopped:
            try:
                self._post_once()
            except Exception:
                # Whatever it is, the leases must not stay in this worker's hands for ever.
                log.exception("the posting failed; it goes on")
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RETRY_SECONDS)

    def _post_once(self) -> None:
        """Look after everything once; waits a little when there was nothing to do."""
        self._adopt()
        with self._changed:
            holdings, flushing = list(self._holdings), self._flushing
        if self._away:
            self._keeper.put_away(holdings, self._delivery.run_of)
        if self._post_round(holdings):
            return
        with self._changed:
            if flushing:
                self._flushed.set()
            # A round that began before the flush passed over rows that may wait.
            if flushing or not self._flushing:
                self._changed.wait(LOOK_AGAIN_SECONDS)

    def _adopt(self) -> None:
        """Take up what processes that have ended left on this machine; it goes before all else."""
        if time.monotonic() < self._adopt_at or self._flushing:
            return
        try:
            adopted = self._keeper.adopt(lambda: self._stopped)
            with self._changed:
                self._holdings[:0] = adopted
        finally:
            # In any case, or nothing would ever be claimed.
            with self._changed:
                self._adopt_at = time.monotonic() + ADOPT_SECONDS

    def _post_round(self, holdings: list[Holding]) -> bool:
        """Post a batch of each holding; False when there was nothing to post, or the service is away."""
        posted = False
        for holding in holdings:
            if self._stopped:
                break
            with self._changed:
                if holding not in self._holdings:
                    # It went with another lease of its spool.
                    continue
            try:
                posted |= self._post_from(holding)
            except _ServiceAway as away:
                if not self._away:
                    log.warning("results are kept until the service can be reached: %s", away)
                self._away = True
                self._keeper.put_away(holdings, self._delivery.run_of)
                self._pause()
                return False
            except SpoolError as error:
                self._leave_spool(holding, str(error))
            except Exception:
                # Whatever it is, the rows of the other jobs must go on.
                log.exception("%s: the posting failed; it is tried again", holding, extra=holding.log_context)
                self._try_later(holding)
        return posted

    def _post_from(self, holding: Holding) -> bool:
        """Post one batch of a holding; False when there was none, or it could not be posted.

        Raises:
            _ServiceAway: nothing can be posted at present.
            SpoolError: the rows that a process left that has ended cannot be read.
        """
        if holding.lost:
            if holding.rows_lost or self._keeper.rows_of(holding):
                self._say_left(holding, "its lease is lost")
            self._end(holding)
            return False
        if time.monotonic() < holding.try_again_at and not self._flushing:
            return False
        batch = self._keeper.next_batch(holding) or holding.next_batch(flush=self._flushing)
        if batch is None:
            if holding.begin_file():
                self._on_stored(holding)
            return False
        try:
            if self._delivery.post(holding, batch):
                self._end(holding)
        except (LeaseLost, NotFound) as error:
            self._leave_to_next(holding, str(error), batch)
        except Refused as error:
            self._obey_refusal(holding, error)
            return False
        except ClientError as error:
            if is_away(error):
                raise _ServiceAway(str(error)) from error
            self._note_error(holding, error)
            return False
        holding.posts_failed = 0
        if self._away:
            self._away = False
            log.info("the service is back; what was kept is posted")
        self._keeper.note_back()
        return True

    def _leave_to_next(self, holding: Holding, reason: str, batch: Batch) -> None:
        """End a holding whose lease is another's now, or was completed by a request whose answer never came."""
        if batch.last_id is not None and self._delivery.was_completed(holding):
            log.info("%s had been completed already", holding, extra=holding.log_context)
        else:
            self._say_left(holding, reason)
        holding.lose()
        self._end(holding)

    def _say_left(self, holding: Holding, reason: str) -> None:
        rows = holding.rows_waiting() + holding.rows_lost + self._keeper.rows_of(holding)
        log.warning("%s: %s; %d rows are left to its next worker", holding, reason, rows, extra=holding.log_context)

    def _obey_refusal(self, holding: Holding, error: Refused) -> None:
        if holding.adopted and error.status == 403:
            self._leave_spool(holding, str(error), NOT_OURS_SECONDS)
            return
        with self._changed:
            holdings = list(self._holdings)
        self._keeper.put_away(holdings, self._delivery.run_of)
        self._on_refusal(error)
        self._pause()

    def _leave_spool(self, holding: Holding, reason: str, seconds: float = math.inf) -> None:
        """Let go of the spool that an adopted holding came from, and of all other leases in it, for so long."""
        path = self._keeper.leave(holding, reason, seconds)
        with self._changed:
            self._holdings = [h for h in self._holdings if h.spool is None or h.spool.path != path]

    def _note_error(self, holding: Holding, error: ClientError) -> None:
        """The service answers for this job's rows alone, with a fault of its own that may pass, or with a refusal."""
        self._try_later(holding)
        passing = isinstance(error, ApiError) and error.status >= 500
        if passing and holding.posts_failed < MAX_SERVER_ERRORS:
            # A result is not thrown away for it.
            log.warning("%s: rows are kept and sent again: %s", holding, error, extra=holding.log_context)
            self._keeper.put_away([holding], self._delivery.run_of)
        else:
            log.error("%s: the service cannot take the rows: %s", holding, error, extra=holding.log_context)
            self._give_up(holding, error)
            holding.try_again_at = 0.0
            self._pause()

    def _try_later(self, holding: Holding) -> None:
        holding.posts_failed += 1
        pause = min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2 ** min(holding.posts_failed - 1, 10))
        holding.try_again_at = time.monotonic() + pause

    def _give_up(self, holding: Holding, error: ClientError) -> None:
        """End a lease whose rows the service will not take as they are, so that it does not stay here for ever."""
        if holding.failure is not None and not holding.rows_waiting() and not self._keeper.rows_of(holding):
            # Not even its failure is taken; without heartbeats for it the lease runs out.
            holding.lose()
            return
        holding.fail("service", str(error), retryable=True)
        holding.drop_rows()
        self._keeper.discard(holding)

    def _end(self, holding: Holding) -> None:
        with self._changed:
            if holding in self._holdings:
                self._holdings.remove(holding)
        self._keeper.end(holding)
        self._on_end(holding)

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._flushing or self._stopped, RETRY_SECONDS)


class _ServiceAway(Exception):
    """Nothing can be posted at present."""
