"""Results as a pandas frame: types, one row for each image, and what RDKit makes of it."""

import subprocess
import sys

import pandas
import pytest
from rdkit.Chem import PandasTools  # type: ignore[attr-defined]

from job_api.client import Client
from job_api.schemas import DEFAULT_COLUMNS, ProjectSettings
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService
from tests.scripted import Answer, serving

PROJECT = "patents"


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client()
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, ["a"])
    worker = Holder(service.client("worker"))
    rows = [
        result("1.png", n_tokens=3, flags=["has_rgroup"], truncated=False),
        result("2.png", smiles="C[R1]", is_valid=False),
        result("3.png", "blank"),
    ]
    worker.post(worker.one(PROJECT), rows=rows)
    return admin


def test_a_frame_has_the_rows_in_fitting_types(admin: Client) -> None:
    frame = admin.results(PROJECT).to_pandas()
    assert list(frame.columns) == list(DEFAULT_COLUMNS)
    assert list(frame["image"]) == ["1.png", "2.png", "3.png"]
    types = {name: str(frame[name].dtype) for name in frame.columns}
    assert {types[name] for name in ("seq", "n_tokens", "width", "job_id")} == {"Int64"}
    assert {types[name] for name in ("is_valid", "truncated", "duplicate_image", "review_outdated")} == {"boolean"}
    assert {types[name] for name in ("confidence", "molecular_weight")} == {"float64"}
    assert {types[name] for name in ("smiles", "status", "agreement", "error_message")} == {"string"}
    assert isinstance(frame["processed_at"].dtype, pandas.DatetimeTZDtype)
    assert str(frame["reviewed_at"].dt.tz) == "UTC"
    assert frame["flags"].tolist() == [["has_rgroup"], [], []]
    assert frame["n_tokens"].tolist() == [3, pandas.NA, pandas.NA]
    assert frame["is_valid"].sum() == 1
    for row, expected in zip(frame.to_dict("records"), admin.results(PROJECT), strict=True):
        for name in ("seq", "image", "status", "engine", "job_id"):
            assert row[name] == expected[name]
        assert row["processed_at"] == pandas.Timestamp(expected["processed_at"])


def test_a_frame_of_nothing_has_its_columns(admin: Client) -> None:
    empty = admin.results(PROJECT, status="timeout").to_pandas()
    assert list(empty.columns) == list(DEFAULT_COLUMNS)
    assert str(empty["seq"].dtype) == "Int64"
    few = admin.results(PROJECT, status="timeout", columns="smiles,confidence").to_pandas()
    assert (list(few.columns), len(few)) == (["smiles", "confidence"], 0)


def test_rdkit_takes_the_frame(admin: Client) -> None:
    frame = admin.results(PROJECT, status="recognised", columns="smiles,image").to_pandas()
    PandasTools.AddMoleculeColumnToFrame(frame, smilesCol="smiles")
    assert list(frame.columns) == ["smiles", "image", "ROMol"]
    assert [molecule is not None and molecule.GetNumAtoms() for molecule in frame["ROMol"]] == [3, False]
    whole = admin.results(PROJECT).to_pandas().dropna(subset=["smiles"])
    PandasTools.AddMoleculeColumnToFrame(whole, smilesCol="smiles")
    assert len(whole) == 2


def test_of_a_row_that_came_twice_the_newer_one_is_kept() -> None:
    def answer(seq: int, smiles: str, image: str = "1.png") -> bytes:
        return f'{{"seq":{seq},"smiles":"{smiles}","job_id":1,"image":"{image}","engine":"decimer"}}\n'.encode()

    pages = [answer(1, "C") + answer(2, "N", "2.png"), answer(3, "CC")]
    answers = [Answer(200, page, {"Next-Since": "9"}) for page in pages]
    with serving([*answers, Answer(200, b"")]) as server, Client(server.root, token="t") as client:
        frame = client.results("p", columns="smiles").to_pandas()
    assert frame.to_dict("list") == {"smiles": ["N", "CC"]}
    assert {asked.query["columns"] for asked in server.asked} == {"seq,smiles,job_id,image,engine"}


def test_without_pandas_it_is_said_what_to_install() -> None:
    """In a fresh interpreter, where the import finds nothing."""
    code = """
import sys
sys.modules["pandas"] = None
from job_api.client import Client, ClientError
try:
    Client("http://localhost:1", token="t", retry_seconds=0).results("p").to_pandas()
except ClientError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install '/path/to/decimer-jobs[pandas]'" in done.stdout
