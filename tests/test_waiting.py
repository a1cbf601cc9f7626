"""Claims that wait: woken by whoever queues jobs, one for each job, and holding nothing meanwhile."""

import asyncio
import json
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from job_api.client import Client
from job_api.db import Database
from job_api.routes.leases import SURELY_THERE_SECONDS
from job_api.schemas import JobState, Lease, NewToken, ProjectSettings, Role
from job_api.sweeper import sweep
from job_api.waiting import WaitingRoom
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, ServiceStarter, run
from tests.serving import LOAD_SECONDS, Serving, wait_for

PROJECT = "patents"
CHANNEL = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'job-api-notices'"


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    return admin


@pytest.fixture
def other(service: RunningService, start_service: ServiceStarter) -> RunningService:
    """Another API process on the same database, as far as that can tell."""
    return start_service(database_url=service.database_url, sweep_seconds=3600)


class Waiting:
    """A claim that waits in a thread."""

    def __init__(self, service: RunningService, token: str, project: str | None = PROJECT) -> None:
        self.leases: list[Lease] = []
        self.client = Client(service.root, token=token, retry_seconds=0)
        self.holder = Holder(self.client)
        before = service.waiting
        self.thread = threading.Thread(target=self._claim, args=(project,))
        self.thread.start()
        wait_for(lambda: service.waiting == before + 1)

    def _claim(self, project: str | None) -> None:
        self.leases = self.holder.claim(project, wait_seconds=50)

    def lease(self) -> Lease:
        """What it got, at once or not at all."""
        self.thread.join(timeout=30)
        assert not self.thread.is_alive(), "nobody woke it"
        self.client.close()
        [lease] = self.leases
        return lease


def prepare(way: str, holder: Holder) -> Lease:
    """Bring the only job of the project into the state that `way` starts from, which nobody can claim."""
    lease = holder.one(PROJECT)
    if way in ("retry", "rerun"):
        holder.fail(lease, retryable=False)
    return lease


def do(way: str, admin: Client, holder: Holder, lease: Lease) -> None:
    """Queue a job in one of the ways there are."""
    match way:
        case "add":
            admin.add_jobs(PROJECT, ["b"])
        case "retry":
            admin.retry(PROJECT, lease.job_id)
        case "rerun":
            admin.rerun(PROJECT, lease.job_id)
        case "release":
            holder.release(lease)
        case "goodbye":
            holder.client.goodbye(holder.worker_id)
        case "force-release":
            admin.force_release(PROJECT, lease.job_id)


@pytest.mark.parametrize("way", ["add", "retry", "rerun", "release", "goodbye", "force-release"])
@pytest.mark.parametrize("project", [PROJECT, None])
@pytest.mark.service(sweep_seconds=3600)
def test_a_claim_is_woken_by_whatever_queues_a_job_also_in_another_process(
    service: RunningService, other: RunningService, admin: Client, way: str, project: str | None
) -> None:
    admin.add_jobs(PROJECT, ["a"])
    token = service.token("worker")
    with Client(other.root, token=token) as worker, Client(other.root, token=service.token("admin")) as elsewhere:
        # All of it happens in the other process; this one hears of it through the database alone.
        holder = Holder(worker)
        lease = prepare(way, holder)
        waiting = Waiting(service, token, project)
        do(way, elsewhere, holder, lease)
        assert waiting.lease().project == PROJECT
    service.assert_counters_equal_recount()


@pytest.mark.service(sweep_seconds=3600)
def test_a_claim_is_woken_when_a_project_goes_on(service: RunningService, other: RunningService, admin: Client) -> None:
    admin.pause(PROJECT)
    admin.add_jobs(PROJECT, ["a"])
    waiting = Waiting(service, service.token("worker"))
    with Client(other.root, token=service.token("admin")) as elsewhere:
        elsewhere.resume(PROJECT)
    assert waiting.lease().directory == "a"


@pytest.mark.service(sweep_seconds=3600)
def test_a_claim_is_woken_when_a_lease_runs_out_or_a_wait_is_over(
    service: RunningService, other: RunningService, admin: Client
) -> None:
    admin.add_jobs(PROJECT, ["a"])
    token = service.token("worker")
    holder = Holder(service.client("worker"))
    holder.one(PROJECT)
    waiting = Waiting(service, token)
    service.sql("UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
    sweep_in(other)
    lease = waiting.lease()
    waiting.holder.client = service.client("worker")
    waiting.holder.fail(lease)
    again = Waiting(service, token)
    service.sql("UPDATE jobs SET due_at = now() - interval '1 s'")
    sweep_in(other)
    assert again.lease().job_id == lease.job_id


def sweep_in(service: RunningService) -> None:
    """Sweep once, as yet another process does."""

    async def once() -> None:
        database = Database(service.settings)
        await database.open()
        try:
            await sweep(database, judge_leases=True)
        finally:
            await database.close()

    run(once())


@pytest.mark.service(sweep_seconds=3600)
def test_a_notice_that_is_missed_costs_seconds_and_no_job(
    service: RunningService, other: RunningService, admin: Client
) -> None:
    waiting = Waiting(service, service.token("worker"))
    # One for each process.
    wait_for(lambda: len(listeners(service)) == 2)
    before = listeners(service)
    # Added by a program that tells nobody, as an older version does.
    service.sql(
        "WITH job AS (INSERT INTO jobs (project_id, directory) SELECT id, 'a' FROM projects RETURNING project_id) "
        "UPDATE project_slots s SET queued = queued + 1 FROM job WHERE s.project_id = job.project_id AND slot = 0"
    )
    assert waiting.lease().directory == "a"
    service.sql("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", list(before))
    wait_for(lambda: len(listeners(service) - before) == 2)
    later = Waiting(service, service.token("worker"))
    with Client(other.root, token=service.token("admin")) as elsewhere:
        elsewhere.add_jobs(PROJECT, ["b"])
    assert later.lease().directory == "b"


def listeners(service: RunningService) -> set[int]:
    return {row["pid"] for row in service.sql(CHANNEL)}


@contextmanager
def claims(service: RunningService, count: int) -> Iterator[list[bytes]]:
    """Many claims that wait, each on a connection of its own; gives their answers as they come."""
    token = service.token("worker")
    answers: list[bytes] = []
    port = int(service.root.rsplit(":", 1)[1])
    stop = threading.Event()

    async def claim() -> None:
        body = json.dumps({"worker_id": f"w-{uuid.uuid4().hex}", "claim_key": "k", "wait_seconds": 50}).encode()
        head = (
            f"POST /v4/{PROJECT}/claim HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head.encode() + body)
            answers.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        finally:
            writer.close()

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(claim()) for _ in range(count)]
        await asyncio.to_thread(stop.wait)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(all_of_them(),))
    thread.start()
    try:
        wait_for(lambda: service.waiting == count, LOAD_SECONDS)
        yield answers
    finally:
        stop.set()
        thread.join()


@pytest.mark.service(pool_size=3, sweep_seconds=3600)
def test_many_waiting_claims_hold_no_connection_and_do_not_all_run_for_one_job(
    service: RunningService, admin: Client
) -> None:
    with claims(service, 400) as answers:
        mine = (
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert service.sql(mine)[0]["n"] <= 3 + 1, "the pool and the listener"
        assert admin.project(PROJECT).jobs.queued == 0, "others are served meanwhile"
        before = transactions(service)
        admin.add_jobs(PROJECT, ["a"])
        wait_for(lambda: len(answers) == 1)
        wait_for(lambda: service.waiting == 399)
        assert transactions(service) - before < 300, "399 claims looked for a job that was gone"
        admin.add_jobs(PROJECT, [f"many {number}" for number in range(300)])
        wait_for(lambda: len(answers) == 301, LOAD_SECONDS)
        wait_for(lambda: service.waiting == 99)
        assert set(answers) == {b"HTTP/1.1 200 OK"}
    # Those that hung up get nothing: one that was looking just then gives it back.
    wait_for(lambda: service.waiting == 0)
    admin.add_jobs(PROJECT, ["nobody waits for this one"])
    wait_for(lambda: admin.project(PROJECT).jobs.queued == 1)
    service.assert_counters_equal_recount()


def transactions(service: RunningService) -> int:
    """How many there were; a backend reports its own when it answers a second after its last report."""
    threading.Event().wait(1.1)
    admin = service.client("admin")
    with ThreadPoolExecutor(12) as askers:
        # So many at once that every connection of the pool answers one.
        list(askers.map(lambda _: admin.project(PROJECT), range(24)))
    rows = service.sql(
        "SELECT xact_commit + xact_rollback AS n FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(rows[0]["n"])


def test_those_who_waited_longest_come_first(service: RunningService, admin: Client) -> None:
    token = service.token("worker")
    first, second = Waiting(service, token), Waiting(service, token, None)
    admin.add_jobs(PROJECT, ["a"])
    assert first.lease().directory == "a"
    assert second.thread.is_alive()
    admin.add_jobs(PROJECT, ["b"])
    assert second.lease().directory == "b"


def test_a_call_that_is_not_answered_is_passed_on() -> None:
    async def story() -> None:
        room, leaving = WaitingRoom(), ExitStack()
        called = leaving.enter_context(room.seat("a"))
        with room.seat("b") as other, room.seat(None) as any_project, room.seat("a") as last:
            room.ring("a", 1)
            assert called.called
            # It leaves as one whose client hung up, and one that was refused before it could look.
            called.sit_down_again()
            leaving.close()
            assert [other.called, any_project.called, last.called] == [False, True, False]
            any_project.sit_down_again()
            any_project.has_looked()
        assert len(room) == 0

    run(story())


def test_a_waiting_claim_whose_client_hung_up_keeps_no_place_before_others(
    service: RunningService, admin: Client
) -> None:
    with claims(service, 1):
        wait_for(lambda: service.waiting == 1)
    wait_for(lambda: service.waiting == 0)
    waiting = Waiting(service, service.token("worker"))
    admin.add_jobs(PROJECT, ["a"])
    assert waiting.lease().lease_seq == 1


@pytest.mark.service(sweep_seconds=3600)
def test_a_claim_whose_client_hung_up_is_undone_and_costs_nothing(service: RunningService, admin: Client) -> None:
    admin.add_jobs(PROJECT, ["a"])
    worker = Holder(service.client("worker"))
    worker.heartbeat()
    blocked, release = threading.Event(), threading.Event()

    async def hold_the_worker() -> None:
        connection = await asyncpg.connect(service.database_url)
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM workers FOR UPDATE")
            blocked.set()
            await asyncio.to_thread(release.wait)
        await connection.close()

    async def claim_and_hang_up() -> None:
        body = json.dumps({"worker_id": worker.worker_id, "claim_key": "k"}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", int(service.root.rsplit(":", 1)[1]))
        writer.write(
            f"POST /v4/{PROJECT}/claim HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token('worker')}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        await asyncio.to_thread(
            wait_for, lambda: service.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        )
        port = writer.get_extra_info("sockname")[1]
        writer.close()
        await writer.wait_closed()
        # Until the service, whose side of the line this process owns too, has noticed.
        mine = psutil.Process()
        await asyncio.to_thread(wait_for, lambda: port not in {c.raddr.port for c in mine.net_connections() if c.raddr})

    blocker = threading.Thread(target=lambda: run(hold_the_worker()))
    blocker.start()
    blocked.wait()
    began = time.monotonic()
    run(claim_and_hang_up())
    wait_for(lambda: time.monotonic() - began > 2 * SURELY_THERE_SECONDS)
    release.set()
    blocker.join()
    wait_for(lambda: service.sql("SELECT 1 FROM attempts WHERE outcome = 'released' AND reason = 'client-gone'"))
    [job] = admin.jobs(PROJECT)
    assert (job.state, job.failures, job.releases) == (JobState.QUEUED, 0, 0)
    service.assert_counters_equal_recount()


def test_a_service_that_ends_answers_those_who_wait(data_dir: Path) -> None:
    with Serving(data_dir) as serving:
        admin = serving.client()
        admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
        token = admin.new_token(NewToken(name="w", role=Role.WORKER)).token
        answers: list[list[Lease]] = []
        with Client(serving.root, token=token, retry_seconds=0) as client:
            worker = Holder(client)
            waiting = threading.Thread(target=lambda: answers.append(worker.claim(PROJECT, wait_seconds=50)))
            waiting.start()
            wait_for(lambda: worker.worker_id in {seen.id for seen in admin.workers()})
            serving.process.send_signal(signal.SIGTERM)
            waiting.join(timeout=30)
        # A claim that was cut off would have raised.
        assert answers == [[]]
