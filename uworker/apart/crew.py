"""The worker's recognisers where they are apart: what `uworker.crew.Crew` is where they are its own processes.

Owned by the main thread. Nothing here waits for the engine: what it says comes out of a queue, and what it is told goes
into one. Images stay here until they are answered for, so that they outlive the engine.
"""

import logging
import queue
import time
from pathlib import Path

from job_api.schemas import EngineRun, MachineLoad
from uworker.apart.hands import Hands
from uworker.apart.link import Events, Heard, Joined, Link, Parted, Wake
from uworker.apart.wire import CannotLoad as CannotLoadSaid
from uworker.apart.wire import Finished as FinishedSaid
from uworker.apart.wire import Forget, FromEngine, Image, Leaving, Load, Log, Ready, State, Wire
from uworker.journal import CHILDREN_LOGGER
from uworker.tasks import CannotLoad, EngineOrder, EngineReady, Fault, Finished, ImageTask, Report, Room, words_of
from uworker.weights import WeightsError

log = logging.getLogger(__name__)
children_log = logging.getLogger(CHILDREN_LOGGER)

# An engine speaks once a second: that it does not is said, and later it is given up.
REPORT_SILENCE_SECONDS, SILENCE_SECONDS = 15.0, 60.0
MAX_DEATHS_WHILE_LOADING = 3
"""Engines that may die in a row before they are ready, until it counts as one that cannot be loaded."""


class CrewApart:
    """Recognisers behind a socket, for one engine at a time.

    Args:
        path: the socket.
        worker_id: who asks.
        silence_seconds: an engine that says nothing for so long is taken for dead.
    """

    def __init__(self, path: Path, worker_id: str, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._path = path
        self._events: Events = queue.SimpleQueue()
        self._link = Link(path, worker_id, self._events, silence_seconds)
        self._report_silence_seconds = min(REPORT_SILENCE_SECONDS, silence_seconds / 2)
        self._wire: Wire | None = None
        self._engine_plan = ""
        self._state = State(capacity=0, threads=0, load=MachineLoad())
        self._order: EngineOrder | None = None
        self._order_number = 0
        self._is_ready = False
        self._run: EngineRun | None = None
        self._trouble: WeightsError | None = None
        self._hands = Hands()
        self._reports: list[Report] = []
        self._leaving = False
        self._deaths_while_loading = 0
        self._heard_at = self._parted_at = time.monotonic()
        self._silence_said = False
        self._why_away = ""
        self._absence_said = False

    @property
    def plan(self) -> str:
        """Where the recognisers are, and how many that engine plans to have."""
        return f"engine apart at {self._path}" + (f": {self._engine_plan}" if self._engine_plan else "")

    @property
    def hindrance(self) -> str | None:
        """What keeps it from taking images that are ready for it, in words."""
        if self._wire is None:
            return f"waiting for the engine at {self._path}"
        if self._silence_said:
            return f"the engine at {self._path} says nothing"
        return None

    @property
    def away_seconds(self) -> float:
        """For how long there has been no engine; 0 where there is one."""
        return 0.0 if self._wire is not None else time.monotonic() - self._parted_at

    @property
    def engine_key(self) -> tuple[str, str] | None:
        """Whose jobs the recognisers are, or are being, loaded for."""
        return self._order.key if self._order is not None else None

    @property
    def threads(self) -> int:
        """Threads that may recognise at once; from any thread."""
        return self._state.threads

    @property
    def machine_load(self) -> MachineLoad:
        """What the engine's machine, or container, does, and how many recognisers work there; from any thread."""
        return self._state.load

    def prepare(self, order: EngineOrder) -> bool:
        """Have recognisers of an engine made; True when they may be given images.

        Raises:
            WeightsError: the engine has not the weights, or there is another engine now than there was before.
        """
        if order != self._order:
            if len(self._hands):
                return False
            self._order, self._run, self._trouble = order, None, None
            self._deaths_while_loading = 0
            self._send_order()
        if self._trouble is not None:
            raise self._trouble
        return self._is_ready

    def free_slots(self) -> int:
        """Images that may be submitted now."""
        if not self._is_ready or self._hands.has_suspects:
            return 0
        return max(self._hands.most(self._room) - len(self._hands), 0)

    @property
    def _room(self) -> Room:
        state = self._state
        return Room(state.capacity, max(state.capacity, state.batched_capacity))

    @property
    def for_batches(self) -> int:
        """Images that may be in hand for the sake of full batches, beyond two for each thread; from any thread."""
        return self._room.for_batches

    def submit(self, task: ImageTask) -> None:
        """Take an image in. Exactly one `Finished` follows, unless it is forgotten."""
        self._hands.add(task)
        self._deal()

    def forget(self, task_ids: set[int]) -> None:
        """Nobody wants these images any more."""
        known = self._hands.forget(task_ids)
        if known and self._wire is not None:
            self._wire.send(Forget(task_ids=sorted(known)))

    def poll(self, seconds: float) -> list[Report]:
        """What the engine reports, waiting at most `seconds`; the first call begins to look for it."""
        self._link.start()
        deadline = time.monotonic() + seconds
        while True:
            woken = self._take_events(deadline)
            self._deal()
            self._mind_silence()
            if self._reports or woken or time.monotonic() >= deadline:
                reports, self._reports = self._reports, []
                return reports

    def last_reports(self) -> list[Report]:
        """What the engine has reported by now; the worker ends."""
        self._take_events(time.monotonic())
        reports, self._reports = self._reports, []
        return reports

    def wake(self) -> None:
        """Make `poll` return early; from any thread, and from a signal handler."""
        self._events.put(Wake())

    def stop(self, grace_seconds: float) -> None:  # noqa: ARG002 (there are no processes here that it would be for)
        """Hang up; the engine forgets what it was sent."""
        self._link.stop()

    # --- what comes ---

    def _take_events(self, until: float) -> bool:
        """Act on all events there are, waiting `until` (monotonic) for the first; tell whether one was a `Wake`."""
        woken = False
        try:
            event = self._events.get(timeout=max(until - time.monotonic(), 0))
            while True:
                match event:
                    case Joined(wire, hello):
                        self._join(wire, hello.about)
                    case Heard(wire, message) if wire is self._wire:
                        self._hear(message)
                    case Parted(wire, why, is_absent):
                        self._part(wire, why, is_absent=is_absent)
                    case Wake():
                        woken = True
                event = self._events.get_nowait()
        except queue.Empty:
            return woken

    def _join(self, wire: Wire, engine_plan: str) -> None:
        self._wire, self._engine_plan = wire, engine_plan
        self._heard_at, self._why_away = time.monotonic(), ""
        self._leaving = self._absence_said = False
        log.info("connected to the %s", self.plan)
        self._send_order()

    def _send_order(self) -> None:
        self._order_number += 1
        self._is_ready = False
        if self._wire is not None and (order := self._order) is not None:
            self._wire.send(
                Load(
                    order=self._order_number,
                    engine=order.engine,
                    engine_options=order.engine_options,
                    max_pixels=order.max_pixels,
                    image_timeout_seconds=order.image_timeout_seconds,
                    weights_sha256=order.weights_sha256,
                )
            )

    def _hear(self, message: FromEngine) -> None:
        self._heard_at = time.monotonic()
        match message:
            case State():
                self._state = message
            case Ready(order=number, run=run) if number == self._order_number:
                self._begin(run)
            case FinishedSaid(task_id=task_id, row=row, fault=fault):
                if self._hands.finish(task_id):
                    told = None if fault is None else Fault(fault.kind, fault.traceback)
                    self._reports.append(Finished(task_id, row, told))
            case CannotLoadSaid(order=number, message=words, weights=True) if number == self._order_number:
                self._give_up(words)
            case CannotLoadSaid(order=number, message=words) if number == self._order_number:
                self._reports.append(CannotLoad(words))
            case Log(level=level, message=words, children=True):
                children_log.debug("%s", words)
            case Log(level=level, message=words):
                log.log(logging.getLevelNamesMapping()[level.upper()], "engine: %s", words)
            case Leaving():
                self._leaving = True

    def _begin(self, run: EngineRun) -> None:
        if self._run is not None and run != self._run:
            # Rows of the other one may be on their way, and would be told of as this one's.
            others = f"another engine ({words_of(run)}) has taken the place of the one before ({words_of(self._run)})"
            self._give_up(f"{others}; start again")
            return
        self._run, self._is_ready, self._deaths_while_loading = run, True, 0
        self._reports.append(EngineReady(run))

    def _give_up(self, message: str) -> None:
        self._trouble = WeightsError(message)
        if len(self._hands):
            # Nothing more may be read, and then nobody asks whether it is ready.
            self._reports.append(CannotLoad(message))

    def _part(self, wire: Wire | None, why: str, *, is_absent: bool) -> None:
        if wire is not None and wire is self._wire:
            names = self._hands.sent_names()
            if self._leaving:
                log.warning("the engine at %s was stopped; waiting for the next", self._path)
            else:
                with_these = f" with {len(names)} images in its hands: {', '.join(names)}" if names else ""
                log.error("%s%s; waiting for the next", why, with_these)
                self._count_death()
            self._reports += self._hands.take_back(died=not self._leaving)
            self._wire, self._is_ready, self._silence_said = None, False, False
            self._state = State(capacity=0, threads=0, load=MachineLoad())
            self._parted_at = time.monotonic()
            # That it is gone was just said.
            self._absence_said = True
        elif why != self._why_away and not (is_absent and self._absence_said):
            log.warning("%s", why)
            self._why_away, self._absence_said = why, is_absent

    def _count_death(self) -> None:
        if self._order is not None and not self._is_ready:
            self._deaths_while_loading += 1
            if self._deaths_while_loading == MAX_DEATHS_WHILE_LOADING:
                self._reports.append(CannotLoad(f"{MAX_DEATHS_WHILE_LOADING} engines in a row died while loading"))

    def _mind_silence(self) -> None:
        is_silent = self._wire is not None and time.monotonic() - self._heard_at >= self._report_silence_seconds
        if is_silent and not self._silence_said:
            log.warning(
                "the engine at %s has said nothing for %g s; is its container paused, or its machine short of memory?",
                self._path,
                round(time.monotonic() - self._heard_at),
            )
        self._silence_said = is_silent

    def _deal(self) -> None:
        if self._is_ready and self._wire is not None:
            for task in self._hands.take_due(self._hands.most(self._room)):
                self._wire.send(Image(task_id=task.task_id, name=task.name, solo=task.solo), task.data)
