"""Lists the images of each job and reads them ahead of need, many at once: storage far away takes its time for each.

A job has a thread of its own while it is listed and read; what waits for its turn is kept in order in `lookahead`, from
where a fixed number of threads takes images to read. All are daemons: a read that hangs must not keep a worker alive.
"""

import bisect
import itertools
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from job_api.client import Client, ClientError, LeaseLost, NotFound
from job_api.listing import ImageChoice
from uworker.asking import Asker
from uworker.holding import Holding
from uworker.images import NoneChosen, Source, SourceDenied, SourceError, Verdict
from uworker.lookahead import MAX_IMAGES_AHEAD, MAX_LISTED_AHEAD, Lookahead
from uworker.readings import ReadImage, Reading, Unwanted
from uworker.settings import WorkerSettings
from uworker.sources import Sources

log = logging.getLogger(__name__)

# Storage that answers in 50 ms then gives 320 images a second, more than the largest machines recognise; a server or a
# mounted disk is not flooded by it.
READS_AT_ONCE = 16
# Jobs that are listed and read at the same time, so that directories of one image each come as quickly as large ones.
JOBS_AT_ONCE = 16
# The share of the newest job in the mean number of images of a job.
NEWEST_SHARE = 0.5


@dataclass(order=True, frozen=True)
class _Job:
    """A job whose turn to be listed has not come."""

    number: int
    holding: Holding = field(compare=False)
    done: set[str] = field(compare=False)


class Reader:
    """Reads for one worker. The main thread looks at what is there and takes it.

    Args:
        client: asks which images are done already.
        settings: say which sources may be read, and how large an image may be.
        on_change: told when an image is ready or a row was added; must be quick.
        may_add: whether there is room for rows; images that are not given to the engine have theirs from here.
        source_of: opens a project's source; left out: as the settings let it.
    """

    def __init__(
        self,
        client: Client,
        settings: WorkerSettings,
        on_change: Callable[[], None],
        may_add: Callable[[], bool] = lambda: True,
        source_of: Callable[[str], Source] | None = None,
    ) -> None:
        self.sources = Sources(settings)
        """What this worker may read, and what of it is open."""
        self._on_change = on_change
        self._may_add = may_add
        self._source_of = source_of or self.sources.open
        self._asker = Asker(client, self._hear)
        self._ahead = Lookahead(settings.max_image_bytes)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[Holding, int] = {}
        self._jobs: list[_Job] = []
        self._at_once = 0
        self._images_per_job = float(MAX_IMAGES_AHEAD)
        self._stopped = False
        self._read_from: set[str] = set()
        """Sources that have given bytes of an image."""
        self.denied: str | None = None
        """Why no storage lets this worker in, once one does not: a matter of the worker and of no job."""

    def start(self) -> None:
        """Start the threads."""
        self._asker.start()
        for number in range(READS_AT_ONCE):
            threading.Thread(target=self._read_for_ever, name=f"reader-{number}", daemon=True).start()

    def stop(self) -> None:
        """Read no more; what is ahead is dropped, and reads that are on their way are not waited for."""
        with self._lock:
            self._stopped = True
            self._asked.clear()
            self._jobs.clear()
        self._asker.stop()
        self._ahead.stop()

    def add(self, holding: Holding) -> None:
        """Read this job after those that were added before, but for those of which the service has to be asked."""
        with self._lock:
            number = next(self._numbers)
            if holding.lease.results_count:
                self._asked[holding] = number
            else:
                self._begin_in_turn(_Job(number, holding, set()))
        if holding.lease.results_count:
            self._asker.add(holding)

    def images_ahead(self) -> int:
        """Images that are read, or listed and about to be, or expected of the jobs that are not listed yet."""
        with self._lock:
            waiting = [*self._asked, *(job.holding for job in self._jobs)]
            unlisted = sum(not holding.abandoned for holding in waiting)
            return round(self._ahead.expected(self._images_per_job) + unlisted * self._images_per_job)

    def jobs_for(self, images: int) -> int:
        """How many more jobs are likely to bring that many images, going by those that were listed of late."""
        with self._lock:
            return math.ceil(images / self._images_per_job)

    def peek(self) -> ReadImage | None:
        """The next image, left where it is."""
        return self._ahead.peek()

    def take(self) -> ReadImage | None:
        """The next image."""
        return self._ahead.take()

    # --- whose turn it is ---

    def _hear(self, holding: Holding, answer: set[str] | Exception | None) -> None:
        """Which images of a job are done, or why that is not known."""
        if isinstance(answer, Exception):
            self._give_up(holding, answer)
        with self._lock:
            number = self._asked.pop(holding, None)
            if number is not None and isinstance(answer, set):
                self._begin_in_turn(_Job(number, holding, answer))
        self._on_change()

    def _begin_in_turn(self, *jobs: _Job) -> None:
        for job in jobs:
            if not self._stopped:
                bisect.insort(self._jobs, job)
        while self._jobs and self._at_once < JOBS_AT_ONCE:
            job = self._jobs.pop(0)
            self._at_once += 1
            reading = self._ahead.begin(job.holding)
            threading.Thread(
                target=self._read_job, args=(reading, job.done), name=str(job.holding), daemon=True
            ).start()

    # --- the thread of a job ---

    def _read_job(self, reading: Reading, done: set[str]) -> None:
        holding = reading.holding
        try:
            image_count = self._list(reading, done)
            while not self._ahead.finish(reading):
                self._make_rows(reading)
            holding.image_count = image_count
            holding.finish_listing()
        except Unwanted:
            pass
        except BaseException as error:  # noqa: BLE001 - `_give_up` says it; a panic of a library is no Exception
            # What is there is recognised first: an attempt that stored something new is not charged.
            if self._ahead.drain(reading):
                self._give_up(holding, error)
        finally:
            self._ahead.end(reading)
            with self._lock:
                self._at_once -= 1
                self._begin_in_turn()
            self._on_change()

    def _list(self, reading: Reading, done: set[str]) -> int:
        """Have all images read that are wanted and not done; returns how many are wanted."""
        holding = reading.holding
        source = self._source_of(holding.lease.source)
        choice = ImageChoice(holding.lease.image_include, holding.lease.image_exclude)
        count = passed_over = 0
        for image in source.list_images(holding.lease.directory):
            if not choice.wants(image.name):
                passed_over += 1
                self._ahead.check(reading)
                continue
            count += 1
            if image.name in done:
                self._ahead.check(reading)
                continue
            reading.count += 1
            if image.verdict is not None:
                reading.refused.append((image.name, image.verdict))
            else:
                self._ahead.add(reading, source, image)
            self._make_rows(reading)
        if not count:
            raise NoneChosen(f"the project's image_include and image_exclude leave none of its {passed_over} images")
        if done:
            log.info("%s: %d of %d images are done already", holding, count - reading.count, count)
        with self._lock:
            # Never below one: what is done already, or has no image, says nothing of the next job. Nor does it say much
            # that one was huge: after it small ones would be claimed one by one for long.
            newest = min(max(reading.count, 1), MAX_LISTED_AHEAD)
            self._images_per_job += NEWEST_SHARE * (newest - self._images_per_job)
        return count

    def _make_rows(self, reading: Reading) -> None:
        """Make the rows of images that came without bytes, as there is room for them."""
        while reading.refused:
            while not self._may_add():
                self._ahead.pause(reading)
            self._ahead.check(reading)
            reading.holding.refuse(*reading.refused.popleft())
            self._on_change()

    def _give_up(self, holding: Holding, error: BaseException) -> None:
        """What becomes of a job that cannot be read: the one place that decides it."""
        if isinstance(error, SourceDenied) and self._read_from <= {holding.lease.source}:
            # The worker ends, and gives the job back. Where it reads for other projects it is of use to them, and the
            # job is failed as for any other fault of its source.
            self.denied = str(error)
        elif isinstance(error, SourceError):
            holding.fail(error.reason, str(error), retryable=error.retryable)
        elif isinstance(error, LeaseLost | NotFound):
            # The heartbeat hears of it too; there is nothing to be done for this job.
            holding.lose()
        elif isinstance(error, ClientError):
            holding.fail("service", f"the images that are done could not be asked for: {error}", retryable=True)
        else:
            # Whatever it is, the job must not stay in this worker's hands for ever.
            log.error("%s: the reading failed", holding, exc_info=error, extra=holding.log_context)
            holding.fail("worker", f"the reading failed: {type(error).__name__}: {error}", retryable=True)

    # --- the threads that read ---

    def _read_for_ever(self) -> None:
        while (read := self._ahead.pick()) is not None:
            outcome: bytes | Verdict | Exception
            try:
                outcome = read.source.read(read.image)
                if isinstance(outcome, bytes):
                    self._read_from.add(read.reading.holding.lease.source)
            except Exception as error:  # noqa: BLE001 - it is the job's, and raised in its thread
                outcome = error
            except BaseException as error:  # noqa: BLE001 - so is a panic of the storage library
                outcome = RuntimeError(f"{type(error).__name__}: {error}")
            self._ahead.settle(read, outcome)
            self._on_change()
