"""Results beside the images: the file is right, and there before its job is completed; a failed write costs no row."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from job_api.client import ApiError, Client
from job_api.schemas import EngineRun, JobState, ProjectSettings, ResultStatus
from tests.emulators.buckets import Bucket
from tests.engines import picture
from tests.plugins.fleet import WorkerStarter
from tests.plugins.holder import LEASE, Holder
from tests.plugins.service import RunningService
from tests.scripted import Answer, Asked, between, problem, serving
from tests.serving import LOAD_SECONDS, wait_for
from uworker import beside
from uworker.beside import Scribe
from uworker.holding import Batch, Ending, Holding
from uworker.keeper import Keeper
from uworker.results_file import FILE_NAME
from uworker.settings import WorkerSettings
from uworker.sources import Sources
from uworker.targets import LocalTarget

PROJECT = "patents"
DIRECTORY = "Name (Author 2019)/output #1"
PATTERN = r"sequence_(?P<sequence>\d+)_(?P<part>[a-z]+)"
PLAN = {"processes": "1", "threads_per_process": "2"}
WANTED = ProjectSettings(results_file=True, image_name_pattern=PATTERN, engine="pixel")
SWEPT = pytest.mark.service(sweep_seconds=0.1)


@pytest.fixture
def admin(service: RunningService) -> Client:
    return service.client("admin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory below the source with four images for the engine "pixel" and one that is none."""
    folder = tmp_path / "source" / DIRECTORY
    (folder / "more").mkdir(parents=True)
    for atoms, name in enumerate(("sequence_10_left", "sequence_2_left", "sequence_2_right", "more/x"), start=1):
        (folder / f"{name}.png").write_bytes(picture(atoms))
    (folder / "sequence_03_left.png").write_text("no image at all")
    return folder


def submit(admin: Client, tmp_path: Path) -> int:
    """A project that wants its results beside the images, with one job; returns the job's id."""
    source = (tmp_path / "source").as_uri()
    admin.put_project(PROJECT, WANTED.model_copy(update={"source": source}))
    admin.add_jobs(PROJECT, [DIRECTORY])
    [job] = admin.jobs(PROJECT)
    return job.id


def assert_right(content: bytes, admin: Client, job_id: int) -> None:
    """The file says what the service says."""
    made = json.loads(content)
    rows = {row.image: row for row in admin.job_results(PROJECT, job_id)}
    recognised = sum(row.status is ResultStatus.RECOGNISED for row in rows.values())
    newest = max(row.processed_at for row in rows.values())
    assert made.pop("entries")
    assert made == {
        "synthesis": "Name (Author 2019)",
        "processed_at": newest.isoformat().replace("+00:00", "Z"),
        "total_images": len(rows),
        "successful": recognised,
        "failed": len(rows) - recognised,
    }
    entries = json.loads(content)["entries"]
    assert {entry["file"] for entry in entries} == set(rows)
    for entry in entries:
        row = rows[entry["file"]]
        assert entry["smiles"] == row.smiles
        if row.status is ResultStatus.RECOGNISED:
            confidence = {"average": row.confidence_mean, "min": row.confidence_min, "per_token": None}
            assert entry["error"] is None
            assert entry["confidence"] == (None if row.confidence_min is None else confidence)
        else:
            assert entry["error"] == {"status": row.status.value, "message": row.error_message}
            assert entry["confidence"] is None


def names(folder: Path) -> set[str]:
    """Names that begin as the file's do, hidden ones too."""
    return {path.name for path in folder.iterdir() if FILE_NAME in path.name}


def test_a_file_lies_beside_the_images_and_says_what_the_service_says(
    service: RunningService, admin: Client, start_worker: WorkerStarter, folder: Path, tmp_path: Path
) -> None:
    job_id = submit(admin, tmp_path)
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    assert worker.wait() == 0, worker.log
    assert admin.job(PROJECT, job_id).state is JobState.COMPLETED
    content = (folder / FILE_NAME).read_bytes()
    assert_right(content, admin, job_id)
    entries = json.loads(content)["entries"]
    found = [(Path(e["file"]).stem, e["sequence"], e["sub_sequence"], e["part"]) for e in entries]
    assert found == [
        ("sequence_2_left", "2", None, "left"),
        ("sequence_2_right", "2", None, "right"),
        ("sequence_03_left", "03", None, "left"),
        ("sequence_10_left", "10", None, "left"),
        ("x", None, None, None),
    ]
    assert json.loads(content)["successful"] == 4
    assert all(entry["confidence"]["min"] > 0 for entry in entries if entry["smiles"])
    assert names(folder) == {FILE_NAME}

    # A successor finds all rows there, makes none, and writes the file again.
    (folder / FILE_NAME).write_text("spoilt")
    admin.rerun(PROJECT, job_id, [ResultStatus.CRASHED])
    again = start_worker(service.root, service.token("worker"), **PLAN)
    assert again.wait() == 0, again.log
    assert (folder / FILE_NAME).read_bytes() == content
    assert admin.job(PROJECT, job_id).attempts[0].new_results == 0


def test_a_file_lies_beside_the_images_in_object_storage(
    service: RunningService,
    admin: Client,
    start_worker: WorkerStarter,
    folder: Path,
    azure_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    azure_bucket.fill({f"top 1/{DIRECTORY}/{name}": data for name, data in images.items()})
    source = f"{azure_bucket.url}/top%201"
    admin.put_project(PROJECT, WANTED.model_copy(update={"source": source}))
    admin.add_jobs(PROJECT, [DIRECTORY])
    for name, value in azure_bucket.environment.items():
        monkeypatch.setenv(name, value)
    worker = start_worker(service.root, service.token("worker"), source_allow=source, **PLAN)
    assert worker.wait() == 0, worker.log
    [job] = admin.jobs(PROJECT)
    assert (job.state, job.image_count) == (JobState.COMPLETED, 5)
    written = azure_bucket.content()
    assert len(written) == len(images) + 1
    assert_right(written[f"top 1/{DIRECTORY}/{FILE_NAME}"], admin, job.id)


def test_a_project_that_does_not_want_it_gets_none(
    service: RunningService, admin: Client, start_worker: WorkerStarter, folder: Path, tmp_path: Path
) -> None:
    job_id = submit(admin, tmp_path)
    admin.put_project(PROJECT, ProjectSettings(results_file=False))
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    assert worker.wait() == 0, worker.log
    assert admin.job(PROJECT, job_id).state is JobState.COMPLETED
    assert names(folder) == set()


@SWEPT
def test_a_job_is_completed_after_its_file_is_there_and_a_successor_writes_it_again(
    service: RunningService, admin: Client, start_worker: WorkerStarter, folder: Path, tmp_path: Path
) -> None:
    job_id = submit(admin, tmp_path)
    with between(service.root, lambda asked: asked.path.endswith("/complete")) as server:
        first = start_worker(server.root, service.token("worker"), **PLAN)
        wait_for(server.held.is_set, LOAD_SECONDS)
        content = (folder / FILE_NAME).read_bytes()
        assert_right(content, admin, job_id)
        job = admin.job(PROJECT, job_id)
        assert (job.state, job.lease_seq) == (JobState.CLAIMED, 1)
        first.send(signal.SIGKILL)
        first.process.wait(20)
    service.expire_leases()
    (folder / FILE_NAME).write_text("spoilt")
    wait_for(lambda: admin.job(PROJECT, job_id).state is JobState.QUEUED)
    second = start_worker(service.root, service.token("worker"), **PLAN)
    assert second.wait() == 0, second.log
    job = admin.job(PROJECT, job_id)
    assert (job.state, job.lease_seq, job.failures, job.attempts[0].new_results) == (JobState.COMPLETED, 2, 0, 0)
    assert (folder / FILE_NAME).read_bytes() == content
    assert names(folder) == {FILE_NAME}


@SWEPT
def test_a_worker_killed_while_it_writes_leaves_a_job_that_its_successor_completes(
    service: RunningService, admin: Client, start_worker: WorkerStarter, folder: Path, tmp_path: Path
) -> None:
    job_id = submit(admin, tmp_path)
    with between(service.root, lambda asked: asked.path.endswith("/results-done")) as server:
        first = start_worker(server.root, service.token("worker"), **PLAN)
        wait_for(server.held.is_set, LOAD_SECONDS)
        assert admin.project(PROJECT).images.stored == 5, "all rows are stored before they are asked for"
        first.send(signal.SIGKILL)
        first.process.wait(20)
    service.expire_leases()
    assert names(folder) == set()
    (folder / f".{FILE_NAME}.{job_id}-1").write_text("what a kill in the middle of the writing leaves")
    wait_for(lambda: admin.job(PROJECT, job_id).state is JobState.QUEUED)
    second = start_worker(service.root, service.token("worker"), **PLAN)
    assert second.wait() == 0, second.log
    assert admin.job(PROJECT, job_id).state is JobState.COMPLETED, second.log
    assert_right((folder / FILE_NAME).read_bytes(), admin, job_id)
    assert names(folder) == {FILE_NAME}


@pytest.mark.service(backoff_seconds=0.05)
def test_a_file_that_cannot_be_written_fails_its_job_and_costs_no_row(
    service: RunningService, admin: Client, start_worker: WorkerStarter, folder: Path, tmp_path: Path
) -> None:
    job_id = submit(admin, tmp_path)
    (folder / FILE_NAME).mkdir()
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    assert worker.wait() == 0, worker.log
    job = admin.job(PROJECT, job_id)
    # The attempt that stored the rows is not charged; three others are, and then it is enough.
    assert (job.state, job.failures, job.reason) == (JobState.FAILED, 3, "storage")
    assert "Is a directory" in (job.message or "")
    assert [attempt.reason for attempt in job.attempts] == ["storage"] * 4
    assert [attempt.new_results for attempt in job.attempts] == [0, 0, 0, 5]
    assert names(folder) == {FILE_NAME}
    (folder / FILE_NAME).rmdir()
    admin.retry(PROJECT, job_id)
    again = start_worker(service.root, service.token("worker"), **PLAN)
    assert again.wait() == 0, again.log
    assert admin.job(PROJECT, job_id).state is JobState.COMPLETED
    assert admin.job(PROJECT, job_id).attempts[0].new_results == 0
    assert_right((folder / FILE_NAME).read_bytes(), admin, job_id)


@SWEPT
def test_what_a_worker_left_on_disk_does_not_complete_a_job_whose_file_is_not_written(
    service: RunningService, admin: Client, start_worker: WorkerStarter, folder: Path, tmp_path: Path
) -> None:
    job_id = submit(admin, tmp_path)
    holder = Holder(service.client("worker"))
    lease = holder.one(PROJECT)
    assert (lease.results_file, lease.image_name_pattern) == (True, PATTERN)
    images = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    keeper = Keeper(tmp_path / "spool", holder.worker_id, service.root, 10**7)
    left = Holding(lease, holder.worker_id)
    left.image_count = len(images)
    for task_id, image in enumerate(images):
        left.expect(task_id)
        left.finish(task_id, image, {"status": "recognised", "smiles": "CCO"})
    left.finish_listing()
    keeper.put_away([left], lambda _: EngineRun())
    keeper.close()
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    assert worker.wait() == 0, worker.log
    assert "5 rows of 1 jobs are left of the worker" in worker.log
    job = admin.job(PROJECT, job_id)
    assert job.state is JobState.COMPLETED
    assert [(attempt.outcome, attempt.new_results) for attempt in job.attempts] == [("completed", 0), ("released", 5)]
    assert_right((folder / FILE_NAME).read_bytes(), admin, job_id)
    assert list((tmp_path / "spool").glob("*.spool*")) == []


# --- a lease that ends while its file is written ---


class Writing:
    """A scribe at work on a job of one image, and what becomes of it."""

    def __init__(self, root: str, source: Path, **lease: Any) -> None:
        self.client = Client(root, token="t", retry_seconds=0)
        settings = WorkerSettings(job_api_root=root, job_api_token="t")
        self.changed = threading.Event()
        self.scribe = Scribe(self.client, Sources(settings), self.changed.set)
        given = {"source": source.as_uri(), "results_file": True, **lease}
        self.holding = Holding(LEASE.model_copy(update=given), "w-1")
        self.holding.image_count = 1
        self.holding.finish_listing()
        assert self.holding.begin_file()
        assert not self.holding.begin_file(), "once is enough"
        self.scribe.start()

    def write(self) -> None:
        self.scribe.add(self.holding)
        assert self.changed.wait(30)

    def close(self) -> None:
        self.scribe.stop()
        self.client.close()


def rows_of(*images: str) -> Answer:
    empty = dict.fromkeys(("smiles", "confidence_mean", "confidence_min", "error_message"))
    row = {"status": "blank", "processed_at": "2026-11-21T12:00:00Z", **empty}
    return Answer(body={"items": [{"image": image, **row} for image in images]})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "a").mkdir(parents=True)
    return tmp_path / "source"


def test_a_file_is_written_and_then_the_job_may_be_completed(source: Path) -> None:
    with serving([rows_of("1.png")]) as server, closing(Writing(server.root, source)) as writing:
        assert writing.holding.next_batch(flush=True) is None
        writing.write()
        assert writing.holding.next_batch(flush=True) == Batch([], Ending.COMPLETE)
        assert (source / "a" / FILE_NAME).exists()
    [asked] = server.asked
    assert (asked.query["worker_id"], asked.query["lease_seq"]) == ("w-1", "3")


def test_a_lease_that_the_service_says_is_lost_writes_nothing(source: Path) -> None:
    with serving([problem(409, "lease-lost")]) as server, closing(Writing(server.root, source)) as writing:
        writing.write()
        assert writing.holding.lost
    assert names(source / "a") == set()


def test_a_lease_that_a_heartbeat_says_is_lost_meanwhile_writes_nothing(source: Path) -> None:
    def lose(_: Asked) -> Answer:
        writing.holding.lose()
        return rows_of("1.png")

    (source / "a" / FILE_NAME).write_text("the successor's")
    with serving(lose) as server, closing(Writing(server.root, source)) as writing:
        writing.write()
        assert writing.holding.next_batch(flush=True) is None
    assert names(source / "a") == {FILE_NAME}
    assert (source / "a" / FILE_NAME).read_text() == "the successor's"


@pytest.mark.parametrize("last", [[], [b"}"]], ids=["after the last piece", "before it"])
def test_a_lease_that_is_lost_in_the_middle_of_the_writing_puts_nothing_in_place(
    source: Path, last: list[bytes]
) -> None:
    with serving([rows_of("1.png")]) as server, closing(Writing(server.root, source)) as writing:

        def pieces() -> Iterator[bytes]:
            yield b"{"
            writing.holding.lose()
            yield from last

        wanted = writing.scribe._while_wanted(writing.holding, pieces())
        with pytest.raises(Exception, match="lost"):
            LocalTarget(source).write(writing.holding.lease, wanted)
    assert names(source / "a") == set()


def test_a_service_that_is_away_is_waited_for_and_asked_for_the_rest(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "RETRY_SECONDS", 0.05)
    link = '</v4/patents/jobs/17/results-done?after=1.png>; rel="next"'
    first = rows_of("1.png")
    first.headers["Link"] = link
    answers = [problem(503, "database-unavailable"), first, Answer(status=0), rows_of("2.png")]
    with serving(answers) as server, closing(Writing(server.root, source)) as writing:
        writing.write()
    entries = json.loads((source / "a" / FILE_NAME).read_bytes())["entries"]
    assert [entry["file"] for entry in entries] == ["1.png", "2.png"]
    assert [asked.query.get("after", "") for asked in server.asked] == ["", "", "1.png", "1.png"]


def test_rows_that_are_missing_write_no_file(source: Path) -> None:
    with serving([rows_of()]) as server, closing(Writing(server.root, source)) as writing:
        writing.write()
        failure = writing.holding.failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("results-missing", True)
    assert names(source / "a") == set()


def test_rows_go_to_disk_without_an_ending_while_the_file_is_due(tmp_path: Path) -> None:
    holding = Holding(LEASE.model_copy(update={"results_file": True}), "w-1")
    holding.image_count = 1
    holding.expect(1)
    holding.finish(1, "1.png", {"status": "blank"})
    assert not holding.begin_file(), "its images are not listed yet"
    holding.finish_listing()
    assert not holding.begin_file(), "a row is not stored yet"
    batch = holding.next_batch(flush=False)
    assert batch is not None, "it is posted at once"
    assert ([row.image for row in batch.rows], batch.ending) == (["1.png"], None)
    holding.acknowledge(batch.rows)
    assert holding.begin_file()
    assert holding.everything_left().ending is None
    holding.finish_file()
    assert holding.everything_left().ending is Ending.COMPLETE


# --- what a project may want ---


def test_the_settings_are_kept_shown_leased_and_removed(service: RunningService, admin: Client) -> None:
    made = admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    assert (made.results_file, made.image_name_pattern) == (False, None)
    admin.put_project(PROJECT, ProjectSettings(results_file=True, image_name_pattern=PATTERN))
    kept = admin.put_project(PROJECT, ProjectSettings(priority=1))
    assert (kept.results_file, kept.image_name_pattern) == (True, PATTERN)
    assert admin.project(PROJECT).image_name_pattern == PATTERN
    admin.add_jobs(PROJECT, ["a"])
    holder = Holder(service.client("worker"))
    lease = holder.one(PROJECT)
    assert (lease.results_file, lease.image_name_pattern) == (True, PATTERN)
    [unnamed] = holder.heartbeat().unnamed
    assert (unnamed.results_file, unnamed.image_name_pattern) == (True, PATTERN)
    removed = admin.put_project(PROJECT, ProjectSettings(results_file=False, image_name_pattern=""))
    assert (removed.results_file, removed.image_name_pattern) == (False, None)
    [listed] = admin.projects()
    assert listed == removed


@pytest.mark.parametrize("pattern", ["(", r"\d+", r"(?P<chapter>\d)", "(?P<part>" + "a" * 500 + ")"])
def test_a_pattern_that_makes_no_sense_is_refused_and_changes_nothing(
    service: RunningService, admin: Client, pattern: str
) -> None:
    before = admin.put_project(PROJECT, ProjectSettings(source="file:///data", image_name_pattern=PATTERN))
    headers = {"Authorization": f"Bearer {service.token('submit')}"}
    changes = {"image_name_pattern": pattern, "priority": 9}
    answer = httpx.put(f"{service.root}/v4/{PROJECT}", json=changes, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:decimer-jobs:invalid-request")
    assert "image_name_pattern" in answer.text
    assert list(admin.projects()) == [before]


def test_beside_images_on_a_web_server_nothing_can_be_wanted(admin: Client) -> None:
    admin.put_project(PROJECT, ProjectSettings(source="https://example.org/images"))
    with pytest.raises(ApiError, match="web server"):
        admin.put_project(PROJECT, ProjectSettings(results_file=True))
    assert not admin.project(PROJECT).results_file
    for source, said in (("HTTP://example.org", "web server"), ("https://[no host", "this is no URL")):
        with pytest.raises(ApiError, match=said):
            admin.put_project("other", ProjectSettings(source=source, results_file=True))
    assert [project.name for project in admin.projects()] == [PROJECT]
    admin.put_project(PROJECT, ProjectSettings(source="file:///data", results_file=True))
    with pytest.raises(ApiError, match="web server"):
        admin.put_project(PROJECT, ProjectSettings(source="https://example.org/images"))
    assert admin.project(PROJECT).source == "file:///data"


def test_a_job_whose_file_could_never_be_written_is_refused_at_once(
    service: RunningService, admin: Client, start_worker: WorkerStarter
) -> None:
    """As of a service that was told by other means."""
    admin.put_project(PROJECT, ProjectSettings(source="https://127.0.0.1:1/images"))
    admin.add_jobs(PROJECT, ["a"])
    service.sql("UPDATE projects SET results_file = true")
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    assert worker.wait() == 0, worker.log
    [job] = admin.jobs(PROJECT)
    assert (job.state, job.failures, job.reason) == (JobState.FAILED, 1, "source-read-only")
    assert "turn results_file off" in (job.message or "")
