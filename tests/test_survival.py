"""Whatever is killed in the middle of a run, it ends with every image exactly once."""

import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import asyncpg
import psutil
import pytest

from job_api.client import Client
from job_api.schemas import LeaseStatus, NewToken, ProjectSettings, Role
from tests.plugins.fleet import Corpus, WorkerProcess, WorkerStarter
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, assert_counters_equal_recount, run
from tests.scripted import Asked, between
from tests.serving import LOAD_SECONDS, Serving, is_gone, wait_for
from uworker.spool import Spool, SpooledLease
from uworker.worker import JOURNAL_SECONDS

PROJECT = "patents"
PACE: dict[str, str | int] = {"lease_seconds": 6, "heartbeat_seconds": 1, "sweep_seconds": 1, "backoff_seconds": 1}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def submit(serving: Serving, corpus: Corpus, directories: int = 6) -> tuple[Client, str]:
    admin = serving.client(retry_seconds=60)
    admin.put_project(PROJECT, corpus.project)
    admin.add_jobs(PROJECT, corpus.directories[:directories])
    return admin, admin.new_token(NewToken(name="w", role=Role.WORKER)).token


def stored(admin: Client) -> int:
    return admin.project(PROJECT).images.stored


def assert_finished_and_right(admin: Client, corpus: Corpus, directories: int = 6, charges: int = 0) -> None:
    status = admin.project(PROJECT)
    assert (status.jobs.completed, status.jobs.unfinished) == (directories, 0)
    wanted = {key: smiles for key, smiles in corpus.smiles.items() if key[0] in corpus.directories[:directories]}
    rows = list(admin.results(PROJECT))
    assert Counter((row["directory"], row["image"]) for row in rows) == Counter(wanted.keys())
    assert {(row["directory"], row["image"]): row["smiles"] for row in rows} == wanted
    assert all(job.failures <= charges for job in admin.jobs(PROJECT))


def end_of(worker: WorkerProcess) -> None:
    assert worker.wait() == 0, worker.log


def test_the_worker_killed(data_dir: Path, paced_corpus: Corpus, start_worker: WorkerStarter) -> None:
    with Serving(data_dir, **PACE) as serving:
        admin, token = submit(serving, paced_corpus)
        first = start_worker(serving.root, token)
        wait_for(lambda: stored(admin) >= 30, LOAD_SECONDS)
        children = first.children()
        first.send(signal.SIGKILL)
        first.process.wait(120)
        for child in children:
            wait_for(lambda child=child: is_gone(child))  # type: ignore[misc]
        wait_for(lambda: admin.project(PROJECT).jobs.claimed == 0)
        second = start_worker(serving.root, token)
        end_of(second)
        # A job of which the dead worker had stored nothing yet is charged: it may have killed it.
        assert_finished_and_right(admin, paced_corpus, charges=1)
        assert len({row["worker_id"] for row in admin.results(PROJECT)}) == 2


def test_the_service_killed(data_dir: Path, paced_corpus: Corpus, start_worker: WorkerStarter) -> None:
    port = free_port()
    with Serving(data_dir, port=port, **PACE) as serving:
        admin, token = submit(serving, paced_corpus)
        worker = start_worker(serving.root, token)
        wait_for(lambda: stored(admin) >= 30, LOAD_SECONDS)
        serving.kill()
        with Serving(data_dir, port=port, **PACE) as again:
            end_of(worker)
            assert_finished_and_right(again.client(), paced_corpus)
            url = f"postgresql:///job_api?host={data_dir / 'postgresql'}&user=postgres"
            assert_counters_equal_recount(url)
        serving.process.returncode = 0


def test_the_database_killed(data_dir: Path, paced_corpus: Corpus, start_worker: WorkerStarter) -> None:
    with Serving(data_dir, **PACE) as serving:
        admin, token = submit(serving, paced_corpus)
        worker = start_worker(serving.root, token)
        wait_for(lambda: stored(admin) >= 30, LOAD_SECONDS)
        killed = serving.postmaster
        killed.kill()
        end_of(worker)
        assert_finished_and_right(admin, paced_corpus)
        assert serving.postmaster.pid != killed.pid
        assert_counters_equal_recount(f"postgresql:///job_api?host={data_dir / 'postgresql'}&user=postgres")


def test_sigterm_is_obeyed_in_time_when_nobody_answers(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    admin = service.client("admin")
    admin.put_project(PROJECT, paced_corpus.project)
    one_image, many_images = f"{paced_corpus.directories[0]}/00", paced_corpus.directories[1]
    admin.add_jobs(PROJECT, [one_image])
    silent = threading.Event()

    def held(asked: Asked) -> bool:
        """Connections are taken and never answered: those with results from the start, and at last all."""
        return silent.is_set() or asked.path.endswith(("/results", "/complete"))

    with between(service.root, held) as server:
        plan = {"processes": "1", "threads_per_process": "1"}
        worker = start_worker(server.root, service.token("worker"), once=False, log_level="DEBUG", **plan)
        wait_for(server.held.is_set, LOAD_SECONDS)
        # From now on nothing is recognised: of the second job no row can lie on disk.
        for recogniser in worker.children():
            recogniser.suspend()
        admin.add_jobs(PROJECT, [many_images])
        wait_for(lambda: f": {many_images}\n" in worker.log, LOAD_SECONDS)
        silent.set()
        asked_at = time.monotonic()
        worker.send(signal.SIGTERM)
        assert worker.wait(120) == 0, worker.log
        assert time.monotonic() - asked_at < 40
    # Closer, on its own clock and without the log's part, of which there is a bound as well.
    [stopped_in] = re.findall(r"stopped in (\d+\.\d) s", worker.log)
    assert float(stopped_in) + JOURNAL_SECONDS < 20
    assert [lease.lease.directory for lease in spooled(tmp_path / "spool")] == [one_image]
    assert "goodbye did not arrive" in worker.log, worker.log
    assert worker.children() == []


def overdue_seconds(url: str) -> float:
    """For how long the one lease has been over, on the database's clock."""

    async def ask() -> float:
        connection = await asyncpg.connect(url)
        try:
            return float(await connection.fetchval("SELECT extract(epoch FROM now() - lease_expires_at) FROM jobs"))
        finally:
            await connection.close()

    return run(ask())


@pytest.mark.parametrize("stopped", ["service", "database"])
def test_what_stood_still_for_longer_than_a_lease_expires_nobody_on_its_return(data_dir: Path, stopped: str) -> None:
    with Serving(data_dir, lease_seconds=8, heartbeat_seconds=1, sweep_seconds="0.1") as serving:
        admin = serving.client(retry_seconds=60)
        admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
        admin.add_jobs(PROJECT, ["a"])
        holder = Holder(Client(serving.root, token=admin.new_token(NewToken(name="w", role=Role.WORKER)).token))
        lease = holder.one(PROJECT)
        began = time.monotonic()
        processes = [psutil.Process(serving.process.pid)]
        if stopped == "database":
            processes = [serving.postmaster, *serving.postmaster.children(recursive=True)]
        for process in processes:
            # Some come and go.
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            if stopped == "service":
                url = f"postgresql:///job_api?host={data_dir / 'postgresql'}&user=postgres"
                wait_for(lambda: overdue_seconds(url) > 1, LOAD_SECONDS)
            else:
                wait_for(lambda: "lost contact" in serving.log and time.monotonic() > began + 9, LOAD_SECONDS)
        finally:
            for process in reversed(processes):
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        wait_for(lambda: serving.get("/readyz").status_code == 200, LOAD_SECONDS)
        # A dozen sweeps, none of which may judge the lease yet.
        returned = time.monotonic()
        while time.monotonic() < returned + 1.5:
            [job] = admin.jobs(PROJECT)
            assert job.state == "claimed"
        with holder.client:
            assert holder.status_of(lease) is LeaseStatus.HELD
        # But the watch goes on, and a holder that is silent from now on loses the job.
        wait_for(lambda: admin.project(PROJECT).jobs.queued == 1, LOAD_SECONDS)


def spooled(directory: Path) -> list[SpooledLease]:
    """What a worker that has ended left on disk; it stays there."""
    [path] = directory.glob("*.spool")
    spool = Spool.adopt(path)
    try:
        return spool.leases()
    finally:
        spool.close()


def assert_spooled_work_counted(admin: Client, left: list[SpooledLease], worker_ids: set[str]) -> None:
    """What was finished before the worker ended was completed under its lease, uncharged, and not done again."""
    finished = [lease for lease in left if lease.image_count is not None]
    assert finished
    for lease in finished:
        [attempt] = admin.job(PROJECT, lease.lease.job_id).attempts
        assert (attempt.outcome, attempt.charged, attempt.lease_seq) == ("completed", False, lease.lease.lease_seq)
        assert attempt.worker_id in worker_ids
    for lease in left:
        rows = [row.worker_id for row in admin.job_results(PROJECT, lease.lease.job_id)]
        assert sum(row in worker_ids for row in rows) >= lease.row_count


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_results_outlive_the_service_and_the_worker_that_made_them(
    data_dir: Path, paced_corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path, end: signal.Signals
) -> None:
    port = free_port()
    with Serving(data_dir, port=port, **PACE) as serving:
        admin, token = submit(serving, paced_corpus)
        first = start_worker(serving.root, token)
        wait_for(lambda: stored(admin) >= 30, LOAD_SECONDS)
        before = stored(admin)
        worker_ids = {worker.id for worker in admin.workers()}
        serving.kill()
        # Recognition goes on: a job comes to its end while nobody can be told.
        wait_for(lambda: "is done; that is kept" in first.log, LOAD_SECONDS)
        first.send(end)
        assert first.process.wait(120) == (0 if end is signal.SIGTERM else -signal.SIGKILL)
        left = spooled(tmp_path / "spool")
        assert sum(lease.row_count for lease in left) > 0
        with Serving(data_dir, port=port, **PACE) as again:
            admin = again.client()
            assert stored(admin) < before + sum(lease.row_count for lease in left)
            second = start_worker(serving.root, token)
            end_of(second)
            # A job of which the dead worker had nothing yet is charged.
            assert_finished_and_right(admin, paced_corpus, charges=1)
            assert_spooled_work_counted(admin, left, worker_ids)
            rows = sum(lease.row_count for lease in left)
            assert f"{rows} rows of {len(left)} jobs are left of the worker" in second.log
            assert list((tmp_path / "spool").glob("*.spool*")) == []
            assert_counters_equal_recount(f"postgresql:///job_api?host={data_dir / 'postgresql'}&user=postgres")
        serving.process.returncode = 0


def test_recognition_pauses_when_the_spool_is_full_and_goes_on_when_the_service_is_back(
    data_dir: Path, paced_corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    whole = paced_corpus.root / "whole"
    whole.mkdir()
    for directory in paced_corpus.directories:
        (whole / directory).symlink_to(paced_corpus.root / directory, target_is_directory=True)
    images, tally = len(paced_corpus.smiles), tmp_path / "tally"
    port = free_port()

    def recognised() -> int:
        return len(tally.read_text().split())

    with Serving(data_dir, port=port, **PACE) as serving:
        admin = serving.client(retry_seconds=60)
        options = paced_corpus.engine_options | {"tally": str(tally)}
        admin.put_project(PROJECT, paced_corpus.project.model_copy(update={"engine_options": options}))
        admin.add_jobs(PROJECT, ["whole"])
        token = admin.new_token(NewToken(name="w", role=Role.WORKER)).token
        plan = {"spool_bytes": "40000", "processes": "1", "threads_per_process": "1"}
        worker = start_worker(serving.root, token, **plan)
        wait_for(lambda: stored(admin) >= 10, LOAD_SECONDS)
        serving.kill()
        wait_for(lambda: "recognition pauses" in worker.log)
        # What is in its hands is a handful; then nothing more is begun.
        wait_for(partial(stands_still, recognised))
        paused_at = recognised()
        assert paused_at < images
        with Serving(data_dir, port=port, **PACE) as again:
            wait_for(lambda: recognised() > paused_at)
            end_of(worker)
            admin = again.client()
            assert admin.project(PROJECT).images.stored == images
            assert admin.project(PROJECT).jobs.completed == 1
            assert all(job.failures == 0 for job in admin.jobs(PROJECT))
        serving.process.returncode = 0
    assert worker.log.count("recognition pauses") == 1
    assert "recognition goes on" in worker.log
    assert list((tmp_path / "spool").glob("*.spool*")) == []


def stands_still(count: Callable[[], int]) -> bool:
    """Whether nothing is counted for as long as an engine of 0.04 s takes for dozens."""
    before = count()
    time.sleep(2)
    return count() == before
