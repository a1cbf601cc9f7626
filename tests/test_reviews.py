"""Corrections: judged one by one, kept beside the row when it is replaced, exported; also from a file."""

import asyncio
import csv
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import openpyxl
import pytest

from job_api.client import Client
from job_api.schemas import (
    MAX_REVIEWS_PER_PUT,
    JobAction,
    JobFilter,
    JobsAction,
    Lease,
    NewReview,
    NewUser,
    ProjectSettings,
    ReviewStatus,
    Role,
    RowChemistry,
)
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService, run
from tests.serving import job_api, wait_for

PROJECT = "patents"
REVIEW_FIELDS = ("review_status", "corrected_smiles", "review_note", "reviewed_by", "reviewed_at", "review_outdated")


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, ["a", 'Größe & "Söhne",\n(Müller)'])
    return admin


@pytest.fixture
def worker(service: RunningService, admin: Client) -> Holder:
    """Has stored three rows of each directory."""
    worker = Holder(service.client("worker"))
    for lease in worker.claim(PROJECT, max_jobs=2):
        rows = [result("1.png"), result("2.png", smiles="c1ccccc1"), result("3.png", "blank")]
        worker.post(lease, rows=rows)
        worker.complete(lease, 3)
    return worker


def said(image: str, status: str | None = "accepted", **fields: Any) -> dict[str, Any]:
    where = {} if "job_id" in fields else {"directory": "a"}
    return {"image": image, "review_status": status, **where, **fields}


def put(client: Client, *reviews: dict[str, Any]) -> Any:
    return client.review(PROJECT, [NewReview(**review) for review in reviews])


def exported(client: Client, **filters: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["directory"], row["image"]): row for row in client.results(PROJECT, **filters)}


def unreviewed(row: dict[str, Any]) -> dict[str, Any]:
    """What the row says apart from its review."""
    return {name: value for name, value in row.items() if name not in (*REVIEW_FIELDS, "seq")}


def test_reviews_stand_beside_their_rows_and_bring_them_to_who_asks_for_what_is_new(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    before = exported(admin)
    since = max(row["seq"] for row in before.values())
    second = before['Größe & "Söhne",\n(Müller)', "1.png"]["job_id"]
    answer = put(
        admin,
        said("1.png", smiles="CCO"),
        said("2.png", "corrected", corrected_smiles="C1CCCCC1[R1]", note="an R-group"),
        said("3.png", "corrected", corrected_smiles="N", smiles=None),
        said("2.png", "rejected", job_id=second, engine="decimer"),
    )
    assert (answer.stored, answer.removed, answer.unchanged, answer.refused) == (4, 0, 0, [])
    newer = exported(admin, since=since)
    shown = {key[1] + str(row["job_id"]): [row[name] for name in REVIEW_FIELDS[:4]] for key, row in newer.items()}
    first = before["a", "1.png"]["job_id"]
    assert shown == {
        f"1.png{first}": ["accepted", None, None, "test-admin"],
        f"2.png{first}": ["corrected", "C1CCCCC1[R1]", "an R-group", "test-admin"],
        f"3.png{first}": ["corrected", "N", None, "test-admin"],
        f"2.png{second}": ["rejected", None, None, "test-admin"],
    }
    assert all(row["reviewed_at"] is not None and row["review_outdated"] is False for row in newer.values())
    assert {key: unreviewed(row) for key, row in exported(admin).items()} == {
        key: unreviewed(row) for key, row in before.items()
    }
    assert [row.review_status for row in admin.job_results(PROJECT, first)] == ["accepted", "corrected", "corrected"]
    [rejected] = admin.reviews(PROJECT, status=ReviewStatus.REJECTED)
    assert (rejected.job_id, rejected.image, rejected.smiles, rejected.reviewed_smiles) == (
        second,
        "2.png",
        "c1ccccc1",
        "c1ccccc1",
    )
    assert pages(service, limit=1) == [(r.job_id, r.image) for r in admin.reviews(PROJECT)]
    service.assert_counters_equal_recount()


def pages(service: RunningService, limit: int) -> list[tuple[int, str]]:
    """The reviews of small pages, one after another."""
    found, url = [], f"/v4/{PROJECT}/reviews?limit={limit}"
    with httpx.Client(base_url=service.root, headers={"Authorization": f"Bearer {service.token('read')}"}) as http:
        while url:
            page = http.get(url)
            assert len(page.json()["items"]) <= limit
            found += [(item["job_id"], item["image"]) for item in page.json()["items"]]
            url = page.links.get("next", {}).get("url", "")
    return found


BAD: list[tuple[Any, str]] = [
    (said("1.png", directory="b"), "there is no job 'b'"),
    (said("1.png", job_id=10**9), f"there is no job {10**9}"),
    (said("9.png"), "no result of this image by the engine decimer"),
    (said("2.png", engine="osra"), "no result of this image by the engine osra"),
    (said("2.png", smiles="CCO"), "another answer is stored now, c1ccccc1"),
    (said("2.png", smiles=None), "another answer is stored now, c1ccccc1"),
    (said("3.png", smiles="CCO"), "another answer is stored now, none"),
    (said("1.png", "rejected"), "review 0 of this batch is of the same image"),
    (said("2.png", "corrected"), "corrected needs a corrected_smiles"),
    (said("2.png", corrected_smiles="C"), "goes with the review_status corrected"),
    (said("2.png", None, corrected_smiles="C"), "goes with the review_status corrected"),
    (
        said("2.png", "corrected", corrected_smiles="C C"),
        "holds a blank or a character that is not printable ASCII",
    ),
    (said("2.png", "corrected", corrected_smiles="C\n"), "holds a blank"),
    (said("2.png", "corrected", corrected_smiles="C\u2013C"), "not printable ASCII"),
    (said("2.png", "corrected", corrected_smiles=""), "is empty"),
    (said("2.png", "corrected", corrected_smiles="C" * 4001), "4000"),
    (said("2.png", "fine"), "Input should be"),
    ({"directory": "a", "image": "2.png"}, "review_status: Field required"),
    ({"image": "2.png", "review_status": "accepted"}, "name the directory or the job_id"),
    (said("2.png", directory="a", job_id=1), "name the directory or the job_id"),
    (said("2.png", reviewer="me"), "Extra inputs"),
    (said("../2.png"), "holds '..'"),
    ("a review", "valid dictionary"),
]


def test_bad_reviews_are_named_with_reasons_and_their_neighbours_are_stored(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    other = service.client("admin")
    other.put_project("others", ProjectSettings(source="file:///data"))
    other.add_jobs("others", ["c"])
    [strange] = other.jobs("others")
    batch = [said("1.png"), *(review for review, _ in BAD), said("1.png", job_id=strange.id), said("3.png", "rejected")]
    token = service.token("submit")
    answer = httpx.put(
        f"{service.root}/v4/{PROJECT}/reviews", json={"reviews": batch}, headers={"Authorization": f"Bearer {token}"}
    ).json()
    assert (answer["stored"], answer["removed"], answer["unchanged"]) == (2, 0, 0)
    assert [row["index"] for row in answer["refused"]] == list(range(1, len(BAD) + 2))
    for refused, (review, reason) in zip(answer["refused"], [*BAD, (None, "there is no job")], strict=True):
        assert reason in refused["reason"], review
    assert {(r.image, r.review_status.value) for r in admin.reviews(PROJECT)} == {
        ("1.png", "accepted"),
        ("3.png", "rejected"),
    }


def test_what_was_said_before_is_left_alone_whoever_repeats_it_and_can_be_taken_back(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    admin.put_user("ada", NewUser(password="a long password", role=Role.SUBMIT))
    with Client(service.root, username="ada", password="a long password") as ada:
        assert put(ada, said("1.png"), said("2.png", "corrected", corrected_smiles="C")).stored == 2
    stored = exported(admin)
    assert stored["a", "1.png"]["reviewed_by"] == "ada"
    again = put(admin, said("1.png"), said("2.png", "corrected", corrected_smiles="C"), said("3.png", None))
    assert (again.stored, again.removed, again.unchanged) == (0, 0, 3)
    assert exported(admin) == stored
    changed = put(admin, said("1.png", None), said("2.png", "corrected", corrected_smiles="C", note="sure"))
    assert (changed.stored, changed.removed, changed.unchanged) == (1, 1, 0)
    newer = exported(admin, since=max(row["seq"] for row in stored.values()))
    assert [newer["a", "1.png"][name] for name in REVIEW_FIELDS] == [None] * 6
    assert (newer["a", "2.png"]["review_note"], newer["a", "2.png"]["reviewed_by"]) == ("sure", "test-admin")
    assert len(newer) == 2


def test_a_rerun_keeps_the_review_and_says_where_it_is_of_another_answer(worker: Holder, admin: Client) -> None:
    put(admin, said("1.png"), said("2.png", "corrected", corrected_smiles="C1CCCCC1"), said("3.png", "rejected"))
    job_id = exported(admin)["a", "1.png"]["job_id"]
    admin.rerun(PROJECT, job_id)
    lease = worker.one(PROJECT)
    worker.post(lease, rows=[result("1.png", smiles="CCN"), result("2.png", smiles="c1ccccc1"), result("3.png")])
    rows = [row for (directory, _), row in exported(admin).items() if directory == "a"]
    assert {row["run"] for row in rows} == {2}
    assert {row["image"]: (row["review_status"], row["corrected_smiles"], row["review_outdated"]) for row in rows} == {
        "1.png": ("accepted", None, True),
        "2.png": ("corrected", "C1CCCCC1", False),
        "3.png": ("rejected", None, True),
    }
    assert [review.review_outdated for review in admin.reviews(PROJECT)] == [True, False, True]
    # Who still has the old answer before his eyes does not speak of this one; who has seen it does.
    assert put(admin, said("1.png", smiles="CCO")).stored == 0
    assert put(admin, said("1.png", smiles="CCN")).stored == 1
    assert exported(admin)["a", "1.png"]["review_outdated"] is False


@pytest.mark.service(janitor_seconds=0.05)
def test_reviews_go_with_their_jobs_and_with_their_project(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    jobs = [job.id for job in admin.jobs(PROJECT)]
    put(admin, *(said(image, job_id=job_id) for job_id in jobs for image in ("1.png", "2.png")))
    *_, acted = admin.act(PROJECT, JobsAction(action=JobAction.DELETE, filter=JobFilter(ids=[jobs[0]])))
    assert acted.changed == 1
    assert [row["job_id"] for row in service.sql("SELECT job_id FROM reviews")] == [jobs[1]] * 2
    # What an older service leaves of a job that it deletes takes no place on a page.
    service.sql(
        "INSERT INTO reviews SELECT (jsonb_populate_record(w, $1::jsonb)).* FROM reviews w", f'{{"job_id": {jobs[0]}}}'
    )
    assert pages(service, limit=1) == [(jobs[1], "1.png"), (jobs[1], "2.png")]
    service.sql("DELETE FROM reviews WHERE job_id = $1", jobs[0])
    admin.delete_project(PROJECT)
    wait_for(lambda: not service.sql("SELECT 1 FROM projects"))
    assert service.sql("SELECT * FROM reviews") == []


def of_review(client: Client, rows: list[dict[str, Any]]) -> None:
    put(client, *(said(row["image"], "rejected", job_id=row["job_id"]) for row in rows))


def of_chemistry(client: Client, rows: list[dict[str, Any]]) -> None:
    client.put_chemistry(PROJECT, [RowChemistry.model_validate({**row, "formula": "C"}) for row in rows])


@pytest.mark.parametrize("write", [of_review, of_chemistry])
def test_no_export_runs_past_a_row_whose_new_number_is_not_there_yet(
    service: RunningService, worker: Holder, admin: Client, write: Callable[[Client, list[dict[str, Any]]], None]
) -> None:
    """The writer has given its first row a number and waits for somebody who holds its second."""
    rows = [row for (directory, _), row in exported(admin).items() if directory == "a"][:2]
    since = admin.last_seq(PROJECT)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    newer = "UPDATE results SET seq = nextval('result_seq') WHERE job_id <> $1 AND image = '3.png'"

    async def hold_up() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(service.database_url)
        try:
            transaction = connection.transaction()
            await transaction.start()
            lock = "SELECT 1 FROM results WHERE job_id = $1 AND image = $2 FOR UPDATE"
            await connection.execute(lock, rows[1]["job_id"], rows[1]["image"])
            writing = asyncio.create_task(asyncio.to_thread(write, service.client("submit"), rows))
            await asyncio.to_thread(wait_for, lambda: service.sql(waiting))
            await asyncio.to_thread(service.sql, newer, rows[0]["job_id"])
            behind = await asyncio.to_thread(lambda: list(admin.results(PROJECT, since=since)))
            await transaction.rollback()
            await writing
        finally:
            await connection.close()
        return behind

    assert run(hold_up()) == [], "the newer row lies behind one that is not there yet"
    assert len(exported(admin, since=since)) == 3


def test_reviews_and_workers_meet_on_the_same_rows_without_waiting_in_a_circle(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    """That there was no deadlock is asserted of each test's databases."""
    directories, images = [f"d{n}" for n in range(4)], [f"{n}.png" for n in range(30)]
    admin.add_jobs(PROJECT, directories)
    leases = worker.claim(PROJECT, max_jobs=4)
    for lease in leases:
        worker.post(lease, *images)
        worker.complete(lease, len(images))
    failed: list[BaseException] = []

    def attempt(what: Callable[[random.Random], None], seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(12):
                what(dice)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)

    def look(dice: random.Random) -> None:
        chosen = [(d, i) for d in directories for i in images]
        dice.shuffle(chosen)
        status = dice.choice(["accepted", "rejected"])
        assert put(admin, *(said(i, status, directory=d) for d, i in chosen[:60])).refused == []

    def store(dice: random.Random) -> None:
        lease = dice.choice(leases)
        admin.rerun(PROJECT, lease.job_id)
        again: list[Lease] = []
        # A job that a reviewer has locked is passed over by a claim.
        while not again:
            again = worker.claim(PROJECT)
        shuffled = dice.sample(images, len(images))
        worker.post(again[0], rows=[result(i, smiles=dice.choice(["C", "N"])) for i in shuffled])
        worker.complete(again[0], len(images))

    threads = [threading.Thread(target=attempt, args=(what, n)) for n, what in enumerate((look, look, store))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    service.assert_counters_equal_recount()


# --- from a file ---


def command(service: RunningService, folder: Path, *arguments: object) -> tuple[int, str, str]:
    """A `job-api` process of somebody who may submit: its exit code, and what it says."""
    words = [str(argument) for argument in arguments]
    done = job_api(folder, *words, root=service.root, token=service.token("submit"))
    return done.returncode, done.stdout, done.stderr


def test_a_downloaded_file_with_its_review_columns_filled_in_is_sent_as_it_is(
    service: RunningService, worker: Holder, admin: Client, tmp_path: Path
) -> None:
    path = tmp_path / "results.csv"
    assert command(service, tmp_path, "results", PROJECT, "-o", path)[0] == 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= {"review_status": "Accepted "}
    rows[1] |= {"review_status": "corrected", "corrected_smiles": " C1CCCCC1[R1]", "review_note": "by hand"}
    rows[4] |= {"review_status": "corrected", "corrected_smiles": "C(", "review_note": "not closed"}
    rows[5] |= {"review_status": "rejected", "smiles": "CCO"}

    def write() -> None:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write()
    code, out, err = command(service, tmp_path, "review", PROJECT, "--file", path)
    assert (code, out) == (1, "2 reviews stored, 0 taken back, 0 there already, 2 refused\n")
    # Each row of the second directory is two lines, for its name holds a line end.
    second = r'Größe & "Söhne",\n(Müller)'
    assert err.splitlines() == [
        f"line 7: {second}/2.png: corrected_smiles: RDKit cannot read it; --no-check sends it anyway",
        f"line 9: {second}/3.png: smiles: another answer is stored now, none",
    ]
    stored = exported(admin)
    assert stored["a", "2.png"]["corrected_smiles"] == "C1CCCCC1[R1]"
    assert stored["a", "2.png"]["review_note"] == "by hand"
    rows[1] |= {"review_status": "none"}
    rows[5] |= {"review_status": "", "smiles": ""}
    write()
    code, out, _ = command(service, tmp_path, "review", PROJECT, "--file", path, "--no-check")
    assert (code, out) == (0, "1 reviews stored, 1 taken back, 1 there already, 0 refused\n")

    # A review that was read out with another answer is not sent back as one of this answer.
    admin.rerun(PROJECT, stored["a", "1.png"]["job_id"])
    worker.post(worker.one(PROJECT), rows=[result("1.png", smiles="CCN")])
    command(service, tmp_path, "results", PROJECT, "-o", path)
    code, _, err = command(service, tmp_path, "review", PROJECT, "--file", path)
    assert (code, err.splitlines()[-1].partition(": ")[2]) == (
        1,
        "a/1.png: is of an earlier answer; look at this one, then empty review_outdated",
    )
    assert exported(admin)["a", "1.png"]["review_outdated"] is True


def test_a_downloaded_workbook_is_filled_in_and_sent_as_it_is(
    service: RunningService, worker: Holder, admin: Client, tmp_path: Path
) -> None:
    path = tmp_path / "results.xlsx"

    def send() -> tuple[int, str, str]:
        return command(service, tmp_path, "review", PROJECT, "--file", path)

    assert command(service, tmp_path, "results", PROJECT, "-o", path)[0] == 0
    book = openpyxl.load_workbook(path)
    sheet = book["results"]
    columns = {cell.value: number for number, cell in enumerate(sheet[1], start=1)}
    filled: dict[int, dict[str, str | float]] = {
        2: {"review_status": "Accepted "},
        3: {"review_status": "corrected", "corrected_smiles": "C1CCCCC1[R1]", "review_note": 7},
        6: {"review_status": "corrected", "corrected_smiles": "C("},
        7: {"review_status": "rejected"},
    }
    for row, fields in filled.items():
        for name, value in fields.items():
            sheet.cell(row, columns[name]).value = value
    book.save(path)
    code, out, err = send()
    assert (code, out) == (1, "3 reviews stored, 0 taken back, 0 there already, 1 refused\n")
    refused = r'line 6: Größe & "Söhne",\n(Müller)/2.png: corrected_smiles: RDKit cannot read it'
    assert err.startswith(refused), err
    stored = exported(admin)
    assert (stored["a", "2.png"]["corrected_smiles"], stored["a", "2.png"]["review_note"]) == ("C1CCCCC1[R1]", "7")
    assert [row["image"] for row in admin.results(PROJECT, review_status="rejected")] == ["3.png"]

    # What is read out again with its reviews says nothing new, and where the answer has changed, says so.
    command(service, tmp_path, "results", PROJECT, "-o", path)
    assert send()[1] == "0 reviews stored, 0 taken back, 3 there already, 0 refused\n"
    admin.rerun(PROJECT, stored["a", "1.png"]["job_id"])
    worker.post(worker.one(PROJECT), rows=[result("1.png", smiles="CCN")])
    command(service, tmp_path, "results", PROJECT, "-o", path)
    assert "a/1.png: is of an earlier answer" in send()[2]
    path.write_bytes(b"PK\x03\x04 no workbook")
    assert send()[2].startswith(f"job-api: {path} is no workbook: ")
    path.unlink()
    assert send()[2].startswith(f"job-api: cannot read {path}: No such file")


def test_a_file_that_makes_no_sense_is_told_by_line_or_as_a_whole(
    service: RunningService, worker: Holder, tmp_path: Path
) -> None:
    path = tmp_path / "corrections.csv"

    def sent(content: str | bytes) -> tuple[int, str, str]:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return command(service, tmp_path, "review", PROJECT, "--file", path)

    heading = "directory,image,engine,review_status,corrected_smiles,note\n"
    code, out, err = sent(
        f"{heading}a,1.png,,,,\n\na,1.png\na,1.png,,,C,\na,1.png,,fine,,\na,1.png,,accepted,,,x\n,1.png,,accepted,,\n"
        "a,2.png,decimer,rejected,,seen\n"
    )
    assert (code, out) == (1, "1 reviews stored, 0 taken back, 0 there already, 4 refused\n")
    assert err.splitlines() == [
        "line 5: a/1.png: review_status: says nothing; say accepted, corrected, rejected or none",
        "line 6: a/1.png: review_status: says 'fine'; say accepted, corrected, rejected or none",
        "line 7: a/1.png: has more fields than the heading",
        "line 8: /1.png: directory: is empty",
    ]
    code, out, err = sent(
        f"project,directory,image,review_status\n{PROJECT},a,2.png,rejected\nother,a,2.png,accepted\n"
    )
    assert (code, err) == (1, "line 3: a/2.png: is of the project other\n")
    assert sent("image,review_status\n1.png,accepted\n")[2] == f"job-api: {path} has no column directory\n"
    assert sent("image;directory\n")[2].endswith("; the separator must be a comma\n")
    for name in ("results.parquet", "results.csv.gz"):
        assert (
            "wanted is an .xlsx or a .csv"
            in command(service, tmp_path, "review", PROJECT, "--file", tmp_path / name)[2]
        )
    assert "is not UTF-8" in sent(heading.encode() + b"a,\xff.png,,accepted,,\n")[2]
    # What follows a quote that nobody closes would be one note; what is before it is not sent either.
    unclosed = f'{heading}a,1.png,,accepted,,\n\na,2.png,,accepted,,"seen\na,3.png,,accepted,,\n'
    assert sent(unclosed)[1:] == (
        "",
        f"job-api: {path} is no CSV: the row that begins in line 4: unexpected end of data\n",
    )
    path.unlink()
    assert "cannot read" in command(service, tmp_path, "review", PROJECT, "--file", path)[2]


def test_a_file_says_one_thing_of_an_answer_also_across_batches(
    service: RunningService, worker: Holder, admin: Client, tmp_path: Path
) -> None:
    path = tmp_path / "corrections.csv"
    gone = "".join(f"a,gone{n}.png,,accepted\n" for n in range(MAX_REVIEWS_PER_PUT))
    path.write_text(
        f"directory,image,engine,review_status\na,1.png,,accepted\n{gone}a,1.png,decimer,rejected\na,1.png,,accepted\n"
    )
    code, out, err = command(service, tmp_path, "review", PROJECT, "--file", path)
    assert (code, out) == (1, "1 reviews stored, 0 taken back, 0 there already, 1002 refused\n")
    assert err.splitlines()[-2:] == [f"line {n}: a/1.png: line 2 is of the same answer" for n in (1003, 1004)]
    assert exported(admin)["a", "1.png"]["review_status"] == "accepted"
