"""Images of equal bytes: one of them is recognised, and its answer stands for the others. Owned by the main thread.

An image whose twin is with the recognisers waits for that one's answer, whatever it is; a twin that no job wants any
more is finished for it all the same. One whose twin was answered gets that answer, as long as the twin's job is held
and where the answer says something of the image: what an engine raised, or died of, is tried again.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from job_api.schemas import ResultStatus
from uworker.holding import Holding
from uworker.readings import ReadImage
from uworker.tasks import Finished

MAX_WAITING = 1_000
"""Images that may wait for their twins; their rows come all at once."""
MAX_ANSWERS = 1_000
"""Answers that are remembered, a few kilobytes each."""

# Whoever asks again may hear something else.
_PASSING = frozenset({ResultStatus.ENGINE_ERROR.value, ResultStatus.TIMEOUT.value, ResultStatus.CRASHED.value})

_Key = tuple[tuple[str, str], str]


class Twins:
    """What is with the recognisers of one worker, and what they have answered, by engine and bytes.

    Args:
        is_held: whether a job is still this worker's.
    """

    def __init__(self, is_held: Callable[[Holding], bool]) -> None:
        self._is_held = is_held
        self._first: dict[_Key, ReadImage] = {}
        self._keys: dict[int, _Key] = {}
        self._waiting: dict[_Key, list[int]] = {}
        self._answers: OrderedDict[_Key, tuple[Holding, dict[str, Any]]] = OrderedDict()

    def answer(self, image: ReadImage) -> Finished | None:
        """The answer to an image, where its twin was answered before."""
        found = self._answers.get(_key(image))
        if found is None or not self._is_held(found[0]):
            return None
        return Finished(image.task.task_id, _copied(found[1]))

    def may_join(self, image: ReadImage) -> bool:
        """Whether its twin is with the recognisers, and there is room to wait for it."""
        return _key(image) in self._first and sum(map(len, self._waiting.values())) < MAX_WAITING

    def joins(self, image: ReadImage) -> bool:
        """Whether an image now waits for its twin; else it is to be recognised, and others may wait for it."""
        key = _key(image)
        if self.may_join(image):
            self._waiting.setdefault(key, []).append(image.task.task_id)
            return True
        if key not in self._first:
            self._first[key], self._keys[image.task.task_id] = image, key
        return False

    def finish(self, report: Finished) -> list[Finished]:
        """An image was recognised; returns the same for those that waited for it."""
        key = self._keys.pop(report.task_id, None)
        if key is None:
            return []
        holding = self._first.pop(key).holding
        if report.row.get("status") not in _PASSING:
            self._answers[key] = (holding, report.row)
            self._answers.move_to_end(key)
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return [Finished(task_id, _copied(report.row)) for task_id in self._waiting.pop(key, [])]

    def forget(self, task_ids: set[int]) -> set[int]:
        """Nobody wants these images any more; returns those of them that nobody waits for either."""
        for waiting in self._waiting.values():
            waiting[:] = [task_id for task_id in waiting if task_id not in task_ids]
        alone = {i for i in task_ids if i not in self._keys or not self._waiting.get(self._keys[i])}
        for task_id in alone & self._keys.keys():
            key = self._keys.pop(task_id)
            del self._first[key]
            self._waiting.pop(key, None)
        return alone


def _key(image: ReadImage) -> _Key:
    return image.holding.engine_key, image.sha256


def _copied(row: dict[str, Any]) -> dict[str, Any]:
    """The row of an image that was not recognised itself, which took no time."""
    return {**row, "duration_ms": 0}
