"""The `job-api` commands against a real service: what they show, what they write, and how they fail."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from job_api import schemas
from job_api.cli import app
from job_api.cli.projects import SHIPPED_ENGINES
from job_api.client import Client, Refused
from tests.plugins.service import RunningService
from tests.scripted import Answer, serving
from uworker.commands import OSRA
from uworker.engines import _LOADERS

ENGINE = schemas.EngineRun(weights="miniature")
COMMANDS = [
    "serve",
    "migrate",
    "status",
    "project",
    "projects",
    "jobs",
    "workers",
    "logs",
    "results",
    "user",
    "token",
    "job",
    "worker",
    "act",
    "review",
    "enrich",
]
BELOW = ["user add", "user list", "user delete", "token add", "token list", "token revoke"]
BELOW += ["job show", "job retry", "job cancel", "job rerun", "job force-release"]
BELOW += ["worker drain", "worker quarantine", "worker lift"]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("JOB_API_ROOT", "JOB_API_USERNAME", "JOB_API_PASSWORD", "JOB_API_TOKEN"):
        monkeypatch.delenv(key, raising=False)


def run(*arguments: object, service: RunningService | None = None, role: str = "admin", stdin: str = "") -> Result:
    env = None if service is None else {"JOB_API_ROOT": service.root, "JOB_API_TOKEN": service.token(role)}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env, input=stdin)


def shown(*arguments: object, service: RunningService, role: str = "admin", stdin: str = "") -> str:
    """What a command that must succeed prints on standard output."""
    result = run(*arguments, service=service, role=role, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(*arguments: object, service: RunningService | None = None, role: str = "admin") -> str:
    """The one line that a command that must fail prints."""
    result = run(*arguments, service=service, role=role)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def patents(service: RunningService) -> RunningService:
    """A project with one job done, one held by a worker and one queued."""
    admin, worker = service.client(), service.client("worker")
    admin.put_project("patents", schemas.ProjectSettings(source="file:///data/patents"))
    admin.add_jobs("patents", ["Name (Author 1999) [R1]", "held", "left"])
    request = schemas.ClaimRequest(worker_id="w1", claim_key="k", max_jobs=2, hostname="host-1", version="0.1")
    done, _ = worker.claim("patents", request).leases
    rows: list[schemas.NewResult | schemas.InvalidRow] = [
        schemas.NewResult(image="a\u2028b.png", status=schemas.ResultStatus.RECOGNISED, smiles="C[R1]", confidence=0.5),
        schemas.NewResult(image='c "d",\ne.png', status=schemas.ResultStatus.BLANK),
    ]
    complete = schemas.Complete(worker_id="w1", lease_seq=done.lease_seq, image_count=2, run=ENGINE, rows=rows)
    worker.complete("patents", done.job_id, complete)
    lines = [
        schemas.LogLine(message="started\x1b[31m", level=schemas.LogLevel.INFO),
        schemas.LogLine(message="bad image", level=schemas.LogLevel.ERROR, project="patents", job_id=done.job_id),
    ]
    worker.post_logs("w1", lines)
    return service


def job_ids(service: RunningService) -> dict[str, int]:
    return {job.directory: job.id for job in service.client().jobs("patents")}


# --- help and failures, without a service ---


@pytest.mark.parametrize("command", ["", *COMMANDS, *BELOW])
def test_every_command_has_help(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert result.stdout.splitlines()[2].strip()


def test_help_names_all_commands() -> None:
    assert all(f"  {command} " in run("--help").stdout for command in COMMANDS)


def test_base_install_is_enough_to_import_it() -> None:
    code = "import sys, job_api.cli; print(sorted({'fastapi', 'sqlmodel', 'asyncpg', 'uvicorn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, timeout=60)
    assert result.stdout == "[]\n"


def test_missing_settings_are_one_line() -> None:
    assert failure("status").startswith("job-api: not set in the environment: JOB_API_ROOT")


def test_placeholder_password_is_refused() -> None:
    example = Path(__file__).parent.parent / "docker/example.conf"
    assert "placeholder" in failure("status", "--config", example)


def test_other_web_site_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([Answer(200, "<html>\nhello</html>")]) as server:
        monkeypatch.setenv("JOB_API_ROOT", server.root)
        monkeypatch.setenv("JOB_API_TOKEN", "t")
        assert "is the address right?" in failure("status", "patents")


def test_format_must_be_known() -> None:
    for output in ("-", "out.txt", "out"):
        result = run("results", "patents", "-o", output)
        assert result.exit_code == 2
        assert "--format csv" in result.stderr


# --- projects, jobs, workers, logs ---


@pytest.mark.service(sweep_seconds=3600)
def test_status_of_a_project(patents: RunningService) -> None:
    failed = job_ids(patents)["left"]
    patents.client().put_project("patents", schemas.ProjectSettings(price_per_worker_hour=0.5))
    patents.sql("UPDATE jobs SET failures = 2, reason = 'storage', message = 'away\x1b[31m' WHERE id = $1", failed)
    # As if a worker had needed half an hour for the two images.
    patents.sql("DELETE FROM project_usage")
    patents.sql("INSERT INTO project_usage SELECT id, 1800, 1800 FROM projects")
    text = shown("status", "patents", service=patents, role="read")
    said = {key.strip(): value.strip() for key, value in re.findall(r"^([ \w/]+?) {2,}(\S.*)$", text, re.MULTILINE)}
    assert said["jobs"] == "3: 1 queued, 0 waiting, 1 claimed, 1 completed, 0 failed, 0 cancelled"
    assert said["images"] == "2: 1 recognised, 1 not recognised"
    assert said["source"] == "file:///data/patents"
    assert "0.00 overall" in said["images/s"]
    assert re.match(r"0\.25\d\d so far, 12[5-9]\.\d\d for 1,000 images", said["cost"])
    assert re.search(r"assuming +0.5 for each hour in which a worker held leases", text)
    assert "time to go" in text
    slowest, failing = re.findall(
        r"^job +(?:slowest|failing) directories .*?(?=^job|\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert re.search(r"^\d+ +held +claimed +0:0\d:\d\d +0 +w1", slowest, re.MULTILINE)
    assert re.search(r"^\d+ +Name \(Author 1999\) \[R1\] +completed +0:0\d:\d\d +2 +w1", slowest, re.MULTILINE)
    assert re.search(rf"^{failed} +left +queued +2 +storage +away\\x1b\[31m", failing, re.MULTILINE)
    assert "held" not in failing


def test_settings_of_a_project_are_shown_and_changed(service: RunningService) -> None:
    def settings(*options: object) -> dict[str, str]:
        text = shown("project", "patents", *options, service=service, role="submit")
        return {key: value.strip() for key, value in re.findall(r"^(\w+(?: \w+)*) {2,}(.*)$", text, re.MULTILINE)}

    assert "HTTP 404" in failure("project", "patents", service=service)
    assert "needs a source" in failure("project", "patents", "--keep-tokens", service=service)
    assert settings("--source", "file:///data")["keep tokens"] == "no"
    changes = ["--engine", "osra", "--priority", 2, "--max-failures", 5, "--results-file", "--keep-tokens", "--pause"]
    changes += ["--image-include", "*_left.png", "--image-include", "*.jpg", "--image-exclude", "*_middle.png"]
    changed = settings(*changes, "--image-name-pattern", r"_(?P<part>\w+)", "--price-per-worker-hour", 0.4)
    assert settings() == changed
    assert {
        "source": "file:///data",
        "engine": "osra",
        "priority": "2",
        "max failures": "5",
        "results file": "yes",
        "keep tokens": "yes",
        "paused": "yes",
        "image include": "*_left.png, *.jpg",
        "image exclude": "*_middle.png",
        "image name pattern": r"_(?P<part>\w+)",
        "price per worker hour": "0.4",
    }.items() <= changed.items()
    back = settings("--image-include", "", "--no-keep-tokens", "--resume", "--price-per-worker-hour", 0)
    names = ("image include", "keep tokens", "paused", "price per worker hour", "image exclude")
    assert [back[name] for name in names] == ["", "no", "no", "", "*_middle.png"]
    assert json.loads(shown("project", "patents", "--json", service=service))["engine"] == "osra"
    noted = {name: run("project", "patents", "--engine", name, service=service).stderr for name in ("osrra", "osra")}
    assert "note: osrra is none of decimer, osra; only workers with UWORKER_ENGINE_COMMAND_NAME=osrra" in noted["osrra"]
    assert noted["osra"] == ""
    wrong = failure("project", "patents", "--image-name-pattern", "(", service=service)
    assert "image_name_pattern: " in wrong
    assert "Value error" not in wrong
    mixed = failure("project", "patents", "--image-include", "*.png", "--image-include", "", service=service)
    assert "--image-include '' removes all patterns and stands alone" in mixed
    assert "priority: Input should be less" in failure("project", "patents", "--priority", 5000, service=service)
    assert "HTTP 403" in failure("project", "patents", "--pause", service=service, role="read")


def test_the_engines_that_need_no_note_are_those_that_workers_have() -> None:
    assert {*_LOADERS, OSRA} == set(SHIPPED_ENGINES)


def test_status_as_json(patents: RunningService) -> None:
    document = schemas.ProjectStatus.model_validate_json(shown("status", "patents", "--json", service=patents))
    assert (document.jobs.completed, document.images.stored) == (1, 2)
    assert run("status", "patents", "--json", "--watch", service=patents).exit_code == 2


def test_status_of_all_projects(patents: RunningService) -> None:
    patents.client().put_project("other", schemas.ProjectSettings(source="file:///x"))
    documents = [json.loads(line) for line in shown("status", "--json", service=patents).splitlines()]
    assert [document["name"] for document in documents] == ["other", "patents"]
    assert re.search(r"^patents +1 +0 +1 +1 +0 +0 +2 +1 ", shown("status", service=patents), re.MULTILINE)


def test_missing_project_is_one_line(service: RunningService) -> None:
    assert "HTTP 404" in failure("status", "nothing", service=service)
    assert "HTTP 404" in failure("results", "nothing", "-o", "-", "--format", "csv", service=service)
    assert "reserved" in failure("status", "workers", service=service)


def test_projects_are_listed(patents: RunningService) -> None:
    assert re.search(r"^patents +file:///data/patents +decimer ", shown("projects", service=patents), re.MULTILINE)


def test_jobs_are_listed_by_state(patents: RunningService) -> None:
    assert "Name (Author 1999) [R1]" in shown("jobs", "patents", "--state", "completed", service=patents)
    directories = [
        json.loads(row)["directory"] for row in shown("jobs", "patents", "--json", service=patents).splitlines()
    ]
    assert directories == ["Name (Author 1999) [R1]", "held", "left"]
    assert "held" not in shown("jobs", "patents", "--state", "queued", service=patents)


def test_long_list_of_jobs_is_cut_and_says_so(patents: RunningService) -> None:
    result = run("jobs", "patents", "--limit", 2, service=patents)
    assert "held" in result.stdout
    assert "left" not in result.stdout
    assert "--limit" in result.stderr


def test_workers_are_listed(patents: RunningService) -> None:
    assert re.search(r"^w1 +host-1 +0\.1 +run +yes +1 ", shown("workers", service=patents), re.MULTILINE)
    assert "w1" not in shown("workers", "--inactive", service=patents)


def test_workers_are_steered(patents: RunningService) -> None:
    assert shown("worker", "drain", "w1", service=patents) == "worker w1 is told: drain\n"
    assert shown("worker", "quarantine", "w1", service=patents) == "worker w1 is told: quarantined: by hand\n"
    assert re.search(r"^w1 .* quarantined .* by hand", shown("workers", service=patents), re.MULTILINE)
    assert "there is no worker w0" in failure("worker", "lift", "w0", service=patents)
    assert "say which" in failure("worker", "lift", service=patents)
    assert "say which" in failure("worker", "lift", "w1", "--all", service=patents)
    assert shown("worker", "lift", "--all", service=patents) == "worker w1 is told: run\n"
    assert shown("worker", "lift", "--all", service=patents) == ""
    assert re.search(r"^w1 +host-1 +0\.1 +run +yes +1 ", shown("workers", service=patents), re.MULTILINE)
    assert "role" in failure("worker", "lift", "w1", service=patents, role="read")


def test_logs_are_listed_safely(patents: RunningService) -> None:
    both = shown("logs", service=patents).splitlines()
    assert both[0].endswith("started\\x1b[31m")
    assert re.search(r"error +w1 patents/\d+: bad image$", both[1])
    assert len(shown("logs", "patents", service=patents).splitlines()) == 1
    assert len(shown("logs", "--level", "error", service=patents).splitlines()) == 1
    assert run("logs", "--job", 1, service=patents).exit_code == 2


def test_logs_are_found_by_what_they_are_about(patents: RunningService) -> None:
    client = patents.client("worker")
    about = schemas.LogLine(message="of an image", project="patents", job_id=1, image="1/a.png")
    client.post_logs("w2", [about, about.model_copy(update={"job_id": 2, "message": "of the other job's"})])
    client.post_logs("w3", [schemas.LogLine(message="of no image", project="patents")])
    admin = patents.client()
    for wanted, said in (
        ({"image": "1/a.png"}, ["of an image", "of the other job's"]),
        ({"image": "1/a.png", "job_id": 1}, ["of an image"]),
        ({"image": "a.png"}, []),
        ({"text": "no image"}, ["of no image"]),
        ({"worker_id": "w3"}, ["of no image"]),
    ):
        assert [line.message for line in admin.logs("patents", **wanted)] == said, wanted
    assert len(shown("logs", "patents", "--image", "1/a.png", service=patents).splitlines()) == 2


def test_job_is_shown_with_its_attempts(patents: RunningService) -> None:
    text = shown("job", "show", "patents", job_ids(patents)["Name (Author 1999) [R1]"], service=patents)
    assert "(Name (Author 1999) [R1]) is completed" in text
    assert "1 recognised" in text
    assert re.search(r"^1 +w1 .* completed ", text, re.MULTILINE)


def test_jobs_are_steered(patents: RunningService) -> None:
    ids = job_ids(patents)
    assert "HTTP 409" in failure("job", "retry", "patents", ids["Name (Author 1999) [R1]"], service=patents)
    for action, directory, state in (
        ("cancel", "left", "cancelled"),
        ("retry", "left", "queued"),
        ("force-release", "held", "queued"),
        ("rerun", "Name (Author 1999) [R1]", "queued"),
    ):
        text = shown("job", action, "patents", ids[directory], service=patents, role="submit")
        assert text == f"job {ids[directory]} ({directory}) is {state}\n"


def test_rerun_of_some_images(patents: RunningService) -> None:
    job_id = job_ids(patents)["Name (Author 1999) [R1]"]
    shown("job", "rerun", "patents", job_id, "--status", "blank", "--status", "timeout", service=patents)
    request = schemas.ClaimRequest(worker_id="w2", claim_key="k", max_jobs=9)
    leases = patents.client("worker").claim("patents", request).leases
    assert {lease.job_id: lease.results_count for lease in leases}[job_id] == 1


def test_role_that_may_not_is_told(patents: RunningService) -> None:
    line = failure("job", "cancel", "patents", job_ids(patents)["left"], service=patents, role="read")
    assert "HTTP 403" in line
    assert "that may do this" in line


def test_unknown_token_is_told_what_to_set(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_API_ROOT", service.root)
    monkeypatch.setenv("JOB_API_TOKEN", "made-up-token")
    line = failure("status")
    assert "set JOB_API_USERNAME and JOB_API_PASSWORD, or JOB_API_TOKEN" in line
    assert "made-up-token" not in line


# --- results ---


def test_results_as_csv_file(patents: RunningService, tmp_path: Path) -> None:
    out = tmp_path / "results" / "out.csv"
    out.parent.mkdir()
    out.write_text("of last week")
    result = run("results", "patents", "-o", out, service=patents, role="read")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(out.read_bytes().decode(), newline="")))
    assert [(row["directory"], row["image"], row["smiles"]) for row in rows] == [
        ("Name (Author 1999) [R1]", "a\u2028b.png", "C[R1]"),
        ("Name (Author 1999) [R1]", 'c "d",\ne.png', ""),
    ]
    assert tuple(rows[0]) == schemas.DEFAULT_COLUMNS
    assert list(out.parent.iterdir()) == [out]
    assert result.stderr == f"2 rows in {out}; newer ones later: --since {rows[-1]['seq']}\n"


def test_results_as_json_lines_equal_the_csv(patents: RunningService, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    shown("results", "patents", "-o", out, service=patents)
    rows = [schemas.Result.model_validate_json(line) for line in out.read_bytes().split(b"\n")[:-1]]
    assert [(row.image, row.smiles, row.weights) for row in rows] == [
        ("a\u2028b.png", "C[R1]", "miniature"),
        ('c "d",\ne.png', None, "miniature"),
    ]


def test_results_on_standard_output_are_nothing_but_results(patents: RunningService) -> None:
    text = shown("results", "patents", "-o", "-", "--format", "jsonl", "--status", "blank", service=patents)
    assert [json.loads(line)["status"] for line in text.splitlines()] == ["blank"]


def test_results_are_filtered(patents: RunningService) -> None:
    def images(*filters: object) -> int:
        text = shown("results", "patents", "-o", "-", "--format", "jsonl", *filters, service=patents)
        return text.count("\n")

    rows = list(patents.client().results("patents"))
    assert images("--status", "blank", "--status", "recognised") == 2
    assert images("--status", "timeout") == 0
    assert images("--directory", "Name (Author 1999) [R1]") == 2
    assert images("--directory", "left") == 0
    for option in ("--directory", "--engine"):
        assert "nowhere" in failure(
            "results", "patents", "-o", "-", "--format", "csv", option, "nowhere", service=patents
        )
    assert images("--since", rows[0]["seq"]) == 1


def test_failed_download_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.csv"
    out.write_text("of last week")
    with serving([Answer(200, b"seq,image\r\n1,a\r\n<html>\n")]) as server:
        monkeypatch.setenv("JOB_API_ROOT", server.root)
        monkeypatch.setenv("JOB_API_TOKEN", "t")
        assert "no export of results" in failure("results", "patents", "-o", out, "--status", "blank")
    assert out.read_text() == "of last week"
    assert list(tmp_path.iterdir()) == [out]


def test_output_that_cannot_be_written_is_one_line(patents: RunningService, tmp_path: Path) -> None:
    line = failure("results", "patents", "-o", tmp_path / "no" / "out.csv", service=patents)
    assert line == f"job-api: cannot write {tmp_path}/no/out.csv: No such file or directory"


# --- users and tokens ---


def test_user_gets_a_password_that_works(service: RunningService) -> None:
    text = shown("user", "add", "ada", "--role", "submit", service=service)
    password = text.splitlines()[-1].removeprefix("JOB_API_PASSWORD=")
    with Client(service.root, username="ada", password=password) as client:
        assert client.projects() == []
    listed = shown("user", "list", service=service)
    assert re.search(r"^ada +submit ", listed, re.MULTILINE)
    assert password not in listed


def test_password_may_be_typed_and_is_not_shown(service: RunningService) -> None:
    typed = "typed by a person\n"
    result = run("user", "add", "ada", "--role", "read", "--ask", service=service, stdin=typed * 2)
    assert result.exit_code == 0, result.output
    assert "typed by" not in result.output
    with Client(service.root, username="ada", password=typed.strip()) as client:
        assert client.projects() == []


def test_short_password_is_refused_and_not_shown(service: RunningService) -> None:
    result = run("user", "add", "ada", "--role", "read", "--ask", service=service, stdin="hunter2\nhunter2\n")
    assert result.exit_code == 1
    assert "at least 12 characters" in result.stderr
    assert "hunter2" not in result.output


def test_existing_user_keeps_its_password_unless_replaced(service: RunningService) -> None:
    shown("user", "add", "ada", "--role", "read", service=service)
    assert "--replace" in failure("user", "add", "ada", "--role", "submit", service=service)
    assert "role submit" in shown("user", "add", "ada", "--role", "submit", "--replace", service=service)


def test_user_is_deleted(service: RunningService) -> None:
    shown("user", "add", "ada", "--role", "read", service=service)
    assert shown("user", "delete", "ada", service=service) == "user ada deleted\n"
    assert "HTTP 404" in failure("user", "delete", "ada", service=service)


def test_token_is_printed_once_and_works_until_revoked(service: RunningService) -> None:
    result = run("token", "add", "cluster-7", service=service)
    assert result.exit_code == 0, result.output
    token = result.stdout.strip()
    assert "UWORKER_JOB_API_TOKEN=…" in result.stderr
    assert token not in result.stderr
    with Client(service.root, token=token) as worker:
        worker.heartbeat("w1", schemas.Heartbeat())
        listed = shown("token", "list", service=service)
        assert token not in listed
        (token_id,) = re.findall(r"^(\d+) +cluster-7 +worker ", listed, re.MULTILINE)
        shown("token", "revoke", token_id, service=service)
        with pytest.raises(Refused):
            worker.heartbeat("w1", schemas.Heartbeat())
    for number in (token_id, "99999"):
        assert f"no token {number} is in force" in failure("token", "revoke", number, service=service)


def test_token_of_a_project_and_role(service: RunningService) -> None:
    service.client().put_project("patents", schemas.ProjectSettings(source="file:///x"))
    result = run("token", "add", "notebook", "--role", "read", "--project", "patents", "--days", 2, service=service)
    assert "valid for 2 days" in result.stderr
    assert "JOB_API_TOKEN=…" in result.stderr
    assert "UWORKER" not in result.stderr
    with Client(service.root, token=result.stdout.strip()) as client:
        assert client.project("patents").name == "patents"


# --- many jobs ---


def test_many_jobs_are_counted_shown_and_then_changed(patents: RunningService) -> None:
    ids = job_ids(patents)
    said = shown("act", "patents", "cancel", "--all", "--dry-run", service=patents)
    assert said.splitlines() == [
        "dry run: 3 jobs: 2 would be cancelled, 0 as wanted already, 1 passed over because of their state",
        f"  job {ids['held']} (held) is claimed",
        f"  job {ids['left']} (left) is queued",
    ]
    assert patents.client().project("patents").jobs.cancelled == 0
    said = shown("act", "patents", "cancel", "--all", service=patents)
    assert said == "3 jobs: 2 cancelled, 0 as wanted already, 1 passed over because of their state\n"
    said = shown("act", "patents", "retry", "--state", "cancelled", "--text", "hel", service=patents)
    assert said.startswith("1 jobs: 1 queued again, 0")
    said = shown("act", "patents", "retry", "--id", ids["left"], "--reason", "cancelled", service=patents)
    assert said.startswith("1 jobs: 1 queued again, 0")
    said = shown("act", "patents", "rerun", "--all", "--status", "blank", "--after", ids["held"], service=patents)
    assert said.startswith("1 jobs: 0 queued for a new run, 0 as wanted already, 1 passed over")
    patents.assert_counters_equal_recount()


def test_nothing_is_deleted_or_meant_without_saying_so(patents: RunningService) -> None:
    said = failure("act", "patents", "delete", "--state", "completed", service=patents)
    assert said == "job-api: 1 jobs would be deleted with all their results; say --yes to do it"
    assert "--all for every job" in failure("act", "patents", "delete", "--yes", service=patents)
    assert "all jobs and for some" in failure("act", "patents", "retry", "--all", "--state", "failed", service=patents)
    assert "statuses go with rerun" in failure("act", "patents", "retry", "--all", "--status", "blank", service=patents)
    assert "may do this" in failure("act", "patents", "delete", "--all", "--yes", service=patents, role="read")
    assert len(job_ids(patents)) == 3
    assert shown("act", "patents", "delete", "--all", "--dry-run", service=patents).startswith(
        "dry run: 3 jobs: 1 would"
    )
    assert shown("act", "patents", "delete", "--all", "--yes", service=patents).startswith("3 jobs: 1 deleted, 0")
    assert set(job_ids(patents)) == {"held", "left"}


def test_where_to_go_on_is_said_when_an_action_breaks_off() -> None:
    as_of = "2026-01-01T00:00:00Z"
    answers = [
        Answer(200, schemas.JobsActed(matched=9, changed=9, as_of=as_of).model_dump_json()),
        Answer(200, schemas.JobsActed(matched=4, changed=4, next=17, as_of=as_of).model_dump_json()),
        Answer(403, "{}"),
    ]
    with serving(answers) as server:
        env = {"JOB_API_ROOT": server.root, "JOB_API_TOKEN": "t"}
        result = CliRunner().invoke(app, ["act", "patents", "retry", "--all"], env=env)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("so far: 4 jobs: 4 queued again")
    assert result.stderr.splitlines()[0].endswith("the rest: --after 17")
