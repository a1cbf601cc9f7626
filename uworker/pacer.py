"""Once a second: reads the machine, asks `scaling` how many recognisers it bears, and has the supervisor resized.

Owned by the main thread; `machine_load` and `threads` may be read by any.
"""

import logging
import time

from job_api.schemas import MachineLoad
from uworker.machine import Sampler
from uworker.scaling import Plan, Situation, Thresholds, decide
from uworker.supervisor import Supervisor

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Pacer:
    """Keeps the number of recogniser processes and threads to what the machine has left.

    Args:
        plan: how many threads a process has, and whether somebody has set the number of processes.
        thresholds: from where on there may be more, and must be less.
    """

    def __init__(self, plan: Plan, thresholds: Thresholds) -> None:
        self._plan = plan
        self._thresholds = thresholds
        self._sampler = Sampler()
        self._looked_at = float("-inf")
        self._changed_at = self._short_at = time.monotonic()
        self._bearable_threads: int | None = None
        self._blind = False
        self.threads = plan.threads * (plan.processes if plan.fixed else 1)
        """Threads that may recognise at once, loaded or not."""
        self.machine_load = MachineLoad()
        """What the worker tells of its machine; without the speed."""

    def begin(self, supervisor: Supervisor) -> None:
        """Take over new recognisers: what the last ones had in memory is gone, what others use is not."""
        self._bearable_threads = None
        self._changed_at = self._short_at = time.monotonic()
        self.threads = min(self.threads, supervisor.limit)
        supervisor.resize(supervisor.processes, self.threads)

    def look(self, supervisor: Supervisor | None) -> None:
        """Read the machine, if it is time, and let the recognisers be as many as it bears."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        pids, ready = (supervisor.pids(), supervisor.ready_pids()) if supervisor is not None else ([], [])
        try:
            self._sampler.sample(now, pids, ready)
        except (OSError, ValueError) as error:
            if not self._blind:
                log.warning("what the machine does cannot be read, so the recognisers stay as many: %s", error)
            self._blind = True
            return
        self._blind = False
        if supervisor is not None and supervisor.is_working:
            self._adjust(supervisor, now)
        self._note(supervisor, len(pids), len(ready))

    def _adjust(self, supervisor: Supervisor, now: float) -> None:
        load = self._sampler.load
        if load is None:
            return
        if supervisor.retiring or supervisor.at_work > supervisor.limit:
            # The memory of those that retire comes back when they have ended, and shows in the mean after that; threads
            # that are one too many end their work when they have answered for what they had in advance.
            self._changed_at = now
        if supervisor.outstanding() <= supervisor.limit:
            self._short_at = now
        target = decide(
            Situation(
                load=load,
                processes=supervisor.processes,
                measured=self._sampler.measured,
                retiring=supervisor.retiring,
                threads=supervisor.limit,
                threads_per_process=self._plan.threads,
                images_wait_seconds=now - self._short_at,
                unchanged_seconds=now - self._changed_at,
                fixed=self._plan.fixed,
                bearable_threads=self._bearable_threads,
            ),
            self._thresholds,
        )
        self._bearable_threads = target.bearable_threads
        if (target.processes, target.threads) != (supervisor.processes, supervisor.limit):
            log.info("%s", target)
            supervisor.resize(target.processes, target.threads)
            self._changed_at = now
        self.threads = target.threads

    def _note(self, supervisor: Supervisor | None, running: int, ready: int) -> None:
        load = self._sampler.load
        self.machine_load = MachineLoad(
            cpu_percent=None if load is None else round(load.cpu_percent, 1),
            memory_percent=None if load is None else round(load.memory_percent, 1),
            processes=running,
            threads=0 if supervisor is None else min(ready * self._plan.threads, supervisor.limit),
        )
