"""The images that a worker has given to an engine apart, and what becomes of them when that engine dies.

They are sent again, to an engine that is not sent batches meanwhile. An image that was in the hands of two engines that
died is tried alone, and a third death ends it as `crashed`; an end that the engine has announced counts for nothing.
Owned by the main thread; sends nothing itself.
"""

import hashlib
from dataclasses import dataclass

from job_api.schemas import ResultStatus
from uworker.tasks import Finished, ImageTask, Room

DEATHS_BEFORE_ALONE = 2


@dataclass(eq=False)
class _Held:
    task: ImageTask
    deaths: int = 0
    is_sent: bool = False


class Hands:
    """What was submitted and is neither finished nor forgotten, in that order."""

    def __init__(self) -> None:
        self._open: dict[int, _Held] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def held_bytes(self) -> int:
        """What the images come to."""
        return sum(len(held.task.data) for held in self._open.values())

    @property
    def has_suspects(self) -> bool:
        """Whether an image is to be tried alone; until all of them are, nothing new is taken in."""
        return any(held.deaths >= DEATHS_BEFORE_ALONE for held in self._open.values())

    def most(self, room: Room) -> int:
        """Return how many may be at an engine with so much room.

        While there are any that an engine died with, none is there for the sake of batches: each that is sent is one
        more to be tried alone if the next engine dies of one of them.
        """
        has_died = any(held.deaths > 0 for held in self._open.values())
        return room.images if has_died else room.limit(self.held_bytes)

    def add(self, task: ImageTask) -> None:
        """Take an image in.

        Raises:
            ValueError: one of this id is there already.
        """
        if task.task_id in self._open:
            raise ValueError(f"image {task.task_id} is submitted twice")
        self._open[task.task_id] = _Held(task)

    def take_due(self, capacity: int) -> list[ImageTask]:
        """Return the images that are to be sent now to an engine that may have so many; they count as sent."""
        sent = sum(held.is_sent for held in self._open.values())
        waiting = [held for held in self._open.values() if not held.is_sent]
        plain = [held for held in waiting if held.deaths < DEATHS_BEFORE_ALONE]
        due = plain[: max(capacity - sent, 0)]
        if waiting and not plain and not sent and capacity:
            due = waiting[:1]
        for held in due:
            held.is_sent = True
        return [
            ImageTask(held.task.task_id, held.task.name, held.task.data, solo=held.deaths >= DEATHS_BEFORE_ALONE)
            for held in due
        ]

    def finish(self, task_id: int) -> bool:
        """An image is answered for; returns whether anybody waits for it."""
        return self._open.pop(task_id, None) is not None

    def forget(self, task_ids: set[int]) -> set[int]:
        """Drop images; returns those of them that the engine knows."""
        dropped = [self._open.pop(task_id) for task_id in task_ids if task_id in self._open]
        return {held.task.task_id for held in dropped if held.is_sent}

    def sent_names(self) -> list[str]:
        """The names of the images that the engine has."""
        return [held.task.name for held in self._open.values() if held.is_sent]

    def take_back(self, *, died: bool) -> list[Finished]:
        """The engine is gone; returns rows of images that it cannot have survived, and keeps the others to be sent."""
        crashed = []
        for held in [held for held in self._open.values() if held.is_sent]:
            held.is_sent = False
            if not died:
                continue
            if held.deaths >= DEATHS_BEFORE_ALONE:
                del self._open[held.task.task_id]
                crashed.append(_crashed(held.task))
            held.deaths += 1
        return crashed


def _crashed(task: ImageTask) -> Finished:
    row = {
        "status": ResultStatus.CRASHED.value,
        "error_message": "the engine died on this image, tried alone",
        "image_sha256": hashlib.sha256(task.data).hexdigest(),
    }
    return Finished(task.task_id, row)
