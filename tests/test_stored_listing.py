"""`add_jobs.py --list` on object storage: what it finds, how much it asks for that, and what it says when it cannot."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from add_jobs import app
from tests.emulators.azurite import KEY, Azurite
from tests.emulators.buckets import Bucket
from tests.emulators.relay import Hang, Relay
from tests.emulators.s3 import S3Server
from tests.plugins.service import RunningService
from tests.serving import wait_for

ODD = [
    "#1",
    "%20",
    "50%",
    "Name (Author 1999) [R1]",
    "a b",
    "a&b=c",
    "a+b",
    "e\u0301",
    "x?",
    "~$(y)",
    "\u00e9",
    "\u5316",
]
SCRIPT = Path(__file__).parent.parent / "add_jobs.py"
CLOUD_VARIABLES = ("AZURE_", "AWS_", "GOOGLE_", "STORAGE_EMULATOR_HOST", "JOB_API_")
Enter = Callable[[Bucket], None]


@pytest.fixture(autouse=True)
def enter(monkeypatch: pytest.MonkeyPatch) -> Enter:
    """No credential but those of the bucket that is entered."""
    for name in list(os.environ):
        if name.startswith(CLOUD_VARIABLES):
            monkeypatch.delenv(name)

    def enter(bucket: Bucket) -> None:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)

    return enter


def add(*arguments: object, service: RunningService | None = None) -> Result:
    login = {} if service is None else {"JOB_API_ROOT": service.root, "JOB_API_TOKEN": service.token("submit")}
    return CliRunner().invoke(app, ["new", *(str(a) for a in arguments)], env=login)


def refused(*arguments: object) -> str:
    """The one line that a run which must fail prints, before it has asked the service for anything."""
    result = add(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


# --- what is found ---


@pytest.mark.parametrize(("kind", "directories", "page"), [("azurite", 5_300, 5_000), ("s3_server", 1_100, 1_000)])
def test_directories_are_found_without_walking_what_is_in_them(
    kind: str,
    directories: int,
    page: int,
    enter: Enter,
    request: pytest.FixtureRequest,
    relay_to: Callable[[str], Relay],
    service: RunningService,
) -> None:
    emulator: Azurite | S3Server = request.getfixturevalue(kind)
    bucket = emulator.new_bucket()
    names = [f"Name {number:04} (Author 1999)" for number in range(directories)]
    many = {f"some/where/{names[7]}/output/{number}.png": b"" for number in range(300)}
    bucket.fill({f"some/where/{name}/output/1.png": b"" for name in names} | many)
    relay = relay_to(emulator.server)
    enter(bucket.behind(relay.address))
    result = add("--list", f"{bucket.url}/some/where/", service=service)
    assert result.exit_code == 0, result.output
    assert relay.count() == relay.count("[?&]delimiter=") == math.ceil(directories / page)
    assert service.client().project("new").source == f"{bucket.url}/some/where"
    assert [job.directory for job in service.client().jobs("new")] == names
    bucket.remove()


def test_odd_names_become_jobs_as_they_are(bucket: Bucket, enter: Enter, service: RunningService) -> None:
    enter(bucket)
    bucket.fill({f"my images/{name}/output/1.png": b"x" for name in ODD} | {"my images/loose.png": b"x"})
    result = add("--list", f"{bucket.url}/my%20images", service=service)
    assert result.exit_code == 0, result.output
    assert service.client().project("new").source == f"{bucket.url}/my%20images"
    assert [job.directory for job in service.client().jobs("new")] == sorted(ODD)
    # Another spelling of the same source, and some of the names.
    result = add("--list", f"{bucket.url}/my images/", "--include", "*[[]R1]", "--include", "50%", service=service)
    assert (result.exit_code, result.stdout) == (0, "2 directories: 0 added, 2 already present\n"), result.output
    said = add("--list", bucket.url, service=service)
    assert f"has the source {bucket.url}/my%20images, not {bucket.url}, which was listed" in said.stderr


# --- what is said ---


def test_nothing_there_and_images_in_the_root_are_told_apart(bucket: Bucket, enter: Enter) -> None:
    enter(bucket)
    bucket.fill({"one job/a.png": b"x", "one job/b.png": b"x"})
    assert f"nothing lies below {bucket.url}/no" in refused("--list", f"{bucket.url}/no")
    said = refused("--list", f"{bucket.url}/one job")
    assert f"{bucket.url}/one%20job holds files, such as 'a.png', and no directory" in said
    assert said.endswith(f"to add it as one job: --list {bucket.url} --include 'one job'")
    result = add("--list", bucket.url, "--include", "one job", "--dry-run")
    assert result.stdout == f"dry run: 1 directories for project new, source {bucket.url}\n  one job\n"


def test_missing_bucket_is_told(bucket: Bucket, enter: Enter) -> None:
    enter(bucket)
    said = refused("--list", f"{bucket.url}-not-there/x")
    assert f"{bucket.url}-not-there/x does not exist" in said


@pytest.mark.parametrize(
    ("kind", "variables"),
    [
        ("azurite", ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING")),
        ("s3_server", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
    ],
)
def test_wrong_credential_says_what_to_set(
    kind: str, variables: tuple[str, ...], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator: Azurite | S3Server = request.getfixturevalue(kind)
    bucket = emulator.new_bucket()
    bucket.fill({"a/1.png": b"x"})
    for name, value in emulator.wrong_environment.items():
        monkeypatch.setenv(name, value)
    said = refused("--list", bucket.url)
    bucket.remove()
    assert f"{bucket.url}: access is denied" in said
    assert all(variable in said for variable in variables)
    assert not any(value in said for value in emulator.wrong_environment.values() if len(value) > 30)


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("az://images", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("ftp://host/images", "ftp://… is not supported; write file:///folder, az://"),
        ("s3://", "names no container or bucket"),
        ("https://host.blob.core.windows.net/images?sig=c2VjcmV0", "credentials belong into the environment"),
        ("s3://id:c2VjcmV0@images", "credentials belong into the environment"),
    ],
)
def test_root_that_cannot_be_listed_is_told_before_anything_is_asked(root: str, said: str) -> None:
    for line in (refused("--list", root), refused("--list", root, "--dry-run")):
        assert said in line
        assert "c2VjcmV0" not in line


def test_listing_of_storage_that_does_not_answer_can_be_interrupted(
    azure_bucket: Bucket, enter: Enter, relay_to: Callable[[str], Relay]
) -> None:
    relay = relay_to(azure_bucket.emulator.server)
    relay.plan(Hang())
    enter(azure_bucket.behind(relay.address))
    # A program inherits an ignored SIGINT, which tests in the background have.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, str(SCRIPT), "new", "--list", azure_bucket.url, "--dry-run"]
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: relay.seen)
    process.send_signal(signal.SIGINT)
    # The library would wait for the answer three times as long, and then ask again.
    _, complained = process.communicate(timeout=7)
    assert (process.returncode, complained) == (1, "add_jobs.py: interrupted\n")


@pytest.mark.parametrize("source", ["s3://id:c2VjcmV0@images", f"az://images?sig={KEY}", "ftp://host/x"])
def test_source_that_no_worker_could_read_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "dirs").write_text("a\n")
    said = refused("--jobs-file", tmp_path / "dirs", "--source", source)
    assert "c2VjcmV0" not in said
    assert KEY not in said


def test_name_that_cannot_be_a_job_is_named_and_may_be_excluded(azure_bucket: Bucket, enter: Enter) -> None:
    enter(azure_bucket)
    long = "\u5316" * 400
    azure_bucket.fill({f"{long}/a.png": b"x", "good/a.png": b"x"})
    result = add("--list", azure_bucket.url, "--dry-run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"in {azure_bucket.url}: '{long[:79]}…' is 1200 bytes long; at most 1024" in result.stderr
    assert add("--list", azure_bucket.url, "--dry-run", "--exclude", "\u5316*").exit_code == 0
