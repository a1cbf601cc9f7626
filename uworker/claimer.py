"""The claiming thread: asks for the next job before the recognisers run dry, by long poll."""

import logging
import threading
import time
import uuid
from collections.abc import Callable

from job_api.client import Client, ClientError, NotFound, Refused, Unreachable, WorkerStopped
from job_api.schemas import MAX_LEASES_PER_CLAIM, ClaimRequest, Lease
from job_api.version import VERSION

log = logging.getLogger(__name__)

LONG_POLL_SECONDS = 20.0
# How long what is wanted may change without a word.
LOOK_AGAIN_SECONDS = 0.2
RETRY_SECONDS = 2.0


class Claimer:
    """Claims for one worker.

    Args:
        client: the way to the service; its retries end when the worker stops.
        worker_id: who claims.
        project: work on this one only; None for any.
        hostname: this machine's name.
        once: whether the worker ends when the queue is empty.
        wanted: how many more jobs are wanted now.
        on_lease: told of each lease.
        on_stopped: told when the service lets this worker claim no more; the heartbeat brings why, and what to do.
        on_refusal: told when the service does not let the worker in.
    """

    def __init__(
        self,
        client: Client,
        worker_id: str,
        *,
        project: str | None,
        hostname: str,
        once: bool,
        wanted: Callable[[], int],
        on_lease: Callable[[Lease], None],
        on_stopped: Callable[[], None],
        on_refusal: Callable[[ClientError], None],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        self._project = project
        self._hostname = hostname
        self._once = once
        self._wanted = wanted
        self._on_lease = on_lease
        self._on_stopped = on_stopped
        self._on_refusal = on_refusal
        self._stop = threading.Event()
        self._changed = threading.Event()
        # Kept until its answer has arrived: the same key again gets the same leases again.
        self._key: str | None = None
        self._jobs_ended = 0
        self._empty = False
        self._answered = False
        self._trouble: str | None = None
        self._is_paused = False
        self._thread = threading.Thread(target=self._claim_for_ever, name="claimer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Claim no more."""
        self._stop.set()
        self._changed.set()

    def wake(self) -> None:
        """More jobs may be wanted now."""
        self._changed.set()

    @property
    def claiming(self) -> bool:
        """Whether a claim is on its way."""
        return self._key is not None

    @property
    def answered(self) -> bool:
        """Whether the service has let this worker claim at least once, be it for nothing."""
        return self._answered

    @property
    def trouble(self) -> str | None:
        """What keeps it from claiming at the moment."""
        return self._trouble

    @property
    def waits_for(self) -> str:
        """What whoever holds nothing waits for, as the last claim has heard."""
        return f"jobs; the project {self._project} is paused" if self._is_paused else "jobs"

    @property
    def queue_empty(self) -> bool:
        """Whether a claim since the last job's end found nothing, and nothing waits for its back-off either."""
        return self._empty

    def note_end(self) -> None:
        """A job of this worker has ended; it may have been queued again, so what was known of the queue is void."""
        self._jobs_ended += 1
        self._empty = False

    def _claim_for_ever(self) -> None:
        while not self._stop.is_set():
            self._changed.clear()
            jobs = self._wanted()
            if not jobs:
                self._changed.wait(LOOK_AGAIN_SECONDS)
                continue
            try:
                self._claim(jobs)
                self._trouble = None
            except WorkerStopped as error:
                self._key = None
                log.debug("%s", error)
                self._on_stopped()
                self._stop.wait(RETRY_SECONDS)
            except NotFound as error:
                self._key = None
                if self._once:
                    self._on_refusal(error)
                    return
                self._trouble = f"{error}; waiting for it to be made"
                log.warning("%s", self._trouble)
                self._stop.wait(RETRY_SECONDS)
            except Refused as error:
                self._on_refusal(error)
                return
            except Unreachable as error:
                self._trouble = f"{error}; trying again"
                log.warning("%s", self._trouble)
                self._stop.wait(RETRY_SECONDS)
            except ClientError as error:
                self._key = None
                self._trouble = f"{error}; trying again"
                log.exception("a claim failed; trying again")
                self._stop.wait(RETRY_SECONDS)

    def _claim(self, jobs: int) -> None:
        self._key = self._key or uuid.uuid4().hex
        # The first is answered at once: whoever waits for this worker to be let in need not wait for a job.
        wait = LONG_POLL_SECONDS if self._answered and not self._once else 0.0
        asked_at, ended_before = time.monotonic(), self._jobs_ended
        leases, pending, is_paused = self._client.claim(
            self._project,
            ClaimRequest(
                worker_id=self._worker_id,
                claim_key=self._key,
                max_jobs=min(jobs, MAX_LEASES_PER_CLAIM),
                wait_seconds=wait,
                hostname=self._hostname[:200],
                version=VERSION,
            ),
        )
        first, self._answered = not self._answered, True
        # Also when it is stopped: whoever is told gives these back with the rest.
        for lease in leases:
            self._on_lease(lease)
        if self._stop.is_set():
            return
        self._mind_pause(is_paused=is_paused)
        self._empty = not leases and pending == 0 and ended_before == self._jobs_ended
        self._key = None
        if not leases and time.monotonic() - asked_at < 1 and (self._once or not first):
            # A service that does not let polls wait must not be asked without a pause.
            self._stop.wait(1.0 if not self._empty else LOOK_AGAIN_SECONDS)

    def _mind_pause(self, *, is_paused: bool) -> None:
        """Say that a pause leaves this worker without jobs: a paused project looks like one that is done."""
        if is_paused and not self._is_paused:
            log.warning(
                "the project %s is paused and hands out no jobs; `job-api project %s --resume` ends that",
                self._project,
                self._project,
            )
        self._is_paused = is_paused
