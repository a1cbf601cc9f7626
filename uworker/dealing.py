"""Which image goes to which recogniser process next: the images that wait, those under suspicion, and the limit.

Knows processes by their seats, and only gives to them. Owned by the supervisor's thread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from uworker.seat import Seat, Work

IMAGES_PER_THREAD = 2
"""Images that a process has in its hands for each of its threads, so that none runs dry."""


class Dealer:
    """Deals images out.

    Args:
        threads: How many images each process recognises at once.
        limit: See `limit`.

    Attributes:
        limit: How many images may be recognised at once by all processes. Where it is less than their threads, they
            get no images in advance, for nobody could keep them from being taken up. One that was lowered takes
            effect as the images that are in hands already are finished.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._threads = threads
        self.limit = limit
        self._waiting: deque[Work] = deque()
        self._suspects: deque[Work] = deque()
        self._apart: Seat | None = None

    def slots(self, processes: int) -> int:
        """Return how many images may be in hands or waiting, with so many processes."""
        return IMAGES_PER_THREAD * min(processes * self._threads, self.limit)

    def add(self, work: Work) -> None:
        """Take in an image that nobody has had yet."""
        (self._suspects if work.solo else self._waiting).append(work)

    def take_back(self, works: Iterable[Work]) -> None:
        """Take in, in their order, images that a dead process had in its hands; they go before the others."""
        works = list(works)
        self._suspects.extend(work for work in works if work.solo)
        self._waiting.extendleft(reversed([work for work in works if not work.solo]))

    def drop(self, is_wanted: Callable[[Work], bool]) -> None:
        """Keep only images that are wanted."""
        self._waiting = deque(work for work in self._waiting if is_wanted(work))
        self._suspects = deque(work for work in self._suspects if is_wanted(work))

    def deal(self, seats: Sequence[Seat]) -> None:
        """Give images to processes: suspects to one that has nothing else, the rest to the least busy."""
        open_seats = [seat for seat in seats if seat.is_open]
        most_each, room = IMAGES_PER_THREAD * self._threads, len(self._waiting) + len(self._suspects)
        if self.limit < len(open_seats) * self._threads:
            most_each, room = self._threads, self.limit - sum(len(seat.hands) for seat in seats)
        if self._apart not in open_seats:
            self._apart = None
        if self._suspects and self._apart is None and open_seats:
            self._apart = min(open_seats, key=lambda seat: len(seat.hands))
        if self._apart is not None and not self._apart.hands:
            if not self._suspects:
                self._apart = None
            elif room > 0:
                self._apart.give(self._suspects.popleft())
                room -= 1
        others = [seat for seat in open_seats if seat is not self._apart]
        while self._waiting and others and room > 0:
            seat = min(others, key=lambda seat: len(seat.hands))
            if len(seat.hands) >= most_each:
                return
            seat.give(self._waiting.popleft())
            room -= 1
