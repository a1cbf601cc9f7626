"""Parquet, SDF, XLSX and zip, over HTTP and on the command line: read back by others they are the export's rows."""

import asyncio
import csv
import hashlib
import io
import json
import os
import socket
import subprocess
import zipfile
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import openpyxl
import pandas
import psutil
import pyarrow.parquet
import pytest
from openpyxl.utils.escape import unescape
from rdkit import Chem
from typer.testing import CliRunner, Result

from job_api.cli import app
from job_api.client import Client
from job_api.encoding import MAX_ENCODERS
from job_api.export import MAX_EXPORTS
from job_api.formats import COLUMNS, MAX_XLSX_ROWS
from job_api.formats.meanings import MEANINGS
from job_api.schemas import DEFAULT_COLUMNS, NEXT_SINCE_HEADER, ROWS_OMITTED_HEADER, ProjectSettings
from tests.openapi import kind_of, problem_of
from tests.plugins.holder import Holder, result
from tests.plugins.service import RunningService, run
from tests.serving import PROGRAM, wait_for

PROJECT = "patents"
DIRECTORY = "Größe & Söhne (Müller 2019)"
FORMATS = ("parquet", "sdf", "xlsx", "zip")
SHA256 = "ab" * 32
REVIEW = """
INSERT INTO reviews
    (job_id, image, engine, project_id, review_status, corrected_smiles, reviewed_smiles, note, reviewed_by)
SELECT job_id, image, engine, project_id, $2, $3, $4, E'two\n\nlines', '=somebody' FROM results WHERE image = $1"""
SEED = """
WITH made AS (INSERT INTO provenances (worker_id, engine) VALUES ('seeder', 'decimer') RETURNING id)
INSERT INTO results (job_id, image, engine, project_id, provenance_id, lease_seq, run, status, smiles, error_message)
SELECT j.id, 'seeded ' || n, 'decimer', j.project_id, made.id, 1, 1, 'recognised', 'CC(=O)Oc1ccccc1C(=O)O', $2
FROM made, jobs j, generate_series(1, $1) n"""
CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'job-api'"""

ARTEMISININ = "C[C@@H]1CC[C@H]2[C@@H](C)C(=O)O[C@@H]3O[C@@]4(C)CC[C@@H]1[C@@]23OO4"
OF_THE_ANSWER = {"is_valid", "normalized_smiles", "inchikey", "formula", "molecular_weight", "flags"}

# A picture of each thing that one of the formats could stumble over.
ROWS = [
    result(
        "full.png",
        smiles="C[C@@H](O)/C=C\\C",
        image_sha256=SHA256,
        width=512,
        height=300,
        frames=2,
        confidence=0.123456789012345678,
        confidence_mean=1.0,
        confidence_min=1e-300,
        n_tokens=2**31 - 1,
        truncated=True,
        is_valid=True,
        canonical_smiles="C/C=C\\[C@@H](C)O",
        normalized_smiles="C[C@@H](O)/C=C\\C",
        inchikey="LFQSCWFLJHTTHZ-UHFFFAOYSA-N",
        formula="C5H10O",
        molecular_weight=86.134,
        fragments=1,
        flags=["isotope_run", "truncated"],
        tokens=["C", '[C@"]', ";\n"],
        token_probabilities=[0.5, 1.0, 1e-5],
        duration_ms=0,
    ),
    *(
        result(image, smiles=smiles)
        for image, smiles in (
            ("=1+1.png", "=CC"),
            ("+cmd|' /C calc'!A0.png", "+"),
            ("@SUM(A1).png", "@"),
            ("-2.png", "-C"),
            ("https://example.org/x.png", "CCO"),
            ("007", "CCO"),
            ("<r><t>x</t><", "CCO"),
            ("<r>bold</r>", "CCO"),
            ("$$$$", "CCO"),
            ("> <smiles>", "CCO"),
            ("new\n\nline\r\tand\x07 bell\u2028.png", "CCO"),
            ('quote"comma,;.png', "CCO"),
            (" blanks ", "CCO"),
            ("_x0041_\ufffe.png", "CCO"),
            (f"{'long/' * 60}.png", "CCO"),
            ("分子 🧪.png", "c1ccccc1"),
            ("polymer.png", "C" * 1_001),
            ("invalid.png", "C(C"),
            ("space.png", "C C"),
        )
    ),
    result("r.png", smiles="C[R1]", is_valid=False, normalized_smiles="C*"),
    result("rejected.png", smiles="CCN"),
    result("corrected.png", smiles="CCN", is_valid=True, inchikey="QUSNBJAOOMFDIB-UHFFFAOYSA-N", formula="C2H7N"),
    result("corrected r.png", smiles="CCN", normalized_smiles="CCN", flags=["many_fragments"], molecular_weight=45.085),
    result("outdated.png", smiles="CCS"),
    # The usual way of drawing lays two of its atoms above each other.
    result("bridged.png", smiles=ARTEMISININ),
    result("selenoxide.png", smiles="C[Se@](=O)CC"),
    result("blank.png", "blank"),
    result("bad.png", "unreadable", error_message='line 1\nline "2",\ttab'),
]
WITHOUT_STRUCTURE = {
    *("=1+1.png", "+cmd|' /C calc'!A0.png", "@SUM(A1).png", "-2.png", "invalid.png", "space.png"),
    *("blank.png", "bad.png", "rejected.png"),
}
SDF_LEAVES_OUT = {"RDKit cannot parse the SMILES": 6, "no SMILES": 2, "rejected by a review": 1}


@pytest.fixture
def admin(service: RunningService) -> Client:
    admin = service.client()
    admin.put_project(PROJECT, ProjectSettings(source="file:///data", keep_tokens=True))
    admin.add_jobs(PROJECT, [DIRECTORY])
    return admin


@pytest.fixture
def rows(service: RunningService, admin: Client) -> list[dict[str, Any]]:
    """All rows, each with all columns, as the JSONL of the export has them."""
    worker = Holder(service.client("worker"))
    stored = worker.post(worker.one(PROJECT), rows=ROWS, engine_version="2.8.1", weights="tiny", snapshot="abc")
    assert stored.refused == []
    service.sql(REVIEW, "rejected.png", "rejected", None, "CCN")
    service.sql(REVIEW, "corrected.png", "corrected", "OCC", "CCN")
    service.sql(REVIEW, "corrected r.png", "corrected", "[R1]c1ccncc1", "CCN")
    service.sql(REVIEW, "outdated.png", "rejected", None, "CCCl")
    found = list(admin.results(PROJECT, columns=COLUMNS))
    assert len(found) == len(ROWS)
    return found


def over_http(service: RunningService, export_format: str, **params: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.token('read')}"}
    query = {"format": export_format, **params}
    return httpx.get(f"{service.root}/v4/{PROJECT}/results", params=query, headers=headers, timeout=120)


def by_command(service: RunningService, out: Path, *arguments: str) -> Result:
    env = {"JOB_API_ROOT": service.root, "JOB_API_TOKEN": service.token("read")}
    return CliRunner().invoke(app, ["results", PROJECT, "-o", str(out), *arguments], env=env)


def both_files(service: RunningService, tmp_path: Path, export_format: str, **params: str) -> list[tuple[bytes, str]]:
    """The file as the service makes it, and as the command does, with what was said of the rows left out."""
    answer = over_http(service, export_format, **params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{PROJECT}.{export_format}"'
    out = tmp_path / f"out.{export_format}"
    result = by_command(service, out, *(word for name, value in params.items() for word in (f"--{name}", value)))
    assert result.exit_code == 0, result.output
    return [(answer.content, answer.headers.get(ROWS_OMITTED_HEADER, "")), (out.read_bytes(), result.stderr)]


# --- read back by others ---


def test_parquet(service: RunningService, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    times = [name for name in ("processed_at", "reviewed_at") if name in COLUMNS]
    expected = [
        {name: datetime.fromisoformat(value) if name in times and value else value for name, value in row.items()}
        for row in rows
    ]
    for content, _ in both_files(service, tmp_path, "parquet", columns=",".join(COLUMNS)):
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        assert file.read().to_pylist() == expected
        said = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
        assert said["decimer_jobs.project"] == PROJECT
        assert int(said["decimer_jobs.next_since"]) == rows[-1]["seq"]
        frame = pandas.read_parquet(io.BytesIO(content))
        assert list(frame["image"]) == [row["image"] for row in rows]
        assert str(frame["processed_at"].dtype) == "datetime64[us, UTC]"
        assert str(frame["seq"].dtype) == "int64"


def test_a_workbook_holds_every_text_as_a_text(
    service: RunningService, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for content, _ in both_files(service, tmp_path, "xlsx"):
        book = openpyxl.load_workbook(io.BytesIO(content), rich_text=False)
        heading, *cells = book["results"].iter_rows()
        assert tuple(cell.value for cell in heading) == DEFAULT_COLUMNS
        for row, line in zip(rows, cells, strict=True):
            for name, cell in zip(DEFAULT_COLUMNS, line, strict=True):
                value = row[name]
                if value is None or value == []:
                    assert cell.value is None, name
                elif isinstance(value, bool | int):
                    assert (cell.value, type(cell.value)) == (value, type(value)), name
                elif isinstance(value, float):
                    assert cell.value == pytest.approx(value, rel=1e-15)
                else:
                    assert cell.data_type in ("s", "inlineStr"), (name, value)
                    said = ";".join(value) if isinstance(value, list) else value
                    assert unescape(str(cell.value)) == said
        about = {name.value: meaning.value for name, meaning in book["about"].iter_rows()}
        assert about["rows"] == str(len(rows))
        assert about["smiles"] == MEANINGS["smiles"]
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            sheets = b"".join(parts.read(name) for name in parts.namelist() if "sheet" in name)
        assert b"<f>" not in sheets
        assert b"<hyperlink" not in sheets
        assert b"<b/></rPr>" not in sheets


def as_in_sdf(text: str) -> str:
    """What a field says, which is one line and begins with no sign of the format."""
    escaped = "".join(f"\\x{ord(c):02x}" if ord(c) < 32 else c for c in text).replace("\u2028", "\\xe2\\x80\\xa8")
    return f"\\x{ord(text[0]):02x}{escaped[1:]}" if text[0] in " >$" else escaped


def test_an_sdf_has_the_structures_and_says_what_it_leaves_out(
    service: RunningService, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    expected = [row for row in rows if row["image"] not in WITHOUT_STRUCTURE]
    http, command = both_files(service, tmp_path, "sdf")
    assert "RDKit cannot parse" in http[1]
    assert "; 6 left out: RDKit cannot parse the SMILES; 2 left out: no SMILES; 1 left out: rejected" in command[1]
    for content, _ in (http, command):
        supplier = Chem.SDMolSupplier()
        supplier.SetData(content.decode())
        molecules = list(supplier)
        assert len(molecules) == len(expected)
        for molecule, row in zip(molecules, expected, strict=True):
            fields = molecule.GetPropsAsDict(autoConvertStrings=False)
            is_corrected = row["corrected_smiles"] is not None
            source = "corrected_smiles" if is_corrected else {"r.png": "normalized_smiles"}.get(row["image"], "smiles")
            assert fields["STRUCTURE_FROM"] == source
            assert fields["COORDINATES"] == "computed by RDKit, not from the image"
            says = Chem.MolFromSmiles(row[source].replace("[R1]", "*"))
            lost = row["image"] == "selenoxide.png"
            assert fields.get("STEREO") == ("not held by the coordinates; see the SMILES" if lost else None)
            assert Chem.MolToSmiles(molecule) == Chem.MolToSmiles(says, isomericSmiles=not lost)
            assert molecule.GetConformer().GetAtomPosition(0).z == 0
            assert len(molecule.GetProp("_Name")) <= 80
            assert fields["image"] == as_in_sdf(row["image"])
            assert fields["smiles"] == as_in_sdf(row["smiles"])
            assert fields["directory"] == DIRECTORY
            computed = {column for column in OF_THE_ANSWER if row[column] not in (None, [])}
            assert OF_THE_ANSWER & set(fields) == (set() if is_corrected else computed)
        last = molecules[-1].GetProp("EXPORT_COUNTS")
        left_out = "; ".join(f"{count} left out: {why}" for why, count in SDF_LEAVES_OUT.items())
        assert last == f"{len(expected)} rows; {left_out}"
        assert sum(molecule.HasProp("EXPORT_COUNTS") for molecule in molecules) == 1


def test_a_zip_has_the_files_and_a_manifest_that_is_true(
    service: RunningService, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    as_csv = over_http(service, "csv", columns=",".join(COLUMNS)).content
    as_smi = over_http(service, "smi").content
    for content, _ in both_files(service, tmp_path, "zip", columns=",".join(COLUMNS)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            files = {name.removeprefix(f"{PROJECT}/"): archive.read(name) for name in archive.namelist()}
        assert list(files) == ["results.csv", "results.parquet", "results.smi", "README.txt", "manifest.json"]
        assert files["results.csv"] == as_csv
        assert files["results.smi"] == as_smi
        table = pyarrow.parquet.read_table(io.BytesIO(files["results.parquet"]))
        assert table.column("image").to_pylist() == [row["image"] for row in rows]
        assert table.column_names == list(COLUMNS)
        manifest = json.loads(files["manifest.json"])
        listed = {file["name"]: file for file in manifest["files"]}
        for name, file in listed.items():
            assert file["bytes"] == len(files[name])
            assert file["sha256"] == hashlib.sha256(files[name]).hexdigest()
        assert set(listed) == set(files) - {"manifest.json"}
        assert listed["results.csv"]["rows"] == len(rows) == len(list(csv.DictReader(io.StringIO(as_csv.decode()))))
        assert listed["results.parquet"]["dropped"] == {}
        assert listed["results.smi"]["rows"] == len(as_smi.splitlines())
        assert listed["results.smi"]["dropped"] == {
            "no SMILES": 2,
            "rejected by a review": 1,
            "white space in the SMILES": 1,
        }
        assert manifest["rows_by_status"] == {"recognised": len(rows) - 2, "blank": 1, "unreadable": 1}
        [made] = manifest["provenance"]
        assert (made["engine_version"], made["weights"], made["snapshot"], made["rows"]) == (
            *("2.8.1", "tiny", "abc"),
            len(rows),
        )
        assert manifest["next_since"] == rows[-1]["seq"]
        assert manifest["project"]["source"] == "file:///data"
        assert b"image_sha256" in files["README.txt"]


def test_every_format_tells_rows_of_a_prepared_model_from_those_of_the_weights_themselves(
    service: RunningService, admin: Client, tmp_path: Path
) -> None:
    prepared = {"1.png": SHA256, "2.png": None, "3.png": SHA256}
    worker = Holder(service.client("worker"))
    lease = worker.one(PROJECT)
    for image, digest in prepared.items():
        worker.post(lease, image, weights="tiny", prepared=digest)

    def told(content: bytes) -> dict[str, str | None]:
        lines = csv.DictReader(io.StringIO(content.decode()))
        return {line["image"]: line["prepared"] or None for line in lines}

    assert told(over_http(service, "csv").content) == prepared
    lines = [json.loads(line) for line in over_http(service, "jsonl").content.splitlines()]
    assert {line["image"]: line["prepared"] for line in lines} == prepared
    for content, _ in both_files(service, tmp_path, "parquet"):
        table = pyarrow.parquet.read_table(io.BytesIO(content), columns=["image", "prepared"])
        assert {row["image"]: row["prepared"] for row in table.to_pylist()} == prepared
    for content, _ in both_files(service, tmp_path, "xlsx"):
        frame = pandas.read_excel(io.BytesIO(content), sheet_name="results", dtype=object, engine="openpyxl")
        assert (
            dict(zip(frame["image"], frame["prepared"].where(frame["prepared"].notna(), None), strict=True)) == prepared
        )
    for content, _ in both_files(service, tmp_path, "sdf"):
        supplier = Chem.SDMolSupplier()
        supplier.SetData(content.decode())
        fields = [molecule.GetPropsAsDict(autoConvertStrings=False) for molecule in supplier]
        assert {each["image"]: each.get("prepared") for each in fields} == prepared
    # Also where the rows are shown without it.
    for content, _ in both_files(service, tmp_path, "zip", columns="image"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            manifest = json.loads(archive.read(f"{PROJECT}/manifest.json"))
        assert {(made["prepared"], made["rows"]) for made in manifest["provenance"]} == {(SHA256, 2), (None, 1)}


def test_filters_and_columns_and_nothing_at_all(
    service: RunningService, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for content, _ in both_files(service, tmp_path, "parquet", status="blank", columns="image,status"):
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        assert table.to_pylist() == [{"image": "blank.png", "status": "blank"}]
    for content, _ in both_files(service, tmp_path, "sdf", columns="formula", flag="isotope_run"):
        supplier = Chem.SDMolSupplier()
        supplier.SetData(content.decode())
        [molecule] = supplier
        assert {name for name in molecule.GetPropNames() if name == name.lower()} == {"formula"}
    for export_format in FORMATS:
        since = str(rows[-1]["seq"])
        for content, said in both_files(service, tmp_path, export_format, since=since):
            assert (content == b"") == (export_format == "sdf")
            assert "out." not in said or said.startswith("0 rows")
    assert int(over_http(service, "zip").headers[NEXT_SINCE_HEADER]) == int(since)


def test_every_column_has_a_meaning() -> None:
    assert tuple(MEANINGS) == COLUMNS


# --- what cannot be made ---


def test_a_workbook_of_too_many_rows_is_refused(service: RunningService, admin: Client, tmp_path: Path) -> None:
    service.sql(SEED, MAX_XLSX_ROWS + 1, None)
    for filters in ({}, {"columns": "seq", "text": DIRECTORY[:5]}):
        refused = over_http(service, "xlsx", **filters)
        assert (refused.status_code, kind_of(refused)) == (422, "invalid-request")
        assert "at most 100,000 rows" in problem_of(refused).detail
        assert "csv or parquet" in problem_of(refused).detail
    result = by_command(service, tmp_path / "out.xlsx", "--columns", "seq")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("job-api: xlsx is for at most 100,000 rows")
    assert list(tmp_path.glob("*out.xlsx*")) == []


def hide(library: str, hidden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hides the library from new processes stands before it on their path."""
    (hidden / library).mkdir(parents=True)
    why = f"raise ModuleNotFoundError(\"No module named '{library}'\", name='{library}')"
    (hidden / library / "__init__.py").write_text(why)
    monkeypatch.setenv("PYTHONPATH", str(hidden))


@pytest.mark.parametrize(
    ("export_format", "library"), [("parquet", "pyarrow"), ("xlsx", "xlsxwriter"), ("sdf", "rdkit")]
)
def test_what_is_not_installed_is_named(
    service: RunningService,
    admin: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    export_format: str,
    library: str,
) -> None:
    hide(library, tmp_path / "hidden", monkeypatch)
    refused = over_http(service, export_format)
    assert (refused.status_code, kind_of(refused)) == (501, "format-unavailable")
    advice = f"{export_format} takes {library}, which is not installed; pip install '/path/to/decimer-jobs[formats]'"
    assert advice in problem_of(refused).detail
    out = tmp_path / f"out.{export_format}"
    environment = os.environ | {"JOB_API_ROOT": service.root, "JOB_API_TOKEN": service.token("read")}
    command = [PROGRAM, "results", PROJECT, "-o", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"job-api: {advice}")
    assert not out.exists()


# --- the child process ---


def encoders() -> list[psutil.Process]:
    """The children that make files."""
    return [child for child in psutil.Process().children() if _makes_files(child)]


def _makes_files(child: psutil.Process) -> bool:
    try:
        return "job_api.formats" in child.cmdline()
    except psutil.Error:
        return False


def begun(service: RunningService, stack: ExitStack) -> httpx.Response:
    """A long SDF of which nothing is read yet."""
    http = stack.enter_context(httpx.Client(timeout=60, headers={"Accept-Encoding": "identity"}))
    headers = {"Authorization": f"Bearer {service.token('read')}"}
    url = f"{service.root}/v4/{PROJECT}/results?format=sdf"
    return stack.enter_context(http.stream("GET", url, headers=headers))


def test_children_end_with_their_clients_and_leave_their_place_and_nothing_else(
    service: RunningService, admin: Client
) -> None:
    place = service.settings.data_dir
    place.mkdir()
    service.sql(SEED, 20_000, None)
    with ExitStack() as clients:
        assert [begun(service, clients).status_code for _ in range(MAX_ENCODERS)] == [200] * MAX_ENCODERS
        assert len(encoders()) == len(list(place.iterdir())) == MAX_ENCODERS
        assert not any(name.startswith("JOB_API_") for child in encoders() for name in child.environ())
        refused = begun(service, clients)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
    wait_for(lambda: encoders() == [])
    wait_for(lambda: list(place.iterdir()) == [])
    with ExitStack() as clients:
        assert begun(service, clients).status_code == 200


@pytest.mark.parametrize("what", ["child", "database"])
def test_what_breaks_in_the_middle_is_not_taken_for_whole(service: RunningService, admin: Client, what: str) -> None:
    service.sql(SEED, 20_000, "x" * 1_000)

    def read_and_break_off(answer: httpx.Response) -> None:
        for _ in answer.iter_bytes():
            if what == "database":
                service.sql(CUT)
            for child in encoders() if what == "child" else ():
                child.kill()

    with ExitStack() as clients:
        answer = begun(service, clients)
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            read_and_break_off(answer)
    wait_for(lambda: encoders() == [])


def test_a_child_that_has_ended_before_the_rows_come_says_why(
    service: RunningService, admin: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("pyarrow", tmp_path / "hidden", monkeypatch)

    async def ask() -> httpx.Response:
        blocker = await asyncpg.connect(service.database_url)
        try:
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE results")
                asking = asyncio.create_task(asyncio.to_thread(over_http, service, "parquet"))
                await asyncio.to_thread(wait_for, lambda: encoders() != [])
                await asyncio.to_thread(wait_for, lambda: encoders() == [])
            return await asking
        finally:
            await blocker.close()

    service.sql(SEED, 10, None)
    assert run(ask()).status_code == 501


def test_where_no_temporary_file_can_be_made_no_place_is_lost(service: RunningService, admin: Client) -> None:
    place = service.settings.data_dir
    place.touch()
    assert [over_http(service, "sdf").status_code for _ in range(MAX_EXPORTS + 1)] == [500] * (MAX_EXPORTS + 1)
    place.unlink()
    assert over_http(service, "sdf").status_code == 200


def test_a_client_that_leaves_before_the_first_byte_leaves_its_place(service: RunningService, admin: Client) -> None:
    """Its child, which is stopped, would never come to the first byte."""
    service.sql(SEED, 20_000, None)
    host = httpx.URL(service.root)
    with socket.create_connection((host.host, host.port)) as client:
        path = f"/v4/{PROJECT}/results?format=xlsx"
        head = f"GET {path} HTTP/1.1\r\nHost: {host.host}\r\nAuthorization: Bearer {service.token('read')}\r\n\r\n"
        client.sendall(head.encode())
        wait_for(lambda: encoders() != [])
        for child in encoders():
            child.suspend()
    wait_for(lambda: encoders() == [])
