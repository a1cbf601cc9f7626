"""The heartbeat thread: keeps all leases alive from a place that nothing else in the worker can hold up."""

import logging
import threading
from collections.abc import Callable

from job_api.client import Client, ClientError, Refused
from job_api.schemas import Heartbeat, HeartbeatAnswer, HeldLease, Lease, LeaseStatus, MachineLoad, Release, WorkerState
from uworker.holding import Holding

log = logging.getLogger(__name__)


class Heart:
    """Beats for one worker.

    Args:
        client: a connection of its own, with a short patience.
        worker_id: whose heart it is.
        holdings: tells what is held at this moment.
        load: tells what the machine does.
        claiming: whether a claim is on its way, whose leases are not known here yet.
        on_lost: told of each holding whose lease is gone.
        on_refusal: told when the service does not let the worker in any more.
    """

    def __init__(
        self,
        client: Client,
        worker_id: str,
        *,
        holdings: Callable[[], list[Holding]],
        load: Callable[[], MachineLoad],
        claiming: Callable[[], bool],
        on_lost: Callable[[Holding], None],
        on_refusal: Callable[[Refused], None],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        self._holdings = holdings
        self._load = load
        self._claiming = claiming
        self._on_lost = on_lost
        self._on_refusal = on_refusal
        self._seconds = 1.0
        self._stop = threading.Event()
        self._due = threading.Event()
        self._unnamed_before: set[tuple[int, int]] = set()
        self.state = WorkerState.RUN
        self.trouble: str | None = None
        """Why the last beat did not arrive, if so."""
        self._thread = threading.Thread(target=self._beat_for_ever, name="heart", daemon=True)

    def start(self, seconds: float) -> None:
        """Start the thread; it beats every `seconds` until the service says otherwise."""
        self._seconds = seconds
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stop.set()
        self._due.set()

    def beat_now(self) -> None:
        """Do not wait for the next beat: there are news for this worker."""
        self._due.set()

    def _beat_for_ever(self) -> None:
        while True:
            self._due.wait(self._seconds)
            self._due.clear()
            if self._stop.is_set():
                return
            try:
                self._beat()
                self.trouble = None
            except Refused as error:
                self._on_refusal(error)
            except ClientError as error:
                self.trouble = f"{error}; trying again"
                log.warning("a heartbeat did not arrive: %s", error)
            except Exception:
                # Whatever it is, the next beat must come.
                log.exception("a heartbeat failed")

    def _beat(self) -> None:
        held = {(h.lease.job_id, h.lease.lease_seq): h for h in self._holdings()}
        named = [HeldLease(job_id=job_id, lease_seq=lease_seq) for job_id, lease_seq in held]
        answer = self._client.heartbeat(self._worker_id, Heartbeat(leases=named, load=self._load()))
        self._seconds = answer.heartbeat_seconds
        self._obey(answer)
        for verdict in answer.leases:
            holding = held.get((verdict.job_id, verdict.lease_seq))
            # One that ended meanwhile is not held any more, and rightly so.
            ended = holding is None or holding.lost or holding not in self._holdings()
            if holding is not None and not ended and verdict.status is not LeaseStatus.HELD:
                log.warning("%s: the lease is %s", holding, verdict.status, extra=holding.log_context)
                self._on_lost(holding)
        self._release_unknown(answer.unnamed)

    def _obey(self, answer: HeartbeatAnswer) -> None:
        """Take over what the service says this worker shall do, and say so where it is new."""
        if answer.state is self.state:
            return
        if answer.state is WorkerState.QUARANTINED:
            log.error(
                "this worker is quarantined: %s; it ends what it holds and claims no more. "
                "Look after this machine, then: job-api worker lift %s",
                answer.reason or "the service does not say why",
                self._worker_id,
            )
        elif answer.state is WorkerState.RUN:
            log.warning("this worker is lifted and may claim again")
        else:
            log.warning("the service tells this worker to: %s", answer.state)
        self.state = answer.state

    def _release_unknown(self, unnamed: list[Lease]) -> None:
        """Give back leases that a claim got whose answer never came; not those that are just on their way here."""
        now_held = {(h.lease.job_id, h.lease.lease_seq) for h in self._holdings()}
        unknown = {(lease.job_id, lease.lease_seq): lease for lease in unnamed}
        for key in list(unknown):
            if key in now_held or self._claiming():
                del unknown[key]
        for key, lease in unknown.items():
            if key in self._unnamed_before:
                log.warning("job %d is held in this worker's name and unknown to it; it is given back", lease.job_id)
                given = Release(worker_id=self._worker_id, lease_seq=lease.lease_seq, reason="unclaimed")
                self._client.release(lease.project, lease.job_id, given)
        self._unnamed_before = set(unknown)
