"""What a worker left on disk meets the real service: its leases come back, are another's by now, or somebody else's."""

import re
from pathlib import Path

import pytest

from job_api.client import Client
from job_api.schemas import EngineRun, IssuedToken, JobState, Lease, NewToken, ProjectSettings, Role
from tests.plugins.fleet import WorkerProcess, WorkerStarter
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService
from tests.serving import wait_for
from uworker.spool import Spool

PROJECT = "patents"
QUICK = pytest.mark.service(lease_seconds=0.6, heartbeat_seconds=0.2, sweep_seconds=0.1)


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, ["a"])
    return admin


def leave(directory: Path, root: str, holder: Holder, lease: Lease) -> None:
    """A spool as the holder's process would have left it: two images, all there are."""
    spool = Spool.create(directory, holder.worker_id, root, 10**7)
    run = EngineRun(engine_version="2.8.1", weights="old")
    spool.put(lease, run, [result("1.png"), result("2.png", "blank")], image_count=2)
    spool.close()


def post(service: RunningService, start_worker: WorkerStarter, directory: Path, token: str) -> WorkerProcess:
    worker = start_worker(service.root, token, spool_dir=str(directory))
    assert worker.wait() == 0, worker.log
    service.assert_counters_equal_recount()
    return worker


@QUICK
@pytest.mark.parametrize("goodbye", [False, True])
def test_a_lease_that_ran_out_comes_back_with_its_results_uncharged(
    service: RunningService, admin: Client, start_worker: WorkerStarter, tmp_path: Path, goodbye: bool
) -> None:
    holder = Holder(service.client("worker"))
    lease = holder.one(PROJECT)
    leave(tmp_path, service.root, holder, lease)
    wait_for(lambda: admin.job(PROJECT, lease.job_id).state is JobState.QUEUED)
    assert admin.job(PROJECT, lease.job_id).failures == 1
    if goodbye:
        # Of a worker that is gone for good, too: what counts is that nobody has the job.
        holder.client.goodbye(holder.worker_id)
    post(service, start_worker, tmp_path, service.token("worker"))
    job = admin.job(PROJECT, lease.job_id)
    assert (job.state, job.failures, job.image_count) == (JobState.COMPLETED, 0, 2)
    [attempt] = job.attempts
    assert (attempt.outcome, attempt.charged, attempt.worker_id) == ("completed", False, holder.worker_id)
    rows = {row.image: (row.status, row.worker_id, row.weights) for row in admin.job_results(PROJECT, lease.job_id)}
    assert rows == {
        "1.png": ("recognised", holder.worker_id, "old"),
        "2.png": ("blank", holder.worker_id, "old"),
    }
    assert list(tmp_path.glob("*.spool*")) == []


def test_a_job_that_another_claimed_meanwhile_is_its_own(
    service: RunningService, admin: Client, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    holder, successor = Holder(service.client("worker")), Holder(service.client("worker"))
    lease = holder.one(PROJECT)
    leave(tmp_path, service.root, holder, lease)
    admin.force_release(PROJECT, lease.job_id)
    held = successor.one(PROJECT)
    worker = post(service, start_worker, tmp_path, service.token("worker"))
    assert f"job {lease.job_id}: " in worker.log
    assert "2 rows are left to its next worker" in worker.log
    assert list(admin.job_results(PROJECT, lease.job_id)) == []
    assert list(tmp_path.glob("*.spool*")) == []
    assert any("2 rows are left" in line.message for line in admin.logs(PROJECT, job_id=lease.job_id))
    successor.complete(held, 1, "1.png")


def test_results_of_another_owners_worker_stay_until_one_of_that_owner_comes(
    service: RunningService, admin: Client, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    token = service.token("worker")
    holder = Holder(service.client("worker"))
    lease = holder.one(PROJECT)
    leave(tmp_path, service.root, holder, lease)
    worker = post(service, start_worker, tmp_path, service.token("worker", fresh=True))
    assert re.search(r"belongs to token \d+; once that has ended \(revoke it\), one of its project may", worker.log)
    assert [path.name for path in tmp_path.glob("*.spool")] == [f"{holder.worker_id}.spool"]
    assert list(admin.job_results(PROJECT, lease.job_id)) == []
    post(service, start_worker, tmp_path, token)
    assert len(list(admin.job_results(PROJECT, lease.job_id))) == 2
    assert list(tmp_path.glob("*.spool*")) == []


def test_a_worker_with_the_next_token_of_the_project_posts_what_a_revoked_one_could_not(
    service: RunningService, admin: Client, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    old, new = _token(admin, "the last snapshot's"), _token(admin, "the next snapshot's")
    with Client(service.root, token=old.token) as client:
        holder = Holder(client)
        lease = holder.one(PROJECT)
    leave(tmp_path, service.root, holder, lease)
    admin.revoke_token(old.id)
    worker = start_worker(service.root, new.token, spool_dir=str(tmp_path), job_api_project=PROJECT)
    assert worker.wait() == 0, worker.log
    job = admin.job(PROJECT, lease.job_id)
    assert (job.state, [attempt.worker_id for attempt in job.attempts]) == (JobState.COMPLETED, [holder.worker_id])
    assert {row.worker_id for row in admin.job_results(PROJECT, lease.job_id)} == {holder.worker_id}
    assert list(tmp_path.glob("*.spool*")) == []
    service.assert_counters_equal_recount()


def _token(admin: Client, name: str) -> IssuedToken:
    return admin.new_token(NewToken(name=name, role=Role.WORKER, project=PROJECT))
