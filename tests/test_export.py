"""The export: every row once, without gap or repeat, whatever its texts hold and whatever happens on the way."""

import asyncio
import csv
import io
import json
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import asyncpg
import httpx
import pytest

from job_api import schemas
from job_api.client import ApiError, Client, ClientError, Unreachable
from job_api.db import Database
from job_api.export import MAX_EXPORTS, MAX_JOB_ROWS, MAX_PAGE_BYTES, Export, Exports
from job_api.export_sql import Selection
from job_api.routes.exports import ExportResponse
from job_api.schemas import NEXT_SINCE_HEADER, ExportFormat, ProjectSettings, ResultStatus
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService, run
from tests.serving import wait_for

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


SEED = """
INSERT INTO results (job_id, image, engine, project_id, provenance_id, lease_seq, run, status, error_message)
SELECT j.id, 'seeded ' || n, 'decimer', j.project_id, $4, 1, 1,
       CASE WHEN n % 1000 = 7 THEN 'crashed' ELSE 'blank' END, repeat('x', $3)
FROM generate_series(1, $2) n CROSS JOIN jobs j JOIN projects p ON p.id = j.project_id
WHERE j.directory = $1 ORDER BY n"""


def seed(service: RunningService, directory: str, rows: int, message_chars: int = 200) -> None:
    """Rows of the jobs of that directory, in all projects in turn, so that their numbers interleave."""
    made = "INSERT INTO provenances (worker_id, engine) VALUES ('w', 'decimer') ON CONFLICT DO NOTHING"
    service.sql(made)
    [found] = service.sql("SELECT id FROM provenances WHERE worker_id = 'w'")
    service.sql(SEED, directory, rows, message_chars, found["id"])


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
        normalized_smiles="*C",
        molecular_weight=16.043,
        fragments=1,
        sequence="01",
        sub_sequence="1",
        part="left",
        tokens=["C", '[C@@H]"', ","],
        token_probabilities=[1.0, 0.5, 0.25],
    )
    bad = result("bad.png", "unreadable", error_message='line 1\nline "2", and\ttab')
    run = {"engine_version": "2.8.1", "weights": "miniature", "weights_sha256": "cd" * 32, "prepared": "ef" * 32}
    run |= {"snapshot": "abc-dirty"}
    worker.post(lease, rows=[full, bad, *map(result, ODD_NAMES)], **run)
    columns = list(schemas.Result.model_fields)
    rows = {row["image"]: row for row in exported(admin, columns=columns)}
    assert set(rows) == {"full.png", "bad.png", *ODD_NAMES}
    got = rows["full.png"]
    for name, value in full.model_dump(mode="json").items():
        assert got[name] == value, name
    assert {name: got[name] for name in run} == run
    assert (got["worker_id"], got["job_id"], got["lease_seq"], got["run"]) == (worker.worker_id, lease.job_id, 1, 1)
    assert (got["project"], got["directory"]) == (PROJECT, "Größe & Söhne (Müller 2019)")
    assert all(tuple(row) == schemas.DEFAULT_COLUMNS for row in exported(admin))
    with admin.export(PROJECT, format="csv", columns=columns) as answer:
        text = answer.read().decode()
    table = {row["image"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert list(next(csv.reader(io.StringIO(text)))) == columns
    for image, row in rows.items():
        for name, value in row.items():
            text_value = table[image][name]
            if value is None:
                assert text_value == ""
            elif isinstance(value, bool):
                assert text_value == str(value).lower()
            elif isinstance(value, float):
                assert float(text_value) == value
            elif name == "tokens":
                assert json.loads(text_value) == value
            elif name == "token_probabilities":
                assert [float(number) for number in text_value.split(";")] == value
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
    insert = """
        INSERT INTO results (job_id, image, engine, project_id, provenance_id, lease_seq, run, status)
        SELECT $1, $2, engine, project_id, provenance_id, 1, 1, 'blank' FROM results LIMIT 1"""

    async def block_the_row() -> None:
        connection = await asyncpg.connect(service.database_url)
        row = connection.transaction()
        await row.start()
        await connection.execute(insert, first.job_id, "slow.png")
        blocked.set()
        await asyncio.to_thread(release.wait)
        await row.rollback()
        await connection.close()

    blocker = threading.Thread(target=lambda: asyncio.run(block_the_row()))
    # The slow writer has taken a number and waits for one who stores the same row, in vain; a fast one of another job
    # comes after it.
    slow = threading.Thread(target=lambda: worker.post(first, "slow.png"))
    blocker.start()
    blocked.wait()
    slow.start()
    # Those of two keys are of the sweep.
    writers = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    wait_for(lambda: service.sql(writers))
    service.sql(insert, second.job_id, "fast.png")
    images, newer = next_since(admin, since)
    assert images == [], "the fast row lies behind one that is not there yet"
    release.set()
    blocker.join()
    slow.join()
    images, _ = next_since(admin, newer)
    assert sorted(images) == ["fast.png", "slow.png"]


def test_an_export_longer_than_a_page_is_whole(service: RunningService, worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    for start in range(0, 5000, 1000):
        worker.post(lease, *(f"{number:05}.png" for number in range(start, start + 1000)))
    rows = exported(admin)
    assert [row["image"] for row in rows] == [f"{number:05}.png" for number in range(5000)]
    with admin.export(PROJECT, format="csv") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert len(list(csv.DictReader(io.StringIO(answer.read().decode())))) == 5000


def test_other_projects_rows_in_between_and_rare_ones_over_many_pages(service: RunningService, admin: Client) -> None:
    admin.put_project("others", ProjectSettings(source="file:///data"))
    admin.add_jobs("others", ["a"])
    seed(service, "a", 20_000)
    rows = exported(admin)
    assert [row["image"] for row in rows] == [f"seeded {n}" for n in range(1, 20_001)]
    assert {row["project"] for row in rows} == {PROJECT}
    wanted = [f"seeded {n}" for n in range(7, 20_000, 1000)]
    assert [row["image"] for row in exported(admin, status="crashed")] == wanted
    assert [row["image"] for row in exported(admin, status="crashed", directory="a")] == wanted
    assert [row["image"] for row in exported(admin, status="crashed", since=rows[10_000]["seq"])] == wanted[10:]
    assert exported(admin, directory="b") == []


def test_a_directory_of_very_many_images(service: RunningService, admin: Client) -> None:
    seed(service, "a", MAX_JOB_ROWS + 1, 1)
    seed(service, "b", 10)
    assert len({row["image"] for row in exported(admin, directory="a")}) == MAX_JOB_ROWS + 1
    assert len(exported(admin, directory="b")) == 10


@pytest.mark.parametrize("name", ["'; DROP TABLE results; --", "\\' OR true --", "$1 %s {0}", "a' OR 'a' = 'a"])
def test_a_filter_is_never_part_of_a_statement(worker: Holder, admin: Client, name: str) -> None:
    worker.post(worker.one(PROJECT), "1.png")
    with pytest.raises(ClientError, match="the project has no directory"):
        exported(admin, directory=name)
    admin.add_jobs(PROJECT, [name])
    [lease] = [lease for lease in worker.claim(PROJECT, max_jobs=9) if lease.directory == name]
    worker.post(lease, "2.png")
    assert [(row["directory"], row["image"]) for row in exported(admin, directory=name)] == [(name, "2.png")]


def test_a_page_of_large_rows_is_read_again_with_fewer(service: RunningService, admin: Client) -> None:
    seed(service, "a", 1_000, 20_000)
    seed(service, "b", 3, 3 * MAX_PAGE_BYTES)

    async def pages() -> list[tuple[int, int]]:
        database, exports, found, since = Database(service.settings), Exports(), [], 0
        await database.open()
        try:
            [until] = [row["seq"] for row in service_rows]
            while since < until:
                page = await exports.read(database, Selection(1, ExportFormat.CSV), since, until, 1_000)
                found.append((page.rows, len(page.text)))
                since = page.end
        finally:
            await database.close()
        return found

    service_rows = service.sql("SELECT max(seq) AS seq FROM results")
    found = run(pages())
    assert sum(rows for rows, _ in found) == 1_003
    assert all(size <= MAX_PAGE_BYTES for rows, size in found if rows > 1)
    assert sum(size > MAX_PAGE_BYTES for _, size in found) == 3, "a row that is larger than a page is one"
    assert len(exported(admin)) == 1_003


def test_a_download_that_is_given_up_harms_no_other_request(service: RunningService, admin: Client) -> None:
    seed(service, "a", 1_000)
    selection = Selection(1, ExportFormat.CSV)

    async def give_up_and_ask() -> None:
        # One connection, so that whoever asks next gets the one on which a page was being read.
        database = Database(service.settings.model_copy(update={"pool_size": 1}))
        await database.open()
        try:
            for step in range(100):
                reading = asyncio.create_task(Exports().read(database, selection, 0, 1_000, 1_000))
                await asyncio.sleep(step / 10_000)
                reading.cancel()
                await asyncio.wait([reading])
                async with database.connection() as connection:
                    assert await connection.fetchval("SELECT 1") == 1
        finally:
            await database.close()

    run(give_up_and_ask())


def raw_export(service: RunningService, stack: ExitStack) -> httpx.Response:
    """An export of which nothing is read yet, uncompressed."""
    http = stack.enter_context(httpx.Client(timeout=20, headers={"Accept-Encoding": "identity"}))
    headers = {"Authorization": f"Bearer {service.token()}"}
    return stack.enter_context(http.stream("GET", f"{service.root}/v4/{PROJECT}/results", headers=headers))


def test_slow_clients_hold_no_connection_and_those_that_hang_up_leave_their_place(
    service: RunningService, admin: Client
) -> None:
    seed(service, "a", 60_000, 1_000)
    busy = """
        SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'job-api'
        AND (state <> 'idle' OR backend_xmin IS NOT NULL)"""
    with ExitStack() as slow:
        assert all(raw_export(service, slow).status_code == 200 for _ in range(MAX_EXPORTS))
        wait_for(lambda: service.sql(busy) == [])
        with ExitStack() as one_more:
            refused = raw_export(service, one_more)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        with pytest.raises(ApiError, match="exports are running"):
            exported(service.client(retry_seconds=0))
        assert admin.project(PROJECT).images is not None
    assert len(exported(admin)) == 60_000


def test_a_client_that_takes_nothing_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def answer() -> None:
        # It gets no further than the heading, for which no database is asked.
        database = Database.__new__(Database)
        export = Export(Exports(), database, Selection(1, ExportFormat.CSV), 0, 1)
        await ExportResponse(export, stalled_seconds=0.05)({"type": "http"}, receive, send)

    run(answer())
    assert sent == ["http.response.start", "http.response.body"], "no end: it must not look whole"
    assert "took nothing" in caplog.text


@pytest.mark.parametrize("export_format", [ExportFormat.CSV, ExportFormat.JSONL])
def test_a_database_that_goes_away_breaks_the_stream_visibly_and_the_client_goes_on(
    service: RunningService, admin: Client, export_format: ExportFormat
) -> None:
    seed(service, "a", 60_000, 1_000)
    cut = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'job-api'"""

    def read_and_cut() -> None:
        with admin.export(PROJECT, format=export_format) as answer:
            for _ in answer.iter_bytes(2**20):
                service.sql(cut)

    with pytest.raises(Unreachable, match="broke off"):
        read_and_cut()
    seqs = []
    for seq, _ in admin.export_records(PROJECT, export_format):
        if seq is not None:
            seqs.append(seq)
            if len(seqs) in (5_000, 20_000):
                service.sql(cut)
    assert len(seqs) == 60_000
    assert seqs == sorted(set(seqs))


class Breaking(httpx.HTTPTransport):
    """A network that breaks some answers off after some bytes."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if request.url.path.endswith("/results") and random.random() < 0.5:
            pieces = answer.stream
            assert isinstance(pieces, httpx.SyncByteStream)
            answer.stream = _Broken(pieces, random.randrange(200_000))
        return answer


class _Broken(httpx.SyncByteStream):
    def __init__(self, whole: httpx.SyncByteStream, after_bytes: int) -> None:
        self._whole, self._after_bytes = whole, after_bytes

    def __iter__(self) -> Iterator[bytes]:
        left = self._after_bytes
        for piece in self._whole:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                raise httpx.ReadError("cut")

    def close(self) -> None:
        self._whole.close()


# As a worker of a later run would: a row is replaced, and takes a number of its own after announcing that.
REPLACE = """
UPDATE results SET seq = nextval('result_seq'), run = run + 1, lease_seq = lease_seq + 1
WHERE project_id = 1 AND image = ANY($1)"""
ANNOUNCE = "SELECT pg_advisory_xact_lock_shared((SELECT last_value FROM result_seq))"


def test_downloads_lose_and_repeat_nothing_while_rows_are_added_and_replaced(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    seed(service, "a", 5_000)
    lease = next(lease for lease in worker.claim(PROJECT, max_jobs=9) if lease.directory == "b")
    stop, failed = threading.Event(), []

    async def replace(number: int) -> None:
        dice = random.Random(number)
        connection = await asyncpg.connect(service.database_url)
        try:
            while not stop.is_set():
                async with connection.transaction():
                    await connection.execute(ANNOUNCE)
                    images = sorted(f"seeded {dice.randrange(1, 5_001)}" for _ in range(50))
                    await connection.execute(
                        "SELECT FROM results WHERE image = ANY($1) ORDER BY image FOR UPDATE", images
                    )
                    await connection.execute(REPLACE, images)
        finally:
            await connection.close()

    def add() -> None:
        try:
            number = 0
            while not stop.is_set():
                worker.post(lease, *(f"added {number}-{n}" for n in range(20)))
                number += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)

    writers = [threading.Thread(target=lambda n=n: run(replace(n))) for n in range(2)]
    writers.append(threading.Thread(target=add))
    rows: list[dict[str, Any]] = []
    with Client(service.root, token=service.token(), retry_seconds=30, transport=Breaking()) as client:
        for writer in writers:
            writer.start()
        try:
            rows += client.results(PROJECT)
            replaced = "SELECT 1 FROM results WHERE run > 1 AND seq > $1 LIMIT 1"
            wait_for(lambda: service.sql(replaced, rows[-1]["seq"]))
            for _ in range(3):
                rows += client.results(PROJECT, since=rows[-1]["seq"])
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        rows += client.results(PROJECT, since=rows[-1]["seq"])
    assert failed == []
    seqs = [row["seq"] for row in rows]
    assert seqs == sorted(set(seqs))
    newest = {(row["directory"], row["image"], row["engine"]): (row["seq"], row["run"]) for row in rows}
    table = service.sql("SELECT directory, image, engine, seq, r.run FROM results r JOIN jobs j ON j.id = r.job_id")
    assert newest == {(r["directory"], r["image"], r["engine"]): (r["seq"], r["run"]) for r in table}
    assert len(rows) > len(newest), "nothing was replaced meanwhile"
