"""The place of one recogniser process in its set: the process, if there is one, and the images in its hands."""

from dataclasses import dataclass, field

from uworker.child import Child
from uworker.tasks import ImageTask, RecogniserConfig

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
MUTE_SECONDS = 3.0
"""A recogniser says once a second that it lives, unless native code holds the interpreter lock."""


@dataclass(eq=False)
class Work:
    """An image on its way. `deaths` counts the processes that died with it in their hands."""

    task: ImageTask
    solo: bool
    deaths: int = 0


@dataclass(eq=False)
class Seat:
    """A process's place. Times are monotonic seconds.

    Attributes:
        child: The process; None while the seat is empty.
        ready: It has loaded its engine.
        doomed: It has been killed and is not gone yet.
        retiring: It is given nothing any more, and ends when it has answered for what is in its hands.
        closing_at: When it was told to end, its hands being empty; None before that.
        hands: The images it was given and has not answered, by task id, in that order.
        started_at: When it took up those of them that it works on.
        heard_at: When it said something last.
        overdue: Those of them that it was killed for.
        mute: It was killed having said nothing for a while, as when one thread keeps the interpreter from the others.
        failures: Processes that ended here since the last answer.
        restart_at: When an empty seat is to be filled.
    """

    child: Child | None = None
    ready: bool = False
    doomed: bool = False
    retiring: bool = False
    closing_at: float | None = None
    spawned_at: float = 0.0
    hands: dict[int, Work] = field(default_factory=dict)
    started_at: dict[int, float] = field(default_factory=dict)
    heard_at: float = 0.0
    overdue: set[int] = field(default_factory=set)
    mute: bool = False
    failures: int = 0
    restart_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether its process can be given images."""
        return self.child is not None and self.ready and not self.doomed and not self.retiring

    def give(self, work: Work) -> None:
        """Put an image into the hands of the process, which there must be."""
        if self.child is None:
            raise ValueError("an empty seat cannot be given images")
        self.hands[work.task.task_id] = work
        self.child.give(work.task.task_id, work.task.data)

    def close_when_done(self, now: float) -> None:
        """Tell a retiring process to end as soon as it has nothing in its hands."""
        if self.retiring and self.child is not None and not self.hands and self.closing_at is None:
            self.closing_at = now
            self.child.close()

    def next_due(self, config: RecogniserConfig) -> float:
        """Return when the seat is to be filled, or its process to be killed for being late."""
        if self.child is None:
            return self.restart_at
        if self.doomed:
            return float("inf")
        if self.closing_at is not None:
            return self.closing_at + config.end_timeout_seconds
        answers = [at + config.image_timeout_seconds for at in self.started_at.values()]
        return min(answers, default=float("inf")) if self.ready else self.spawned_at + config.load_timeout_seconds

    def find_overdue(self, config: RecogniserConfig, now: float) -> str | None:
        """Note what the process is late with at `now`, and return it in words, or None where it is in time."""
        if self.child is None or self.doomed:
            return None
        if self.closing_at is not None:
            late = now - self.closing_at >= config.end_timeout_seconds
            return "it did not end when it was told to" if late else None
        if not self.ready:
            late = now - self.spawned_at >= config.load_timeout_seconds
            return f"not ready after {config.load_timeout_seconds:g} s" if late else None
        self.overdue = {i for i, at in self.started_at.items() if now - at >= config.image_timeout_seconds}
        if not self.overdue:
            return None
        self.mute = now - self.heard_at >= MUTE_SECONDS
        if self.mute:
            # Which of them holds the others up cannot be told.
            self.overdue = set(self.started_at)
        names = ", ".join(self.hands[task_id].task.name for task_id in self.overdue)
        why = f"{names} took longer than {config.image_timeout_seconds:g} s"
        return f"{why}, and it says nothing any more" if self.mute else why

    def vacate(self, now: float) -> None:
        """Empty the seat of a process that is gone; the next may come after a pause that doubles each time."""
        self.child, self.ready, self.doomed = None, False, False
        self.hands, self.started_at, self.overdue, self.mute = {}, {}, set(), False
        self.failures += 1
        self.restart_at = now + min(FIRST_BACKOFF_SECONDS * 2 ** min(self.failures - 1, 16), LONGEST_BACKOFF_SECONDS)
