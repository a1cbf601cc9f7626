"""The recognisers a worker has at the moment: loaded for one engine, changed when a job needs another.

They are as many as the machine bears. Owned by the main thread. Weights are fetched and checked in a thread, so that a
download holds nothing up.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from job_api.schemas import MachineLoad
from uworker.commands import find_command
from uworker.journal import CHILDREN_LOGGER
from uworker.machine import read_machine
from uworker.pacer import Pacer
from uworker.prepared import choice
from uworker.scaling import Plan, Thresholds, plan
from uworker.settings import EngineSettings
from uworker.supervisor import Supervisor
from uworker.tasks import EngineOrder, ImageTask, RecogniserConfig, Report, Room
from uworker.weights import Weights, WeightsError, ensure_weights, is_hand_drawn

log = logging.getLogger(__name__)
children_log = logging.getLogger(CHILDREN_LOGGER)

PROGRESS_SECONDS = 10.0
STOP_SECONDS = 2.0


@dataclass
class _Fetch:
    """Weights that are being fetched for an order, or were; None: nothing had to be.

    Attributes:
        options: What the engine's options say beside the order's: the model is chosen once for all recognisers.
    """

    result: Weights | Exception | None = None
    options: dict[str, Any] = field(default_factory=dict)
    is_done: bool = False


class Crew:
    """Recognisers for one engine at a time.

    Args:
        settings: what this machine bears, and where the weights are.
        plan: how many processes there may be, and how many threads each of them has.
        wake: makes the main loop look again; from any thread.
    """

    hindrance: str | None = None
    """What keeps it from taking images, in words: nothing but an engine apart that is not there."""
    away_seconds: float = 0.0
    """For how long there has been no engine apart."""
    for_batches: int = 0
    """Images that may be in hand for the sake of full batches, beyond two for each thread; from any thread."""

    def __init__(self, settings: EngineSettings, plan: Plan, wake: Callable[[], None]) -> None:
        self._settings = settings
        self.plan = plan
        self._wake = wake
        self._weights_home = settings.weights_home.expanduser().absolute()
        self._pacer = Pacer(plan, Thresholds(settings.start_below_percent / 100, settings.memory_high_percent / 100))
        self._order: EngineOrder | None = None
        self._fetching: _Fetch | None = None
        self._supervisor: Supervisor | None = None

    @property
    def engine_key(self) -> tuple[str, str] | None:
        """Whose jobs the recognisers are, or are being, loaded for."""
        return self._order.key if self._order is not None else None

    def prepare(self, order: EngineOrder) -> bool:
        """Make recognisers of an engine; True when they may be given images.

        Raises:
            WeightsError: the engine's weights cannot be had.
        """
        if self._supervisor is not None and self._order == order:
            return True
        if self._supervisor is not None:
            if self._supervisor.outstanding():
                return False
            log.info("the next job needs another engine; the recognisers are replaced")
            self.drop()
        if self._order != order or self._fetching is None:
            self._order, self._fetching = order, self._fetch(order)
        if not self._fetching.is_done:
            return False
        found = self._fetching.result
        if isinstance(found, Exception):
            raise found if isinstance(found, WeightsError) else WeightsError(str(found))
        self._start(order, self._fetching.options)
        return True

    def drop(self) -> None:
        """End the recognisers; the next order is fulfilled from the beginning."""
        self.stop(STOP_SECONDS)
        self._order = self._fetching = self._supervisor = None

    def _fetch(self, order: EngineOrder) -> _Fetch:
        if order.engine != "decimer":
            # An engine of another name brings what it needs itself, or says that it cannot be loaded.
            return _Fetch(is_done=True)
        if (wrong := choice.refusal(order.engine_options)) is not None:
            # What is chosen here takes the option's place, and the engine would never see it.
            return _Fetch(WeightsError(wrong), is_done=True)
        fetch = _Fetch()
        said_at = [0.0]
        home, hand_drawn = self._weights_home, is_hand_drawn(order.engine_options)
        wanted = self._settings.prepared and choice.is_wanted(order.engine_options)

        def say(name: str, done: int, total: int | None) -> None:
            if time.monotonic() - said_at[0] >= PROGRESS_SECONDS:
                said_at[0] = time.monotonic()
                log.info("downloading %s: %d of %s MB", name, done // 10**6, total // 10**6 if total else "?")

        def run() -> None:
            try:
                found = ensure_weights(
                    home,
                    hand_drawn=hand_drawn,
                    pinned_sha256=order.weights_sha256,
                    on_progress=say,
                    prepared_will_do=wanted,
                    recognises_here=True,
                )
                checked = "verified" if found.verified else "unverified"
                log.info("weights: %s, sha256 %s (%s)", found.name, found.sha256, checked)
                fetch.options["prepared"] = choice.choose(home, found, hand_drawn=hand_drawn, wanted=wanted)
                # A process that is started later must find the same ones: rows are told of as made by one model.
                fetch.options["weights_sha256"] = order.engine_options.get("weights_sha256") or found.sha256
                fetch.result = found
            except (WeightsError, OSError) as error:
                fetch.result = error
            except Exception as error:
                log.exception("DECIMER's weights could not be looked for")
                fetch.result = error
            finally:
                fetch.is_done = True
                self._wake()

        threading.Thread(target=run, name="weights", daemon=True).start()
        return fetch

    def _start(self, order: EngineOrder, options: dict[str, Any]) -> None:
        config = RecogniserConfig(
            engine=order.engine,
            engine_options=order.engine_options | options,
            threads=self.plan.threads,
            weights_home=self._weights_home,
            max_pixels=order.max_pixels,
            image_timeout_seconds=order.image_timeout_seconds,
            command=find_command(self._settings, order.engine),
        )
        # The others follow one by one: each must show first what it needs.
        processes = self.plan.processes if self.plan.fixed else 1
        self._supervisor = Supervisor(config, processes, _print_line, _say, fixed=self.plan.fixed)
        self._supervisor.start()
        self._pacer.begin(self._supervisor)
        log.info("loading the engine %s in %s", config.engine, self.plan)

    @property
    def room(self) -> Room:
        """Images that may be with the recognisers in all, those that are there included."""
        return self._supervisor.room if self._supervisor is not None else Room(0, 0)

    def free_slots(self) -> int:
        """Images that may be submitted now."""
        return self._supervisor.free_slots() if self._supervisor is not None else 0

    def submit(self, task: ImageTask) -> None:
        """Give an image to a recogniser; `prepare` has said that it may."""
        if self._supervisor is None:
            raise RuntimeError("there are no recognisers")
        self._supervisor.submit(task)

    def forget(self, task_ids: set[int]) -> None:
        """Nobody wants these images any more."""
        if self._supervisor is not None and task_ids:
            self._supervisor.forget(task_ids)

    def poll(self, seconds: float) -> list[Report] | None:
        """What the recognisers report, waiting at most `seconds`; None where there are none yet.

        Meanwhile they become more or fewer, as the machine has room.
        """
        self._pacer.look(self._supervisor)
        self.for_batches = self.room.for_batches
        return self._supervisor.poll(seconds) if self._supervisor is not None else None

    def last_reports(self) -> list[Report]:
        """What the recognisers have reported by now; they are to end."""
        return self._supervisor.poll(0) if self._supervisor is not None else []

    def wake(self) -> None:
        """Make `poll` return early; from any thread."""
        supervisor = self._supervisor
        if supervisor is not None:
            supervisor.wake()

    @property
    def threads(self) -> int:
        """Threads that may recognise at once; from any thread."""
        return self._pacer.threads

    @property
    def machine_load(self) -> MachineLoad:
        """What the machine does, on average over the last seconds, and how many recognisers work; from any thread."""
        return self._pacer.machine_load

    def stop(self, grace_seconds: float) -> None:
        """End all processes."""
        if self._supervisor is not None:
            self._supervisor.stop(grace_seconds)


def plan_for(settings: EngineSettings) -> Plan:
    """Plan recognisers for the machine, or the control group, that this process is in."""
    return plan(
        read_machine(),
        threads_per_process=settings.threads_per_process,
        processes=settings.processes,
        start_below=settings.start_below_percent / 100,
    )


def _print_line(line: str, pid: int) -> None:
    children_log.debug("recogniser %d: %s", pid, line)


def _say(level: str, message: str) -> None:
    log.log(logging.getLevelNamesMapping()[level.upper()], "%s", message)
