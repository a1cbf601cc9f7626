"""The reading thread: lists the images of each job and reads them ahead of need, into a bounded queue."""

import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from job_api.client import ApiError, Client, ClientError, LeaseLost, NotFound, Refused
from uworker.away import is_away
from uworker.holding import Holding
from uworker.images import Source, SourceDenied, SourceError, Verdict
from uworker.settings import WorkerSettings
from uworker.sources import open_source
from uworker.tasks import ImageTask

log = logging.getLogger(__name__)

MAX_IMAGES_AHEAD = 64
MAX_BYTES_AHEAD = 256_000_000
RETRY_SECONDS = 2.0
# How often a fault of the service's own, or a refusal, is waited out before it is the job's: five minutes of them.
MAX_FAULTS = 150
LOOK_AGAIN_SECONDS = 0.5
# The share of the newest job in the mean number of images of a job.
NEWEST_SHARE = 0.5


@dataclass(frozen=True)
class ReadImage:
    """An image whose bytes are in memory, and the job it belongs to."""

    holding: Holding
    task: ImageTask


class Reader:
    """Reads for one worker. Owned by its thread, but for the queues, which its condition guards.

    Args:
        client: asks which images are done already.
        settings: say which sources may be read, and how large an image may be.
        on_change: told when an image is ready or a row was added; must be quick.
        may_add: whether there is room for rows; images that are not given to the engine have theirs from here.
    """

    def __init__(
        self,
        client: Client,
        settings: WorkerSettings,
        on_change: Callable[[], None],
        may_add: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._settings = settings
        self._on_change = on_change
        self._may_add = may_add
        self._task_ids = itertools.count(1)
        self._changed = threading.Condition()
        self._jobs: deque[Holding] = deque()
        self._ahead: deque[ReadImage] = deque()
        self._bytes_ahead = 0
        self._unread = 0
        self._images_per_job = float(MAX_IMAGES_AHEAD)
        self._listing = False
        self._stopped = False
        self.denied: str | None = None
        """Why the storage does not let this worker in, once it does not: a matter of the worker and of no job."""
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more; what is ahead is dropped."""
        with self._changed:
            self._stopped = True
            self._jobs.clear()
            self._ahead.clear()
            self._changed.notify_all()

    def add(self, holding: Holding) -> None:
        """Read this job after those that were added before."""
        with self._changed:
            self._jobs.append(holding)
            self._changed.notify_all()

    def images_ahead(self) -> int:
        """Images that are read, or listed and about to be, or expected of the jobs that are not listed yet."""
        with self._changed:
            unlisted = len(self._jobs) + self._listing
            return len(self._ahead) + self._unread + round(unlisted * self._images_per_job)

    def jobs_for(self, images: int) -> int:
        """How many more jobs are likely to bring that many images, going by those that were listed of late."""
        with self._changed:
            return math.ceil(images / self._images_per_job)

    def peek(self) -> ReadImage | None:
        """The next image, left where it is."""
        with self._changed:
            while self._ahead and self._ahead[0].holding.abandoned:
                self._drop()
            return self._ahead[0] if self._ahead else None

    def take(self) -> ReadImage | None:
        """The next image."""
        with self._changed:
            return self._drop() if self._ahead else None

    def _drop(self) -> ReadImage:
        image = self._ahead.popleft()
        self._bytes_ahead -= len(image.task.data)
        self._changed.notify_all()
        return image

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stopped)
                if self._stopped:
                    return
                holding = self._jobs.popleft()
                self._listing = True
            self._read_job(holding)
            with self._changed:
                self._listing, self._unread = False, 0
            self._on_change()

    def _read_job(self, holding: Holding) -> None:
        try:
            self._read_images(holding, open_source(holding.lease.source, self._settings))
        except SourceDenied as error:
            self.denied = str(error)
        except SourceError as error:
            holding.fail(error.reason, str(error), retryable=error.retryable)
        except (LeaseLost, NotFound):
            # The heartbeat hears of it too; there is nothing to be done for this job.
            holding.lose()
        except ClientError as error:
            holding.fail("service", f"the images that are done could not be asked for: {error}", retryable=True)
        except Exception as error:
            # Whatever it is, the job must not stay in this worker's hands for ever.
            log.exception("%s: the reading failed", holding, extra=holding.log_context)
            holding.fail("worker", f"the reading failed: {type(error).__name__}: {error}", retryable=True)

    def _read_images(self, holding: Holding, source: Source) -> None:
        images = source.list_images(holding.lease.directory)
        done = self._done(holding)
        if done is None:
            return
        holding.image_count = len(images)
        left = [image for image in images if image.name not in done]
        if done:
            log.info("%s: %d of %d images are done already", holding, len(images) - len(left), len(images))
        with self._changed:
            self._listing = False
            # Never below one: what is done already, or has no image, says nothing of the next job.
            self._images_per_job += NEWEST_SHARE * (max(len(left), 1) - self._images_per_job)
        for number, image in enumerate(left):
            with self._changed:
                self._unread = len(left) - number
            data = source.read(image)
            if isinstance(data, Verdict):
                if not self._wait_for(self._may_add, holding):
                    return
                holding.refuse(image.name, data)
                self._on_change()
            elif not self._put(ReadImage(holding, ImageTask(next(self._task_ids), image.name, data))):
                return
        holding.finish_listing()

    def _done(self, holding: Holding) -> set[str] | None:
        """Images that need no work. Waits for a service that is away; None when nobody wants the job any more."""
        if not holding.lease.results_count:
            return set()
        faults, said = 0, ""
        while not self._stopped and not holding.abandoned:
            try:
                return set(self._client.images_done(holding.lease, holding.worker_id))
            except (LeaseLost, NotFound):
                raise
            except ClientError as error:
                # A refusal is the whole worker's as a rule, which the heartbeat then ends.
                passing = isinstance(error, Refused) or (isinstance(error, ApiError) and error.status >= 500)
                faults = 0 if is_away(error) else faults + 1
                if faults and not (passing and faults < MAX_FAULTS):
                    raise
                if str(error) != said:
                    log.warning("%s waits to hear which of its images are done: %s", holding, error)
                said = str(error)
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or holding.abandoned, RETRY_SECONDS)
        return None

    def _wait_for(self, ready: Callable[[], bool], holding: Holding) -> bool:
        """Wait until something is so; False when nobody wants the job any more."""
        while not ready():
            with self._changed:
                if self._stopped or holding.abandoned:
                    return False
                self._changed.wait(LOOK_AGAIN_SECONDS)
        return True

    def _put(self, image: ReadImage) -> bool:
        """Queue an image when there is room; False when nobody wants it any more."""
        size = len(image.task.data)
        with self._changed:
            while not self._has_room(size) and not self._stopped and not image.holding.abandoned:
                # A lease that is lost meanwhile notifies nobody here.
                self._changed.wait(LOOK_AGAIN_SECONDS)
            if self._stopped or image.holding.abandoned:
                return False
            image.holding.expect(image.task.task_id)
            self._ahead.append(image)
            self._bytes_ahead += size
        self._on_change()
        return True

    def _has_room(self, size: int) -> bool:
        # One image always has room, however large it is.
        return not self._ahead or (len(self._ahead) < MAX_IMAGES_AHEAD and self._bytes_ahead + size <= MAX_BYTES_AHEAD)
