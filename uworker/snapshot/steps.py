"""The steps of a build as people see them: what begins, what is said meanwhile, and how long it took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


class Steps:
    """Announces steps, numbered.

    Args:
        total: how many there will be.
        say: shows a line.
    """

    def __init__(self, total: int, say: Say) -> None:
        self._total = total
        self._say = say
        self._number = 0

    @contextmanager
    def step(self, what: str) -> Iterator[Say]:
        """Announce a step, and at its end its time; yields what says more about it."""
        self._number += 1
        began = time.monotonic()
        self._say(f"[{self._number}/{self._total}] {what}")
        yield lambda line: self._say(f"      {line}")
        self._say(f"      done in {time.monotonic() - began:.1f} s")
