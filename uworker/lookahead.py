"""What is listed and read ahead of need: whose image is read next, the room there is, and the order of handing out.

Three kinds of threads meet here under one lock: one for each job that is being listed, those that read, and the main
thread, which takes images out. Nothing is read or listed in here.

Of what has come, the earliest of the earliest job is handed out first; nothing waits for what is still on its way, so
that a read that hangs keeps one place and not the room. A job for another engine is not read before its turn: a change
of engines takes half a minute, and the room could be full of images that nobody may take.
"""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

from job_api.schemas import ResultStatus
from uworker.holding import Holding
from uworker.images import ImageFile, Source, StorageFault, Verdict
from uworker.readings import Read, ReadImage, Reading, Slot, Unwanted
from uworker.tasks import ImageTask

MAX_IMAGES_AHEAD = 64
MAX_BYTES_AHEAD = 256_000_000
# Names of a job that wait to be read: a page of a listing, as storage services cut them, comes while they are.
MAX_LISTED_AHEAD = 1_000
# A lease that is lost, or an image that a recogniser has finished, notifies nobody here.
LOOK_AGAIN_SECONDS = 0.5
# An image whose size the listing does not tell, or whose listing was wrong before, is taken for so many times the
# largest of those before it, and for the largest that is read at all until some were seen; the largest fades, or one
# giant would slow the reading for ever. That is no bound: what is on its way at once may all be larger.
LIKELY_TIMES, FADING = 4, 0.95


class Lookahead:
    """The room of one worker.

    Args:
        max_image_bytes: larger images are not read by any source.
        clock: for how long reads have failed.
    """

    def __init__(self, max_image_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_image_bytes = max_image_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._may_read = threading.Condition(self._lock)
        self._readings: list[Reading] = []
        self._images = 0
        self._bytes = 0
        self._likely_bytes = float(max_image_bytes)
        self._peeked: tuple[Reading, Slot] | None = None
        self._task_ids = itertools.count(1)
        self._stopped = False

    def stop(self) -> None:
        """Drop everything, and let all threads go."""
        with self._lock:
            self._stopped = True
            for reading in self._readings:
                reading.listed.clear()
                reading.slots.clear()
                reading.changed.notify_all()
            self._readings.clear()
            self._peeked = None
            self._may_read.notify_all()

    def expected(self, images_per_job: float) -> float:
        """Images in memory, on their way or listed, or expected of jobs of which only few are listed so far."""
        with self._lock:
            return sum(r.expected(images_per_job) for r in self._readings if not r.holding.abandoned)

    # --- the threads of the jobs ---

    def begin(self, holding: Holding) -> Reading:
        """Make a place for a job, behind those that were begun before; `end` it in any case."""
        with self._lock:
            reading = Reading(holding, holding.engine_key, threading.Condition(self._lock))
            self._readings.append(reading)
            return reading

    def add(self, reading: Reading, source: Source, image: ImageFile) -> None:
        """Have an image read when its turn comes; waits while enough are listed.

        Raises:
            Unwanted: as it says; what has ended the reading of this job is raised here, too.
        """
        with self._lock:
            self.check(reading)
            reading.listed.append((source, image))
            self._wake_a_reader()
            if len(reading.listed) >= MAX_LISTED_AHEAD:
                self._wait(reading, lambda: len(reading.listed) <= MAX_LISTED_AHEAD // 2 or bool(reading.refused))

    def finish(self, reading: Reading) -> bool:
        """Wait until all that was listed is read; False where rows of refused images are to be made first.

        Raises:
            Unwanted: as of `add`.
            StorageFault: all was tried, and the storage did not give some of it.
        """
        with self._lock:
            reading.is_listed = True
            self._wait(reading, lambda: reading.is_read or bool(reading.refused))
            if reading.is_read and reading.faults.count:
                raise reading.faults.as_one(reading.count)
            return reading.is_read

    def pause(self, reading: Reading) -> None:
        """Wait a little.

        Raises:
            Unwanted: as of `add`.
        """
        with self._lock:
            self.check(reading)
            reading.changed.wait(LOOK_AGAIN_SECONDS)
            self.check(reading)

    def drain(self, reading: Reading) -> bool:
        """Wait until what was listed is recognised, unless its reading was ended: then what is in memory.

        Returns:
            Whether the job is still wanted.
        """
        with self._lock:
            reading.is_listed = True
            while reading.listed or reading.slots or reading.holding.has_open:
                if self._stopped or reading.holding.abandoned:
                    return False
                reading.changed.wait(LOOK_AGAIN_SECONDS)
            return not (self._stopped or reading.holding.abandoned)

    def end(self, reading: Reading) -> None:
        """No thread waits for this job's reads any more; its place goes when its images are handed out."""
        with self._lock:
            reading.is_listed = reading.is_over = True
            reading.listed.clear()
            self._drop_unwanted()
            self._leave(reading)

    def check(self, reading: Reading) -> None:
        """Go on, or not.

        Raises:
            Unwanted: as of `add`.
        """
        if self._stopped or reading.holding.abandoned:
            raise Unwanted
        if reading.fault is not None:
            raise reading.fault

    def _wait(self, reading: Reading, ready: Callable[[], bool]) -> None:
        self.check(reading)
        while not ready():
            reading.changed.wait(LOOK_AGAIN_SECONDS)
            self.check(reading)

    # --- the threads that read ---

    def pick(self) -> Read | None:
        """Wait for an image that may be read; None when the worker stops."""
        with self._lock:
            while not self._stopped:
                if (reading := self._next_to_read()) is not None:
                    return self._pick_from(reading)
                self._may_read.wait()
            return None

    def _pick_from(self, reading: Reading) -> Read:
        source, image = reading.listed.popleft()
        slot = Slot(self._likely_size(reading, image))
        reading.slots.append(slot)
        reading.on_their_way += 1
        self._images += 1
        self._bytes += slot.size
        if len(reading.listed) == MAX_LISTED_AHEAD // 2:
            reading.changed.notify_all()
        # Several may be read after one large image has gone.
        self._wake_a_reader()
        return Read(reading, slot, source, image, self._clock())

    def settle(self, read: Read, outcome: bytes | Verdict | Exception) -> None:
        """What has come of a read."""
        # By the thread that has read it, and while no other waits for the lock.
        sha256 = hashlib.sha256(outcome).hexdigest() if isinstance(outcome, bytes) else ""
        with self._lock:
            if self._stopped:
                return
            reading, slot = read.reading, read.slot
            reading.on_their_way -= 1
            if isinstance(outcome, bytes) and read.image.size is not None and len(outcome) > read.image.size:
                reading.sizes_are_wrong = True
            if not self._is_size_known(reading, read.image) and not isinstance(outcome, Exception):
                self._learn_size(outcome)
            if isinstance(outcome, bytes):
                task = ImageTask(next(self._task_ids), read.image.name, outcome)
                slot.image = ReadImage(reading.holding, task, sha256)
                reading.holding.expect(task.task_id)
                self._bytes += len(outcome) - slot.size
                slot.size = len(outcome)
            else:
                reading.slots.remove(slot)
                self._free(slot)
                self._leave(reading)
            if isinstance(outcome, Verdict):
                reading.refused.append((read.image.name, outcome))
            if isinstance(outcome, Exception):
                self._note_fault(read, outcome)
            else:
                reading.faults.interrupt()
            if reading.refused or reading.fault is not None or (reading.is_listed and not reading.on_their_way):
                reading.changed.notify_all()
            self._wake_a_reader()

    def _note_fault(self, read: Read, error: Exception) -> None:
        """A single image that the storage does not give ends nothing: an attempt does all that can be done."""
        reading = read.reading
        if isinstance(error, StorageFault):
            if not reading.faults.note(error, read.began_at, self._clock()):
                return
            error = reading.faults.as_one(reading.count)
        reading.fault = reading.fault or error
        reading.listed.clear()

    def _learn_size(self, outcome: bytes | Verdict) -> None:
        if isinstance(outcome, bytes):
            self._likely_bytes = max(LIKELY_TIMES * len(outcome), FADING * self._likely_bytes)
        elif outcome.status is ResultStatus.TOO_LARGE:
            # It may have been read up to that size.
            self._likely_bytes = self._max_image_bytes

    def _likely_size(self, reading: Reading, image: ImageFile) -> int:
        known = image.size if self._is_size_known(reading, image) else None
        return min(int(self._likely_bytes) if known is None else known, self._max_image_bytes)

    def _is_size_known(self, reading: Reading, image: ImageFile) -> bool:
        return image.size is not None and not reading.sizes_are_wrong

    def _next_to_read(self) -> Reading | None:
        """The first job that has an image to read, if there is room for it: a later one must not take it away."""
        for reading in self._in_turn():
            if reading.listed:
                size = self._likely_size(reading, reading.listed[0][1])
                # One image always has room, however large it is.
                fits = self._images < MAX_IMAGES_AHEAD and self._bytes + size <= MAX_BYTES_AHEAD
                return reading if fits or not self._images else None
        return None

    def _wake_a_reader(self) -> None:
        if self._next_to_read() is not None:
            self._may_read.notify()

    # --- the main thread ---

    def peek(self) -> ReadImage | None:
        """The next image, left where it is; it stays the next one as long as it is wanted."""
        with self._lock:
            self._drop_unwanted()
            self._peeked = self._peeked or self._next_to_take()
            return self._peeked[1].image if self._peeked is not None else None

    def take(self) -> ReadImage | None:
        """Take out the next image: the one that `peek` has shown, if it has."""
        with self._lock:
            if (following := self._peeked or self._next_to_take()) is None:
                return None
            self._peeked = None
            reading, slot = following
            reading.slots.remove(slot)
            self._free(slot)
            self._leave(reading)
            if not reading.slots:
                reading.changed.notify_all()
            self._wake_a_reader()
            return slot.image

    def _next_to_take(self) -> tuple[Reading, Slot] | None:
        come = ((reading, slot) for reading in self._in_turn() for slot in reading.slots if slot.image is not None)
        return next(come, None)

    def _drop_unwanted(self) -> None:
        """Forget the images of jobs that nobody wants; what is on its way keeps its room until it has come."""
        for reading in [r for r in self._readings if r.holding.abandoned]:
            for slot in [slot for slot in reading.slots if slot.image is not None]:
                reading.slots.remove(slot)
                self._free(slot)
            reading.listed.clear()
            reading.changed.notify_all()
            if self._peeked is not None and self._peeked[0] is reading:
                self._peeked = None
            self._leave(reading)
            self._wake_a_reader()

    # --- all of them ---

    def _in_turn(self) -> Iterator[Reading]:
        """The jobs that may be read and handed out now, in their order."""
        engine_key = None
        for reading in self._readings:
            if reading.holding.abandoned:
                continue
            engine_key = engine_key or reading.engine_key
            if reading.engine_key != engine_key:
                return
            yield reading

    def _free(self, slot: Slot) -> None:
        self._images -= 1
        self._bytes -= slot.size

    def _leave(self, reading: Reading) -> None:
        if reading.is_over and not reading.slots and reading in self._readings:
            self._readings.remove(reading)
            self._wake_a_reader()
