"""The worker: puts its threads together, gives images to recognisers, and ends in an orderly way.

The main thread owns the recognisers and the bookkeeping of images in their hands. Reading, posting, claiming,
heartbeats and the central log have a thread each; what they share is guarded where it lies.
"""

import logging
import os
import re
import secrets
import sys
import threading
import time
from collections import deque
from concurrent import futures
from datetime import UTC, datetime

from job_api.client import Client, ClientError, Refused, Unreachable
from job_api.schemas import Lease, MachineLoad, ServerInfo, WorkerState
from uworker.apart.crew import CrewApart
from uworker.beside import Scribe
from uworker.claimer import Claimer
from uworker.crew import Crew, plan_for
from uworker.display import Display
from uworker.eviction import Eviction
from uworker.faults import FaultLog
from uworker.goodbye import say_goodbye
from uworker.heart import Heart
from uworker.holding import Holding
from uworker.images import SourceError
from uworker.journal import Journal, SecretFilter
from uworker.keeper import Keeper
from uworker.poster import Poster
from uworker.reader import Reader
from uworker.settings import WorkerSettings
from uworker.signals import EndSignals
from uworker.state import State, StateFile, WorkerReport
from uworker.targets import require_writable
from uworker.tasks import CannotLoad, EngineOrder, EngineReady, Finished, words_of
from uworker.twins import Twins
from uworker.weights import WeightsError

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_SETTINGS, EXIT_ENGINE, EXIT_REFUSED, EXIT_QUARANTINED, EXIT_SOURCE = 0, 2, 3, 4, 5, 6

LOOP_SECONDS = 0.25
# Images for each thread that are to wait for it, read or listed: the next job is claimed when there are fewer than the
# least, and enough to have the most. Of those in its hands and those being posted there are two each, and in its hands
# as many more as fill the batches of an engine that is handed several at once.
LEAST_AHEAD, MOST_AHEAD, MOST_HELD = 2, 4, 8
# Images taken in before the recognisers are listened to again: those that have their answer take no room there.
MOST_FED = 200
MAX_ROWS_WAITING = 5_000
# After which results go to disk; the posting goes on all the same.
POST_RETRY_SECONDS = 3.0
RATE_SECONDS = 60.0
# Without an engine, where it is apart, before what is held is given back.
ENGINE_AWAY_SECONDS = 600.0
# An orderly end takes at most the sum of these, well under the 20 s that a spot VM or `docker stop` leaves.
FLUSH_SECONDS, GOODBYE_SECONDS, JOURNAL_SECONDS = 8.0, 4.0, 3.0


def new_worker_id(hostname: str) -> str:
    """An id for this process alone: two workers of one host are two workers, and so is one that starts again."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", hostname).strip(".-")[:80] or "worker"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


class Worker:
    """One worker process.

    Args:
        settings: as read from the environment.
        once: end when the queue is empty.
    """

    def __init__(self, settings: WorkerSettings, *, once: bool) -> None:
        self._settings = settings
        self._once = once
        self.worker_id = new_worker_id(settings.hostname)
        self._bell = threading.Event()
        self._leave = threading.Event()
        self._exit_code: int | None = None
        self._why_it_ends: str | None = None
        """None: nothing is wrong."""
        self._state_file = StateFile(settings.state_file)
        self._lock = threading.Lock()
        self._holdings: list[Holding] = []
        self._owners: dict[int, tuple[Holding, str]] = {}
        self._jobs_done = 0
        self._images_done = 0
        self._finished_at: deque[float] = deque()
        self._faults = FaultLog()
        self._twins = Twins(self._holds)
        secret_filter = SecretFilter(settings.secrets)
        self._display = Display(secret_filter, settings.log_level)
        self._journal = Journal(self._client(3), self.worker_id, secret_filter)
        self._crew = self._make_crew()
        # Not the bell: its lock may be in the hands of the very thread that is interrupted then.
        self._signals = EndSignals(self._crew.wake)
        self._eviction = Eviction(settings.eviction, settings.metadata_root, self._wake)
        self._reader = Reader(self._client(60), settings, self._wake, self._may_add)
        poster_client = self._client(POST_RETRY_SECONDS)
        self._keeper = Keeper(settings.spool_dir, self.worker_id, poster_client.root, settings.spool_bytes)
        self._scribe = Scribe(self._client(60), self._reader.sources, self._wake)
        self._poster = Poster(
            poster_client,
            self._end,
            self._refuse,
            keeper=self._keeper,
            on_stored=self._scribe.add,
            snapshot=settings.snapshot,
        )
        self._heart = Heart(
            self._client(5, timeout_seconds=10),
            self.worker_id,
            holdings=self._held,
            load=self._load,
            claiming=lambda: self._claimer.claiming,
            on_lost=self._lose,
            on_refusal=self._refuse,
        )
        self._claimer = Claimer(
            self._client(60),
            self.worker_id,
            project=settings.job_api_project,
            hostname=settings.hostname,
            once=once,
            wanted=self._jobs_wanted,
            on_lease=self._take,
            on_stopped=self._heart.beat_now,
            on_refusal=self._refuse,
        )

    def _make_crew(self) -> Crew | CrewApart:
        if self._settings.engine_socket is not None:
            return CrewApart(self._settings.engine_socket, self.worker_id)
        return Crew(self._settings, plan_for(self._settings), self._wake)

    def _client(self, retry_seconds: float, timeout_seconds: float = 30) -> Client:
        settings = self._settings
        token, password = settings.job_api_token, settings.job_api_password
        return Client(
            settings.job_api_root,
            username=None if token else settings.job_api_username,
            password=password.get_secret_value() if password and not token else None,
            token=token.get_secret_value() if token else None,
            retry_seconds=retry_seconds,
            timeout_seconds=timeout_seconds,
            stop=self._leave,
        )

    # --- the main thread ---

    def run(self) -> int:
        """Work until told to stop, or with `once` until the queue is empty; returns the exit code."""
        self._signals.listen()
        with self._display:
            try:
                heartbeat_seconds = self._reach_service()
                if heartbeat_seconds is not None:
                    logging.getLogger().addHandler(self._journal)
                    self._keeper.prepare()
                    for thread in (self._journal, self._reader, self._poster, self._scribe, self._claimer):
                        thread.start()
                    self._heart.start(heartbeat_seconds)
                    self._eviction.start()
                    self._work()
            except BaseException as error:
                self._why_it_ends = f"it failed: {error!r}"
                raise
            finally:
                self._shut_down()
        return self._exit_code or EXIT_DONE

    def _wake(self) -> None:
        self._bell.set()
        self._crew.wake()
        self._poster.wake()

    def _reach_service(self) -> float | None:
        """Ask the service for its pace; wait for one that is away, or with `once` give up on it."""
        client, doing = self._client(2, timeout_seconds=10), "asking the job service"
        log.info("worker %s, %s, job service %s", self.worker_id, self._crew.plan, self._settings.job_api_root)
        while not self._signals:
            answer = _ask(client)
            # Where packets are dropped it takes its time, and this thread must be seen to live and hear signals.
            while not self._signals and not futures.wait([answer], LOOP_SECONDS).done:
                self._tell(State.STARTING, doing)
            if not answer.done():
                return None
            try:
                return answer.result().heartbeat_seconds
            except Refused as error:
                self._refuse(error)
                return None
            except Unreachable as error:
                log.warning("%s; %s", error, "giving up" if self._once else "trying again")
                doing = str(error)
                self._tell(State.STARTING, doing)
                if self._once:
                    self._exit_code, self._why_it_ends = EXIT_REFUSED, doing
                    return None
            except ClientError as error:
                self._refuse(error)
                return None
            self._bell.wait(1)
        return None

    def _work(self) -> None:
        doing = ""
        while not self._is_over():
            self._crew.forget(self._forgotten())
            try:
                doing = self._feed()
            except WeightsError as error:
                self._stop_for(EXIT_ENGINE, str(error))
                return
            if self._crew.away_seconds >= ENGINE_AWAY_SECONDS and any(not h.adopted for h in self._held()):
                # Others may do them meanwhile, and whoever starts this worker again has one that waits.
                self._stop_for(EXIT_ENGINE, f"there has been no engine for {ENGINE_AWAY_SECONDS:g} s")
                return
            if self._reader.denied is not None:
                # It would be so for every job; the goodbye gives them back, and none is charged.
                self._stop_for(EXIT_SOURCE, f"the storage does not let this worker in: {self._reader.denied}")
                return
            reports = self._crew.poll(LOOP_SECONDS)
            if reports is None:
                self._bell.wait(LOOP_SECONDS)
                self._bell.clear()
            for report in reports or []:
                self._hear(report)
            self._display.show(jobs=self._jobs_done, images=self._images_done, speed=self._speed(), doing=doing)
            self._tell(self._state(), self._claimer.trouble or self._heart.trouble or doing)

    def _state(self) -> State:
        match self._heart.state:
            case WorkerState.QUARANTINED:
                return State.QUARANTINED
            case WorkerState.DRAIN | WorkerState.GONE:
                return State.DRAINING
        if not self._claimer.answered:
            return State.STARTING
        return State.WORKING if self._held() else State.WAITING

    def _tell(self, state: State, doing: str) -> None:
        load = self._crew.machine_load if state is not State.ENDED else MachineLoad()
        self._state_file.show(
            WorkerReport(
                worker_id=self.worker_id,
                state=state,
                doing=doing,
                plan=str(self._crew.plan),
                processes=load.processes or 0,
                threads=load.threads or 0,
                project=self._settings.job_api_project,
                job_api_root=self._settings.job_api_root,
                jobs_done=self._jobs_done,
                images_done=self._images_done,
                updated_at=datetime.now(UTC),
            )
        )

    def _is_over(self) -> bool:
        if self._signals or self._eviction.notice is not None or self._exit_code is not None:
            return True
        if self._held() or self._poster.settling:
            return False
        if self._heart.state in (WorkerState.DRAIN, WorkerState.GONE):
            log.info("this worker was told to stop and holds nothing any more")
            return True
        if self._once and self._heart.state is WorkerState.QUARANTINED:
            # Nobody may be there to lift it.
            self._stop_for(EXIT_QUARANTINED, "this worker is quarantined and holds nothing any more")
            return True
        return self._once and self._claimer.queue_empty

    def _feed(self) -> str:
        """Give images to the recognisers as long as they take some; says what keeps the rest."""
        if (hindrance := self._crew.hindrance) is not None:
            return hindrance
        for _ in range(MOST_FED):
            if (image := self._reader.peek()) is None:
                break
            if not self._may_add():
                return "waiting for the service to take the results"
            if not self._crew.prepare(self._order(image.holding)):
                return "making the engine ready"
            # One that is answered with its twin takes no slot, and is not to come too late for a twin that crashes.
            answer = self._twins.answer(image)
            if answer is None and not self._twins.may_join(image) and self._crew.free_slots() <= 0:
                return "recognising"
            if (taken := self._reader.take()) is not None:
                self._owners[taken.task.task_id] = (taken.holding, taken.task.name)
                if taken is not image:  # whose job was lost just then
                    answer = self._twins.answer(taken)
                if answer is not None:
                    self._finish(answer)
                elif not self._twins.joins(taken):
                    self._crew.submit(taken.task)
                self._claimer.wake()
        return "recognising" if self._owners else f"waiting for {self._claimer.waits_for}"

    def _order(self, holding: Holding) -> EngineOrder:
        lease, settings = holding.lease, self._settings
        return EngineOrder(
            engine=lease.engine,
            engine_options=lease.engine_options,
            max_pixels=settings.max_pixels,
            image_timeout_seconds=settings.image_timeout_seconds,
            weights_sha256=settings.weights_sha256,
        )

    def _forgotten(self) -> set[int]:
        """Images in the recognisers' hands that belong to lost leases."""
        gone = {task_id for task_id, (holding, _) in self._owners.items() if holding.lost}
        for task_id in gone:
            del self._owners[task_id]
        return self._twins.forget(gone)

    def _hear(self, report: Finished | EngineReady | CannotLoad) -> None:
        match report:
            case Finished():
                if (owner := self._owners.get(report.task_id)) is not None:
                    self._faults.note(*owner, report)
                for finished in (report, *self._twins.finish(report)):
                    self._finish(finished)
            case EngineReady(run):
                log.info("a recogniser is ready: %s", words_of(run))
                if self._crew.engine_key is not None:
                    self._poster.use(self._crew.engine_key, run)
            case CannotLoad(message):
                self._stop_for(EXIT_ENGINE, f"the engine cannot be loaded: {message}")

    def _finish(self, report: Finished) -> None:
        """An image has its answer; nothing where nobody wants it any more."""
        if (owner := self._owners.pop(report.task_id, None)) is not None:
            holding, image = owner
            holding.finish(report.task_id, image, report.row)
            self._images_done += 1
            self._finished_at.append(time.monotonic())
            self._poster.wake()

    def _stop_for(self, exit_code: int, message: str) -> None:
        log.error("%s", message)
        self._exit_code, self._why_it_ends = exit_code, message

    def _shut_down(self) -> None:
        """Post what is finished, give back the rest, leave no process; in under 20 s also where nobody answers."""
        began = time.monotonic()
        self._tell(State.ENDING, self._why_it_ends or "posting what is finished and giving back the rest")
        self._claimer.stop()
        self._reader.stop()
        for report in self._crew.last_reports():
            self._hear(report)
        self._crew.stop(grace_seconds=0.5)
        if self._poster.has_rows and self._exit_code != EXIT_REFUSED:
            log.info("posting the last results")
            self._poster.flush(FLUSH_SECONDS)
        self._scribe.stop()
        self._poster.stop()
        # Ends all waiting and retrying in the other threads.
        self._leave.set()
        self._heart.stop()
        kept = self._poster.keep()
        if rows := self._poster.rows_waiting():
            log.error("%d results could be neither posted nor kept on disk; their images are done again", rows)
        if self._exit_code != EXIT_REFUSED:
            self._say_goodbye(kept)
        log.info(
            "worker %s ends: %d jobs, %d images; stopped in %.1f s",
            self.worker_id,
            self._jobs_done,
            self._images_done,
            time.monotonic() - began,
        )
        self._journal.finish(JOURNAL_SECONDS)
        self._tell(State.ENDED, self._why_it_ends or "as it was told to")
        # Last: from now on the machine may go at any moment.
        self._eviction.finish()

    def _say_goodbye(self, kept: list[Holding]) -> None:
        """Give all leases back, but those of which something is kept on disk: it could not be posted any more."""
        self._leave = threading.Event()
        if kept:
            # One by one: half of the time, and for the last of them the other half.
            client = self._client(GOODBYE_SECONDS / 4, timeout_seconds=GOODBYE_SECONDS / 4)
        else:
            client = self._client(GOODBYE_SECONDS / 2, timeout_seconds=GOODBYE_SECONDS / 2)
        say_goodbye(client, self.worker_id, self._held, kept, GOODBYE_SECONDS / 2)

    # --- called by other threads ---

    def _held(self) -> list[Holding]:
        with self._lock:
            return list(self._holdings)

    def _holds(self, holding: Holding) -> bool:
        with self._lock:
            return holding in self._holdings

    def _may_add(self) -> bool:
        return not self._poster.full and self._poster.rows_waiting() < MAX_ROWS_WAITING

    def _jobs_wanted(self) -> int:
        if self._heart.state is not WorkerState.RUN or not self._may_add() or self._poster.settling:
            return 0
        threads = self._crew.threads
        ahead = self._reader.images_ahead()
        # Filled up in one go: small jobs are claimed several at once.
        if ahead > LEAST_AHEAD * threads:
            return 0
        room = MOST_HELD * threads + self._crew.for_batches - len(self._held())
        return max(0, min(self._reader.jobs_for(MOST_AHEAD * threads - ahead), room))

    def _take(self, lease: Lease) -> None:
        holding = Holding(lease, self.worker_id)
        with self._lock:
            if any(h.lease.job_id == lease.job_id and h.lease.lease_seq == lease.lease_seq for h in self._holdings):
                return
            self._holdings.append(holding)
        log.debug("%s: %s", holding, lease.directory, extra=holding.log_context)
        self._poster.add(holding)
        try:
            require_writable(lease, self._settings)
        except SourceError as error:
            holding.fail(error.reason, str(error), retryable=error.retryable)
        else:
            self._reader.add(holding)

    def _end(self, holding: Holding) -> None:
        # First: once nothing is held, what was known of the queue before decides whether the worker ends.
        self._claimer.note_end()
        with self._lock:
            if holding in self._holdings:
                self._holdings.remove(holding)
        if not holding.abandoned and not holding.adopted:
            self._jobs_done += 1
        self._claimer.wake()
        self._bell.set()

    def _lose(self, holding: Holding) -> None:
        holding.lose()
        self._wake()

    def _refuse(self, error: ClientError) -> None:
        if self._exit_code is None:
            hint = "make a token with `job-api token add NAME --role worker` and set UWORKER_JOB_API_TOKEN"
            self._stop_for(EXIT_REFUSED, f"{error}; {hint}" if isinstance(error, Refused) else str(error))
        self._bell.set()
        self._crew.wake()

    def _speed(self) -> float:
        """Images per second over the last minute."""
        now = time.monotonic()
        while self._finished_at and now - self._finished_at[0] > RATE_SECONDS:
            self._finished_at.popleft()
        return len(self._finished_at) / max(now - self._finished_at[0], 1) if self._finished_at else 0.0

    def _load(self) -> MachineLoad:
        images_per_second = len(self._finished_at) / RATE_SECONDS
        return self._crew.machine_load.model_copy(update={"images_per_second": images_per_second})


def _ask(client: Client) -> "futures.Future[ServerInfo]":
    """Ask the service for its pace in a thread of its own, which nobody has to wait for."""
    answer: futures.Future[ServerInfo] = futures.Future()

    def ask() -> None:
        try:
            answer.set_result(client.server())
        except BaseException as error:  # noqa: BLE001 (raised again by who wants the answer)
            answer.set_exception(error)

    threading.Thread(target=ask, name="first-question", daemon=True).start()
    return answer


def main(settings: WorkerSettings, *, once: bool) -> None:
    """Run a worker and end the process with its exit code."""
    sys.exit(Worker(settings, once=once).run())
