"""What is known of the reading of a job, and of each of its images. Guarded by the lock of the `Lookahead` it is in."""

import threading
from collections import deque
from dataclasses import dataclass, field

from uworker.holding import Holding
from uworker.images import ImageFile, Source, StorageFault, Verdict
from uworker.tasks import ImageTask

# Storage is given up for a job when so many of its reads in a row have failed, over so long a time: all that are on
# their way at once, where it does not answer; and not for some damaged files that lie side by side.
GIVE_UP_FAULTS, GIVE_UP_SECONDS = 16, 10.0


class Unwanted(Exception):
    """Nobody wants the job any more, or the worker stops."""


@dataclass(frozen=True)
class ReadImage:
    """An image whose bytes are in memory, their SHA-256 in hex, and the job it belongs to."""

    holding: Holding
    task: ImageTask
    sha256: str


@dataclass(eq=False)
class Slot:
    """The place of an image that is on its way or in memory; `size` is what it takes, or is expected to."""

    size: int
    image: ReadImage | None = None


@dataclass
class Faults:
    """What the storage did not give of a job, image by image."""

    count: int = 0
    _first: str = ""
    _in_a_row: int = 0
    _began_at: float = 0.0

    def note(self, fault: StorageFault, began_at: float, now: float) -> bool:
        """A read has failed; returns whether the storage is to be given up."""
        if not self.count:
            self._first = str(fault)
        if not self._in_a_row:
            self._began_at = began_at
        self.count += 1
        self._in_a_row += 1
        return self._in_a_row >= GIVE_UP_FAULTS and now - self._began_at >= GIVE_UP_SECONDS

    def interrupt(self) -> None:
        """The storage has answered."""
        self._in_a_row = 0

    def as_one(self, listed: int) -> StorageFault:
        """What the job fails with, of so many images."""
        return StorageFault(f"{self.count} of {listed} images could not be read; the first of them: {self._first}")


@dataclass(eq=False)
class Reading:
    """What is known of the reading of one job.

    Attributes:
        count: Images that were listed and had to be read so far.
        refused: Images that came without bytes, with the reason; their rows are still to be made.
        is_listed: Whether nothing will be added any more.
        is_over: Whether nobody waits for its reads any more.
        sizes_are_wrong: Whether an image was larger than its listing says: then it is believed no more.
        faults: Images that the storage did not give.
        fault: What ended the reading before its end, if something did.
    """

    holding: Holding
    engine_key: tuple[str, str]
    changed: threading.Condition
    count: int = 0
    listed: deque[tuple[Source, ImageFile]] = field(default_factory=deque)
    slots: deque[Slot] = field(default_factory=deque)
    refused: deque[tuple[str, Verdict]] = field(default_factory=deque)
    on_their_way: int = 0
    is_listed: bool = False
    is_over: bool = False
    sizes_are_wrong: bool = False
    faults: Faults = field(default_factory=Faults)
    fault: Exception | None = None

    @property
    def is_read(self) -> bool:
        """Whether all that was listed is in memory, or was."""
        return not self.listed and not self.on_their_way and not self.refused

    def expected(self, images_per_job: float) -> float:
        """Images that are to be handed out, as far as one can tell."""
        more = 0.0 if self.is_listed else images_per_job - self.count
        return len(self.slots) + max(len(self.listed), more)


@dataclass(frozen=True)
class Read:
    """One image to read, to be settled afterwards in any case."""

    reading: Reading
    slot: Slot
    source: Source
    image: ImageFile
    began_at: float
