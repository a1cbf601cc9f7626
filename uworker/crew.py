"""The recognisers a worker has at the moment: loaded for one engine, changed when a job needs another.

They are as many as the machine bears. Owned by the main thread. Weights are fetched and checked in a thread, so that a
download holds nothing up.
"""

import logging
import threading
import time
from collections.abc import Callable

from job_api.schemas import MachineLoad
from uworker.holding import Holding
from uworker.journal import CHILDREN_LOGGER
from uworker.pacer import Pacer
from uworker.scaling import Plan, Thresholds
from uworker.settings import WorkerSettings
from uworker.supervisor import Supervisor
from uworker.tasks import ImageTask, RecogniserConfig, Report
from uworker.weights import Weights, WeightsError, ensure_weights

log = logging.getLogger(__name__)
children_log = logging.getLogger(CHILDREN_LOGGER)

PROGRESS_SECONDS = 10.0
STOP_SECONDS = 2.0

EngineKey = tuple[str, str]


class Crew:
    """Recognisers for one engine at a time.

    Args:
        settings: limits, and where the weights are.
        plan: how many processes there may be, and how many threads each of them has.
        wake: makes the main loop look again; from any thread.
    """

    def __init__(self, settings: WorkerSettings, plan: Plan, wake: Callable[[], None]) -> None:
        self._settings = settings
        self.plan = plan
        self._wake = wake
        self._pacer = Pacer(plan, Thresholds(settings.start_below_percent / 100, settings.memory_high_percent / 100))
        self._key: EngineKey | None = None
        self._supervisor: Supervisor | None = None
        self._fetched: Weights | WeightsError | OSError | None = None
        self._fetching = False

    @property
    def engine_key(self) -> EngineKey | None:
        """The engine the recognisers are, or are being, loaded with."""
        return self._key

    def prepare(self, holding: Holding) -> bool:
        """Make recognisers for a job's engine; True when they may be given its images.

        Raises:
            WeightsError: the engine's weights cannot be had.
        """
        if self._supervisor is not None and self._key == holding.engine_key:
            return True
        if self._supervisor is not None:
            if self._supervisor.outstanding():
                return False
            log.info("the next job needs another engine; the recognisers are replaced")
            self._supervisor.stop(STOP_SECONDS)
            self._supervisor = None
        if self._key != holding.engine_key and not self._fetching:
            self._key, self._fetched = holding.engine_key, None
            self._fetch(holding)
        if self._fetching:
            return False
        if isinstance(self._fetched, Exception):
            raise self._fetched if isinstance(self._fetched, WeightsError) else WeightsError(str(self._fetched))
        self._start(holding)
        return True

    def _fetch(self, holding: Holding) -> None:
        if holding.lease.engine != "decimer":
            # An engine of another name brings what it needs itself, or says that it cannot be loaded.
            return
        options = holding.lease.engine_options
        self._fetching = True
        said_at = [0.0]

        def say(name: str, done: int, total: int | None) -> None:
            if time.monotonic() - said_at[0] >= PROGRESS_SECONDS:
                said_at[0] = time.monotonic()
                log.info("downloading %s: %d of %s MB", name, done // 10**6, total // 10**6 if total else "?")

        def fetch() -> None:
            try:
                self._fetched = ensure_weights(
                    self._settings.weights_home,
                    hand_drawn=options.get("hand_drawn") is True,
                    pinned_sha256=self._settings.weights_sha256,
                    on_progress=say,
                )
                checked = "verified" if self._fetched.verified else "unverified"
                log.info("weights: %s, sha256 %s (%s)", self._fetched.name, self._fetched.sha256, checked)
            except (WeightsError, OSError) as error:
                self._fetched = error
            finally:
                self._fetching = False
                self._wake()

        threading.Thread(target=fetch, name="weights", daemon=True).start()

    def _start(self, holding: Holding) -> None:
        config = RecogniserConfig(
            engine=holding.lease.engine,
            engine_options=holding.lease.engine_options,
            threads=self.plan.threads,
            weights_home=self._settings.weights_home.expanduser().absolute(),
            max_pixels=self._settings.max_pixels,
            image_timeout_seconds=self._settings.image_timeout_seconds,
        )
        # The others follow one by one: each must show first what it needs.
        processes = self.plan.processes if self.plan.fixed else 1
        self._supervisor = Supervisor(config, processes, _print_line, _say, fixed=self.plan.fixed)
        self._supervisor.start()
        self._pacer.begin(self._supervisor)
        log.info("loading the engine %s in %s", config.engine, self.plan)

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
        """Images that may be recognised at once; from any thread."""
        return self._pacer.threads

    @property
    def machine_load(self) -> MachineLoad:
        """What the machine does, on average over the last seconds, and how many recognisers work; from any thread."""
        return self._pacer.machine_load

    def stop(self, grace_seconds: float) -> None:
        """End all processes."""
        if self._supervisor is not None:
            self._supervisor.stop(grace_seconds)


def _print_line(line: str, pid: int) -> None:
    children_log.debug("recogniser %d: %s", pid, line)


def _say(level: str, message: str) -> None:
    log.log(logging.getLevelNamesMapping()[level.upper()], "%s", message)
