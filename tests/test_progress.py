"""How far a project is: its workers' time is counted once, whoever sweeps; pace, ETA and cost say what they rest on.

The sweeps are made by hand, at moments that the tests choose by moving what the database remembers of the last one.
"""

import asyncio

import pytest

from job_api import progress
from job_api.client import Client
from job_api.db import Database
from job_api.schemas import DirectoryOrder, ProjectSettings
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, run

PROJECT, OTHER = "patents", "others"
SOURCE = ProjectSettings(source="file:///data")
# Nobody but the tests samples.
QUIET = {"sweep_seconds": 3600}
pytestmark = pytest.mark.service(**QUIET)

AGO = "UPDATE usage_clock SET counted_until = now() - $1 * interval '1 second'"
SAMPLED_AGO = "UPDATE project_samples SET sampled_at = now() - interval '200 seconds'"
HELD_FOR = """
UPDATE attempts SET claimed_at = coalesce(ended_at, now()) - $2 * interval '1 second'
WHERE job_id = $1 AND lease_seq = (SELECT max(lease_seq) FROM attempts WHERE job_id = $1)
"""
# As the sweep queues a job that is due.
DUE = "UPDATE jobs SET state = 'queued', due_at = NULL, queue_pos = nextval('queue_pos_seq') WHERE id = $1"


def sample(service: RunningService, seconds: float, *, processes: int = 1) -> None:
    """Sample as that many API processes do at once, a time after the last sample."""

    async def once() -> None:
        databases = [Database(service.settings) for _ in range(processes)]
        await asyncio.gather(*(database.open() for database in databases))
        try:
            async with databases[0].connection() as connection:
                await connection.execute(AGO, seconds)
            await asyncio.gather(*(take(database) for database in databases))
        finally:
            await asyncio.gather(*(database.close() for database in databases))

    async def take(database: Database) -> None:
        async with database.connection() as connection:
            await progress.take_samples(connection)

    run(once())


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    for project in (PROJECT, OTHER):
        client.put_project(project, SOURCE)
        client.add_jobs(project, [str(number) for number in range(10)])
    return client


def assert_time(admin: Client, worker_seconds: float, busy_seconds: float, project: str = PROJECT) -> None:
    """The time that is counted is about this: a test takes some itself."""
    status = admin.project(project)
    counted = [status.worker_seconds, status.busy_seconds]
    assert counted == pytest.approx([worker_seconds, busy_seconds], rel=0.1, abs=0.01)


def test_time_is_counted_once_however_many_processes_sweep_at_once(service: RunningService, admin: Client) -> None:
    for _ in range(3):
        Holder(service.client("worker")).claim(PROJECT, max_jobs=2)
    sample(service, 10, processes=4)
    assert_time(admin, 30, 10)
    sample(service, 0)
    assert_time(admin, 30, 10)
    assert_time(admin, 0, 0, OTHER)


def test_a_worker_of_two_projects_is_shared_by_its_leases(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    worker.claim(PROJECT, max_jobs=3)
    worker.claim(OTHER, max_jobs=1)
    sample(service, 40)
    assert_time(admin, 30, 40)
    assert_time(admin, 10, 40, OTHER)


def test_a_time_in_which_nobody_sampled_counts_up_to_a_minute(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    lease = worker.one(PROJECT)
    sample(service, 7200)
    assert_time(admin, 60, 60)
    # What nobody works on takes no time, and none of it is counted to who comes next.
    worker.complete(lease, 1, "1.png")
    sample(service, 30)
    worker.one(PROJECT)
    sample(service, 5)
    assert_time(admin, 65, 65)


def test_a_rerun_goes_on_counting_and_a_deleted_project_leaves_nothing(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    lease = worker.one(PROJECT)
    sample(service, 10)
    worker.complete(lease, 1, "1.png")
    admin.rerun(PROJECT, lease.job_id)
    assert_time(admin, 10, 10)
    for job in admin.jobs(PROJECT, state="queued"):
        admin.cancel(PROJECT, job.id)
    admin.delete_project(PROJECT)
    assert service.sql("SELECT 1 FROM project_usage") == []


def test_the_status_says_what_was_spent_and_what_that_rests_on(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    first = worker.one(PROJECT)
    sample(service, 36)
    worker.complete(first, 4, "1.png", "2.png", "3.png", "4.png")
    # As if they had been stored in the time since, which is long beside what the test itself takes.
    service.sql(SAMPLED_AGO)
    assert admin.project(PROJECT).cost is None
    assert admin.project(PROJECT).cost_assumes is None
    admin.put_project(PROJECT, ProjectSettings(price_per_worker_hour=0.5))
    status = admin.project(PROJECT)
    assert status.images_per_second_overall == pytest.approx(4 / 36, rel=0.1)
    assert status.images_per_second == pytest.approx(4 / 200, rel=0.2)
    assert status.cost is not None
    assert status.cost.spent == pytest.approx(0.005, rel=0.1)
    assert status.cost.per_1000_images == pytest.approx(0.005 / 4 * 1000, rel=0.1)
    # Nine directories of four images each.
    assert status.cost.expected_total == pytest.approx(0.005 + 36 * 0.005 / 4, rel=0.1)
    assert "start or idle are not in it" in (status.cost_assumes or "")
    assert "36 images" in (status.cost_assumes or "")
    admin.put_project(PROJECT, ProjectSettings(price_per_worker_hour=0))
    assert admin.project(PROJECT).cost is None


def test_images_from_before_the_count_are_in_no_average(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    worker.complete(worker.one(PROJECT), 3, "1.png", "2.png", "3.png")
    # As the migration leaves a project with three images.
    service.sql("INSERT INTO project_usage (project_id, images_before) SELECT 1, 3")
    admin.put_project(PROJECT, ProjectSettings(price_per_worker_hour=3600))
    status = admin.project(PROJECT)
    assert (status.images_per_second_overall, status.cost and status.cost.per_1000_images) == (None, None)
    lease = worker.one(PROJECT)
    sample(service, 20)
    worker.complete(lease, 2, "1.png", "2.png")
    status = admin.project(PROJECT)
    assert status.images_per_second_overall == pytest.approx(0.1, rel=0.1)
    assert status.cost is not None
    assert status.cost.per_1000_images == pytest.approx(10_000, rel=0.1)
    assert "3 images are older" in (status.cost_assumes or "")


def test_without_an_eta_it_says_why(service: RunningService, admin: Client) -> None:
    def said() -> str:
        status = admin.project(PROJECT)
        assert status.eta_seconds is None
        return status.eta_assumes or ""

    worker = Holder(service.client("worker"))
    assert "before the first directory is completed" in said()
    worker.complete(worker.one(PROJECT), 1, "1.png")
    assert "nobody was at work" in said()
    sample(service, 5)
    service.sql(SAMPLED_AGO)
    assert "no result was stored" in said()
    worker.complete(worker.one(PROJECT), 1, "1.png")
    assert admin.project(PROJECT).eta_seconds == pytest.approx(8 * 200, rel=0.2)
    admin.pause(PROJECT)
    assert "paused" in said()


def test_the_rows_of_a_run_before_are_no_work_done(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    first = worker.one(PROJECT)
    worker.complete(first, 2, "1.png", "2.png")
    sample(service, 5)
    service.sql(SAMPLED_AGO)
    worker.complete(worker.one(PROJECT), 2, "1.png", "2.png")
    assert admin.project(PROJECT).eta_seconds == pytest.approx(8 * 200, rel=0.2)
    admin.rerun(PROJECT, first.job_id)
    assert admin.project(PROJECT).eta_seconds == pytest.approx(9 * 200, rel=0.2)


def test_a_pause_in_the_work_is_not_in_its_pace(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    worker.complete(worker.one(PROJECT), 3, "1.png", "2.png", "3.png")
    [row] = service.sql("SELECT id FROM projects WHERE name = $1", PROJECT)
    for ago, stored in ((280, 0), (275, 1), (95, 2), (90, 2), (85, 2)):
        service.sql(
            "INSERT INTO project_samples (project_id, sampled_at, images_stored) "
            "VALUES ($1, now() - $2 * interval '1 second', $3)",
            row["id"],
            ago,
            stored,
        )
    status = admin.project(PROJECT)
    assert status.rate_window_seconds == pytest.approx(95, abs=10)
    assert status.images_per_second == pytest.approx(2 / 95, rel=0.15)


def test_a_rerun_has_a_pace_and_a_price(service: RunningService, admin: Client) -> None:
    admin.put_project(PROJECT, ProjectSettings(price_per_worker_hour=3600))
    worker = Holder(service.client("worker"))
    for _ in range(2):
        worker.complete(worker.one(PROJECT), 2, "1.png", "2.png")
    for job in admin.jobs(PROJECT, state="queued"):
        admin.cancel(PROJECT, job.id)
    again = [job.id for job in admin.jobs(PROJECT, state="completed")]
    for job_id in again:
        admin.rerun(PROJECT, job_id)
    assert "nothing can be said" in (admin.project(PROJECT).eta_assumes or "")
    lease = worker.one(PROJECT)
    sample(service, 20)
    service.sql(SAMPLED_AGO)
    worker.complete(lease, 2, "1.png", "2.png")
    status = admin.project(PROJECT)
    assert "where of a rerun not all images are done again, it takes less" in (status.eta_assumes or "")
    assert (status.images.stored, status.jobs.completed, status.jobs.queued) == (4, 1, 1)
    assert status.images_per_second == pytest.approx(2 / 200, rel=0.2)
    # The other directory's two.
    assert status.eta_seconds == pytest.approx(200, rel=0.2)
    assert status.images_per_second_overall == pytest.approx(6 / 20, rel=0.1)
    assert status.cost is not None
    assert status.cost.per_1000_images == pytest.approx(20_000 / 6, rel=0.1)
    # Rows of the run before are no work done on what is held.
    held = worker.one(PROJECT)
    assert admin.project(PROJECT).eta_seconds == pytest.approx(200, rel=0.2)
    worker.post(held, "1.png")
    # Sent again through the same lease nothing is replaced, and what replaces nothing is counted once.
    for _ in range(2):
        worker.post(held, "1.png", "3.png")
    assert service.sql("SELECT sum(images_replaced)::int AS n, sum(images_stored)::int AS m FROM project_slots") == [
        {"n": 3, "m": 5}
    ]
    sample(service, 1)
    assert service.sql("SELECT max(images_stored)::int AS n FROM project_samples") == [{"n": 8}]
    service.sql("UPDATE project_samples SET images_stored = 100")
    assert admin.project(PROJECT).images_per_second == 0, "as after rows were deleted"


def test_directories_that_take_long_come_first(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    quick, slow, held = (worker.one(PROJECT) for _ in range(3))
    for lease, seconds in ((quick, 5), (slow, 500), (held, 50)):
        service.sql(HELD_FOR, lease.job_id, seconds)
    worker.complete(quick, 1, "1.png")
    worker.post(held, "1.png", "2.png")
    worker.complete(slow, 1, "1.png")
    for lease, seconds in ((quick, 5), (slow, 500)):
        service.sql(HELD_FOR, lease.job_id, seconds)
    found = admin.directories(PROJECT, DirectoryOrder.SLOWEST)
    assert [(one.directory, one.state.value, one.new_results, one.worker_id) for one in found] == [
        (slow.directory, "completed", 1, worker.worker_id),
        (held.directory, "claimed", 2, worker.worker_id),
        (quick.directory, "completed", 1, worker.worker_id),
    ]
    assert [one.seconds for one in found] == pytest.approx([500, 50, 5], abs=5)
    assert [one.directory for one in admin.directories(PROJECT, DirectoryOrder.SLOWEST, 1)] == [slow.directory]
    assert admin.directories(OTHER, DirectoryOrder.SLOWEST) == []


@pytest.mark.service(**QUIET, quarantine_after=0)
def test_directories_that_fail_come_by_how_often(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    again, once, for_good, fine = worker.claim(PROJECT, max_jobs=4)
    worker.fail(for_good, retryable=False, reason="no-images")
    worker.fail(once)
    worker.fail(again)
    worker.complete(fine, 1, "1.png")
    service.sql(DUE, again.job_id)
    [held] = [lease for lease in worker.claim(PROJECT, max_jobs=10) if lease.job_id == again.job_id]
    worker.fail(held)
    # Behind those that nobody has tried.
    service.sql(DUE, once.job_id)
    found = admin.directories(PROJECT, DirectoryOrder.FAILING)
    assert [(one.directory, one.state.value, one.failures, one.reason) for one in found] == [
        (again.directory, "waiting", 2, "storage"),
        (for_good.directory, "failed", 1, "no-images"),
        (once.directory, "queued", 1, "storage"),
    ]
    assert found[0].message == "why"
