"""Results: judged row by row, each image once, read back and exported without gap or repeat."""

import asyncio
import csv
import io
import json
import threading
from typing import Any

import asyncpg
import pytest

from job_api import schemas
from job_api.client import Client
from job_api.schemas import NEXT_SINCE_HEADER, ProjectSettings, ResultStatus
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService

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


ODD_NAMES = [
    "with space.png",
    "Größe.png",
    "分子.png",
    "new\nline.png",
    'quote"comma,.png',
    "per%20cent+plus#hash.png",
    "back\\slash.png",
    "deep/er/and deeper/x.png",
    "=1+1.png",
    "'.png",
]


def test_every_field_and_odd_name_comes_back_as_it_was_sent(worker: Holder, admin: Client) -> None:
    lease = worker.claim(PROJECT, max_jobs=3)[2]
    full = schemas.NewResult(
        image="full.png",
        status=ResultStatus.RECOGNISED,
        image_sha256="ab" * 32,
        width=512,
        height=300,
        frames=2,
        smiles='C[C@@H]("\\/',
        confidence=0.123456789012345678,
        confidence_mean=1.0,
        confidence_min=1e-300,
        n_tokens=40,
        truncated=True,
        is_valid=False,
        canonical_smiles="C",
        inchikey="VNWKTOKETHGBQD-UHFFFAOYSA-N",
        formula="CH4",
        flags=["has_rgroup", "truncated"],
        duration_ms=1234,
    )
    bad = result("bad.png", "unreadable", error_message='line 1\nline "2", and\ttab')
    run = {"engine_version": "2.8.1", "weights": "miniature", "weights_sha256": "cd" * 32, "snapshot": "abc-dirty"}
    worker.post(lease, rows=[full, bad, *map(result, ODD_NAMES)], **run)
    rows = {row["image"]: row for row in exported(admin)}
    assert set(rows) == {"full.png", "bad.png", *ODD_NAMES}
    got = rows["full.png"]
    for name, value in full.model_dump(mode="json").items():
        assert got[name] == value, name
    assert {name: got[name] for name in run} == run
    assert (got["worker_id"], got["job_id"], got["lease_seq"], got["run"]) == (worker.worker_id, lease.job_id, 1, 1)
    assert (got["project"], got["directory"]) == (PROJECT, "Größe & Söhne (Müller 2019)")
    with admin.export(PROJECT, format="csv") as answer:
        text = answer.read().decode()
    table = {row["image"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert list(next(csv.reader(io.StringIO(text)))) == list(schemas.Result.model_fields)
    for image, row in rows.items():
        for name, value in row.items():
            text_value = table[image][name]
            if value is None:
                assert text_value == ""
            elif isinstance(value, bool):
                assert text_value == str(value).lower()
            elif isinstance(value, float):
                assert float(text_value) == value
            elif isinstance(value, list):
                assert text_value.split(";") == value or (not value and text_value == "")
            else:
                assert text_value == str(value)


def test_filters(worker: Holder, admin: Client) -> None:
    first, second = worker.claim(PROJECT, max_jobs=2)
    worker.post(first, rows=[result("1.png"), result("2.png", "blank"), result("3.png", "crashed")])
    worker.post(second, "4.png")

    def images(**filters: Any) -> list[str]:
        return [row["image"] for row in exported(admin, **filters)]

    assert images() == ["1.png", "2.png", "3.png", "4.png"]
    assert images(status="blank") == ["2.png"]
    assert images(status=["blank", "crashed"]) == ["2.png", "3.png"]
    assert images(directory="b") == ["4.png"]
    assert images(since=exported(admin)[1]["seq"]) == ["3.png", "4.png"]


def next_since(client: Client, since: int) -> tuple[list[str], int]:
    with client.export(PROJECT, format="jsonl", since=since) as answer:
        rows = [json.loads(line) for line in answer.read().decode().splitlines()]
        return [row["image"] for row in rows], int(answer.headers[NEXT_SINCE_HEADER])


def test_since_gives_what_was_stored_or_replaced_after(worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    worker.post(lease, "1.png", "2.png")
    images, since = next_since(admin, 0)
    assert images == ["1.png", "2.png"]
    assert next_since(admin, since) == ([], since)
    worker.release(lease)
    for other in worker.claim(PROJECT, max_jobs=3):
        if other.job_id == lease.job_id:
            worker.post(other, "2.png", "3.png")
    images, since = next_since(admin, since)
    assert images == ["2.png", "3.png"]
    assert next_since(admin, since) == ([], since)


def test_the_export_never_runs_past_a_writer_that_has_not_committed(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    first, second = worker.claim(PROJECT, max_jobs=2)
    worker.post(first, "before.png")
    _, since = next_since(admin, 0)
    blocked, release = threading.Event(), threading.Event()

    async def block_the_counters() -> None:
        connection = await asyncpg.connect(service.database_url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE project_slots IN ACCESS EXCLUSIVE MODE")
            blocked.set()
            await asyncio.to_thread(release.wait)
        await connection.close()

    blocker = threading.Thread(target=lambda: asyncio.run(block_the_counters()))
    # The slow writer has taken its numbers and waits for the counters; a fast one of another job comes after it.
    slow = threading.Thread(target=lambda: worker.post(first, "slow.png"))
    blocker.start()
    blocked.wait()
    slow.start()
    writers = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"
    while not service.sql(writers):
        pass
    insert = """
        INSERT INTO results (job_id, image, engine, project_id, provenance_id, lease_seq, run, status)
        SELECT $1, 'fast.png', engine, project_id, provenance_id, 1, 1, 'blank' FROM results LIMIT 1"""
    service.sql(insert, second.job_id)
    images, newer = next_since(admin, since)
    assert images == [], "the fast row lies behind one that is not there yet"
    release.set()
    blocker.join()
    slow.join()
    images, _ = next_since(admin, newer)
    assert sorted(images) == ["fast.png", "slow.png"]


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
    worker.complete(again, 3, "2.png")
    assert [row.status for row in admin.job_results(PROJECT, lease.job_id)] == ["recognised", "recognised", "crashed"]
    service.assert_counters_equal_recount()


def test_rows_of_a_job_come_in_pages(worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    names = [f"{number:04}.png" for number in range(250)]
    worker.post(lease, *names)
    assert [row.image for row in admin.job_results(PROJECT, lease.job_id)] == names
    assert worker.images_done(lease) == names
    assert [job.directory for job in admin.jobs(PROJECT, limit=1)] == ["a", "b", "Größe & Söhne (Müller 2019)"]


def test_an_export_longer_than_a_page_is_whole(service: RunningService, worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    for start in range(0, 5000, 1000):
        worker.post(lease, *(f"{number:05}.png" for number in range(start, start + 1000)))
    rows = exported(admin)
    assert [row["image"] for row in rows] == [f"{number:05}.png" for number in range(5000)]
    with admin.export(PROJECT, format="csv") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert len(list(csv.DictReader(io.StringIO(answer.read().decode())))) == 5000
