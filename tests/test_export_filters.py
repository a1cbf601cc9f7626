"""What of a project's results is downloaded: filters, columns, and a format that leaves rows out."""

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pandas
import pytest
from rdkit import Chem
from typer.main import get_command
from typer.testing import CliRunner

from job_api import smi
from job_api.cli import app
from job_api.client import Client, ClientError
from job_api.export_sql import Selection
from job_api.schemas import DEFAULT_COLUMNS, Agreement, ExportFormat, ProjectSettings, Result, ResultFilter
from tests.openapi import kind_of, problem_of
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService

PROJECT = "patents"
DIRECTORIES = ["a", "Größe (Müller 2019)", "it's 100%; DROP TABLE results"]
TOKENS: dict[str, Any] = {"tokens": ["C"], "token_probabilities": [0.9]}
REVIEW = """
INSERT INTO reviews (job_id, image, engine, project_id, review_status, corrected_smiles, reviewed_smiles, reviewed_by)
SELECT job_id, image, engine, project_id, $2, $3, $4, 'somebody' FROM results WHERE image = $1 AND engine = 'decimer'"""


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client()
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, DIRECTORIES)
    worker = Holder(service.client("worker"))
    leases = {lease.directory: lease for lease in worker.claim(PROJECT, max_jobs=3)}
    a, b, c = (leases[name] for name in DIRECTORIES)
    ethanol, propanol = "LFQSCWFLJHTTHZ-UHFFFAOYSA-N", "BDERNNFJNOPAEC-UHFFFAOYSA-N"
    d_lactic, l_lactic = "JVTAAEKCZFNVCJ-UWTATZPHSA-N", "JVTAAEKCZFNVCJ-REOHCLBHSA-N"
    worker.post(
        a,
        rows=[
            result(
                "1.png", confidence=0.5, flags=["has_rgroup", "truncated"], image_sha256="aa" * 32, inchikey=ethanol
            ),
            result("2.png", confidence=0.9, flags=["isotope_run"], inchikey=d_lactic, **TOKENS),
            result("3.png", is_valid=False, confidence=0.95, smiles="C("),
            result("4.png", "blank", image_sha256="aa" * 32),
            result("5.png", "crashed", error_message="why"),
        ],
    )
    osra = {"engine": "osra", "engine_version": "2.1"}
    worker.post(
        a,
        rows=[
            result("1.png", engine="osra", confidence=None, inchikey=propanol, image_sha256="aa" * 32),
            result("2.png", engine="osra", confidence=None, inchikey=l_lactic),
        ],
        **osra,
    )
    worker.post(b, rows=[result("6\t\n7.png", image_sha256="bb" * 32, smiles="CCN"), result("8.png", smiles="C C")])
    worker.post(c, rows=[result("9.png", image_sha256="cc" * 32, smiles="CCBr")])
    return admin


def images(client: Client, **filters: Any) -> list[str]:
    return [row["image"] for row in client.results(PROJECT, **{"columns": "image", **filters})]


def reviewed(service: RunningService) -> None:
    for review in (
        ("1.png", "accepted", None, "CCO"),
        ("2.png", "corrected", "OCC", "CCO"),
        ("3.png", "rejected", None, "C("),
        # Another answer than the one that is there now.
        ("9.png", "rejected", None, "CCCl"),
        ("4.png", "corrected", "CCF", None),
    ):
        service.sql(REVIEW, *review)


def test_filters(service: RunningService, admin: Client) -> None:
    decimer = ["1.png", "2.png", "3.png", "4.png", "5.png", "6\t\n7.png", "8.png", "9.png"]
    for filters, wanted in (
        ({"engine": "decimer"}, decimer),
        ({"engine": "osra"}, ["1.png", "2.png"]),
        ({"min_confidence": 0.9, "directory": "a"}, ["2.png", "3.png"]),
        ({"min_confidence": 1e-300, "directory": "a"}, ["1.png", "2.png", "3.png"]),
        ({"flag": "has_rgroup"}, ["1.png"]),
        ({"flag": ["truncated", "isotope_run"]}, ["1.png", "2.png"]),
        ({"without_flag": ["truncated"], "directory": "a", "engine": "decimer"}, decimer[1:5]),
        ({"without_flag": ["truncated", "isotope_run"], "directory": "a", "engine": "decimer"}, decimer[2:5]),
        ({"valid": False}, ["3.png"]),
        ({"valid": True, "engine": "decimer", "directory": "a"}, ["1.png", "2.png"]),
        ({"text": "Größe"}, ["6\t\n7.png", "8.png"]),
        ({"text": "' OR true --"}, []),
        ({"text": "it's 100%; DROP TABLE results"}, ["9.png"]),
        ({"text": "a", "status": ["blank", "crashed"]}, ["4.png", "5.png"]),
        ({"agreement": "different"}, ["1.png", "1.png"]),
        ({"agreement": ["different", "same_skeleton"], "engine": "decimer"}, ["1.png", "2.png"]),
        ({"agreement": "same"}, []),
        # Nothing is reviewed yet.
        ({"review_status": "accepted"}, []),
        ({"review_status": ["none"], "engine": "decimer"}, decimer),
    ):
        assert images(admin, **filters) == wanted, filters
        table = pandas.read_csv(io.BytesIO(raw(admin, "csv", **filters)), dtype=str)
        assert list(table["image"]) == wanted, filters
    of_one_engine = Selection(
        1, ExportFormat.CSV, wanted=ResultFilter(agreement=list(Agreement)), several_engines=False
    )
    assert service.sql(of_one_engine.page(0, 100)) == []
    assert raw(admin, "smi", agreement="same_skeleton").count(b"2.png") == 2
    reviewed(service)
    assert images(admin, review_status="accepted") == ["1.png"]
    # Of 9.png another answer was rejected than there is now.
    assert images(admin, review_status=["corrected", "rejected"]) == ["2.png", "3.png", "4.png"]
    assert images(admin, review_status=["none"], engine="decimer") == ["5.png", "6\t\n7.png", "8.png", "9.png"]
    assert images(admin, review_status=["none", "accepted"], directory="a") == ["1.png", "5.png", "1.png", "2.png"]


def test_an_answer_that_came_after_the_review_counts_as_not_looked_at(service: RunningService, admin: Client) -> None:
    reviewed(service)
    asked = {"columns": "image,review_status,review_outdated", "engine": "decimer"}
    service.sql("UPDATE results SET smiles = 'CCOC' WHERE image IN ('1.png', '2.png', '3.png') AND engine = 'decimer'")
    assert {row["image"]: row["review_outdated"] for row in admin.results(PROJECT, **asked)}["1.png"] is True
    believed = ["none", "accepted", "corrected"]
    assert images(admin, review_status="accepted") == images(admin, review_status="rejected") == []
    assert images(admin, review_status="corrected") == ["2.png", "4.png"], "of an image, whatever is said of it later"
    unseen = ["1.png", "3.png", "5.png", "6\t\n7.png", "8.png", "9.png"]
    assert images(admin, review_status="none", engine="decimer") == unseen
    assert b"CCOC\ta/1.png" in raw(admin, "smi", review_status=believed)
    assert b"1.png" not in raw(admin, "smi", review_status=["accepted", "corrected"], engine="decimer")


def test_names_that_are_not_known_are_told(service: RunningService, admin: Client) -> None:
    for filters, why in (
        ({"directory": "b"}, "the project has no directory 'b'; text (--text) finds a part of a name"),
        ({"directory": "a' OR true --"}, "the project has no directory"),
        ({"engine": "molscribe"}, "neither this project nor any row is of an engine 'molscribe'"),
    ):
        with pytest.raises(ClientError, match=re.escape(why)):
            images(admin, **filters)
    # Of what is known and has no rows yet nothing is said.
    admin.put_project("others", ProjectSettings(source="file:///data", engine="molscribe"))
    admin.add_jobs("others", ["b"])
    assert list(admin.results("others", directory="b", engine="molscribe")) == []
    assert list(admin.results("others", engine="osra")) == []


def raw(client: Client, export_format: str, **query: Any) -> bytes:
    with client.export(PROJECT, format=export_format, **query) as answer:
        return answer.read()


HOSTILE = ["'", "a'); DROP TABLE results; --", "\\", "{0}", "a\n", "\uff41", "", "$1"]


@pytest.mark.parametrize(
    "name", ["status", "engine", "flag", "without_flag", "review_status", "agreement", "columns", "format"]
)
def test_words_that_are_none_are_refused_by_the_service_and_before(service: RunningService, name: str) -> None:
    """Also where something else let them through, no statement is made of them."""
    service.client().put_project(PROJECT, ProjectSettings(source="file:///data"))
    headers = {"Authorization": f"Bearer {service.token()}"}
    with httpx.Client(base_url=service.root, headers=headers) as http:
        for value in (*HOSTILE, "x" * 2000):
            answer = http.get(f"/v4/{PROJECT}/results", params={name: value})
            assert kind_of(answer) == "invalid-request", value
            if name != "format":
                with pytest.raises(ClientError, match=f"cannot be asked for: {name}"):
                    service.client().results(PROJECT, **{name: value})
    if name in ResultFilter.model_fields:
        for value in HOSTILE:
            unjudged: dict[str, Any] = {name: value if name == "engine" else [value]}
            wanted = ResultFilter.model_construct(**unjudged)
            with pytest.raises(ValueError, match="is no word"):
                Selection(1, ExportFormat.CSV, wanted=wanted).page(0, 1)


def test_numbers_that_are_none_and_unknown_filters_are_refused(service: RunningService) -> None:
    service.client().put_project(PROJECT, ProjectSettings(source="file:///data"))
    url, headers = f"{service.root}/v4/{PROJECT}/results", {"Authorization": f"Bearer {service.token()}"}
    wrong: dict[str, str]
    for wrong in (
        {"min_confidence": "nan"},
        {"min_confidence": "1e999"},
        {"min_confidence": "0.5 OR true"},
        {"min_confidence": "1.5"},
        {"valid": "maybe"},
        {"flag": "nosuch"},
        {"without_flag": "truncatd"},
        {"since": "0 OR true"},
        {"minimum_confidence": "0.9"},
        {"text": "a\0b"},
        {"text": ""},
        {"format": "smi", "columns": "smiles"},
    ):
        assert kind_of(httpx.get(url, params=wrong, headers=headers)) == "invalid-request", wrong


def test_columns_are_chosen_and_come_in_the_order_asked_for(service: RunningService, admin: Client) -> None:
    rows = list(admin.results(PROJECT, columns=["smiles,confidence", "image"], status="recognised"))
    assert all(list(row) == ["smiles", "confidence", "image"] for row in rows)
    assert rows[0] == {"smiles": "CCO", "confidence": 0.5, "image": "1.png"}
    assert [list(row) for row in admin.results(PROJECT, columns="image,seq", status="blank")] == [["seq", "image"]]
    table = pandas.read_csv(io.BytesIO(raw(admin, "csv", columns="image,seq,image,tokens")), dtype=str)
    assert list(table.columns) == ["image", "seq", "tokens"]
    assert json.loads(table["tokens"][1]) == ["C"]
    assert pandas.read_csv(io.BytesIO(raw(admin, "csv"))).columns.tolist() == list(DEFAULT_COLUMNS)
    headers = {"Authorization": f"Bearer {service.token()}"}
    answer = httpx.get(f"{service.root}/v4/{PROJECT}/results", params={"columns": "smiles,imag"}, headers=headers)
    assert problem_of(answer).detail.endswith("columns: Value error, 'imag' is no column; close to it: image")
    with pytest.raises(
        ClientError, match=r"asked for: columns: 'nix\\x1b' is no column; known are seq, .*probabilities"
    ):
        admin.results(PROJECT, columns="smiles,nix\x1b")


def test_a_csv_of_one_column_has_a_line_for_each_row_that_readers_do_not_skip(
    service: RunningService, admin: Client, tmp_path: Path
) -> None:
    rows = list(admin.results(PROJECT, columns=list(Result.model_fields)))
    for name in Result.model_fields:
        text = raw(admin, "csv", columns=name)
        values = [row[name] for row in csv.DictReader(io.StringIO(text.decode()))]
        assert [value == "" for value in values] == [row[name] in (None, []) for row in rows], name
        assert len(pandas.read_csv(io.BytesIO(text))) == len(rows), name
    for name in ("smiles", "seq"):
        downloaded(service, tmp_path / "out.csv", "--columns", name)
        assert (tmp_path / "out.csv").read_bytes() == raw(admin, "csv", columns=name)


def test_what_is_said_elsewhere_of_an_image_stands_in_its_rows(service: RunningService, admin: Client) -> None:
    asked = "image,engine,duplicate_image,agreement,review_status,corrected_smiles,review_outdated,reviewed_by"

    def found() -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["image"], row["engine"]): row for row in admin.results(PROJECT, columns=asked)}

    rows = found()
    assert {key for key, row in rows.items() if row["duplicate_image"]} == {
        ("1.png", "decimer"),
        ("1.png", "osra"),
        ("4.png", "decimer"),
    }
    assert (rows["9.png", "decimer"]["duplicate_image"], rows["5.png", "decimer"]["duplicate_image"]) == (False, None)
    assert {key: row["agreement"] for key, row in rows.items() if row["agreement"]} == {
        ("1.png", "decimer"): "different",
        ("1.png", "osra"): "different",
        ("2.png", "decimer"): "same_skeleton",
        ("2.png", "osra"): "same_skeleton",
    }
    assert {row["review_outdated"] for row in rows.values()} == {None}
    reviewed(service)
    said = {
        image: (row["review_status"], row["corrected_smiles"], row["review_outdated"], row["reviewed_by"])
        for (image, _), row in found().items()
        if row["review_status"]
    }
    assert said["2.png"] == ("corrected", "OCC", False, "somebody")
    assert said["9.png"] == ("rejected", None, True, "somebody")
    assert len(said) == 5


def test_what_is_not_asked_for_is_not_looked_up() -> None:
    few = Selection(1, ExportFormat.CSV, names=("seq", "smiles")).page(0, 1)
    assert not any(table in few for table in ("jobs", "projects", "provenances", "reviews"))
    unreviewed = Selection(1, ExportFormat.JSONL, reviewed=False, several_engines=False).page(0, 1)
    assert "reviews" not in unreviewed
    assert "o.engine" not in unreviewed
    assert "reviews" in Selection(1, ExportFormat.JSONL).page(0, 1)
    assert "reviews" not in Selection(1, ExportFormat.SMI, reviewed=False).page(0, 1)


def test_an_smi_has_the_best_smiles_of_each_row_and_says_what_it_leaves_out(
    service: RunningService, admin: Client, tmp_path: Path
) -> None:
    big = "Größe (Müller 2019)/6  7.png"
    unreviewed = raw(admin, "smi", engine="decimer").decode()
    assert unreviewed == f"CCO\ta/1.png\nCCO\ta/2.png\nC(\ta/3.png\nCCN\t{big}\nCCBr\t{DIRECTORIES[2]}/9.png\n"
    reviewed(service)
    with admin.export(PROJECT, format="smi", engine="decimer") as answer:
        text = answer.read().decode()
        assert answer.headers["Content-Type"] == "chemical/x-daylight-smiles"
        assert "without a SMILES" in answer.headers["Rows-Omitted"]
    assert text == f"CCO\ta/1.png\nOCC\ta/2.png\nCCF\ta/4.png\nCCN\t{big}\nCCBr\t{DIRECTORIES[2]}/9.png\n"
    asked = admin.results(PROJECT, columns=list(smi.COLUMNS), engine="decimer")
    assert "".join(filter(None, map(smi.line, asked))) == text
    for name, opened in (("out.smi", open), ("out.smi.gz", gzip.open)):
        done = downloaded(service, tmp_path / name, "--engine", "decimer")
        reasons = ("no SMILES", "rejected by a review", "white space in the SMILES")
        left_out = "".join(f"; 1 left out: {reason}" for reason in reasons)
        assert f"5 rows in {tmp_path / name}{left_out}; newer ones" in done
        with opened(tmp_path / name, "rb") as file:
            assert file.read().decode() == text
    supplier = Chem.SmilesMolSupplier(str(tmp_path / "out.smi"), delimiter="\t", titleLine=False)
    assert [(Chem.MolToSmiles(molecule), molecule.GetProp("_Name")) for molecule in supplier][3:] == [
        ("CCN", big),
        ("CCBr", f"{DIRECTORIES[2]}/9.png"),
    ]
    with pytest.raises(ClientError, match="in smi no row says where to go on"):
        list(admin.export_records(PROJECT, ExportFormat.SMI))


def downloaded(service: RunningService, target: Path, *options: str) -> str:
    env = {"JOB_API_ROOT": service.root, "JOB_API_TOKEN": service.token("read")}
    done = CliRunner().invoke(app, ["results", PROJECT, "-o", str(target), *options], env=env)
    assert done.exit_code == 0, done.output
    return done.stderr


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        (["--status", "blank", "--status", "crashed"], {"status": ["blank", "crashed"]}),
        (["--directory", DIRECTORIES[1]], {"directory": DIRECTORIES[1]}),
        (["--text", "Müller"], {"text": "Müller"}),
        (["--engine", "osra"], {"engine": "osra"}),
        (["--min-confidence", "0.9"], {"min_confidence": 0.9}),
        (["--flag", "truncated", "--flag", "isotope_run"], {"flag": ["truncated", "isotope_run"]}),
        (["--without-flag", "truncated"], {"without_flag": ["truncated"]}),
        (["--valid"], {"valid": True}),
        (["--invalid"], {"valid": False}),
        (["--review-status", "accepted"], {"review_status": ["accepted"]}),
        (["--agreement", "same_skeleton"], {"agreement": ["same_skeleton"]}),
        (["--since", "4"], {"since": 4}),
    ],
)
def test_each_option_of_the_command_is_the_filter_of_its_name(
    service: RunningService, admin: Client, tmp_path: Path, options: list[str], filters: dict[str, Any]
) -> None:
    reviewed(service)
    out = tmp_path / "out.jsonl"
    downloaded(service, out, *options)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == list(admin.results(PROJECT, **filters))
    assert 0 < len(rows) < len(list(admin.results(PROJECT)))


def test_the_command_takes_every_filter_and_packs_what_ends_in_gz(
    service: RunningService, admin: Client, tmp_path: Path
) -> None:
    options = ["--min-confidence", "0.5", "--flag", "has_rgroup", "--flag", "isotope_run", "--valid", "--text", "a"]
    options += ["--without-flag", "truncated", "--engine", "decimer", "--status", "recognised"]
    options += ["--review-status", "none", "--agreement", "same", "--agreement", "same_skeleton"]
    options += ["--directory", "a", "--since", "0", "--columns", "smiles,image", "--columns", "confidence"]
    assert "1 rows in" in downloaded(service, tmp_path / "out.csv.gz", *options)
    table = pandas.read_csv(tmp_path / "out.csv.gz")
    assert table.to_dict("records") == [{"smiles": "CCO", "image": "2.png", "confidence": 0.9}]
    downloaded(service, tmp_path / "out.jsonl.gz", *options)
    assert pandas.read_json(tmp_path / "out.jsonl.gz", lines=True).equals(table)
    command = get_command(app).commands["results"]  # type: ignore[attr-defined]
    taken = {option for parameter in command.params for option in parameter.opts}
    assert {f"--{name.replace('_', '-')}" for name in ResultFilter.model_fields} <= taken
