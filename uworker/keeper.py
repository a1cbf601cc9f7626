"""Keeps rows on disk while the service is away, and finds those that workers of this machine left when they ended.

Owns the worker's spool, which is made when it is first needed and deleted when the worker ends with nothing left in it,
and decides what a full or broken one means. Nothing is dropped here but what the service has, or what another worker
does again.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from job_api.schemas import EngineRun
from uworker.holding import Batch, Ending, Holding
from uworker.spool import SUFFIX, Spool, SpoolError, SpoolFull, SpoolInUse, SpoolUnusable, prepare

log = logging.getLogger(__name__)

ROWS_PER_TRANSACTION = 500
ROWS_PER_POST = 200
# Well below the largest body that a service takes (32 MB), whatever the rows hold.
BYTES_PER_POST = 8_000_000


class Keeper:
    """Keeps for one worker; called by the posting thread, and by the main thread when that has been stopped.

    Args:
        directory: where the spools of this machine's workers lie.
        worker_id: whose rows are kept.
        root: address of the service they are for; spools for another one are left alone.
        max_bytes: what the worker's own spool may take.
    """

    def __init__(self, directory: Path, worker_id: str, root: str, max_bytes: int) -> None:
        self._directory = directory.expanduser().absolute()
        self._worker_id = worker_id
        self._root = root
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._own: Spool | None = None
        self._adopted: dict[Path, Spool] = {}
        self._jobs_left: Counter[Path] = Counter()
        # Until when, on the monotonic clock.
        self._left_alone: dict[Path, float] = {}
        self._said: dict[Path, str] = {}
        self._trouble = ""
        self._closed = False
        self.full = False

    def prepare(self) -> None:
        """See whether the directory can be used, while somebody is there to read that it cannot."""
        try:
            prepare(self._directory)
        except OSError as error:
            log.warning(
                "results cannot be kept on disk while the service is away, only in memory (%s); set UWORKER_SPOOL_DIR",
                error,
            )

    # --- rows that cannot be posted now ---

    def put_away(self, holdings: Iterable[Holding], run_of: Callable[[Holding], EngineRun]) -> None:
        """Move the rows of holdings from memory to disk, and note how those end that are done.

        Rows stay in memory where the spool is full or cannot be written; that is said once, until it has changed.
        """
        with self._lock:
            trouble = ""
            # What is left of an adopted one in memory stands for rows that were refused; it can be made again.
            for holding in [] if self._closed else [h for h in holdings if not h.adopted]:
                try:
                    self._put(holding, run_of(holding))
                except SpoolFull as error:
                    # Others may still fit, or be done, which takes no room; there is none for more all the same.
                    if not self.full:
                        log.warning("recognition pauses until the service takes results: %s", error)
                    self.full = True
                except SpoolError as error:
                    trouble = str(error)
                    if trouble != self._trouble:
                        log.error("results can only be kept in memory: %s", error)  # noqa: TRY400 - it says what is wrong
                    break
            self._trouble = trouble

    def _put(self, holding: Holding, run: EngineRun) -> None:
        left = holding.everything_left()
        ending = left.ending if left.ending is not holding.spooled_ending else None
        if not left.rows and ending is None:
            return
        if self._own is None:
            self._own = Spool.create(self._directory, self._worker_id, self._root, self._max_bytes)
            log.warning("results are kept in %s until the service takes them", self._own.path)
        for first in range(0, len(left.rows), ROWS_PER_TRANSACTION):
            rows = left.rows[first : first + ROWS_PER_TRANSACTION]
            self._own.put(holding.lease, run, rows)
            holding.spool = self._own
            holding.acknowledge(rows)
        if ending is not None:
            self._own.put(
                holding.lease,
                run,
                (),
                image_count=holding.image_count if ending is Ending.COMPLETE else None,
                failure=holding.failure if ending is Ending.FAIL else None,
            )
            holding.spool, holding.spooled_ending = self._own, ending
            log.info("%s is done; that is kept until the service is back", holding, extra=holding.log_context)

    def note_back(self) -> None:
        """The service has taken something, so there will be room again."""
        if self.full:
            log.info("the service takes results again; recognition goes on")
        self.full = False

    # --- rows on disk ---

    def next_batch(self, holding: Holding) -> Batch | None:
        """The oldest rows of a holding on disk; None when all of them are posted.

        Raises:
            SpoolError: those that a process left that has ended cannot be read.
        """
        if holding.spool is None:
            return None
        try:
            kept = holding.spool.oldest_rows(holding.lease, ROWS_PER_POST, BYTES_PER_POST)
        except SpoolError as error:
            if holding.adopted:
                # The job is another's to do; a failure under this lease would take it back, and charge it.
                raise
            log.exception("%s: its rows are lost to this worker", holding, extra=holding.log_context)
            holding.spool = None
            holding.fail("spool", str(error), retryable=True)
            return None
        if kept is not None:
            return Batch(kept.rows, None, kept.run, kept.last_id)
        if holding.spooled_ending is None and not holding.adopted:
            self._forget(holding)
            holding.spool = None
        return None

    def acknowledge(self, holding: Holding, last_id: int) -> None:
        """The service has the rows of a holding on disk up to this one."""
        if holding.spool is not None:
            try:
                holding.spool.drop_rows(holding.lease, last_id)
            except SpoolError as error:
                # They are known to be posted, and once more would change nothing.
                log.warning("rows that are posted stay on disk for now: %s", error)

    def rows_of(self, holding: Holding) -> int:
        """How many rows of a holding lie on disk."""
        try:
            return holding.spool.count_rows(holding.lease) if holding.spool is not None else 0
        except SpoolError:
            return 0

    def discard(self, holding: Holding) -> None:
        """The service will never take the rows of a holding on disk."""
        self._forget(holding)
        holding.spooled_ending = None

    def end(self, holding: Holding) -> None:
        """A holding is over, and nothing of it is needed any more."""
        with self._lock:
            if holding.spool is not None:
                self._forget(holding)
                path = holding.spool.path
                if holding.adopted:
                    self._jobs_left[path] -= 1
                    if self._jobs_left[path] <= 0 and (spool := self._adopted.pop(path, None)) is not None:
                        self._delete(spool)
                holding.spool = None
            # Its rows take no room any more; a lease that is lost is followed by no post that would say so.
            self.note_back()

    def _forget(self, holding: Holding) -> None:
        if holding.spool is not None and not self._closed:
            try:
                holding.spool.drop(holding.lease)
            except SpoolError as error:
                log.warning("what is posted stays on disk for now: %s", error)

    def _delete(self, spool: Spool) -> None:
        try:
            spool.delete()
        except OSError as error:
            log.warning("the spool %s, of which all is posted, cannot be deleted: %s", spool.path, error)
            # Whoever looks next finds it empty and tries again.
            spool.close()

    # --- what others left ---

    def adopt(self, stopped: Callable[[], bool] = lambda: False) -> list[Holding]:
        """Take up the spools of processes that have ended; returns their leases, in the order in which they came.

        Args:
            stopped: whether the worker ends, and has better things to do.
        """
        found: list[Holding] = []
        with self._lock:
            known = {path for path, until in self._left_alone.items() if time.monotonic() < until}
            known |= set(self._adopted) | ({self._own.path} if self._own is not None else set())
            for path in self._spools():
                if self._closed or stopped():
                    break
                if path in known:
                    continue
                try:
                    found += self._adopt(Spool.adopt(path))
                except SpoolInUse:
                    continue
                except SpoolUnusable as error:
                    log.warning("%s; it is left as it is", error)
                    self._left_alone[path] = math.inf
                except SpoolError as error:
                    self._say_once(path, f"{error}; it is tried again")
        return found

    def _spools(self) -> list[Path]:
        try:
            return sorted(self._directory.glob("*" + SUFFIX))
        except OSError as error:
            self._say_once(self._directory, f"what other workers left in {self._directory} cannot be seen: {error}")
            return []

    def _say_once(self, path: Path, what: str) -> None:
        if self._said.get(path) != what:
            log.warning("%s", what)
        self._said[path] = what

    def _adopt(self, spool: Spool) -> list[Holding]:
        if spool.worker_id and spool.root != self._root:
            self._leave(spool, f"it is for the job service at {spool.root}")
            return []
        try:
            leases = spool.leases()
        except SpoolError:
            spool.close()
            raise
        if not leases:
            self._delete(spool)
            return []
        rows = sum(lease.row_count for lease in leases)
        log.info(
            "%d rows of %d jobs are left of the worker %s, which has ended; they are posted first",
            rows,
            len(leases),
            spool.worker_id,
        )
        self._adopted[spool.path] = spool
        self._jobs_left[spool.path] = len(leases)
        return [Holding.restored(spool, lease) for lease in leases]

    def leave(self, holding: Holding, reason: str, seconds: float = math.inf) -> Path | None:
        """Let the spool that an adopted holding came from lie, for so long, for another worker; returns its path."""
        with self._lock:
            path = holding.spool.path if holding.spool is not None else None
            if path is not None and (spool := self._adopted.pop(path, None)) is not None:
                self._leave(spool, reason, seconds)
            return path

    def _leave(self, spool: Spool, reason: str, seconds: float = math.inf) -> None:
        log.warning("the results in %s are left there: %s", spool.path, reason)
        self._left_alone[spool.path] = time.monotonic() + seconds
        spool.close()

    def close(self) -> None:
        """Let go of all spools; an empty one is deleted, and of the worker's own it is said what is in it."""
        with self._lock:
            for spool in self._adopted.values():
                spool.close()
            self._adopted.clear()
            self._closed = True
            own, self._own = self._own, None
            if own is None:
                return
            try:
                leases = own.leases()
            except SpoolError as error:
                log.warning("%s", error)
                own.close()
                return
            if leases:
                log.warning(
                    "%d results of %d jobs are kept in %s: the next worker on this machine posts them, with the same "
                    "token, or with another of its project once that one has ended",
                    sum(lease.row_count for lease in leases),
                    len(leases),
                    own.path,
                )
                own.close()
            else:
                self._delete(own)
