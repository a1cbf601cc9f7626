"""Which image goes to which recogniser process next: the images that wait, those under suspicion, and the limit.

Knows processes by their seats, and only gives to them. Owned by the supervisor's thread.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from uworker.seat import Seat, Work
from uworker.tasks import Room

IMAGES_PER_THREAD = 2
"""Images, or full batches, that a process has in its hands for each of its threads, so that none runs dry."""


class Dealer:
    """Deals images out.

    Args:
        threads: How many threads each process has.
        limit: See `limit`.

    Attributes:
        limit: How many threads of all processes may recognise at once. Where it is less than there are, they get
            no images in advance, for nobody could keep them from being taken up: they get units of images, each for
            one thread, and a thread's next when it has answered for the last. One that was lowered takes effect as the
            images that are in hands already are finished.
        max_batch: How many images the engine is handed at once at most; 1 until that is known.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._threads = threads
        self.limit = limit
        self.max_batch = 1
        self._waiting: deque[Work] = deque()
        self._suspects: deque[Work] = deque()
        self._apart: Seat | None = None

    def room(self, processes: int, seats: Sequence[Seat]) -> Room:
        """Return how many images may be in hands or waiting, with so many processes; batches are for open seats."""
        images = IMAGES_PER_THREAD * min(processes * self._threads, self.limit)
        batches = min(sum(seat.is_open for seat in seats) * self._threads, self.limit)
        return Room(images, images + IMAGES_PER_THREAD * (self.max_batch - 1) * batches)

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
        # Of one that retires threads are at work as well.
        most_at_work = sum(self._threads if seat.is_open else self._busy(seat) for seat in seats)
        if self.limit >= most_at_work:
            self._deal_suspect(open_seats)
            self._deal_in_advance(open_seats)
        elif (idle := self.limit - self.at_work(seats)) > 0:
            idle -= self._deal_suspect(open_seats)
            self._deal_units(open_seats, idle)

    def at_work(self, seats: Iterable[Seat]) -> int:
        """How many threads of all processes may be at work; more than the limit only on what was given before it."""
        return sum(self._busy(seat) for seat in seats)

    def _busy(self, seat: Seat) -> int:
        """How many threads of a process may be at work."""
        return min(seat.most_at_work, self._threads)

    def _deal_suspect(self, open_seats: Sequence[Seat]) -> int:
        """Have a process set apart while there are suspects, and give it one where it has nothing; tells how many."""
        if self._apart not in open_seats:
            self._apart = None
        if self._suspects and self._apart is None and open_seats:
            self._apart = min(open_seats, key=lambda seat: len(seat.hands))
        if self._apart is None or self._apart.hands:
            return 0
        if not self._suspects:
            self._apart = None
            return 0
        self._apart.give(self._suspects.popleft())
        return 1

    def _deal_in_advance(self, open_seats: Sequence[Seat]) -> None:
        others = [seat for seat in open_seats if seat is not self._apart]
        while self._waiting and others:
            seat = min(others, key=lambda seat: len(seat.hands))
            if len(seat.hands) >= IMAGES_PER_THREAD * self.max_batch * self._threads:
                return
            seat.give(self._waiting.popleft())

    def _deal_units(self, open_seats: Sequence[Seat], idle: int) -> None:
        """Give so many threads their share of what waits, at most a batch: with few images as many work as may."""
        others = [seat for seat in open_seats if seat is not self._apart]
        while self._waiting and others and idle > 0:
            seat = min(others, key=self._busy)
            if self._busy(seat) >= self._threads:
                return
            share = math.ceil(len(self._waiting) / self.limit)
            seat.give(*(self._waiting.popleft() for _ in range(min(share, self.max_batch))))
            idle -= 1
