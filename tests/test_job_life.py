"""The job's life against a model: whatever people, workers and the clock do in whatever order, both say the same.

The service and its database are real and spoken to over HTTP. Only the clock is ours: nothing runs out by itself, and
leases and back-offs end where the test moves their times into the past and sweeps.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from job_api import schemas
from job_api.claiming import Claims
from job_api.client import ApiError
from job_api.counters import RECOUNT, SUMS
from job_api.db import Database
from job_api.main import PASSWORD_FILE
from job_api.schemas import ResultStatus
from job_api.settings import Settings
from job_api.sweeper import sweep
from tests.job_model import FINISHED, Job, Model, Project, Refusal
from tests.plugins.holder import LEASE, Holder, result
from tests.plugins.service import RunningService, ServiceThread
from tests.serving import wait_for

CLEAR = """
TRUNCATE jobs, attempts, results, projects, project_slots, project_samples, project_usage, workers, worker_failures
"""
# Leases of the first list have run out, back-offs of the second are over, and no other back-off ends by itself.
MOVE_CLOCK = """
WITH ended AS (UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE id = ANY($1::bigint[]))
UPDATE jobs SET due_at = now() + CASE WHEN id = ANY($2::bigint[]) THEN interval '-1 second' ELSE interval '1 day' END
WHERE state = 'waiting'
"""
JOBS = """
SELECT id, directory, state, lease_seq, run, failures, refunds, releases, worker_id, claim_key, image_count, queue_pos
FROM jobs ORDER BY id
"""
WORKERS = "SELECT id, state, reason IS NOT NULL AS says_why FROM workers WHERE state <> 'gone' ORDER BY id"
FAILURES = "SELECT worker_id, job_id, lease_seq, counts FROM worker_failures ORDER BY 1, 2, 3"
ATTEMPTS = "SELECT job_id, lease_seq, worker_id, outcome, charged, new_results FROM attempts ORDER BY 1, 2"
RESULTS = "SELECT job_id, image, status, run, lease_seq, stale FROM results ORDER BY 1, 2"
UNEVEN = """
SELECT j.id FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.outcome IS NULL
GROUP BY j.id HAVING count(a.job_id) <> (j.state = 'claimed')::int
"""

IMAGES = ["1.png", "2.png"]
STATUSES = ["recognised", "blank"]
DIRECTORIES = ["a", "b", "c", "d", "e"]
KEYS = ["k1", "k2", "new"]
MISTAKES = ["none", "none", "none", "none", "worker", "project"]


class World:
    """One service for all examples, the test's own way to its database, and the clock."""

    def __init__(self, thread: ServiceThread, url: str, password: str) -> None:
        self.service = RunningService(f"http://127.0.0.1:{thread.port}", password, url, thread.settings)
        self.admin = self.service.client("admin")
        self.worker = self.service.client("worker")
        self.claims: Claims = thread.app.state.service.claims
        self.loop = asyncio.Runner()
        self.connection: asyncpg.Connection = self.loop.run(asyncpg.connect(url))
        self.database = Database(thread.settings)
        self.loop.run(self.database.open())
        # Names are never used twice: what the service remembers of an example must not meet the next one.
        self.names = 0

    def close(self) -> None:
        self.service.close_clients()
        self.loop.run(self.database.close())
        self.loop.run(self.connection.close())
        self.loop.close()

    def name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def rows(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.loop.run(self.connection.fetch(statement, *arguments))]

    def move_clock(self, expired: list[int], due: list[int]) -> None:
        self.rows(MOVE_CLOCK, expired, due)
        self.loop.run(sweep(self.database, judge_leases=True))


@pytest.fixture
def world(make_database: Callable[[], str], tmp_path: Path) -> Iterator[World]:
    with _world(make_database(), tmp_path / "service") as world:
        yield world


@contextmanager
def _world(url: str, data_dir: Path) -> Iterator[World]:
    day = 86_400.0
    settings = Settings.model_validate(
        {
            "data_dir": data_dir,
            "database_url": url,
            "port": 0,
            "pool_size": 4,
            "lease_seconds": day,
            "sweep_seconds": day,
            "backoff_seconds": day,
            "quarantine_after": 2,
        }
    )
    thread = ServiceThread(settings)
    thread.start()
    try:
        world = World(thread, url, (data_dir / PASSWORD_FILE).read_text().strip())
        try:
            yield world
        finally:
            world.close()
    finally:
        thread.stop()


def said(call: Callable[[], Any]) -> Any:
    """What a call answers, or the problem type of its refusal."""
    try:
        return call()
    except ApiError as error:
        if error.status != (404 if error.problem_type == "not-found" else 409):
            raise
        return error.problem_type
    except Refusal as refusal:
        return refusal.kind


def has_leases(machine: "JobLife") -> bool:
    return any(job.attempts for job in machine.model.jobs.values())


class JobLife(RuleBasedStateMachine):
    """Every request that moves a job, made of the service and of the model."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Model(world.service.settings.quarantine_after)
        self.workers: list[str] = []
        self.highest_pos = 0

    @initialize(priorities=st.sampled_from([(0, 0), (0, 5)]), max_failures=st.integers(1, 3))
    def begin(self, priorities: tuple[int, int], max_failures: int) -> None:
        self.world.rows(CLEAR)
        for priority in priorities:
            self.new_project(priority, max_failures)
        self.workers = [self.new_worker() for _ in range(3)]
        # So that there is something to write through from the beginning.
        for project in self.model.projects:
            self.add_jobs(project, DIRECTORIES[:3], 0)
            self.the_database_says_the_same()
            self._claim(project, self.workers[0], "k1", 2)

    def new_project(self, priority: int, max_failures: int) -> None:
        name = self.world.name("p")
        settings = schemas.ProjectSettings(source="file:///data", priority=priority, max_failures=max_failures)
        self.world.admin.put_project(name, settings)
        self.model.projects[name] = Project(priority, max_failures)

    def new_worker(self) -> str:
        worker = self.world.name("w")
        self.holder(worker).heartbeat()
        self.model.workers[worker] = "run"
        return worker

    def holder(self, worker: str) -> Holder:
        return Holder(self.world.worker, worker)

    # --- choosing ---

    def some_project(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.model.projects)), "project")

    def some_worker(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.workers), "worker")

    def some_job(self, data: st.DataObject) -> Job:
        return self.model.jobs[data.draw(st.sampled_from(sorted(self.model.jobs)), "job")]

    def some_lease(self, data: st.DataObject) -> tuple[Job, int]:
        """A lease; most often one that is held, then one that ran out."""
        every = [(job, seq) for job in self.model.jobs.values() for seq in job.attempts]
        kind = data.draw(st.sampled_from(["held", "held", "held", "expired", "any"]))
        outcome = {"held": None, "expired": "expired"}
        chosen = [(job, seq) for job, seq in every if kind == "any" or job.attempts[seq].outcome == outcome[kind]]
        return data.draw(st.sampled_from(chosen or every), "lease")

    def lease(self, job: Job, lease_seq: int, project: str | None = None) -> schemas.Lease:
        return LEASE.model_copy(
            update={"job_id": job.id, "lease_seq": lease_seq, "project": project or job.project, "results_count": 1}
        )

    def agree(self, real: Callable[[], Any], model: Callable[[], Any]) -> Any:
        """Ask both, and let neither say another thing."""
        answer, expected = said(real), said(model)
        assert answer == expected
        return answer

    # --- people ---

    @rule(data=st.data(), directories=st.lists(st.sampled_from(DIRECTORIES), min_size=1, max_size=5))
    def add(self, data: st.DataObject, directories: list[str]) -> None:
        self.add_jobs(self.some_project(data), directories, data.draw(st.sampled_from([0, 0, 5]), "priority"))

    def add_jobs(self, project: str, directories: list[str], priority: int) -> None:
        def add() -> tuple[int, int]:
            answer = self.world.admin.add_jobs(project, directories, priority=priority)
            return answer.added, answer.present

        self.agree(add, lambda: self.model.add(project, directories))
        ids = dict(
            self.world.rows(
                "SELECT j.directory, j.id FROM jobs j JOIN projects p ON p.id = j.project_id WHERE p.name = $1", project
            )
        )
        for directory in dict.fromkeys(directories):
            if ids[directory] not in self.model.jobs:
                self.model.note_added(Job(ids[directory], project, directory, priority))

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), action=st.sampled_from(["cancel", "retry", "rerun", "force_release"]))
    def act(self, data: st.DataObject, action: str) -> None:
        job = self.some_job(data)
        if action == "rerun":
            self.run_again(data, job)
            return
        act: Callable[[str, int], schemas.Job] = getattr(self.world.admin, action)
        model: Callable[[Job], str] = getattr(self.model, action)
        self.agree(lambda: act(job.project, job.id).state, lambda: model(job))

    @precondition(lambda self: any(job.state in FINISHED for job in self.model.jobs.values()))
    @rule(data=st.data())
    def rerun_finished(self, data: st.DataObject) -> None:
        finished = [job_id for job_id, job in sorted(self.model.jobs.items()) if job.state in FINISHED]
        self.run_again(data, self.model.jobs[data.draw(st.sampled_from(finished), "job")])

    def run_again(self, data: st.DataObject, job: Job) -> None:
        # Most often one that it has.
        known = sorted({row.status for row in job.rows.values()}) or STATUSES
        statuses = data.draw(st.none() | st.lists(st.sampled_from(known), min_size=1, max_size=2), "statuses")
        wanted = None if statuses is None else [ResultStatus(status) for status in statuses]
        self.agree(
            lambda: self.world.admin.rerun(job.project, job.id, wanted).state, lambda: self.model.rerun(job, statuses)
        )

    @rule(data=st.data(), what=st.sampled_from(["pause", "resume", "resume", "settings"]))
    def change_project(self, data: st.DataObject, what: str) -> None:
        name = self.some_project(data)
        project = self.model.projects[name]
        if what == "settings":
            project.priority = data.draw(st.sampled_from([0, 5]), "priority")
            project.max_failures = data.draw(st.integers(1, 3), "max_failures")
            changed = schemas.ProjectSettings(priority=project.priority, max_failures=project.max_failures)
            self.world.admin.put_project(name, changed)
        else:
            project.paused = what == "pause"
            (self.world.admin.pause if project.paused else self.world.admin.resume)(name)

    @rule(data=st.data(), word=st.sampled_from(["drain", "quarantine", "lift", "lift", "lift", "goodbye", "goodbye"]))
    def steer(self, data: st.DataObject, word: str) -> None:
        if word == "goodbye":
            self.say_goodbye(self.some_worker(data))
            return
        worker = data.draw(st.sampled_from(sorted(self.model.workers)), "worker")
        state = {"drain": "drain", "quarantine": "quarantined", "lift": "run"}[word]
        steer: Callable[[str], schemas.Worker] = getattr(self.world.admin, word)
        self.agree(lambda: steer(worker).state, lambda: self.model.steer(worker, state))

    def say_goodbye(self, worker: str) -> None:
        self.world.worker.goodbye(worker)
        self.model.goodbye(worker)
        # It may still speak, and a new process takes its place.
        self.workers = [*(name for name in self.workers if name != worker), self.new_worker(), worker][-4:]

    # --- claims ---

    @rule(data=st.data(), key=st.sampled_from(KEYS), max_jobs=st.integers(1, 3), named=st.booleans())
    def claim(self, data: st.DataObject, key: str, max_jobs: int, named: bool) -> None:
        worker = self.some_worker(data)
        project = self.some_project(data) if named else None
        key = self.world.name("k") if key == "new" else key
        self._claim(project, worker, key, max_jobs)

    @precondition(lambda self: any(self.model.queue(name) for name in self.model.projects))
    @rule(data=st.data(), status=st.sampled_from(STATUSES), completes=st.booleans())
    def work(self, data: st.DataObject, status: str, completes: bool) -> None:
        """Claim a job and get on with it, as workers do."""
        worker = self.some_worker(data)
        for job in self._claim(None, worker, self.world.name("k"), 1):
            seq, holder, lease = job.lease_seq, self.holder(worker), self.lease(job, job.lease_seq)
            rows = [(IMAGES[0], status)]
            self.agree(
                lambda: holder.post(lease, rows=[result(*row) for row in rows]).stored,  # noqa: B023
                lambda: self.model.post(job, seq, worker, rows)[0],  # noqa: B023
            )
            if completes:
                self.agree(
                    lambda: holder.complete(lease, 1).state,  # noqa: B023
                    lambda: self.model.complete(job, seq, worker, 1, []),  # noqa: B023
                )

    @precondition(lambda self: any(self.model.queue(name) for name in self.model.projects))
    @rule(data=st.data(), retryable=st.booleans())
    def fail_all(self, data: st.DataObject, retryable: bool) -> None:
        """Claim jobs and fail them one after another, as a worker whose machine is at fault."""
        worker = self.some_worker(data)
        for job in self._claim(None, worker, self.world.name("k"), 3):
            seq, holder, lease = job.lease_seq, self.holder(worker), self.lease(job, job.lease_seq)
            self.agree(
                lambda: holder.fail(lease, retryable=retryable).state,  # noqa: B023
                lambda: self.model.fail(job, seq, worker, retryable=retryable),  # noqa: B023
            )

    @precondition(lambda self: any(job.holder for job in self.model.jobs.values()))
    @rule(data=st.data(), named=st.booleans())
    def claim_again(self, data: st.DataObject, named: bool) -> None:
        """A claim whose answer was lost."""
        held = [job_id for job_id, job in sorted(self.model.jobs.items()) if job.holder]
        job = self.model.jobs[data.draw(st.sampled_from(held), "job")]
        if job.holder is not None:
            self._claim(job.project if named else None, job.holder.worker, job.holder.key, 3)

    def _claim(self, project: str | None, worker: str, key: str, max_jobs: int) -> list[Job]:
        # Which projects have jobs is remembered for a second; the model speaks of a fresh look.
        self.world.claims._prospects_until = 0.0
        request = schemas.ClaimRequest(worker_id=worker, claim_key=key, max_jobs=max_jobs)
        answer = said(lambda: self.world.worker.claim(project, request))
        refused = said(lambda: self.model.check_may_claim(worker))
        if refused is not None:
            assert answer == refused
            return []
        leases, pending, is_paused = answer
        best = self.model.best_projects()
        expected = self.model.leases_of(worker, key)
        if not expected:
            served = leases[0].project if leases else project
            assert project is not None or (served in best if best else served is None)
            expected = self._handed_out(served, max_jobs, len(leases))
            self.model.take(expected, worker, key)
        if project is None and best and leases:
            self.model.note_served(leases[0].project)
        assert [(lease.job_id, lease.lease_seq, lease.project, lease.directory) for lease in leases] == [
            (job.id, job.lease_seq, job.project, job.directory) for job in expected
        ]
        assert [lease.results_count for lease in leases] == [
            0 if job.lease_seq == 1 else len(job.present) for job in expected
        ]
        assert leases or pending == self.model.pending(project)
        assert is_paused == (not leases and project is not None and self.model.projects[project].paused)
        return expected

    def _handed_out(self, project: str | None, max_jobs: int, got: int) -> list[Job]:
        """The jobs that a claim gets; it may get fewer where the priority changes."""
        queue = [] if project is None else self.model.queue(project)
        expected = queue[:max_jobs]
        if 0 < got < len(expected) and queue[got].priority < queue[got - 1].priority:
            return queue[:got]
        return expected

    # --- through a lease ---

    @precondition(has_leases)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        worker = self.some_worker(data)
        mine = {
            job.id: (job, seq)
            for job in self.model.jobs.values()
            for seq, attempt in sorted(job.attempts.items())
            if attempt.worker == worker
        }
        chosen = data.draw(st.lists(st.sampled_from(sorted(mine)), unique=True), "named") if mine else []
        named = [mine[job_id] for job_id in chosen]

        def heartbeat() -> tuple[list[str], list[int]]:
            answer = self.holder(worker).heartbeat(*(self.lease(job, seq) for job, seq in named))
            assert answer.state == self.model.workers[worker]
            return [verdict.status.value for verdict in answer.leases], [lease.job_id for lease in answer.unnamed]

        self.agree(heartbeat, lambda: self.model.heartbeat(worker, named))

    def write(self, data: st.DataObject, write: Callable[..., Any], model: Callable[..., Any], **options: Any) -> None:
        """Write through a lease; now and then another worker does it, or in another project."""
        job, seq = self.some_lease(data)
        worker, lease = job.attempts[seq].worker, self.lease(job, seq)
        mistake = data.draw(st.sampled_from(MISTAKES), "mistake")
        if mistake == "worker":
            worker = data.draw(st.sampled_from([name for name in self.workers if name != worker]), "worker")
        if mistake == "project":
            [other] = [name for name in self.model.projects if name != job.project]
            assert said(lambda: write(self.holder(worker), self.lease(job, seq, other))) == "not-found"
        else:
            self.agree(lambda: write(self.holder(worker), lease), lambda: model(job, seq, worker, **options))

    @precondition(has_leases)
    @rule(data=st.data(), rows=st.lists(st.tuples(*map(st.sampled_from, (IMAGES, STATUSES))), min_size=1, max_size=2))
    def post(self, data: st.DataObject, rows: list[tuple[str, str]]) -> None:
        def post(holder: Holder, lease: schemas.Lease) -> tuple[int, int]:
            answer = holder.post(lease, rows=[result(image, status) for image, status in rows])
            return answer.stored, answer.unchanged

        self.write(data, post, self.model.post, rows=rows)

    @precondition(has_leases)
    @rule(
        data=st.data(), images=st.lists(st.sampled_from(IMAGES), unique=True), image_count=st.sampled_from([1, 1, 2, 3])
    )
    def complete(self, data: st.DataObject, images: list[str], image_count: int) -> None:
        def complete(holder: Holder, lease: schemas.Lease) -> str:
            return holder.complete(lease, image_count, *images).state

        self.write(data, complete, self.model.complete, image_count=image_count, images=images)

    @precondition(has_leases)
    @rule(data=st.data(), retryable=st.sampled_from([True, True, False]))
    def fail(self, data: st.DataObject, retryable: bool) -> None:
        def fail(holder: Holder, lease: schemas.Lease) -> str:
            return holder.fail(lease, retryable=retryable).state

        self.write(data, fail, self.model.fail, retryable=retryable)

    @precondition(has_leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.write(data, lambda holder, lease: holder.release(lease).state, self.model.release)

    @precondition(has_leases)
    @rule(data=st.data())
    def images_done(self, data: st.DataObject) -> None:
        self.write(data, Holder.images_done, self.model.images_done)

    # --- the clock ---

    @precondition(lambda self: any(job.state in ("claimed", "waiting") for job in self.model.jobs.values()))
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        of_state = {
            state: [job.id for job in self.model.jobs.values() if job.state == state]
            for state in ("claimed", "waiting")
        }
        expired, due = (
            data.draw(st.lists(st.sampled_from(ids), unique=True), name) if ids else []
            for name, ids in zip(("expired", "due"), of_state.values(), strict=True)
        )
        self.world.move_clock(expired, due)
        jobs = self.model.jobs
        self.model.sweep([jobs[job_id] for job_id in expired], [jobs[job_id] for job_id in due])
        # Another process swept: the service hears of it, and looks for the beginning of the queue anew.
        queued = {jobs[job_id].project for job_id in (*expired, *due) if jobs[job_id].state == "queued"}
        wait_for(lambda: not queued & self.world.claims._beginnings.keys())

    # --- what holds after each of them ---

    @invariant()
    def the_database_says_the_same(self) -> None:
        rows = self.world.rows(JOBS)
        self._adopt_order({row[0]: row[-1] for row in rows})
        assert rows == [
            (
                job.id,
                job.directory,
                job.state,
                job.lease_seq,
                job.run,
                job.failures,
                job.refunds,
                job.releases,
                job.holder and job.holder.worker,
                job.holder and job.holder.key,
                job.image_count,
                job.queue_pos,
            )
            for job in self._jobs()
        ]
        assert self.world.rows(ATTEMPTS) == [
            (job.id, seq, attempt.worker, attempt.outcome, attempt.charged, attempt.new_results)
            for job in self._jobs()
            for seq, attempt in sorted(job.attempts.items())
        ]
        assert self.world.rows(RESULTS) == [
            (job.id, image, row.status, row.run, row.lease_seq, row.stale)
            for job in self._jobs()
            for image, row in sorted(job.rows.items())
        ]
        assert self.world.rows(WORKERS) == sorted(
            (worker, state, state == "quarantined") for worker, state in self.model.workers.items() if state != "gone"
        )
        assert self.world.rows(FAILURES) == sorted(
            (worker, job.id, seq, counts) for worker, failed in self.model.failed.items() for job, seq, counts in failed
        )
        assert self.world.rows(UNEVEN) == []
        for (project_id,) in self.world.rows("SELECT id FROM projects"):
            assert self.world.rows(SUMS, project_id) == self.world.rows(RECOUNT, project_id)

    def _jobs(self) -> list[Job]:
        return sorted(self.model.jobs.values(), key=lambda job: job.id)

    def _adopt_order(self, queue_pos: dict[int, int]) -> None:
        """Jobs that went to the end of the queue are behind all others, in order; take over their places."""
        for together in self.model.renewed:
            places = {job_id: queue_pos[job_id] for job_id in together}
            last = max(places, key=lambda job_id: places[job_id])
            for job_id, place in places.items():
                self.model.jobs[job_id].queue_pos = place
                assert place > self.highest_pos
            self.highest_pos = places[last]
        self.model.renewed.clear()


@pytest.mark.timeout(3600)
def test_the_queue_does_what_the_model_says(world: World) -> None:
    class JobLifeHere(JobLife):
        def __init__(self) -> None:
            super().__init__(world)

    run_machine(JobLifeHere)
