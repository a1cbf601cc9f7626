"""Writes results files beside the images, when the service has all rows of a job and before the job is completed.

A few threads of their own do it: the asking for the rows and the writing may take long, and neither posts of other jobs
nor heartbeats may wait for them. How the document looks is `results_file`'s, where it goes `targets`'s.

A file is put in place as a whole, from the rows that one lease has seen as its own until its last piece was written,
and only then is its job completed under that lease. Where a job is handed on meanwhile, its next worker writes the file
again; a write that was on its way when its lease was lost may come later, and then an older whole file stays.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from job_api.client import Client, ClientError, LeaseLost, NotFound
from job_api.listing import ImageChoice
from job_api.name_patterns import NamePattern
from job_api.schemas import DoneResult
from uworker.away import RETRY_SECONDS, Patience
from uworker.holding import Holding
from uworker.images import SourceError
from uworker.results_file import FILE_NAME, ResultsFile
from uworker.sources import Sources
from uworker.targets import open_target

log = logging.getLogger(__name__)

THREADS = 4


class Scribe:
    """Writes for one worker.

    Args:
        client: asks for the rows.
        sources: those that the worker reads; the files go there, too.
        on_change: told when a file is written, or its job cannot be done; must be quick.
    """

    def __init__(self, client: Client, sources: Sources, on_change: Callable[[], None]) -> None:
        self._client = client
        self._sources = sources
        self._on_change = on_change
        self._due: queue.SimpleQueue[Holding] = queue.SimpleQueue()
        self._stopped = threading.Event()
        # They end with the process: a write that hangs must not keep it.
        self._threads = [
            threading.Thread(target=self._write_for_ever, name=f"scribe-{number}", daemon=True)
            for number in range(THREADS)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Write no more; what is half written is dropped."""
        self._stopped.set()

    def add(self, holding: Holding) -> None:
        """The file of this job is due."""
        self._due.put(holding)

    def _write_for_ever(self) -> None:
        while not self._stopped.is_set():
            holding = self._due.get()
            try:
                self._write(holding)
                holding.finish_file()
            except _NotWanted:
                pass
            except SourceError as error:
                holding.fail(error.reason, str(error), retryable=error.retryable)
            except (LeaseLost, NotFound) as error:
                log.warning("%s: %s is not written: %s", holding, FILE_NAME, error, extra=holding.log_context)
                holding.lose()
            except ClientError as error:
                holding.fail("service", f"the rows for {FILE_NAME} could not be asked for: {error}", retryable=True)
            except BaseException as error:
                # Whatever it is, a panic of a library too, the job must not stay in this worker's hands for ever.
                log.exception("%s: %s failed", holding, FILE_NAME, extra=holding.log_context)
                holding.fail("worker", f"{FILE_NAME} failed: {type(error).__name__}: {error}", retryable=True)
            self._on_change()

    def _write(self, holding: Holding) -> None:
        lease = holding.lease
        pattern = NamePattern(lease.image_name_pattern) if lease.image_name_pattern else None
        choice = ImageChoice(lease.image_include, lease.image_exclude)
        with ResultsFile(lease.directory, pattern) as file:
            # Rows may be there of images that the project wanted once.
            file.add(row for row in self._rows(holding) if choice.wants(row.image))
            if file.images < holding.image_count:
                holding.fail(
                    "results-missing",
                    f"{holding.image_count} images were listed and {file.images} are stored",
                    retryable=True,
                )
                raise _NotWanted
            target = open_target(lease, self._sources)
            try:
                target.write(lease, self._while_wanted(holding, file.chunks()))
            except SourceError:
                # Also where the write was broken off from here, whatever the storage made of it.
                self._require_wanted(holding)
                raise
            log.debug("%s: %s is written, %d images", holding, FILE_NAME, file.images, extra=holding.log_context)

    def _while_wanted(self, holding: Holding, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._require_wanted(holding)
            yield chunk
        # Once more before what is written is put in place.
        self._require_wanted(holding)

    def _require_wanted(self, holding: Holding) -> None:
        if self._stopped.is_set() or holding.abandoned:
            raise _NotWanted(f"{holding}: its lease is lost, or the worker ends")

    def _rows(self, holding: Holding) -> Iterator[DoneResult]:
        """All rows that count; waits for a service that is away.

        Raises:
            LeaseLost, NotFound: the job is another's.
            ClientError: the service does not give them, again and again.
        """
        last, patience = "", Patience(f"{holding} waits for its rows, to write {FILE_NAME}")
        while True:
            try:
                for row in self._client.results_done(holding.lease, holding.worker_id, after=last):
                    self._require_wanted(holding)
                    yield row
                    last = row.image
                    patience.renew()
            except ClientError as error:
                if not patience.bears(error):
                    raise
            else:
                return
            self._require_wanted(holding)
            self._stopped.wait(RETRY_SECONDS)


class _NotWanted(Exception):
    """The lease has ended otherwise, or the worker ends."""
