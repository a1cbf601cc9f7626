"""The signals that ask a process to end: the first is noted, and whoever insists has it end at once."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

# The same signal within it is one: who signals a whole group of processes, as Slurm does, reaches a worker twice where
# its parent hands signals on, as Apptainer does.
SAME_SIGNAL_SECONDS = 1.0


class EndSignals:
    """SIGTERM and SIGINT; true once one has come.

    Args:
        wake: called when one has come, between any two instructions of the main thread, so it must take no lock.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._first: tuple[int, float] | None = None

    def __bool__(self) -> bool:
        return self._first is not None

    def listen(self) -> None:
        """Take them from now on; by the main thread."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
        first, first_at = self._first
        if number != first or now > first_at + SAME_SIGNAL_SECONDS:
            # Asked twice: the children go with this process.
            os._exit(128 + signal.SIGTERM)
        self._wake()
