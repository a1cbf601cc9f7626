"""What is known of the reading of a job, and of each of its images. Guarded by the lock of the `Lookahead` it is in."""

import threading
from collections import deque
from dataclasses import dataclass, field

from uworker.holding import Holding
from uworker.images import ImageFile, Source, Verdict
from uworker.tasks import ImageTask


class Unwanted(Exception):
    """Nobody wants the job any more, or the worker stops."""


@dataclass(frozen=True)
class ReadImage:
    """An image whose bytes are in memory, and the job it belongs to."""

    holding: Holding
    task: ImageTask


@dataclass(eq=False)
class Slot:
    """The place of an image that is on its way or in memory; `size` is what it takes, or is expected to."""

    size: int
    image: ReadImage | None = None


@dataclass(eq=False)
class Reading:
    """What is known of the reading of one job.

    Attributes:
        count: Images that were listed and had to be read so far.
        refused: Images that came without bytes, with the reason; their rows are still to be made.
        is_listed: Whether nothing will be added any more.
        is_over: Whether nobody waits for its reads any more.
        fault: What went wrong with a read, if something did.
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
