"""The job's life in plain Python: what docs/design.md says a queue does, without a database, a lock or a clock.

Every method is one request. It changes the model and returns what the service must answer, or raises `Refusal`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FREE_RELEASES = 2
FINISHED = ("completed", "failed", "cancelled")


class Refusal(Exception):
    """The problem type of a refusal."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass
class Row:
    """A stored result."""

    status: str
    run: int
    lease_seq: int
    stale: bool = False


@dataclass
class Attempt:
    """One lease, open while it has no outcome."""

    worker: str
    key: str
    place: int
    outcome: str | None = None
    charged: bool = False
    new_results: int = 0


@dataclass
class Job:
    """A directory."""

    id: int
    project: str
    directory: str
    priority: int
    state: str = "queued"
    queue_pos: int = 0
    lease_seq: int = 0
    run: int = 1
    present_from_run: int = 1
    failures: int = 0
    refunds: int = 0
    releases: int = 0
    image_count: int | None = None
    holder: Attempt | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)

    def is_present(self, image: str) -> bool:
        """Whether an image needs no more work."""
        row = self.rows.get(image)
        return row is not None and row.run >= self.present_from_run and not row.stale

    @property
    def present(self) -> list[str]:
        """The images that need no more work, by name."""
        return sorted(image for image in self.rows if self.is_present(image))


@dataclass
class Project:
    """What decides which jobs are handed out."""

    priority: int = 0
    max_failures: int = 3
    paused: bool = False


class Model:
    """All jobs, and what every request makes of them.

    `renewed` holds the jobs that went to the end of the queue since it was last emptied: in order, but for those that
    went there together.
    """

    def __init__(self, quarantine_after: int) -> None:
        self.projects: dict[str, Project] = {}
        self.jobs: dict[int, Job] = {}
        self.workers: dict[str, str] = {}
        # What each worker charged since its last success: the job, its lease, and whether it speaks against the worker.
        self.failed: dict[str, list[tuple[Job, int, bool]]] = {}
        self.quarantine_after = quarantine_after
        self.renewed: list[set[int]] = []
        self._served: dict[str, int] = {}
        self._turn = 0

    # --- what people do ---

    def add(self, project: str, directories: Sequence[str]) -> tuple[int, int]:
        """Returns how many are new, and how many present."""
        known = {job.directory for job in self.jobs.values() if job.project == project}
        new = set(directories) - known
        return len(new), len(directories) - len(new)

    def note_added(self, job: Job) -> None:
        """Take over a job with the id that the database gave it."""
        self.jobs[job.id] = job
        self.renewed.append({job.id})

    def cancel(self, job: Job) -> str:
        if job.state in ("completed", "failed"):
            raise Refusal("wrong-state")
        if job.state != "cancelled":
            self._end(job, "cancelled", "cancelled")
            job.lease_seq += 1
        return job.state

    def retry(self, job: Job) -> str:
        if job.state in ("failed", "cancelled"):
            job.failures = job.refunds = job.releases = 0
            self._queue(job)
        if job.state != "queued":
            raise Refusal("wrong-state")
        return job.state

    def rerun(self, job: Job, statuses: Sequence[str] | None) -> str:
        if job.state not in FINISHED:
            raise Refusal("wrong-state")
        job.run += 1
        job.lease_seq += 1
        if statuses is None:
            job.present_from_run = job.run
        else:
            for row in job.rows.values():
                row.stale = row.stale or row.status in statuses
        job.failures = job.refunds = job.releases = 0
        self._queue(job)
        return job.state

    def force_release(self, job: Job) -> str:
        if job.state not in ("queued", "claimed"):
            raise Refusal("wrong-state")
        newest = job.attempts.get(job.lease_seq)
        if job.state == "claimed":
            self._end(job, "force-released", "queued")
            job.lease_seq += 1
        elif newest is not None and newest.outcome == "expired":
            # Its lease must not come back.
            job.lease_seq += 1
        return job.state

    def steer(self, worker: str, state: str) -> str:
        if self.workers[worker] == "gone":
            raise Refusal("worker-gone")
        failed = self.failed.pop(worker, []) if state != "drain" else []
        if state == "quarantined":
            self._refund(failed)
        self.workers[worker] = state
        return state

    # --- what workers do ---

    def check_may_claim(self, worker: str) -> None:
        if self.workers[worker] == "gone":
            raise Refusal("worker-gone")
        if self.workers[worker] != "run":
            raise Refusal("worker-stopped")

    def leases_of(self, worker: str, key: str | None = None) -> list[Job]:
        """The jobs a worker holds, or those of one of its claims in the order of the queue."""
        mine = [job for job in self.jobs.values() if job.holder is not None and job.holder.worker == worker]
        if key is None:
            return sorted(mine, key=lambda job: job.id)
        return _in_order(job for job in mine if job.holder is not None and job.holder.key == key)

    def queue(self, project: str) -> list[Job]:
        """What a project would hand out, in order."""
        if self.projects[project].paused:
            return []
        return _in_order(job for job in self.jobs.values() if job.project == project and job.state == "queued")

    def best_projects(self) -> list[str]:
        """Who may be served next by a claim of any project: more than one where nothing tells them apart."""
        names = [name for name in self.projects if self.queue(name)]
        self._served = {name: turn for name, turn in self._served.items() if name in names}

        def rank(name: str) -> tuple[int, int, int]:
            live = sum(job.state == "claimed" for job in self.jobs.values() if job.project == name)
            return (-self.projects[name].priority, live, self._served.get(name, 0))

        best = min(map(rank, names), default=None)
        return [name for name in names if rank(name) == best]

    def note_served(self, project: str) -> None:
        self._turn += 1
        self._served[project] = self._turn

    def pending(self, project: str | None) -> int:
        """Jobs that shall still be done and that nobody has."""
        return sum(
            job.state in ("queued", "waiting")
            for job in self.jobs.values()
            if project in (None, job.project) and not self.projects[job.project].paused
        )

    def take(self, jobs: Sequence[Job], worker: str, key: str) -> None:
        for place, job in enumerate(jobs, start=1):
            job.lease_seq += 1
            job.state = "claimed"
            job.holder = job.attempts[job.lease_seq] = Attempt(worker, key, place)

    def heartbeat(self, worker: str, named: Sequence[tuple[Job, int]]) -> tuple[list[str], list[int]]:
        """Returns the verdicts, and the ids of the jobs that the worker did not name."""
        verdicts = [self._verdict(worker, job, lease_seq) for job, lease_seq in named]
        ids = {job.id for job, _ in named}
        return verdicts, [job.id for job in self.leases_of(worker) if job.id not in ids]

    def _verdict(self, worker: str, job: Job, lease_seq: int) -> str:
        try:
            attempt = self.hold(job, lease_seq, worker)
        except Refusal:
            return "lost"
        return {None: "held", "cancelled": "cancelled"}.get(attempt.outcome, "lost")

    def hold(self, job: Job, lease_seq: int, worker: str) -> Attempt:
        """The fence; gives a lease that ran out back to its holder where nothing happened since."""
        attempt = job.attempts.get(lease_seq)
        if attempt is None or attempt.worker != worker:
            raise Refusal("lease-lost")
        if attempt.outcome == "expired":
            others = [other.holder for other in self.leases_of(worker, attempt.key)]
            if job.lease_seq != lease_seq or attempt.place in [other.place for other in others if other is not None]:
                raise Refusal("lease-lost")
            job.failures = max(job.failures - attempt.charged, 0)
            attempt.outcome, attempt.charged = None, False
            job.state, job.holder = "claimed", attempt
        return attempt

    def _hold_open(self, job: Job, lease_seq: int, worker: str) -> Attempt:
        attempt = self.hold(job, lease_seq, worker)
        if attempt.outcome is not None:
            raise Refusal("lease-lost")
        return attempt

    def images_done(self, job: Job, lease_seq: int, worker: str) -> list[str]:
        self._hold_open(job, lease_seq, worker)
        return job.present

    def post(self, job: Job, lease_seq: int, worker: str, rows: Sequence[tuple[str, str]]) -> tuple[int, int]:
        """Returns how many rows were stored, and how many were there already."""
        attempt = self._hold_open(job, lease_seq, worker)
        stored = 0
        for image, status in rows:
            row = job.rows.get(image)
            if row is not None and row.lease_seq >= lease_seq:
                continue
            if not job.is_present(image):
                attempt.new_results += 1
                job.releases = 0
                self.failed.pop(worker, None)
            job.rows[image] = Row(status, job.run, lease_seq)
            stored += 1
        return stored, len(rows) - stored

    def complete(self, job: Job, lease_seq: int, worker: str, image_count: int, images: Sequence[str]) -> str:
        if self.hold(job, lease_seq, worker).outcome == "completed":
            return "completed"
        self.post(job, lease_seq, worker, [(image, "recognised") for image in images])
        if len(job.present) < image_count:
            raise Refusal("results-missing")
        self._end(job, "completed", "completed")
        self.failed.pop(worker, None)
        job.image_count = image_count
        return "completed"

    def fail(self, job: Job, lease_seq: int, worker: str, *, retryable: bool) -> str:
        if self.hold(job, lease_seq, worker).outcome == "failed":
            return job.state
        attempt = self._hold_open(job, lease_seq, worker)
        failed = self.failed.get(worker, [])
        counts = not job.failures and not job.refunds
        final = self._charge(job, attempt) or not retryable
        self._end(job, "failed", "failed" if final else "waiting")
        if attempt.charged:
            self._judge(worker, [*failed, (job, lease_seq, counts)])
        return job.state

    def _judge(self, worker: str, failed: list[tuple[Job, int, bool]]) -> None:
        """What becomes of a worker and of what it failed, the last of it just now."""
        if self.workers[worker] == "quarantined":
            self._refund(failed[-1:])
        elif failed[-1][2] and len({job.id for job, _, counts in failed if counts}) == self.quarantine_after:
            self._refund(failed)
            self.failed.pop(worker, None)
            if self.workers[worker] == "run":
                self.workers[worker] = "quarantined"
        else:
            self.failed[worker] = failed

    def _refund(self, failed: list[tuple[Job, int, bool]]) -> None:
        """Take back what was charged, and queue the jobs whose state is the work of it."""
        together: set[int] = set()
        for job, lease_seq, _ in failed:
            attempt = job.attempts[lease_seq]
            assert attempt.charged
            attempt.charged = False
            job.failures = max(job.failures - 1, 0)
            job.refunds += 1
            if job.state in ("waiting", "failed") and job.lease_seq == lease_seq:
                job.state = "queued"
                together.add(job.id)
        self.renewed += [together] if together else []

    def release(self, job: Job, lease_seq: int, worker: str) -> str:
        if self.hold(job, lease_seq, worker).outcome == "released":
            return job.state
        attempt = self._hold_open(job, lease_seq, worker)
        job.releases = 0 if attempt.new_results else job.releases + 1
        self._end(job, "released", "waiting" if job.releases > FREE_RELEASES else "queued")
        return job.state

    def goodbye(self, worker: str) -> None:
        self.workers[worker] = "gone"
        for job in self.leases_of(worker):
            self.release(job, job.lease_seq, worker)

    # --- what the clock does ---

    def sweep(self, expired: Iterable[Job], due: Iterable[Job]) -> None:
        together: set[int] = set()
        for job in expired:
            attempt = job.attempts[job.lease_seq]
            state = "failed" if self._charge(job, attempt) else "queued"
            self._end(job, "expired", state, together)
            together.add(job.id)
        for job in due:
            job.state = "queued"
            together.add(job.id)
        self.renewed += [together] if together else []

    # --- what they share ---

    def _charge(self, job: Job, attempt: Attempt) -> bool:
        """Charge an attempt that stored nothing new; returns whether that was one too many."""
        attempt.charged = attempt.new_results == 0
        job.failures += attempt.charged
        return attempt.charged and job.failures >= self.projects[job.project].max_failures

    def _end(self, job: Job, outcome: str, state: str, together: set[int] | None = None) -> None:
        if job.holder is not None:
            job.holder.outcome = outcome
        job.holder, job.state = None, state
        if state == "queued" and together is None:
            self._queue(job)

    def _queue(self, job: Job) -> None:
        job.state = "queued"
        self.renewed.append({job.id})


def _in_order(jobs: Iterable[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (-job.priority, job.queue_pos))
