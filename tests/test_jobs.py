"""The life of a job and a project as people steer and see it."""

import httpx
import pytest

from job_api.client import ApiError, Client, NotFound
from job_api.schemas import JobState, ProjectSettings
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService
from tests.serving import wait_for

PROJECT = "patents"


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    client.put_project(PROJECT, ProjectSettings(source="file:///data"))
    return client


@pytest.fixture
def worker(service: RunningService) -> Holder:
    return Holder(service.client("worker"))


def test_adding_again_changes_nothing(service: RunningService, admin: Client) -> None:
    first = admin.add_jobs(PROJECT, ["a", "b", "b", "./c/", "./# d"])
    again = admin.add_jobs(PROJECT, ["c", "a", "# d"])
    assert (first.added, first.present) == (4, 1)
    assert (again.added, again.present) == (0, 3)
    assert [job.directory for job in admin.jobs(PROJECT)] == ["a", "b", "c", "# d"]
    assert admin.project(PROJECT).jobs.queued == 4
    service.assert_counters_equal_recount()


def test_a_bad_directory_costs_the_whole_batch(admin: Client) -> None:
    with pytest.raises(ApiError, match=r"directories\.1"):
        admin.add_jobs(PROJECT, ["good", "../bad"])
    assert list(admin.jobs(PROJECT)) == []


def test_jobs_are_handed_out_by_priority_and_then_in_the_order_they_were_added(admin: Client, worker: Holder) -> None:
    admin.add_jobs(PROJECT, ["b", "a"])
    admin.add_jobs(PROJECT, ["urgent"], priority=5)
    assert [lease.directory for lease in worker.claim(PROJECT, max_jobs=3)] == ["urgent", "b", "a"]


@pytest.mark.service(backoff_seconds=3600)
def test_what_people_may_do_with_a_job_in_each_state(service: RunningService, admin: Client, worker: Holder) -> None:
    names = ["queued", "waiting", "claimed", "completed", "failed", "cancelled"]
    actions = {"cancel": admin.cancel, "retry": admin.retry, "rerun": admin.rerun, "force_release": admin.force_release}
    allowed = {
        "cancel": {"queued", "waiting", "claimed", "cancelled"},
        "retry": {"queued", "failed", "cancelled"},
        "rerun": {"completed", "failed", "cancelled"},
        "force_release": {"queued", "claimed"},
    }
    for action, act in actions.items():
        project = f"project-{action.replace('_', '-')}"
        admin.put_project(project, ProjectSettings(source="file:///data"))
        admin.add_jobs(project, [f"{name}" for name in reversed(names)])
        ids = {job.directory: job.id for job in admin.jobs(project)}
        admin.cancel(project, ids["cancelled"])
        for name in ("failed", "completed", "claimed", "waiting"):
            lease = worker.one(project)
            assert lease.directory == name
            if name == "failed":
                worker.fail(lease, retryable=False)
            elif name == "completed":
                worker.complete(lease, 1, "1.png")
            elif name == "waiting":
                worker.fail(lease)
        assert {job.directory: job.state for job in admin.jobs(project)} == {name: name for name in names}
        for name in names:
            if name in allowed[action]:
                after = act(project, ids[name])
                assert after.state is (JobState.CANCELLED if action == "cancel" else JobState.QUEUED), (action, name)
            else:
                with pytest.raises(ApiError, match=f"job {ids[name]} is {name}") as refused:
                    act(project, ids[name])
                assert (refused.value.status, refused.value.problem_type) == (409, "wrong-state")
                assert admin.job(project, ids[name]).state == name
        with pytest.raises(NotFound):
            act(PROJECT, ids["queued"])
    service.assert_counters_equal_recount()


def test_jobs_are_found_by_state_worker_and_text(admin: Client, worker: Holder) -> None:
    admin.add_jobs(PROJECT, ["Müller 2019", "100%_pure", "Jones 2001"])
    lease = worker.one(PROJECT)

    def found(**filters: object) -> list[str]:
        return [job.directory for job in admin.jobs(PROJECT, **filters)]

    assert found(state="claimed") == found(worker_id=worker.worker_id) == [lease.directory] == ["Müller 2019"]
    assert found(text="%_") == ["100%_pure"]
    assert found(text="nobody") == []


@pytest.mark.service(janitor_seconds=0.05)
def test_a_project_is_made_changed_and_deleted(service: RunningService, admin: Client, worker: Holder) -> None:
    with pytest.raises(ApiError, match="needs a source"):
        admin.put_project("other", ProjectSettings(priority=1))
    admin.put_project("other", ProjectSettings(source="file:///x", engine_options={"hand_drawn": True}))
    changed = admin.put_project("other", ProjectSettings(priority=7))
    assert (changed.source, changed.priority, changed.engine_options) == ("file:///x", 7, {"hand_drawn": True})
    assert [project.name for project in admin.projects()] == ["other", PROJECT]
    admin.add_jobs("other", ["a"])
    worker.complete(worker.one("other"), 1, "1.png")
    admin.delete_project("other")
    with pytest.raises(NotFound):
        admin.project("other")
    rows = "SELECT 1 FROM results UNION ALL SELECT 1 FROM attempts UNION ALL SELECT 1 FROM jobs"
    wait_for(lambda: service.sql(rows) == [])
    # Ids are never used again.
    admin.add_jobs(PROJECT, ["b"])
    assert worker.one(PROJECT).job_id == 2


@pytest.mark.service(sweep_seconds=0.1)
def test_the_status_says_how_fast_and_how_long(service: RunningService, admin: Client, worker: Holder) -> None:
    admin.add_jobs(PROJECT, ["a", "b", "c"])
    before = admin.project(PROJECT)
    assert not before.images_per_second
    assert before.eta_seconds is None
    lease = worker.one(PROJECT)
    wait_for(lambda: service.sql("SELECT 1 FROM project_samples"))
    worker.complete(lease, 4, "1.png", "2.png", "3.png", "4.png")
    worker.post(worker.one(PROJECT), rows=[result("1.png", "blank")])
    # As if the first sample had been taken ten seconds ago.
    service.sql(
        "UPDATE project_samples SET sampled_at = now() - interval '10 seconds' "
        "WHERE sampled_at = (SELECT min(sampled_at) FROM project_samples)"
    )
    status = admin.project(PROJECT)
    assert status.images.model_dump() == {"stored": 5, "recognised": 4, "not_recognised": 1}
    assert status.rate_window_seconds is not None
    assert 10 <= status.rate_window_seconds < 100
    assert status.images_per_second is not None
    assert status.images_per_second == pytest.approx(5 / status.rate_window_seconds, rel=0.01)
    # Two directories of four images each are left, one image of which is there.
    assert status.eta_seconds == pytest.approx(7 / status.images_per_second, rel=0.01)
    assert "2 unfinished directories" in (status.eta_assumes or "")
    assert status.active_workers == 1
    assert status.links["results"] == f"/v4/{PROJECT}/results"


def nested(depth: int) -> dict[str, object]:
    options: dict[str, object] = {}
    for _ in range(depth):
        options = {"a": options}
    return options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"a": nested(10)}, "nested more than 10 deep"),
        ({"a": nested(300)}, "nested"),
        ({"a": "x" * 20_000}, "at most 16384"),
        ({"a": "nul\0"}, "NUL"),
    ],
)
def test_options_that_would_harm_every_worker_are_refused(
    service: RunningService, admin: Client, worker: Holder, options: dict[str, object], words: str
) -> None:
    headers = {"Authorization": f"Bearer {service.token('submit')}"}
    answer = httpx.put(f"{service.root}/v4/{PROJECT}", json={"engine_options": options}, headers=headers)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    admin.add_jobs(PROJECT, ["a"])
    assert worker.one(None).engine_options == {}
