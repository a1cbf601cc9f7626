"""Results: judged row by row, each image once, and read back; their export has a file of its own."""

from typing import Any

import asyncpg
import pytest

from job_api.client import Client
from job_api.results import Provenances
from job_api.schemas import EngineRun, ProjectSettings, ResultStatus
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService, run

PROJECT = "patents"


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, ["a", "b", "Größe & Söhne (Müller 2019)"])
    return admin


@pytest.fixture
def worker(service: RunningService, admin: Client) -> Holder:
    return Holder(service.client("worker"))


def exported(client: Client, **filters: Any) -> list[dict[str, Any]]:
    return list(client.results(PROJECT, **filters))


def raw(row: Any) -> dict[str, Any]:
    return {"image": "x.png", "status": "recognised", "smiles": "C", **row}


BAD_ROWS: list[tuple[Any, str]] = [
    (raw({"image": ".."}), "holds '..'"),
    (raw({"image": "a/../b"}), "holds '..'"),
    (raw({"image": "/etc/passwd"}), "is absolute"),
    (raw({"image": ""}), "is empty"),
    (raw({"image": "x" * 1025}), "1025 bytes"),
    (raw({"image": "nul\0.png"}), "NUL"),
    (raw({"smiles": "C\0"}), "NUL"),
    (raw({"smiles": "C" * 4001}), "4000"),
    (raw({"smiles": ""}), "not recognised"),
    (raw({"smiles": None}), "not recognised"),
    (raw({"status": "blank"}), "the status is blank"),
    (raw({"status": "excellent"}), "Input should be"),
    (raw({"confidence": 1.5}), "less than or equal to 1"),
    (raw({"confidence": "much"}), "valid number"),
    (raw({"width": -1}), "greater than or equal to 0"),
    (raw({"width": 2**40}), "less than or equal"),
    (raw({"image_sha256": "abc"}), "pattern"),
    (raw({"engine": "osra"}), "its batch was made by decimer"),
    (raw({"tokens": ["C" * 200] * 21, "token_probabilities": [1.0] * 21}), "tokens: have more than 4000 characters"),
    ("no row at all", "valid dictionary"),
    (None, "valid dictionary"),
]


def test_bad_rows_are_named_with_reasons_and_their_neighbours_are_stored(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    lease = worker.one(PROJECT)
    rows = [raw({"image": "first.png"}), *(row for row, _ in BAD_ROWS), raw({"image": "last.png"})]
    answer = worker.post(lease, rows=rows)
    assert answer.stored == 2
    assert [row.index for row in answer.refused] == list(range(1, len(BAD_ROWS) + 1))
    for refused, (_, reason) in zip(answer.refused, BAD_ROWS, strict=True):
        assert reason in refused.reason
    assert [row.image for row in admin.job_results(PROJECT, lease.job_id)] == ["first.png", "last.png"]
    assert admin.project(PROJECT).images.stored == 2
    service.assert_counters_equal_recount()


def test_the_same_image_twice_in_a_batch_is_one_row_and_the_first(worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    answer = worker.post(lease, rows=[result("1.png", smiles="C"), result("1.png", smiles="N"), result("2.png")])
    assert (answer.stored, answer.unchanged) == (2, 1)
    assert [row.smiles for row in admin.job_results(PROJECT, lease.job_id)] == ["C", "CCO"]


def test_a_batch_sent_twice_is_stored_once(service: RunningService, worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    first = worker.post(lease, "1.png", "2.png")
    before = service.sql("SELECT * FROM results ORDER BY image")
    again = worker.post(lease, "1.png", "2.png")
    assert (first.stored, again.stored, again.unchanged) == (2, 0, 2)
    assert service.sql("SELECT * FROM results ORDER BY image") == before
    assert admin.job(PROJECT, lease.job_id).attempts[0].new_results == 2
    service.assert_counters_equal_recount()


def test_a_rerun_keeps_rows_until_they_are_replaced(service: RunningService, worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    worker.complete(lease, 2, "1.png", "2.png")
    admin.rerun(PROJECT, lease.job_id)
    assert len(exported(admin)) == 2
    admin.cancel(PROJECT, 2)
    admin.cancel(PROJECT, 3)
    again = worker.one(PROJECT)
    assert again.results_count == 0
    worker.complete(again, 2, "1.png", "2.png")
    assert {row["run"] for row in exported(admin)} == {2}
    service.assert_counters_equal_recount()


def test_a_rerun_by_status_does_only_those_again(service: RunningService, worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    worker.post(lease, rows=[result("1.png"), result("2.png", "timeout"), result("3.png", "crashed")])
    worker.complete(lease, 3)
    admin.rerun(PROJECT, lease.job_id, [ResultStatus.TIMEOUT])
    admin.cancel(PROJECT, 2)
    admin.cancel(PROJECT, 3)
    again = worker.one(PROJECT)
    assert worker.images_done(again) == ["1.png", "3.png"]
    assert [(row.image, row.status) for row in worker.results_done(again)] == [
        ("1.png", "recognised"),
        ("3.png", "crashed"),
    ]
    worker.complete(again, 3, "2.png")
    assert [row.status for row in admin.job_results(PROJECT, lease.job_id)] == ["recognised", "recognised", "crashed"]
    service.assert_counters_equal_recount()


def test_rows_of_a_job_come_in_pages(worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    names = [f"{number:04}.png" for number in range(250)]
    worker.post(lease, *names)
    assert [row.image for row in admin.job_results(PROJECT, lease.job_id)] == names
    assert worker.images_done(lease) == names
    assert [row.image for row in worker.results_done(lease)] == names
    assert [row.image for row in worker.client.results_done(lease, worker.worker_id, after=names[99])] == names[100:]
    assert [job.directory for job in admin.jobs(PROJECT, limit=1)] == ["a", "b", "Größe & Söhne (Müller 2019)"]


def test_rows_of_a_provenance_that_the_database_lost_are_stored_and_exported(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    """As after a crash or a failover: the service remembers a number that is not there any more."""
    posted, completed = worker.one(PROJECT), worker.one(PROJECT)
    worker.post(posted, "1.png")
    service.sql("TRUNCATE provenances, results")
    assert worker.post(posted, "2.png").stored == 1
    assert [row["image"] for row in exported(admin)] == ["2.png"]
    service.sql("TRUNCATE provenances, results")
    worker.complete(completed, 1, "3.png")
    assert [row["image"] for row in exported(admin)] == ["3.png"]


def test_rows_of_one_worker_with_and_without_a_prepared_model_are_told_apart(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    made_with: dict[str, Any] = {"engine_version": "2.8.1", "weights": "tiny", "weights_sha256": "ab" * 32}
    said = {"1.png": None, "2.png": "cd" * 32, "3.png": "ef" * 32, "4.png": None, "5.png": "cd" * 32}
    lease = worker.one(PROJECT)
    for image, prepared in said.items():
        worker.post(lease, image, prepared=prepared, **made_with)
    assert {row["image"]: row["prepared"] for row in exported(admin)} == said
    assert len(service.sql("SELECT * FROM provenances")) == 3


def test_a_provenance_that_is_there_is_found(service: RunningService) -> None:
    """As by a process that has just started."""
    runs = [
        EngineRun(prepared=prepared, snapshot=snapshot) for prepared in (None, "cd" * 32) for snapshot in (None, "a")
    ]

    async def find() -> list[int]:
        async with asyncpg.create_pool(service.database_url, min_size=1) as pool, pool.acquire() as connection:
            return [await Provenances().find(connection, "w", run) for run in runs]

    first = run(find())
    assert len(set(first)) == len(runs)
    assert run(find()) == first
