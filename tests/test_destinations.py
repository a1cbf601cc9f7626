"""`job-api results -o URL`: an export to object storage is what a file would be, and whole or not there."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from job_api import schemas
from job_api.cli import app
from job_api.cli.destinations import BLOCK_BYTES, destination
from job_api.client import Client, ClientError, Unreachable
from tests.emulators.azurite import Azurite
from tests.emulators.buckets import Bucket
from tests.emulators.relay import Hang, Relay
from tests.emulators.s3 import S3Server
from tests.plugins.service import RunningService
from tests.scripted import Answer, serving
from tests.serving import PROGRAM, Serving, wait_for

ENGINE = schemas.EngineRun(weights="miniature")
ROWS = 2_200
END_SECONDS = 30
OLD = {"some where/results.csv": b"of last week"}
CLOUD_VARIABLES = ("AZURE_", "AWS_", "GOOGLE_", "STORAGE_EMULATOR_HOST", "JOB_API_")
Enter = Callable[[dict[str, str]], None]


@pytest.fixture(autouse=True)
def enter(monkeypatch: pytest.MonkeyPatch) -> Enter:
    """No credential but those that are entered."""
    for name in list(os.environ):
        if name.startswith(CLOUD_VARIABLES):
            monkeypatch.delenv(name)

    def enter(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return enter


def fill(admin: Client, worker: Client, rows: int) -> None:
    """A project with so many rows, of about 8 kB each."""
    admin.put_project("patents", schemas.ProjectSettings(source="file:///data"))
    admin.add_jobs("patents", ["a"])
    [lease], *_ = worker.claim("patents", schemas.ClaimRequest(worker_id="w", claim_key="k"))
    for first in range(0, rows, 500):
        batch: list[schemas.NewResult | schemas.InvalidRow] = [
            schemas.NewResult(
                image=f'{number} "é",\n.png',
                status=schemas.ResultStatus.RECOGNISED,
                smiles="C" * 4_000,
                canonical_smiles=f"{number:04}" * 1_000,
            )
            for number in range(first, min(first + 500, rows))
        ]
        results = schemas.NewResults(worker_id="w", lease_seq=lease.lease_seq, run=ENGINE, rows=batch)
        assert worker.post_results("patents", lease.job_id, results).stored == len(batch)


def export(service: RunningService | str, *arguments: object) -> Result:
    root, token = (service, "t") if isinstance(service, str) else (service.root, service.token("read"))
    env = {"JOB_API_ROOT": root, "JOB_API_TOKEN": token}
    return CliRunner().invoke(app, ["results", "patents", *(str(a) for a in arguments)], env=env)


def one_line(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


def unfinished_uploads(bucket: Bucket) -> list[object]:
    """Parts that lie unseen in an S3 bucket; Azure has no such list."""
    if not isinstance(bucket.emulator, S3Server):
        return []
    uploads: list[object] = bucket.emulator._client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    return uploads


# --- whole ---


def test_stored_export_is_what_a_file_would_be(
    bucket: Bucket, enter: Enter, service: RunningService, tmp_path: Path
) -> None:
    fill(service.client(), service.client("worker"), ROWS)
    enter(bucket.environment)
    bucket.fill(OLD)
    local = tmp_path / "results.csv"
    assert export(service, "-o", local).exit_code == 0
    assert local.stat().st_size > 2 * BLOCK_BYTES
    result = export(service, "-o", f"{bucket.url}/some where/results.csv")
    assert result.exit_code == 0, result.output
    assert bucket.content() == {"some where/results.csv": local.read_bytes()}
    assert result.stderr.startswith(f"{ROWS} rows in {bucket.url}/some%20where/results.csv; newer ones later: --since ")
    assert unfinished_uploads(bucket) == []


def test_small_and_empty_exports_are_stored(bucket: Bucket, enter: Enter, service: RunningService) -> None:
    fill(service.client(), service.client("worker"), 2)
    enter(bucket.environment)
    first, last = (row["seq"] for row in service.client().results("patents"))
    for name, *options in (
        ("one.jsonl", "--since", first),
        ("none.jsonl", "--since", last),
        ("a/100%25", "--format", "csv"),
    ):
        result = export(service, "-o", f"{bucket.url}/{name}", *options)
        assert result.exit_code == 0, result.output
    content = bucket.content()
    assert sorted(content) == ["a/100%", "none.jsonl", "one.jsonl"]
    assert schemas.Result.model_validate_json(content["one.jsonl"]).image.startswith('1 "é"')
    assert content["none.jsonl"] == b""
    assert content["a/100%"].startswith(b"seq,")


def test_file_url_is_a_file(service: RunningService, tmp_path: Path) -> None:
    fill(service.client(), service.client("worker"), 2)
    out = tmp_path / "exports" / "a b #1.csv"
    out.parent.mkdir()
    result = export(service, "-o", out.as_uri())
    assert result.stderr.startswith(f"2 rows in {out}; newer ones later: --since ")
    assert out.read_bytes().startswith(b"seq,")
    assert list(out.parent.iterdir()) == [out]


def test_what_is_no_file_is_written_into_and_a_link_stays_one(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.csv"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    destination(str(fifo)).write([b"seq\r\n", b"1\r\n"])
    assert os.read(reader, 100) == b"seq\r\n1\r\n"
    os.close(reader)
    assert fifo.is_fifo()
    link = tmp_path / "link.csv"
    link.symlink_to("elsewhere/out.csv")
    (tmp_path / "elsewhere").mkdir()
    for rows in (b"1", b"2"):
        destination(str(link)).write([rows])
        assert link.is_symlink()
        assert [(path.name, path.read_bytes()) for path in (tmp_path / "elsewhere").iterdir()] == [("out.csv", rows)]
    with pytest.raises(ClientError, match=r"cannot write \.: Is a directory"):
        destination(".").write([b"1"])


# --- or not there ---


@pytest.fixture(params=["azure_bucket", "s3_bucket"])
def checked(request: pytest.FixtureRequest, enter: Enter) -> Bucket:
    """A bucket with an older export, of each kind whose emulator checks who asks."""
    bucket: Bucket = request.getfixturevalue(request.param)
    bucket.fill(OLD)
    enter(bucket.environment)
    return bucket


def test_killed_service_leaves_the_older_object(
    checked: Bucket, data_dir: Path, make_database: Callable[[], str]
) -> None:
    with Serving(data_dir, database_url=make_database()) as process:
        admin = process.client(retry_seconds=1)
        worker = schemas.NewToken(name="w", role=schemas.Role.WORKER)
        with Client(process.root, token=admin.new_token(worker).token) as client:
            fill(admin, client, ROWS)

        def records() -> Iterator[bytes]:
            taken = 0
            for _, record in admin.export_records("patents", schemas.ExportFormat.CSV):
                yield record
                taken += len(record)
                if taken > 2 * BLOCK_BYTES and process.process.returncode is None:
                    process.kill()

        with pytest.raises(Unreachable):
            destination(f"{checked.url}/some where/results.csv").write(records())
        assert process.process.returncode is not None
        process.process.returncode = 0
    assert checked.content() == OLD
    assert unfinished_uploads(checked) == []


def test_export_that_makes_no_sense_any_more_leaves_the_older_object(checked: Bucket) -> None:
    rows = b"seq,image\r\n" + b"".join(b"%d,%s\r\n" % (n, b"x" * 9_000) for n in range(1, 3_000))
    assert len(rows) > 3 * BLOCK_BYTES
    with serving([Answer(200, rows + b"<html>\n")]) as server:
        result = export(server.root, "-o", f"{checked.url}/some where/results.csv", "--status", "blank")
    assert "no export of results" in one_line(result)
    assert checked.content() == OLD
    assert unfinished_uploads(checked) == []


@contextmanager
def start_interruptible(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    # A program inherits an ignored SIGINT, which tests in the background have.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_export_leaves_the_older_object(checked: Bucket, signal_number: signal.Signals) -> None:
    rows = b"seq,image\r\n" + b"".join(b"%d,%s\r\n" % (n, b"x" * 9_000) for n in range(1, 3_000))
    with serving([Answer(200, rows, cut=True), Answer(hold=True)]) as server:
        env = os.environ | {"JOB_API_ROOT": server.root, "JOB_API_TOKEN": "t"}
        command = [PROGRAM, "results", "patents", "--status", "blank", "-o", f"{checked.url}/some where/results.csv"]
        with start_interruptible(command, env) as process:
            assert server.held.wait(END_SECONDS)
            process.send_signal(signal_number)
            said, complained = process.communicate(timeout=END_SECONDS)
    assert process.returncode != 0
    assert "Traceback" not in said + complained
    assert checked.content() == OLD
    # Only a polite end can still take back what was sent.
    assert signal_number == signal.SIGTERM or unfinished_uploads(checked) == []


@pytest.mark.parametrize("rows", [1, 3_000], ids=["small", "large"])
def test_interrupt_is_heard_while_the_storage_does_not_answer(
    checked: Bucket, rows: int, relay_to: Callable[[str], Relay], enter: Enter
) -> None:
    relay = relay_to(checked.emulator.server)
    enter(checked.behind(relay.address).environment)
    relay.plan(Hang(), times=1_000)
    data = b"seq,image\r\n" + b"".join(b"%d,%s\r\n" % (n, b"x" * 9_000) for n in range(1, rows + 1))
    with serving([Answer(200, data), Answer(200, b"seq,image\r\n")]) as server:
        env = os.environ | {"JOB_API_ROOT": server.root, "JOB_API_TOKEN": "t"}
        command = [PROGRAM, "results", "patents", "--status", "blank", "-o", f"{checked.url}/some where/results.csv"]
        with start_interruptible(command, env) as process:
            wait_for(lambda: relay.seen)
            process.send_signal(signal.SIGINT)
            said, complained = process.communicate(timeout=END_SECONDS / 2)
    assert process.returncode != 0
    assert "Traceback" not in said + complained
    assert checked.content() == OLD


# --- what is said ---


def test_missing_bucket_is_told(bucket: Bucket, enter: Enter, service: RunningService) -> None:
    fill(service.client(), service.client("worker"), 2)
    enter(bucket.environment)
    said = one_line(export(service, "-o", f"{bucket.url}-no/results.csv"))
    assert said.startswith("job-api: cannot write the results: ")
    assert f"{bucket.url}-no/results.csv does not exist" in said


def test_wrong_credential_is_told(checked: Bucket, enter: Enter, service: RunningService) -> None:
    fill(service.client(), service.client("worker"), 2)
    assert isinstance(checked.emulator, Azurite | S3Server)
    wrong = checked.emulator.wrong_environment
    enter(wrong)
    said = one_line(export(service, "-o", f"{checked.url}/some where/results.csv"))
    assert f"{checked.url}/some%20where/results.csv: access is denied" in said
    assert not any(value in said for value in wrong.values() if len(value) > 30)
    assert checked.content() == OLD


def test_missing_credential_and_project_are_told_before_anything_is_written(
    azure_bucket: Bucket, enter: Enter, service: RunningService
) -> None:
    assert "AZURE_STORAGE_ACCOUNT_NAME" in one_line(export(service, "-o", f"{azure_bucket.url}/results.csv"))
    enter(azure_bucket.environment)
    assert "HTTP 404" in one_line(export(service, "-o", f"{azure_bucket.url}/results.csv"))
    assert azure_bucket.content() == {}


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("az://images/results.csv?sig=c2VjcmV0", "credentials belong into the environment"),
        ("https://id:c2VjcmV0@host/results.csv", "credentials belong into the environment"),
        ("https://host/results.csv", "takes no results; write a path, or az://"),
        ("ftp://host/results.csv", "not supported"),
        ("s3://images", "names no object"),
        ("s3://images/results.csv/", "names no object"),
        ("s3://images/results", "--format csv"),
        ("", "no name; write a path"),
    ],
)
def test_output_that_makes_no_sense_is_told_at_once(output: str, said: str) -> None:
    result = CliRunner().invoke(app, ["results", "patents", "-o", output])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(re.sub(r"[│╭╮╰╯─]", "", result.stderr).split())
    assert "c2VjcmV0" not in result.stderr
