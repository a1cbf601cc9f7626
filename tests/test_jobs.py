"""The life of a job as people and one worker see it."""

import pytest

from job_api import schemas
from job_api.client import Client
from tests.plugins.service import RunningService

PROJECT = "patents"


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    client.put_project(PROJECT, schemas.ProjectSettings(source="file:///data"))
    return client


def test_adding_again_changes_nothing(service: RunningService, admin: Client) -> None:
    first = admin.add_jobs(PROJECT, ["a", "b", "b", "./c/", "./# d"])
    again = admin.add_jobs(PROJECT, ["c", "a", "# d"])
    assert (first.added, first.present) == (4, 1)
    assert (again.added, again.present) == (0, 3)
    assert [job.directory for job in admin.jobs(PROJECT)] == ["a", "b", "c", "# d"]
    assert admin.project(PROJECT).jobs.queued == 4
    service.assert_counters_equal_recount()
