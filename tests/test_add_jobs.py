"""`add_jobs.py`: what it reads, what it refuses before anything is sent, and where it says to go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from add_jobs import app
from job_api.listing import as_url
from tests.plugins.service import RunningService
from tests.scripted import Answer, Asked, ScriptedServer, problem, serving

SCRIPT = Path(__file__).parent.parent / "add_jobs.py"
END_SECONDS = 30

PROJECT = {
    "name": "p",
    "source": "file:///data/a%20b",
    "engine": "decimer",
    "engine_options": {},
    "priority": 0,
    "max_failures": 3,
    "paused": False,
    "created_at": "2026-01-01T00:00:00Z",
    "jobs": {},
    "images": {},
    "links": {},
    "images_per_second": None,
    "rate_window_seconds": None,
    "eta_seconds": None,
    "eta_assumes": None,
    "active_workers": 0,
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("JOB_API_ROOT", "JOB_API_USERNAME", "JOB_API_PASSWORD", "JOB_API_TOKEN"):
        monkeypatch.delenv(key, raising=False)


def add(
    *arguments: object, stdin: str | bytes | None = None, root: str | None = None, token: str | None = None
) -> Result:
    env = None if root is None else {"JOB_API_ROOT": root, "JOB_API_TOKEN": token or "t"}
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, env=env)


def rows_file(directory: Path, content: bytes | int) -> Path:
    path = directory / "dirs.txt"
    if isinstance(content, int):
        content = b"".join(b"dir %d\n" % number for number in range(content))
    path.write_bytes(content)
    return path


class FakeProject:
    """A project `p` that takes directories; `at_batch` gives other answers to the n-th batch."""

    def __init__(self, at_batch: dict[int, Answer] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.at_batch = at_batch or {}

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/v4/p/jobs":
            special = self.at_batch.get(len(self.batches))
            if special is not None:
                return special
            self.batches.append(asked.body["directories"])
            return Answer(200, {"added": len(self.batches[-1]), "present": 0})
        return Answer(200, PROJECT)

    @property
    def directories(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


# --- what is read ---


def test_rows_lose_their_line_end_only(tmp_path: Path) -> None:
    fake = FakeProject()
    content = (
        b"\xef\xbb\xbfName (Author 1999)/output\r\n  two  \n\n# a comment\n \t\n./# no comment\n#1\nb/c/\n\xc3\xa9\rx"
    )
    with serving(fake) as server:
        result = add("p", "--jobs-file", rows_file(tmp_path, content), root=server.root)
    assert result.exit_code == 0, result.output
    assert fake.directories == ["Name (Author 1999)/output", "  two  ", "# no comment", "#1", "b/c", "é\rx"]
    assert result.stdout == "6 directories: 6 added, 0 already present\n"
    assert result.stderr == "note: rows that begin with '# ' are comments, here 1; write './# name' for a name\n"


def test_standard_input_is_read() -> None:
    fake = FakeProject()
    with serving(fake) as server:
        result = add("p", "--jobs-file", "-", stdin="a\nb", root=server.root)
    assert (result.exit_code, fake.directories) == (0, ["a", "b"])


def test_pipe_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a\nb\n")
    os.close(writer)
    try:
        result = add("p", "--jobs-file", f"/dev/fd/{reader}", "--dry-run")
    finally:
        os.close(reader)
    assert result.stdout == "dry run: 2 directories for project p\n  a\n  b\n"


def test_children_of_a_root_are_listed_sorted(tmp_path: Path) -> None:
    for name in ("b", "a (2001)", "# c", "é", "A", "line\nend"):
        (tmp_path / name / "below").mkdir(parents=True)
    (tmp_path / "file.png").touch()
    fake = FakeProject()
    with serving(fake) as server:
        result = add("p", "--list", tmp_path, "--source", "/data/a b", root=server.root)
    assert (result.exit_code, fake.directories) == (0, ["# c", "A", "a (2001)", "b", "line\nend", "é"])


def test_patterns_choose_of_a_file_and_of_a_listing_before_anything_is_skipped(tmp_path: Path) -> None:
    names = ["Ash 1999", "Ash 2001", "Ash 2001 (old)", "Berg/output"]
    for name in names:
        (tmp_path / "root" / name).mkdir(parents=True)
    path = rows_file(tmp_path, "\n".join(names).encode())
    patterns = ("--include", "Ash*", "--include", "Berg*", "--exclude", "*(old)", "--exclude", "no*", "--skip", 1)
    for given, last in ((("--jobs-file", path), "Berg/output"), (("--list", tmp_path / "root"), "Berg")):
        fake = FakeProject()
        with serving(fake) as server:
            result = add("p", *given, "--source", "/data/a b", *patterns, root=server.root)
        assert (result.exit_code, fake.directories) == (0, ["Ash 2001", last])
        assert result.stderr == "note: --exclude 'no*' matches none of the 4 directories\n"


def test_bad_row_may_be_excluded(tmp_path: Path) -> None:
    path = rows_file(tmp_path, b"a\n../b\n")
    assert "or excluded" in add("p", "--jobs-file", path, "--dry-run").stderr
    assert add("p", "--jobs-file", path, "--dry-run", "--exclude", "../*").exit_code == 0


def test_dry_run_shows_and_sends_nothing(tmp_path: Path) -> None:
    result = add("p", "--jobs-file", rows_file(tmp_path, 13), "--skip", 1, "--source", "/data/a b", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:2] == [
        "dry run: 12 directories for project p, source file:///data/a%20b",
        "  dir 1",
    ]
    assert result.stdout.splitlines()[-2:] == ["  dir 10", "  and 2 more"]


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("/data/Name (Author 1999)/é", "file:///data/Name%20(Author%201999)/%C3%A9"),
        ("/data/50%#?", "file:///data/50%25%23%3F"),
        ("/data/x/", "file:///data/x"),
        ("/data/../other", "file:///other"),
        ("s3://bucket/a b/", "s3://bucket/a%20b"),
        ("file:///data/a%20b", "file:///data/a%20b"),
        ("https://host/x", "https://host/x"),
    ],
)
def test_source_becomes_a_url(source: str, url: str) -> None:
    assert as_url(source) == url


def test_relative_source_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_url("../x") == (tmp_path.parent / "x").as_uri()


# --- what is refused before anything is sent ---


def refused(*arguments: object, stdin: str | bytes | None = None) -> str:
    fake = FakeProject()
    with serving(fake) as server:
        result = add("p", *arguments, stdin=stdin, root=server.root)
    assert result.exit_code == 1, result.output
    assert fake.batches == []
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def test_bad_rows_are_named_with_their_lines(tmp_path: Path) -> None:
    long = b"x" * 1025
    rows = [b"good", b"# ../comment", b"a/../b", b"/abs", b"nul\0here", b"caf\xe9", b"..", b"./", long, b"\x1b[31m/.."]
    path = rows_file(tmp_path, b"\n".join(rows))
    said = refused("--jobs-file", path).splitlines()
    assert said[0].startswith("note: ")
    assert said[2:] == [
        f"  {path}, line 3: 'a/../b' holds '..'",
        f"  {path}, line 4: '/abs' is absolute; give it relative to the project's source",
        f"  {path}, line 5: 'nul\ufffdhere' holds a NUL character",
        f"  {path}, line 6: 'caf\\xe9' is not UTF-8",
        f"  {path}, line 7: '..' holds '..'",
        f"  {path}, line 8: './' is empty",
        f"  {path}, line 9: '{'x' * 79}…' is 1025 bytes long; at most 1024 are allowed",
        f"  {path}, line 10: '\\x1b[31m/..' holds '..'",
    ]


def test_many_bad_rows_are_counted() -> None:
    said = refused("--jobs-file", "-", stdin="..\n" * 1000 + "good\n")
    assert "standard input, line 20: " in said
    assert "line 21" not in said
    assert "and 980 more" in said


def test_listed_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH102 - a Path cannot say this name
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert f"in {tmp_path}: 'caf\\xe9' is not UTF-8" in refused("--list", tmp_path)


def test_nothing_to_add_is_said(tmp_path: Path) -> None:
    assert "no directory to add" in refused("--jobs-file", rows_file(tmp_path, b"\n# only this\n"))
    assert "no directory to add" in refused("--list", tmp_path)
    assert "there are 3 directories" in refused("--jobs-file", rows_file(tmp_path, 3), "--skip", 4)


def test_nothing_left_by_patterns_is_said(tmp_path: Path) -> None:
    said = refused("--jobs-file", rows_file(tmp_path, 3), "--include", "dir*", "--include", "x", "--exclude", "*")
    assert said.splitlines() == [
        "note: --include x matches none of the 3 directories",
        "add_jobs.py: there is no directory to add: none of 3 is left by the patterns",
    ]


def test_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refused("--jobs-file", tmp_path / "no.txt") == (
        f"add_jobs.py: cannot read {tmp_path}/no.txt: No such file or directory\n"
    )
    assert "Is a directory" in refused("--jobs-file", tmp_path)
    assert f"there is no directory {tmp_path}/no" in refused("--list", tmp_path / "no")


def test_other_source_of_a_project_is_refused(tmp_path: Path) -> None:
    said = refused("--jobs-file", rows_file(tmp_path, 3), "--source", "/data/other")
    assert "file:///data/a%20b, not file:///data/other" in said
    assert "leave out --source" in said


def test_listing_another_place_than_the_projects_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    said = refused("--list", tmp_path)
    assert f"file:///data/a%20b, not {tmp_path.as_uri()}" in said
    assert "--source 'file:///data/a%20b'" in said


@pytest.mark.parametrize("source", ["/data/a b", "/data/a b/", "file:///data/a b"])
def test_same_source_may_be_given_again(tmp_path: Path, source: str) -> None:
    with serving(FakeProject()) as server:
        result = add("p", "--jobs-file", rows_file(tmp_path, 3), "--source", source, root=server.root)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["workers", "a/b", "1st"])
def test_impossible_project_is_refused(tmp_path: Path, name: str) -> None:
    with serving(FakeProject()) as server:
        result = add(name, "--jobs-file", rows_file(tmp_path, 3), root=server.root)
    assert (result.exit_code, server.asked) == (1, [])
    assert "cannot be a project's name" in result.stderr


def test_missing_settings_are_named(tmp_path: Path) -> None:
    result = add("p", "--jobs-file", rows_file(tmp_path, 3))
    assert result.exit_code == 1
    assert "JOB_API_ROOT" in result.stderr


def test_one_input_must_be_chosen(tmp_path: Path) -> None:
    assert add("p").exit_code == 2
    assert add("p", "--list", tmp_path, "--jobs-file", "-").exit_code == 2


# --- where it says to go on ---


def again(number: int) -> str:
    return f"Exiting, you can try add_jobs.py again with --skip={number}\n"


def test_unreachable_service_before_anything_is_sent(tmp_path: Path) -> None:
    with serving(FakeProject()) as server:
        pass
    path = rows_file(tmp_path, 3)
    result = add("p", "--jobs-file", path, "--skip", 2, "--retry-seconds", 0.1, root=server.root)
    assert (result.exit_code, result.stdout) == (1, again(2))
    assert "cannot be reached" in result.stderr


@pytest.mark.parametrize(("skip", "at"), [(0, 200), (50, 250)])
def test_service_that_goes_away(tmp_path: Path, skip: int, at: int) -> None:
    path = rows_file(tmp_path, b"# about 300\n\n" + b"".join(b"dir %d\n\n" % number for number in range(300)))
    fake = FakeProject({2: problem(503, "database-unavailable")})
    with serving(fake) as server:
        result = add("p", "--jobs-file", path, "--skip", skip, "--retry-seconds", 0.1, root=server.root)
        assert (result.exit_code, result.stdout) == (1, again(at))
        fake.at_batch = {}
        result = add("p", "--jobs-file", path, "--skip", at, root=server.root)
    assert (result.exit_code, result.stdout) == (0, f"{300 - at} directories: {300 - at} added, 0 already present\n")
    assert fake.directories == [f"dir {number}" for number in range(skip, 300)]


def test_refusal_on_the_way_says_where_to_go_on(tmp_path: Path) -> None:
    with serving(FakeProject({1: problem(401, "unauthenticated", "token revoked")})) as server:
        result = add("p", "--jobs-file", rows_file(tmp_path, 150), root=server.root)
    assert (result.exit_code, result.stdout) == (1, again(100))
    assert "token revoked" in result.stderr
    assert "set JOB_API_USERNAME and JOB_API_PASSWORD, or JOB_API_TOKEN" in result.stderr


def test_everything_skipped_is_a_finished_run(tmp_path: Path) -> None:
    with serving(FakeProject()) as server:
        result = add("p", "--jobs-file", rows_file(tmp_path, 3), "--skip", 3, root=server.root)
    assert (result.exit_code, result.stdout) == (0, "0 directories: 0 added, 0 already present\n")


def test_batches_are_a_hundredth_at_most_ten_thousand(tmp_path: Path) -> None:
    fake = FakeProject()
    with serving(fake) as server:
        result = add("p", "--jobs-file", rows_file(tmp_path, 30_050), root=server.root)
    assert result.exit_code == 0
    assert {len(batch) for batch in fake.batches[:-1]} == {300}
    assert fake.directories == [f"dir {number}" for number in range(30_050)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_says_where_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    with serving(FakeProject({2: Answer(hold=True)})) as server:
        process = started(server, "p", "--jobs-file", str(rows_file(tmp_path, 300)))
        assert server.held.wait(END_SECONDS)
        process.send_signal(number)
        out, err = process.communicate(timeout=END_SECONDS)
    assert (process.returncode, out, err) == (1, again(200), "add_jobs.py: interrupted\n")


def started(server: ScriptedServer, *arguments: str) -> "subprocess.Popen[str]":
    env = os.environ | {"JOB_API_ROOT": server.root, "JOB_API_TOKEN": "t"}
    # A program inherits an ignored SIGINT, which tests in the background have.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)


# --- the program ---


def test_odd_place_is_listed_on_a_terminal(tmp_path: Path) -> None:
    root = tmp_path / "[R1] [/x]"
    (root / "a").mkdir(parents=True)
    terminal, other_end = os.openpty()
    try:
        command = [sys.executable, str(SCRIPT), "p", "--list", str(root), "--dry-run"]
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=other_end, check=False, timeout=END_SECONDS
        )
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "  a")
        assert b"listing" in os.read(terminal, 10_000)
    finally:
        os.close(terminal)
        os.close(other_end)


def test_it_is_executable() -> None:
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_text().startswith("#!/usr/bin/env python3\n")


def test_it_says_how_to_install_what_it_needs() -> None:
    # -S: without site-packages, as an interpreter outside the virtual environment is.
    result = subprocess.run(
        [sys.executable, "-S", str(SCRIPT)], text=True, capture_output=True, check=False, timeout=END_SECONDS
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "/.venv/bin/python" in result.stderr


# --- with the service ---


def test_adding_creates_the_project_and_adding_again_changes_nothing(service: RunningService, tmp_path: Path) -> None:
    path, token = rows_file(tmp_path, b"a\nb\n./a\nc/\n"), service.token("submit")
    first = add("new", "--jobs-file", path, "--source", "/data/a b", root=service.root, token=token)
    assert first.exit_code == 0, first.output
    assert first.stdout == (
        "project new created, source file:///data/a%20b\n4 directories: 3 added, 1 already present\n"
    )
    second = add("new", "--jobs-file", path, root=service.root, token=token)
    assert (second.exit_code, second.stdout) == (0, "4 directories: 0 added, 4 already present\n")
    assert [job.directory for job in service.client().jobs("new")] == ["a", "b", "c"]


def test_project_without_source_is_refused_before_anything_is_added(service: RunningService, tmp_path: Path) -> None:
    result = add("new", "--jobs-file", rows_file(tmp_path, 3), root=service.root, token=service.token("submit"))
    assert result.exit_code == 1
    assert "--source" in result.stderr
    assert service.client().projects() == []


def test_listed_root_is_the_source_of_a_new_project(service: RunningService, tmp_path: Path) -> None:
    root = tmp_path / "my images"
    (root / "Name (Author 1999)").mkdir(parents=True)
    (root / "é # ünï").mkdir()
    result = add("new", "--list", root, root=service.root, token=service.token("submit"))
    assert result.exit_code == 0, result.output
    assert service.client().project("new").source == root.as_uri()
    assert [job.directory for job in service.client().jobs("new")] == ["Name (Author 1999)", "é # ünï"]


@pytest.mark.parametrize("role", ["read", "worker"])
def test_role_that_may_not_add_is_told(service: RunningService, tmp_path: Path, role: str) -> None:
    arguments = ("new", "--jobs-file", rows_file(tmp_path, 3), "--source", "/data")
    result = add(*arguments, root=service.root, token=service.token(role))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "HTTP 403" in result.stderr


def test_config_file_with_a_login(service: RunningService, tmp_path: Path) -> None:
    config = tmp_path / "my.conf"
    login = f"JOB_API_USERNAME=admin\nJOB_API_PASSWORD='{service.admin_password}'\n"
    config.write_text(f"JOB_API_ROOT={service.root}\n{login}")
    config.chmod(0o600)
    result = add("new", config, "--jobs-file", rows_file(tmp_path, 3), "--source", "/data")
    assert result.exit_code == 0, result.output
    assert service.client().project("new").jobs.queued == 3


def test_wrong_password_is_told_without_showing_it(service: RunningService, tmp_path: Path) -> None:
    config = tmp_path / "my.conf"
    config.write_text(f"JOB_API_ROOT={service.root}\nJOB_API_USERNAME=admin\nJOB_API_PASSWORD=hunter2-hunter2\n")
    config.chmod(0o600)
    result = add("new", config, "--jobs-file", rows_file(tmp_path, 3), "--source", "/data")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "HTTP 401" in result.stderr
    assert "hunter2" not in result.stderr
