"""An engine apart: listens on a Unix socket, and recognises for the worker that connects, one at a time.

It has neither credentials nor network, and knows nothing but images. The main thread owns the recognisers and acts;
connections have a thread each, which reads. What a worker has sent is forgotten when its connection ends; the
recognisers stay loaded, and serve the next worker that wants the same.
"""

import itertools
import logging
import queue
import sys
import threading
import time
from dataclasses import dataclass, field

from job_api.schemas import LogLevel
from job_api.text import clean_text
from uworker.apart import wire as said
from uworker.apart.door import Door, Joined, Left, Message
from uworker.apart.wire import FromWorker, Wire
from uworker.crew import Crew, plan_for
from uworker.journal import CHILDREN_LOGGER, LineFormatter, SecretFilter
from uworker.noise import quieten
from uworker.settings import ApartSettings
from uworker.signals import EndSignals
from uworker.tasks import CannotLoad, EngineOrder, EngineReady, Finished, ImageTask, Report, Room, words_of
from uworker.weights import WeightsError

log = logging.getLogger(__name__)

LOOP_SECONDS = 0.25
STATE_SECONDS = 1.0
LIFE_SECONDS = 5.0
FAREWELL_SECONDS = 1.0


@dataclass(eq=False)
class Session:
    """The worker that is connected now.

    Attributes:
        wire: the connection.
        worker_id: who it is.
        order: what it wants; `order_number`: how it calls that.
        is_prepared: whether the recognisers are made, if not loaded.
        tasks: its images by the ids that they have here: another worker's ids may be the same.
        state: what it was told last, and when.
        most: the most images that it was told it may have.
    """

    wire: Wire
    worker_id: str
    order: EngineOrder | None = None
    order_number: int = 0
    is_prepared: bool = False
    tasks: dict[int, int] = field(default_factory=dict)
    state: said.State | None = None
    told_at: float = 0.0
    most: int = 0


class Forward(logging.Handler):
    """Sends log lines to the worker that is connected, unless it is far behind; from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self.wire: Wire | None = None
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line, and first how many could not be."""
        if (wire := self.wire) is None or getattr(record, "here", False):
            return
        if self._dropped:
            words = f"{self._dropped} log lines were dropped, since the worker took none"
            if wire.offer(said.Log(level=LogLevel.WARNING, message=words, children=False)):
                self._dropped = 0
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        line = said.Log(
            level=LogLevel(logging.getLevelName(level).lower()),
            message=clean_text(record.getMessage()),
            children=record.name == CHILDREN_LOGGER,
        )
        self._dropped += not wire.offer(line)


class Engine:
    """One engine process.

    Raises:
        DoorError: it cannot listen.
    """

    def __init__(self, settings: ApartSettings) -> None:
        self._settings = settings
        self._bell = threading.Event()
        self._crew = Crew(settings, plan_for(settings), self._wake)
        # Not the bell: its lock may be in the hands of the very thread that is interrupted.
        self._signals = EndSignals(self._crew.wake)
        self._door = Door(settings.engine_socket, about=str(self._crew.plan), wake=self._wake)
        self._session: Session | None = None
        self._loaded: EngineOrder | None = None
        """What the recognisers are loaded with, or are being, as far as they can be."""
        self._ready: EngineReady | None = None
        self._task_ids = itertools.count()
        self._forward = Forward()
        self._life_shown_at = 0.0

    def run(self) -> None:
        """Recognise until told to stop."""
        self._signals.listen()
        logging.getLogger().addHandler(self._forward)
        log.info("engine: %s; listening at %s", self._crew.plan, self._settings.engine_socket)
        try:
            self._door.start()
            while not self._signals:
                self._take_events()
                self._prepare()
                self._tell_state()
                self._show_life()
                self._work()
        finally:
            self._end()

    def _show_life(self) -> None:
        if (now := time.monotonic()) - self._life_shown_at >= LIFE_SECONDS:
            self._door.show_life()
            self._life_shown_at = now

    def _wake(self) -> None:
        self._bell.set()
        self._crew.wake()

    def _end(self) -> None:
        """Finish nothing; the worker sends what is unanswered to the next engine."""
        # First: whoever is sent away comes back at once, and is not to be let in again.
        self._door.close()
        if (session := self._session) is not None:
            if self._signals:
                log.info("the engine ends; what it has in its hands is left to the next")
                session.wire.send(said.Leaving())
            # Else it fails, maybe of an image, and is to be counted like any other death.
            self._forward.wire = None
            session.wire.close(FAREWELL_SECONDS)
        self._crew.stop(grace_seconds=0)
        log.info("the engine has ended")

    # --- what comes from the worker ---

    def _take_events(self) -> None:
        self._bell.clear()
        while True:
            try:
                event = self._door.events.get_nowait()
            except queue.Empty:
                return
            match event:
                case Joined(wire, hello):
                    self._session = Session(wire, hello.about)
                    log.info("the worker %s is connected", hello.about)
                    self._forward.wire = wire
                case Left(wire, why):
                    self._part(wire, why)
                case Message(wire, message, data) if self._session is not None and wire is self._session.wire:
                    self._obey(self._session, message, data)

    def _part(self, wire: Wire, why: str) -> None:
        session = self._session
        if session is not None and session.wire is wire:
            self._forward.wire = None
            dropped = f"; {len(session.tasks)} images are forgotten" if session.tasks else ""
            log.info("the worker %s is gone (%s)%s", session.worker_id, why, dropped)
            self._crew.forget(set(session.tasks))
            self._session = None
        # Only now may another come in.
        self._door.admit_next()

    def _obey(self, session: Session, message: FromWorker, data: bytes) -> None:
        match message:
            case said.Load():
                self._take_order(session, message)
            case said.Image() if not session.is_prepared:
                log.debug("an image of an order that was refused is dropped")
            case said.Image() if len(session.tasks) < session.most:
                task_id = next(self._task_ids)
                session.tasks[task_id] = message.task_id
                self._crew.submit(ImageTask(task_id, clean_text(message.name), data, message.solo))
            case said.Image():
                log.warning("the worker %s sends more than it may; it is hung up on", session.worker_id)
                session.wire.close()
            case said.Forget(task_ids=task_ids):
                unwanted = {ours for ours, theirs in session.tasks.items() if theirs in set(task_ids)}
                for ours in unwanted:
                    del session.tasks[ours]
                self._crew.forget(unwanted)

    def _take_order(self, session: Session, load: said.Load) -> None:
        self._crew.forget(set(session.tasks))
        session.tasks.clear()
        session.is_prepared = False
        session.order_number = load.order
        session.order = EngineOrder(
            engine=load.engine,
            engine_options=load.engine_options,
            max_pixels=load.max_pixels,
            image_timeout_seconds=load.image_timeout_seconds,
            weights_sha256=load.weights_sha256,
        )
        if self._loaded != session.order:
            self._unload()

    def _unload(self) -> None:
        self._crew.drop()
        self._loaded = self._ready = None

    # --- what goes to the worker ---

    def _prepare(self) -> None:
        """Have the recognisers made that are wanted, and tell it where they are there already."""
        session = self._session
        if session is None or session.order is None or session.is_prepared:
            return
        try:
            session.is_prepared = self._crew.prepare(self._pinned(session.order))
        except WeightsError as error:
            log.error("%s", error)  # noqa: TRY400 (it says what is wrong)
            self._refuse_order(session, str(error), weights=True)
            return
        if session.is_prepared:
            self._loaded = session.order
            if self._ready is not None:
                self._say_ready(session, self._ready)

    def _pinned(self, order: EngineOrder) -> EngineOrder:
        """The order with the weights that are pinned here, if they are.

        Raises:
            WeightsError: worker and engine pin different ones.
        """
        pins = {pin.lower() for pin in (order.weights_sha256, self._settings.weights_sha256) if pin is not None}
        if len(pins) > 1:
            raise WeightsError("worker and engine have different UWORKER_WEIGHTS_SHA256; take it from one of them")
        return order if not pins else EngineOrder(**{**vars(order), "weights_sha256": pins.pop()})

    def _refuse_order(self, session: Session, message: str, *, weights: bool) -> None:
        session.wire.send(said.CannotLoad(order=session.order_number, message=clean_text(message), weights=weights))
        session.order, session.is_prepared = None, False
        self._unload()

    def _work(self) -> None:
        """Let the recognisers go on for a while, and pass on what they report."""
        reports = self._crew.poll(LOOP_SECONDS)
        if reports is None:
            self._bell.wait(LOOP_SECONDS)
        for report in reports or []:
            self._pass_on(report)

    def _pass_on(self, report: Report) -> None:
        session = self._session
        match report:
            case Finished(task_id, row, fault):
                if session is not None and (theirs := session.tasks.pop(task_id, None)) is not None:
                    told = None if fault is None else said.Fault(kind=fault.kind, traceback=fault.traceback)
                    session.wire.send(said.Finished(task_id=theirs, row=row, fault=told))
            case EngineReady(run):
                self._ready = report
                # The worker says so itself.
                log.info("a recogniser is ready: %s", words_of(run), extra={"here": True})
                if session is not None and session.is_prepared:
                    self._say_ready(session, report)
            case CannotLoad(message):
                log.error("the engine cannot be loaded: %s", message)
                if session is not None:
                    self._refuse_order(session, message, weights=False)
                else:
                    self._unload()

    def _say_ready(self, session: Session, ready: EngineReady) -> None:
        # First, so that the worker knows how much it may send.
        self._tell_state()
        session.wire.send(said.Ready(order=session.order_number, run=ready.run))

    def _tell_state(self) -> None:
        session, now = self._session, time.monotonic()
        if session is None:
            return
        room = self._crew.room if session.is_prepared and self._ready is not None else Room(0, 0)
        state = said.State(
            capacity=room.images,
            batched_capacity=room.most,
            threads=self._crew.threads,
            load=self._crew.machine_load,
        )
        if state == session.state and now - session.told_at < STATE_SECONDS:
            return
        session.most = max(session.most, room.most)
        session.state, session.told_at = state, now
        session.wire.offer(state)


def main(settings: ApartSettings) -> None:
    """Run an engine until it is told to stop.

    Raises:
        DoorError: it cannot listen.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(SecretFilter([])))
    handler.setLevel(settings.log_level)
    root = logging.getLogger()
    root.setLevel(settings.log_level)
    root.addHandler(handler)
    logging.getLogger(CHILDREN_LOGGER).setLevel(logging.DEBUG)
    quieten(root.level)
    Engine(settings).run()
