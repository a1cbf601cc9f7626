"""The place of one recogniser process in its set: the process, if there is one, and the images in its hands."""

from collections import Counter
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
        batch_of: The batch that each of these is in, by the id of its first image; one that is alone is its own batch.
        taken_up: How many images of each of these batches it took up, those that it has answered since included.
        unit_of: The unit of those in its hands that were given in one, by the id of its first image.
        heard_at: When it said something last.
        overdue: Those of them that it was killed for.
        in_doubt: Those of these that were not alone: which of them has held up the others cannot be told.
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
    batch_of: dict[int, int] = field(default_factory=dict)
    taken_up: Counter[int] = field(default_factory=Counter)
    unit_of: dict[int, int] = field(default_factory=dict)
    heard_at: float = 0.0
    overdue: set[int] = field(default_factory=set)
    in_doubt: set[int] = field(default_factory=set)
    failures: int = 0
    restart_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether its process can be given images."""
        return self.child is not None and self.ready and not self.doomed and not self.retiring

    @property
    def most_at_work(self) -> int:
        """How many threads could be at work on what is in its hands: one for each unit, batch and other image."""
        return len({self.unit_of.get(i, self.batch_of.get(i, i)) for i in self.hands})

    def give(self, *works: Work) -> None:
        """Put images into the hands of the process, which there must be; several are a unit, for one of its threads."""
        if self.child is None:
            raise ValueError("an empty seat cannot be given images")
        for work in works:
            task = work.task
            self.hands[task.task_id] = work
            if len(works) > 1:
                self.unit_of[task.task_id] = works[0].task.task_id
            self.child.give(task.task_id, task.data, more=work is not works[-1])

    def start(self, task_id: int, batch: int, at: float) -> None:
        """Its process takes an image up; one that it had taken up before was in a batch that has come to nothing."""
        if task_id in self.started_at:
            # The others wait until they are taken up again as well, so that this one's time is not theirs.
            come_to_nothing = self.batch_of[task_id]
            for other in [i for i, each in self.batch_of.items() if each == come_to_nothing]:
                del self.started_at[other], self.batch_of[other]
            del self.taken_up[come_to_nothing]
        self.started_at[task_id], self.batch_of[task_id] = at, batch
        self.taken_up[batch] += 1

    def take_out(self, task_id: int) -> Work:
        """Its process has answered for an image."""
        self.started_at.pop(task_id, None)
        batch = self.batch_of.pop(task_id, task_id)
        if batch not in self.batch_of.values():
            del self.taken_up[batch]
        self.unit_of.pop(task_id, None)
        return self.hands.pop(task_id)

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
        due = now - config.image_timeout_seconds
        if not any(at <= due for at in self.started_at.values()):
            return None
        # One that says nothing may be kept from it by any thread, as one that keeps the interpreter from the others.
        is_mute = now - self.heard_at >= MUTE_SECONDS
        group_of = dict.fromkeys(self.started_at, 0) if is_mute else self.batch_of
        sizes, late_groups = Counter(group_of.values()), {group_of[i] for i, at in self.started_at.items() if at <= due}
        self.overdue = {i for i, group in group_of.items() if group in late_groups}
        self.in_doubt = {i for i in self.overdue if sizes[group_of[i]] > 1 or self.taken_up[self.batch_of[i]] > 1}
        names = ", ".join(self.hands[task_id].task.name for task_id in self.overdue)
        why = f"{names} took longer than {config.image_timeout_seconds:g} s"
        return f"{why}, and it says nothing any more" if is_mute else why

    def vacate(self, now: float) -> None:
        """Empty the seat of a process that is gone; the next may come after a pause that doubles each time."""
        self.child, self.ready, self.doomed = None, False, False
        self.hands, self.started_at, self.batch_of, self.unit_of = {}, {}, {}, {}
        self.taken_up = Counter()
        self.overdue, self.in_doubt = set(), set()
        self.failures += 1
        self.restart_at = now + min(FIRST_BACKOFF_SECONDS * 2 ** min(self.failures - 1, 16), LONGEST_BACKOFF_SECONDS)
