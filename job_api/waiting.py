"""Claims that wait for a job, in the order in which they came: long polls. They hold no database connection.

Whoever queues jobs rings; as many claims wake as there are jobs, at most `LANES` at once, and each that got a job wakes
the next. So 2,000 waiting workers do not all run for one job, and a million jobs still reach all of them.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LANES = 8


class Seat:
    """The place of one waiting claim.

    Args:
        project: the project it waits for; None for any.
    """

    def __init__(self, room: "WaitingRoom", project: str | None) -> None:
        self.project = project
        self._room = room
        self._called = asyncio.Event()
        self.owes_a_look = False

    @property
    def called(self) -> bool:
        """Whether it was called and has not waited again since."""
        return self._called.is_set()

    def call(self) -> None:
        """Wake the claim."""
        self._called.set()

    async def wait(self, seconds: float) -> bool:
        """Wait to be called, or for `seconds`; returns whether it was called, also before it waited."""
        try:
            async with asyncio.timeout(seconds):
                await self._called.wait()
        except TimeoutError:
            return False
        return True

    def sit_down_again(self) -> None:
        """Wait for the next call, behind those who wait now; a look is owed for the last one."""
        self.owes_a_look = True
        self._called.clear()
        self._room.sit_down(self)

    def has_looked(self) -> None:
        """What the last call was for was claimed, or was not there."""
        self.owes_a_look = False


class WaitingRoom:
    """The waiting claims of one process."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        # Those that wait for each project, and for any, by the number they drew: a dict keeps their order.
        self._waiting: dict[str | None, dict[int, Seat]] = {}
        self._number_of: dict[Seat, int] = {}
        self.closed = False

    def __len__(self) -> int:
        return len(self._number_of)

    @contextmanager
    def seat(self, project: str | None) -> Iterator[Seat]:
        """A seat to be taken before the queue is looked at, so that no call is missed in between.

        Whoever leaves although it was called, and has not looked since, passes the call on: the job is still there.
        """
        seat = Seat(self, project)
        self.sit_down(seat)
        try:
            yield seat
        finally:
            self._stand_up(seat)
            if seat.owes_a_look or seat.called:
                self._call_first((project, None) if project is not None else tuple(self._waiting))

    def sit_down(self, seat: Seat) -> None:
        """Draw a number, and give back the one it has: who is woken by its client's leaving still holds one."""
        self._stand_up(seat)
        if self.closed:
            seat.call()
            return
        number = next(self._numbers)
        self._number_of[seat] = number
        self._waiting.setdefault(seat.project, {})[number] = seat

    def _stand_up(self, seat: Seat) -> None:
        number = self._number_of.pop(seat, None)
        if number is not None:
            waiting = self._waiting[seat.project]
            del waiting[number]
            if not waiting:
                del self._waiting[seat.project]

    def ring(self, project: str, jobs: int) -> None:
        """Wake those who have waited longest of all that may have jobs of a project; at most one for each job."""
        for _ in range(min(jobs, LANES)):
            self._call_first((project, None))

    def _call_first(self, scopes: Sequence[str | None]) -> None:
        """Wake who has waited longest of those who wait for one of some projects, or for any (None)."""
        queues = [self._waiting[scope] for scope in scopes if scope in self._waiting]
        if queues:
            _, seat = min(next(iter(queue.items())) for queue in queues)
            self._stand_up(seat)
            seat.call()

    def close(self) -> None:
        """Wake everybody, and let nobody wait any more: the process is about to end."""
        self.closed = True
        for seat in list(self._number_of):
            self._stand_up(seat)
            seat.call()
