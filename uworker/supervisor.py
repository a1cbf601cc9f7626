"""The recogniser processes of a worker: gives them images, restarts them, and answers for every image exactly once.

Their number may change while they work, and how many threads recognise at once (`scaling` says what it shall be).

One thread, the one that started the supervisor, calls everything here but `wake`: the kernel is told to end children
with the thread that started them. Nothing here waits for a child, except `stop`.
"""

import queue
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from job_api.schemas import EngineRun
from job_api.text import clean_text
from uworker import aftermath
from uworker.child import EXIT_CANNOT_LOAD, Child, Events, Gone, Message, Wake, describe_exit
from uworker.dealing import Dealer
from uworker.seat import LONGEST_BACKOFF_SECONDS, Seat, Work
from uworker.tasks import CannotLoad, EngineReady, Fault, Finished, ImageTask, RecogniserConfig, Report, Room

MAX_DEATHS_BEFORE_READY = 3
"""Children that may die in a row while none was ever ready, before the engine counts as one that cannot load."""

__all__ = ["CannotLoad", "EngineReady", "Finished", "ImageTask", "RecogniserConfig", "Report", "Supervisor"]

_KILL_SECONDS = 30.0


class Supervisor:
    """A set of recogniser processes.

    Args:
        config: What each of them is started with.
        processes: How many, to begin with.
        on_line: Told each line that a process prints, with its pid, by a thread of that process. Must be quick.
        on_log: Told in words what happens, with a level as in `schemas.LogLevel`.
        fixed: Whether their number stays; otherwise one that was killed from outside, as for want of memory, leaves.
    """

    def __init__(
        self,
        config: RecogniserConfig,
        processes: int,
        on_line: Callable[[str, int], None],
        on_log: Callable[[str, str], None],
        *,
        fixed: bool = True,
    ) -> None:
        self._config = config
        self._on_line = on_line
        self._on_log = on_log
        self._fixed = fixed
        self._events: Events = queue.SimpleQueue()
        self._seats = [Seat() for _ in range(processes)]
        self._open: dict[int, Work] = {}
        self._dealer = Dealer(config.threads, processes * config.threads)
        self._reports: list[Report] = []
        self._running = False
        self._cannot_load = False
        self._ever_ready = False
        self._deaths_before_ready = 0

    def start(self) -> None:
        """Start the processes; they load their engine meanwhile."""
        self._running = True
        self._fill_seats()

    def free_slots(self) -> int:
        """Return how many images may be submitted now: two, or batches, for each thread in use, so that none runs dry.

        Those that were forgotten keep their place as long as they are in hands.
        """
        held = [work.task for work in (*self._open.values(), *self._unwanted())]
        return max(self._room().limit(sum(len(task.data) for task in held)) - len(held), 0)

    @property
    def room(self) -> Room:
        """How many images there may be here, those that are here included, beside those that nobody wants any more."""
        room, unwanted = self._room(), self._unwanted()
        # Whoever asks knows of those as little as of their bytes.
        most = room.limit(sum(len(work.task.data) for work in unwanted))
        return Room(max(room.images - len(unwanted), 0), max(most - len(unwanted), 0))

    def _room(self) -> Room:
        return self._dealer.room(self.processes, self._seats) if self.is_working else Room(0, 0)

    def _unwanted(self) -> list[Work]:
        return [work for seat in self._seats for task_id, work in seat.hands.items() if task_id not in self._open]

    def submit(self, task: ImageTask) -> None:
        """Take an image in. Exactly one `Finished` follows, unless it is forgotten or the supervisor stops.

        Raises:
            ValueError: an image of this id is outstanding.
        """
        if task.task_id in self._open:
            raise ValueError(f"image {task.task_id} is submitted twice")
        work = Work(task, task.solo)
        self._open[task.task_id] = work
        self._dealer.add(work)
        self._dealer.deal(self._seats)

    def forget(self, task_ids: set[int]) -> None:
        """Drop images that nobody wants any more; what a process has in its hands is finished, and not reported."""
        for task_id in task_ids:
            self._open.pop(task_id, None)
        self._dealer.drop(self._is_wanted)

    def outstanding(self) -> int:
        """Return how many images were submitted and are neither finished nor forgotten."""
        return len(self._open)

    def pids(self) -> list[int]:
        """Return the process ids of the recognisers that run now."""
        return [seat.child.pid for seat in self._seats if seat.child is not None]

    def ready_pids(self) -> list[int]:
        """Return the process ids of those that may be given images."""
        return [seat.child.pid for seat in self._seats if seat.child is not None and seat.is_open]

    @property
    def processes(self) -> int:
        """How many processes there are to be; one that died and is to be started again counts, a retiring one not."""
        return sum(not seat.retiring for seat in self._seats)

    @property
    def retiring(self) -> int:
        """How many processes only finish what is in their hands."""
        return sum(seat.retiring for seat in self._seats)

    @property
    def limit(self) -> int:
        """How many threads may recognise at once."""
        return self._dealer.limit

    @property
    def at_work(self) -> int:
        """How many threads may be at work: more than the limit only on images of before it was so low."""
        return self._dealer.at_work(self._seats)

    def resize(self, processes: int, limit: int) -> None:
        """Have `processes` processes of which at most `limit` threads recognise at once, both at least one.

        Those that are too many retire: they are given nothing any more, finish what is in their hands, and end.
        """
        self._dealer.limit = max(limit, 1)
        while self.processes < processes:
            self._seats.append(Seat())
        while self.processes > max(processes, 1):
            self._retire(min((s for s in self._seats if not s.retiring), key=lambda s: (s.is_open, len(s.hands))))
        self._fill_seats()
        self._dealer.deal(self._seats)

    def _retire(self, seat: Seat) -> None:
        seat.retiring = True
        if seat.child is None:
            self._seats.remove(seat)
        seat.close_when_done(time.monotonic())

    @property
    def is_working(self) -> bool:
        """Whether it starts processes: from `start` to `stop`, unless the engine turns out not to load."""
        return self._running and not self._cannot_load

    def wake(self) -> None:
        """Make `poll` return early; from any thread, and from a signal handler."""
        self._events.put(Wake())

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Wait for something to report, at most `timeout_seconds`, and meanwhile keep all processes going."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            woken = self._take_events(min(deadline, self._next_due()))
            self._end_overdue()
            self._fill_seats()
            self._dealer.deal(self._seats)
            for seat in self._seats:
                seat.close_when_done(time.monotonic())
            if self._reports or woken or time.monotonic() >= deadline:
                reports, self._reports = self._reports, []
                return reports

    def stop(self, grace_seconds: float) -> None:
        """End all processes: those that are not gone after `grace_seconds` are killed. Leaves none; may be repeated."""
        self._running = False
        children = [seat.child for seat in self._seats if seat.child is not None]
        deadline = time.monotonic() + grace_seconds
        for child in children:
            child.close()
        for child in children:
            if not child.join(deadline - time.monotonic()):
                child.kill()
        for child in children:
            child.join(_KILL_SECONDS)
        for seat in self._seats:
            seat.vacate(time.monotonic())

    # --- events ------------------------------------------------------------------------------------------------

    def _take_events(self, until: float) -> bool:
        """Act on all events there are, waiting `until` (monotonic) for the first; tell whether one was a `Wake`."""
        woken = False
        try:
            event = self._events.get(timeout=max(until - time.monotonic(), 0))
            while True:
                woken = self._take(event) or woken
                event = self._events.get_nowait()
        except queue.Empty:
            return woken

    def _take(self, event: Message | Gone | Wake) -> bool:
        if isinstance(event, Wake):
            return True
        seat = next((seat for seat in self._seats if seat.child is event.child), None)
        if seat is None:
            return False  # of a child that `stop` has ended
        if isinstance(event, Gone):
            self._bury(seat, event)
        else:
            self._listen(seat, event)
        return False

    def _listen(self, seat: Seat, message: Message) -> None:
        content = message.content
        seat.heard_at = message.heard_at
        match content["kind"]:
            case "ready":
                seat.ready = self._ever_ready = True
                self._dealer.max_batch = content["max_batch"]
                self._reports.append(EngineReady(EngineRun.model_validate(content["run"])))
            case "cannot_load":
                self._miss(seat, content["message"])
            case "started":
                task_id = content["task_id"]
                seat.start(task_id, content.get("batch", task_id), message.heard_at)
            case "finished":
                seat.failures = 0
                fault = Fault(**content["fault"]) if "fault" in content else None
                self._finish(seat.take_out(content["task_id"]), content["row"], fault)

    def _bury(self, seat: Seat, gone: Gone) -> None:
        """Empty the seat of a dead process and decide what becomes of the images in its hands."""
        if seat.closing_at is not None:
            self._seats.remove(seat)
            return
        ending = describe_exit(gone.exit_code)
        if gone.exit_code == EXIT_CANNOT_LOAD and not seat.ready:
            self._miss(seat, "the engine cannot be loaded")
        elif not seat.doomed:
            names = ", ".join(work.task.name for work in seat.hands.values())
            holding = f"{len(seat.hands)} images in its hands: {names}" if names else "no image in its hands"
            self._on_log("error", clean_text(f"recogniser {gone.child.pid} died ({ending}) with {holding}"))
        # Whoever decides on their number may start one again, where there is memory for it.
        left_for_memory = (
            gone.exit_code == -signal.SIGKILL and not seat.doomed and not self._fixed and self.processes > 1
        )
        if left_for_memory:
            self._on_log("warning", "it is not started again before there is memory for it")
        if not seat.ready and not self._ever_ready:
            self._deaths_before_ready += 1
            if self._deaths_before_ready >= MAX_DEATHS_BEFORE_READY:
                self._give_up(
                    f"{self._deaths_before_ready} recognisers in a row died while loading, the last: {ending}"
                )
        again = []
        for work in [work for work in seat.hands.values() if self._is_wanted(work)]:
            row = aftermath.judge(seat, work, ending, self._config.image_timeout_seconds)
            if row is None:
                again.append(work)
            else:
                self._finish(work, row)
        self._dealer.take_back(again)
        seat.vacate(time.monotonic())
        if seat.retiring or left_for_memory:
            self._seats.remove(seat)

    def _finish(self, work: Work, row: dict[str, Any], fault: Fault | None = None) -> None:
        if self._is_wanted(work):
            del self._open[work.task.task_id]
            self._reports.append(Finished(work.task.task_id, row, fault))

    def _miss(self, seat: Seat, message: str) -> None:
        """A process cannot load the engine: the end, unless another one has, which goes on."""
        if not any(other.is_open for other in self._seats if other is not seat):
            self._give_up(message)
        elif not seat.doomed:
            self._on_log("error", clean_text(f"a recogniser cannot be loaded, and others go on: {message}"))
            seat.doomed = True

    def _give_up(self, message: str) -> None:
        if not self._cannot_load:
            self._cannot_load = True
            self._reports.append(CannotLoad(message))

    def _is_wanted(self, work: Work) -> bool:
        return self._open.get(work.task.task_id) is work

    # --- processes ---------------------------------------------------------------------------------------------

    def _next_due(self) -> float:
        """Return when (monotonic) a process is to be started or killed next."""
        seats = [seat for seat in self._seats if seat.child is not None or self.is_working]
        return min((seat.next_due(self._config) for seat in seats), default=float("inf"))

    def _end_overdue(self) -> None:
        for seat in self._seats:
            why = seat.find_overdue(self._config, time.monotonic())
            if why is not None and seat.child is not None:
                seat.doomed = True
                self._on_log("error", clean_text(f"recogniser {seat.child.pid} is killed: {why}"))
                seat.child.kill()

    def _fill_seats(self) -> None:
        for seat in self._seats:
            if seat.child is None and self.is_working and time.monotonic() >= seat.restart_at:
                self._spawn(seat)

    def _spawn(self, seat: Seat) -> None:
        config = self._config
        message = {
            "engine": config.engine,
            "engine_options": config.engine_options,
            "threads": config.threads,
            "weights_home": str(config.weights_home),
            "max_pixels": config.max_pixels,
            "command": None if config.command is None else asdict(config.command),
        }
        try:
            seat.child = Child(message, config.weights_home, self._events, self._on_line)
        except OSError as error:
            self._on_log("error", f"a recogniser cannot be started: {error}")
            seat.restart_at = time.monotonic() + LONGEST_BACKOFF_SECONDS
        seat.spawned_at = time.monotonic()
