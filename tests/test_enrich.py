"""`job-api enrich`: the chemistry of stored rows is computed again; what an engine said stays as it is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from job_api.client import Client
from job_api.enriching import COLUMNS, Counts, _records, compute, enrich
from job_api.schemas import NewReview, ProjectSettings, ReviewStatus, RowChemistry
from job_api.text import MAX_SMILES_CHARS, clean_text
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService
from tests.serving import job_api

PROJECT = "patents"
PATTERN = r"(?P<sequence>\d+)_(?P<part>[a-z]+)"
# What the command may change.
COMPUTED = set(COLUMNS) - {"job_id", "image", "engine", "smiles", "truncated"} | {
    "inchikey_first_block",
    "error_message",
}
BENZENE = {
    "canonical_smiles": "c1ccccc1",
    "normalized_smiles": "c1ccccc1",
    "inchikey": "UHOVQNZJYSORNB-UHFFFAOYSA-N",
    "formula": "C6H6",
    "fragments": 1,
}


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data", image_name_pattern=PATTERN))
    admin.add_jobs(PROJECT, ["a"])
    return admin


@pytest.fixture
def worker(service: RunningService, admin: Client) -> Holder:
    return Holder(service.client("worker"))


def rows_of(client: Client) -> dict[str, dict[str, Any]]:
    return dict(sorted((row["image"], row) for row in client.results(PROJECT)))


def run(service: RunningService, folder: Path) -> str:
    """What a real `job-api enrich` says."""
    done = job_api(folder, "enrich", PROJECT, root=service.root, token=service.token("submit"))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_rows_of_older_workers_get_what_is_computed_today_and_nothing_else_changes(
    service: RunningService, worker: Holder, admin: Client, tmp_path: Path
) -> None:
    lease = worker.one(PROJECT)
    rows = [
        result("01_left.png", smiles="C1=CC=CC=C1", is_valid=False, flags=["isotope_run"], truncated=True),
        result(
            "x/02_right.png", smiles="C[R1]", is_valid=True, canonical_smiles="wrong", formula="C", flags=["truncated"]
        ),
        result("03.png", smiles="CC(", error_message="RDKit: ValueError"),
        result("04_left.png", "blank", error_message="one colour"),
    ]
    worker.post(lease, rows=rows)
    worker.complete(lease, 4)
    admin.review(
        PROJECT, [NewReview(directory="a", image="03.png", review_status=ReviewStatus.CORRECTED, corrected_smiles="CC")]
    )
    before = rows_of(admin)
    assert run(service, tmp_path) == "4 rows looked at: 4 changed, 0 replaced meanwhile and left alone\n"
    after = rows_of(admin)
    assert BENZENE.items() <= after["01_left.png"].items()
    assert after["01_left.png"]["molecular_weight"] == pytest.approx(78.114, abs=0.001)
    assert [(row["is_valid"], row["flags"]) for row in after.values()] == [
        (True, ["truncated"]),
        (False, []),
        (None, []),
        (False, ["has_rgroup"]),
    ]
    shown = ("canonical_smiles", "normalized_smiles", "formula", "sequence", "part")
    assert [after["x/02_right.png"][name] for name in shown] == [None, "*C", None, "02", "right"]
    assert [after["04_left.png"][name] for name in shown] == [None, None, None, "04", "left"]
    # RDKit has not failed this time; what else is said of an image stays.
    assert [row["error_message"] for row in after.values()] == [None, None, "one colour", None]
    for image, row in before.items():
        assert {k: v for k, v in row.items() if k not in COMPUTED} == {
            k: v for k, v in after[image].items() if k not in COMPUTED
        }
        assert after[image]["seq"] > row["seq"]
    service.assert_counters_equal_recount()

    assert run(service, tmp_path) == "4 rows looked at: 0 changed, 0 replaced meanwhile and left alone\n"
    assert rows_of(admin) == after
    # Another pattern reaches the rows whose names it takes apart in another way, and those alone.
    admin.put_project(PROJECT, ProjectSettings(image_name_pattern=r"(?P<sequence>\d+)(?P<part>_l.)?"))
    assert run(service, tmp_path) == "4 rows looked at: 4 changed, 0 replaced meanwhile and left alone\n"
    assert [(row["sequence"], row["part"]) for row in rows_of(admin).values()] == [
        ("01", "_le"),
        ("03", None),
        ("04", "_le"),
        ("02", None),
    ]
    admin.put_project(PROJECT, ProjectSettings(image_name_pattern=""))
    assert "4 changed" in run(service, tmp_path)
    assert {(row["sequence"], row["part"]) for row in rows_of(admin).values()} == {(None, None)}


def test_a_row_that_was_replaced_meanwhile_is_left_alone(worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    worker.post(lease, rows=[result("1.png"), result("2.png", is_valid=None, error_message="RDKit: again")])
    worker.complete(lease, 2)
    read = [RowChemistry.model_validate({**row, "formula": "C2H6O"}) for row in rows_of(admin).values()]
    admin.rerun(PROJECT, lease.job_id)
    worker.post(worker.one(PROJECT), rows=[result("1.png", smiles="CCN")])
    elsewhere = read[1].model_copy(update={"job_id": 10**6})
    answer = admin.put_chemistry(PROJECT, [*read, elsewhere])
    assert (answer.changed, answer.replaced) == (1, 2)
    assert {image: row["formula"] for image, row in rows_of(admin).items()} == {"1.png": None, "2.png": "C2H6O"}
    assert rows_of(admin)["2.png"]["error_message"] == "RDKit: again", "it still does not say whether it is valid"
    admin.put_project("others", ProjectSettings(source="file:///data"))
    now = [RowChemistry.model_validate({**row, "formula": "C"}) for row in rows_of(admin).values()]
    assert admin.put_chemistry("others", now).changed == 0


def test_what_was_broken_off_is_done_by_the_next_run(service: RunningService, worker: Holder, admin: Client) -> None:
    lease = worker.one(PROJECT)
    for start in range(0, 2500, 500):
        worker.post(lease, *(f"{n}.png" for n in range(start, start + 500)))

    def break_off(_: Counts) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enrich(admin, PROJECT, break_off)
    told: list[int] = []
    counts = enrich(admin, PROJECT, lambda counts: told.append(counts.rows))
    assert counts == Counts(rows=2500, changed=1500)
    assert told == [1000, 2000, 2500]
    assert {row["formula"] for row in admin.results(PROJECT)} == {"C2H6O"}
    service.assert_counters_equal_recount()


def test_a_row_that_was_changed_while_the_others_were_read_is_not_read_again(worker: Holder, admin: Client) -> None:
    worker.post(worker.one(PROJECT), *(f"{n}.png" for n in range(10)))
    reading = _records(admin, PROJECT)
    first = json.loads(next(reading))
    assert admin.put_chemistry(PROJECT, [RowChemistry.model_validate({**first, "formula": "C2H6O"})]).changed == 1
    read = [first, *map(json.loads, reading)]
    assert [row["image"] for row in read] == [f"{n}.png" for n in range(10)]


def stored(smiles: str | None, **fields: Any) -> bytes:
    row = {
        "seq": 1,
        "job_id": 1,
        "image": "1.png",
        "engine": "decimer",
        "smiles": smiles,
        "truncated": None,
        "flags": [],
    }
    return json.dumps(row | fields).encode()


def test_only_what_really_differs_is_sent() -> None:
    [benzene] = compute([stored("C1=CC=CC=C1")], None).changed
    known = benzene.model_dump(exclude={"seq", "job_id", "image", "engine"})
    assert known["molecular_weight"] is not None
    nearly = known | {"molecular_weight": known["molecular_weight"] * (1 + 1e-12)}
    other = known | {"molecular_weight": known["molecular_weight"] + 0.001}
    same = compute([stored("C1=CC=CC=C1", **known), stored("C1=CC=CC=C1", **nearly)], None)
    assert (same.rows, same.changed) == (2, [])
    assert len(compute([stored("C1=CC=CC=C1", **other)], None).changed) == 1
    # In whatever order they are stored.
    flags = {"truncated": True, "flags": ["truncated", "has_rgroup"], "is_valid": False, "normalized_smiles": "*C"}
    assert compute([stored("C[R1]", **flags), stored(None)], None).changed == []


def test_where_there_is_no_smiles_there_is_no_chemistry_of_an_earlier_one(
    service: RunningService, worker: Holder, admin: Client
) -> None:
    lease = worker.one(PROJECT)
    worker.post(lease, rows=[result("1.png", is_valid=True, formula="C2H6O", flags=["has_rgroup"])])
    # As a service of before these columns replaces a row.
    service.sql("UPDATE results SET smiles = NULL, status = 'crashed', error_message = 'it died'")
    assert enrich(admin, PROJECT, lambda _: None).changed == 1
    [row] = admin.job_results(PROJECT, lease.job_id)
    assert (row.status, row.error_message) == ("crashed", "it died")
    assert (row.is_valid, row.formula, row.inchikey, row.flags) == (None, None, None, [])
    assert enrich(admin, PROJECT, lambda _: None).changed == 0


def test_a_smiles_whose_end_is_not_stored_keeps_what_was_said_of_the_whole() -> None:
    cut = clean_text("C" * 5000, MAX_SMILES_CHARS)
    [row] = compute([stored(cut, is_valid=True, formula="C5000H10002")], r"(?P<sequence>\d)").changed
    assert (row.is_valid, row.formula, row.sequence) == (True, "C5000H10002", "1")
    [row] = compute([stored("C" * (MAX_SMILES_CHARS - 1), is_valid=False)], None).changed
    assert row.is_valid


def test_a_pattern_that_only_the_service_knows_is_told_in_one_line(
    service: RunningService, admin: Client, tmp_path: Path
) -> None:
    service.sql("UPDATE projects SET image_name_pattern = '(?=later)(?P<part>.)'")
    done = job_api(tmp_path, "enrich", PROJECT, root=service.root, token=service.token("submit"))
    assert done.returncode == 1
    assert "job-api: the project's image_name_pattern is no pattern that RE2 knows: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_smiles_on_which_rdkit_fails_costs_the_chemistry_of_its_row_alone() -> None:
    batch = compute([stored("\ud800", formula="kept"), stored("C")], r"(?P<sequence>\d)")
    assert (batch.rows, batch.failed) == (2, 1)
    assert [(row.formula, row.sequence) for row in batch.changed] == [("kept", "1"), ("CH4", "1")]


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['rdkit'] = None; from job_api.cli import app; app(['enrich', 'patents'])"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "job-api: this needs RDKit and RE2: pip install '/path/to/decimer-jobs[chemistry]'\n"
