"""A second engine on the same images: its rows stand beside the first's, and nothing of the first is lost or redone."""

import shlex
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from job_api.client import Client, LeaseLost
from job_api.schemas import JobAction, JobFilter, JobsAction, JobState, LeaseStatus, ProjectSettings, ResultStatus
from tests.containers.engine import NoEngine, install
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService
from tests.serving import is_gone, wait_for
from tests.test_command_engine import HANG, hanging

PROJECT = "patents"
DIRECTORIES = (
    "Größe & Söhne (Müller 2019)",
    "天然物化学 (田中 2021)",
    "# Notes on heterocycles (Smith 1998)",
)
STOP_SECONDS = 20


@pytest.fixture(scope="module")
def osra() -> str:
    """The version of Debian's osra."""
    try:
        install("osra")
    except NoEngine as error:
        pytest.skip(f"NO OSRA, so the second opinion was not tested: {error}")
    said = subprocess.run(["osra", "--version"], capture_output=True, text=True, check=True)  # noqa: S607 - Debian's
    return said.stdout.split()[-1]


def rerun(admin: Client, *statuses: ResultStatus) -> None:
    wanted = JobsAction(action=JobAction.RERUN, filter=JobFilter(all=True), statuses=list(statuses) or None)
    *_, total = admin.act(PROJECT, wanted)
    assert total.skipped == 0


def test_osra_gives_a_second_opinion_beside_decimers(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, osra: str
) -> None:
    def work() -> list[dict[str, object]]:
        worker = start_worker(service.root, service.token("worker"))
        assert worker.wait() == 0, worker.log
        service.assert_counters_equal_recount()
        assert admin.project(PROJECT).jobs.completed == len(DIRECTORIES)
        return sorted(admin.results(PROJECT), key=lambda row: (row["engine"], row["directory"], row["image"]))

    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=corpus.source))
    admin.add_jobs(PROJECT, list(DIRECTORIES))
    first = work()
    assert {(row["engine"], row["agreement"]) for row in first} == {("decimer", None)}

    admin.put_project(PROJECT, ProjectSettings(engine="osra"))
    rerun(admin)
    second = work()
    images = len(first)
    assert Counter(row["engine"] for row in second) == {"decimer": images, "osra": images}
    # DECIMER's rows are what they were, but that they have something to agree with now.
    assert [{**row, "agreement": None} for row in second[:images]] == first
    for row in second[images:]:
        assert (row["engine_version"], row["weights"], row["weights_sha256"]) == (osra, None, None)
        assert (row["confidence"], row["truncated"]) == (None, None)
    counts = admin.project(PROJECT).images
    assert counts.stored == 2 * images
    assert counts.recognised == sum(row["status"] == "recognised" for row in second)
    assert sum(job.image_count or 0 for job in admin.jobs(PROJECT)) == images
    told = {(row["engine"], row["image"]): row["agreement"] for row in second if row["directory"] in DIRECTORIES[:2]}
    for engine in ("decimer", "osra"):
        assert told[engine, "output/sequence_01_left.png"] == "same"
        assert told[engine, "output/図1 右.png"] == "same_skeleton"
        assert told[engine, "output/Übersicht links.png"] == "different"
        # What osra reads there has a place that it cannot name, and so no InChIKey.
        assert told[engine, "output/sequence_02_right.png"] is None
    unread = [row for row in second if row["status"] == "engine_error"]
    assert [(row["engine"], row["image"]) for row in unread] == [("osra", "output/sequence_01_right.png")]

    # Only what osra did not read is done again, and of DECIMER's rows none.
    rerun(admin, ResultStatus.ENGINE_ERROR)
    third = work()
    again = [new for old, new in zip(second, third, strict=True) if old["processed_at"] != new["processed_at"]]
    assert [(row["engine"], row["image"]) for row in again] == [("osra", "output/sequence_01_right.png")]


def test_a_failure_of_the_other_engine_is_not_done_again(service: RunningService) -> None:
    admin, holder = service.client("admin"), Holder(service.client("worker"))
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, ["a"])
    lease = holder.one(PROJECT)
    failed = {"image": "1.png", "status": "engine_error", "error_message": "why"}
    holder.post(lease, rows=[failed, {**failed, "image": "2.png"}])
    holder.complete(lease, 2)
    for engine, images in (("osra", []), ("decimer", ["1.png", "2.png"])):
        admin.put_project(PROJECT, ProjectSettings(engine=engine))
        rerun(admin, ResultStatus.TIMEOUT)
        lease = holder.one(PROJECT)
        assert (lease.engine, holder.images_done(lease)) == (engine, images)
        rows = [{**failed, "image": image, "engine": "osra"} for image in ("1.png", "2.png")]
        holder.post(lease, rows=rows if engine == "osra" else [], engine=engine)
        holder.complete(lease, 2)
    # As osra's, its failures are done again, and DECIMER's are not forgotten.
    admin.put_project(PROJECT, ProjectSettings(engine="osra"))
    rerun(admin, ResultStatus.ENGINE_ERROR)
    assert holder.images_done(holder.one(PROJECT)) == []
    assert service.sql("SELECT engine, image FROM results WHERE stale ORDER BY image") == [
        {"engine": "osra", "image": "1.png"},
        {"engine": "osra", "image": "2.png"},
    ]


def test_a_job_that_is_being_worked_on_is_claimed_again_with_the_new_engine(service: RunningService) -> None:
    admin, holder = service.client("admin"), Holder(service.client("worker"))
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, ["a"])
    lease = holder.one(PROJECT)
    holder.post(lease, "1.png")
    admin.put_project(PROJECT, ProjectSettings(engine="decimer", priority=2))
    assert holder.status_of(lease) is LeaseStatus.HELD
    admin.put_project(PROJECT, ProjectSettings(engine="osra"))
    with pytest.raises(LeaseLost):
        holder.complete(lease, 1)
    job = admin.job(PROJECT, lease.job_id)
    assert (job.state, job.failures) == (JobState.QUEUED, 0)
    again = holder.one(PROJECT)
    assert (again.engine, again.results_count) == ("osra", 0)
    assert [row["engine"] for row in admin.results(PROJECT)] == ["decimer"]
    service.assert_counters_equal_recount()


def test_a_worker_without_osra_says_how_to_get_it(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=corpus.source, engine="osra"))
    admin.add_jobs(PROJECT, [DIRECTORIES[0]])
    monkeypatch.setenv("PATH", "/nonexistent")
    worker = start_worker(service.root, service.token("worker"))
    assert worker.wait() == 3, worker.log
    words = "the engine cannot be loaded: EngineLoadError: the engine osra needs the program osra: apt-get install osra"
    assert words in worker.log
    job = admin.job(PROJECT, 1)
    assert (job.state, job.failures) == (JobState.QUEUED, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_program_outlives_its_worker(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path, number: signal.Signals
) -> None:
    admin, note = service.client("admin"), tmp_path / "note"
    admin.put_project(PROJECT, ProjectSettings(source=corpus.source, engine="mine"))
    admin.add_jobs(PROJECT, [DIRECTORIES[0]])
    command = shlex.join(["sh", "-c", HANG.format(note=shlex.quote(str(note))), "{image}"])
    mine = {"engine_command": command, "engine_command_name": "mine", "engine_command_timeout_seconds": "1000"}
    worker = start_worker(
        service.root, service.token("worker"), once=False, processes="1", threads_per_process="1", **mine
    )
    child = hanging(note)
    worker.send(number)
    assert worker.wait(STOP_SECONDS) == (0 if number == signal.SIGTERM else -number), worker.log
    wait_for(lambda: is_gone(child))
    if number == signal.SIGTERM:
        assert admin.job(PROJECT, 1).state is JobState.QUEUED
