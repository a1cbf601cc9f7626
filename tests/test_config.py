"""The CONFIG file and the environment: what goes before what, and what is said when something is wrong."""

from pathlib import Path

import pytest

from job_api.config import ConfigError, connect, read_config
from tests.scripted import Answer, problem, serving

EXAMPLE = Path(__file__).parent.parent / "docker/example.conf"
LOGIN = "JOB_API_ROOT=http://jobs:8800\nJOB_API_USERNAME=ada\nJOB_API_PASSWORD=hunter2-hunter2\n"
IN_FILE = {"JOB_API_ROOT": "http://jobs:8800", "JOB_API_USERNAME": "ada", "JOB_API_PASSWORD": "hunter2-hunter2"}


def config_file(directory: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = directory / "my.conf"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def refusal(path: Path | None, environment: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(path, environment)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_is_read(tmp_path: Path) -> None:
    assert read_config(config_file(tmp_path, LOGIN), {}) == IN_FILE


def test_environment_alone_is_enough() -> None:
    assert read_config(None, IN_FILE | {"PATH": "/bin"}) == IN_FILE


def test_environment_goes_before_the_file(tmp_path: Path) -> None:
    values = read_config(config_file(tmp_path, LOGIN), {"JOB_API_ROOT": "https://other", "JOB_API_PASSWORD": ""})
    assert values == IN_FILE | {"JOB_API_ROOT": "https://other"}


def test_token_of_the_environment_goes_before_a_login_of_the_file(tmp_path: Path) -> None:
    values = read_config(config_file(tmp_path, LOGIN), {"JOB_API_TOKEN": "t"})
    assert values == {"JOB_API_ROOT": "http://jobs:8800", "JOB_API_TOKEN": "t"}


def test_login_of_the_environment_goes_before_a_token_of_the_file(tmp_path: Path) -> None:
    path = config_file(tmp_path, "JOB_API_ROOT=http://jobs:8800\nJOB_API_TOKEN=t\n")
    login = {"JOB_API_USERNAME": "ada", "JOB_API_PASSWORD": "hunter2-hunter2"}
    assert read_config(path, login) == IN_FILE


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("JOB_API_PASSWORD=a$HOME${X}b", "a$HOME${X}b"),
        ("JOB_API_PASSWORD='a b # c\"'", 'a b # c"'),
        ("JOB_API_PASSWORD=a=b==", "a=b=="),
        ("export JOB_API_PASSWORD = abc  # mine", "abc"),
        ("JOB_API_PASSWORD=pässword\r", "pässword"),
    ],
)
def test_passwords_stay_as_they_are(tmp_path: Path, line: str, password: str) -> None:
    path = config_file(tmp_path, f"\ufeff# mine\n\nJOB_API_ROOT=http://jobs\nJOB_API_USERNAME=ada\n{line}\n")
    assert read_config(path, {"HOME": "/root", "X": "x"})["JOB_API_PASSWORD"] == password


def test_nothing_set_names_all_that_is_missing() -> None:
    said = refusal(None, {})
    assert all(part in said for part in ("JOB_API_ROOT", "JOB_API_USERNAME", "JOB_API_PASSWORD", "docker/example.conf"))


def test_missing_value_is_named(tmp_path: Path) -> None:
    path = config_file(tmp_path, "JOB_API_ROOT=http://jobs\nJOB_API_USERNAME=ada\nJOB_API_PASSWORD=\n")
    assert refusal(path, {}) == f"not set in {path}: JOB_API_PASSWORD"


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.conf", IN_FILE) == f"cannot read {tmp_path}/no.conf: No such file or directory"
    assert "Is a directory" in refusal(tmp_path, IN_FILE)


def test_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    said = refusal(config_file(tmp_path, LOGIN + "JOB_API_PASWORD=hunter2\n"), {})
    assert "sets JOB_API_PASWORD" in said
    assert "it may set JOB_API_ROOT, JOB_API_USERNAME, JOB_API_PASSWORD, JOB_API_TOKEN" in said


@pytest.mark.parametrize(
    "line", ["hunter2", "JOB_API_PASSWORD", "JOB_API_PASSWORD='hunter2", "JOB_API_PASSWORD='hunter2'x"]
)
def test_unreadable_line_is_named_but_not_shown(tmp_path: Path, line: str) -> None:
    said = refusal(config_file(tmp_path, f"JOB_API_ROOT=http://jobs\n\n# note\n\n{line}\n"), {})
    assert "my.conf, line 5: not KEY=value" in said


def test_other_files_are_no_config(tmp_path: Path) -> None:
    assert "not UTF-8" in refusal(config_file(tmp_path, b"\x89PNG\r\n\xff"), {})


def test_token_and_login_in_one_place_are_refused(tmp_path: Path) -> None:
    assert "both a token and a login" in refusal(config_file(tmp_path, LOGIN + "JOB_API_TOKEN=t\n"), {})
    assert "the environment has both" in refusal(None, IN_FILE | {"JOB_API_TOKEN": "t"})


def test_senseless_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (IN_FILE | {"JOB_API_ROOT": "jobs:8800"}).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match="must begin with http://"):
        connect()


def test_client_gets_address_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*IN_FILE, "JOB_API_TOKEN"):
        monkeypatch.delenv(key, raising=False)
    with connect(config_file(tmp_path, LOGIN), retry_seconds=1) as client:
        assert client.root == "http://jobs:8800"


def test_waiting_for_a_service_that_is_away_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving([problem(503, "database-unavailable", "no database"), Answer(200, {"items": []})]) as server:
        path = config_file(tmp_path, f"JOB_API_ROOT={server.root}\nJOB_API_TOKEN=t\n")
        with connect(path) as client:
            client.users()
    assert "no database (HTTP 503 database-unavailable); trying again, for 60 s in all\n" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_secret_that_others_can_read_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int, warned: bool
) -> None:
    path = config_file(tmp_path, LOGIN, mode)
    read_config(path, {})
    said = capsys.readouterr().err
    assert (f"chmod 600 {path}" in said) is warned
    assert "hunter2" not in said


def test_file_without_a_secret_may_be_read_by_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_config(config_file(tmp_path, "JOB_API_ROOT=http://jobs\n", 0o644), {"JOB_API_TOKEN": "t"})
    assert capsys.readouterr().err == ""


def test_example_says_where_the_password_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(EXAMPLE, {})
    assert "placeholder" in said
    assert "admin-password" in said
    assert "job-api user add" in said
    assert capsys.readouterr().err == ""


def test_example_works_with_a_password() -> None:
    assert read_config(EXAMPLE, {"JOB_API_PASSWORD": "hunter2-hunter2"}) == {
        "JOB_API_ROOT": "http://localhost:8800",
        "JOB_API_USERNAME": "admin",
        "JOB_API_PASSWORD": "hunter2-hunter2",
    }
