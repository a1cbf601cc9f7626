"""Which job comes next: among projects by priority, then by turns; within one by priority, whatever is remembered."""

from collections import Counter

import pytest

from job_api.client import Client
from job_api.schemas import JobState, ProjectSettings
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, ServiceStarter
from tests.serving import wait_for

PROJECT, OTHER = "patents", "others"


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client("admin")
    for project in (PROJECT, OTHER):
        admin.put_project(project, ProjectSettings(source="file:///data"))
        admin.add_jobs(project, [f"{project} {number}" for number in range(20)])
    return admin


def test_a_lone_worker_serves_equal_projects_by_turns_also_when_none_has_a_lease(
    service: RunningService, admin: Client
) -> None:
    worker = Holder(service.client("worker"))
    served = []
    for _ in range(10):
        lease = worker.one(None)
        served.append(lease.project)
        worker.complete(lease, 1, "1.png")
    assert Counter(served) == {PROJECT: 5, OTHER: 5}


def test_equal_projects_share_by_live_leases(service: RunningService, admin: Client) -> None:
    worker = Holder(service.client("worker"))
    assert len(worker.claim(PROJECT, max_jobs=4)) == 4
    # Until both have as many.
    assert {worker.one(None).project for _ in range(4)} == {OTHER}
    assert Counter(worker.one(None).project for _ in range(6)) == {PROJECT: 3, OTHER: 3}


def test_a_project_of_higher_priority_comes_first_as_soon_as_it_has_jobs(
    service: RunningService, admin: Client
) -> None:
    worker = Holder(service.client("worker"))
    worker.one(None)
    admin.put_project(OTHER, ProjectSettings(priority=5))
    assert {worker.one(None).project for _ in range(3)} == {OTHER}
    admin.pause(OTHER)
    assert worker.one(None).project == PROJECT
    admin.resume(OTHER)
    assert worker.one(None).project == OTHER


def test_what_comes_before_the_remembered_beginning_of_a_queue_is_not_overlooked(
    service: RunningService, admin: Client
) -> None:
    worker = Holder(service.client("worker"))
    leases = worker.claim(PROJECT, max_jobs=3)
    admin.add_jobs(PROJECT, ["urgent"], priority=7)
    urgent = worker.one(PROJECT)
    assert urgent.directory == "urgent"
    worker.one(PROJECT)
    worker.release(urgent)
    assert worker.one(PROJECT).directory == "urgent", "a job that is given back keeps its priority"
    worker.fail(leases[0], retryable=False)
    admin.retry(PROJECT, leases[0].job_id)
    assert worker.one(PROJECT).directory != leases[0].directory, "it stands at the end of its priority"
    [job] = [job for job in admin.jobs(PROJECT, state="queued") if job.id == leases[0].job_id]
    assert job.state is JobState.QUEUED


@pytest.mark.service(sweep_seconds=3600)
def test_another_process_hears_of_jobs_that_come_first(
    service: RunningService, start_service: ServiceStarter, admin: Client
) -> None:
    other = start_service(database_url=service.database_url, sweep_seconds=3600)
    with Client(other.root, token=service.token("worker")) as client:
        worker = Holder(client)
        worker.one(PROJECT)
        beginnings = other.app.state.service.claims._beginnings
        assert PROJECT in beginnings
        listening = "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'job-api-notices'"
        listening += " AND datname = current_database() AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')"
        wait_for(lambda: service.sql(listening)[0]["n"] == 2)
        admin.add_jobs(PROJECT, ["urgent"], priority=7)
        wait_for(lambda: PROJECT not in beginnings)
        assert worker.one(PROJECT).directory == "urgent"
