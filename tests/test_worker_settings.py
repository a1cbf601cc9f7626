"""The worker's settings: what is missing or wrong is named in one sentence, and no secret is shown."""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uworker.settings import SettingsError, WorkerSettings, load_settings
from uworker.worker import new_worker_id

SECRET = "a-very-secret-value"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("UWORKER_") or name == "PYSTOW_HOME":
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"UWORKER_{name.upper()}", value)


def test_a_token_and_an_address_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, job_api_root="http://h:8800", job_api_token=SECRET)
    settings = load_settings()
    assert settings.job_api_token is not None
    assert settings.job_api_token.get_secret_value() == SECRET
    assert settings.job_api_project is None
    assert settings.processes is None
    assert settings.source_allow == []


def test_the_names_are_those_of_the_qsmr_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UWORKER_JOB_API_ROOT", "http://h")
    monkeypatch.setenv("UWORKER_JOB_API_USERNAME", "w")
    monkeypatch.setenv("UWORKER_JOB_API_PASSWORD", SECRET)
    monkeypatch.setenv("UWORKER_JOB_API_PROJECT", "patents")
    settings = load_settings()
    assert (settings.job_api_username, settings.job_api_project) == ("w", "patents")
    assert settings.secrets == [SECRET]


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, job_api_root="http://h", job_api_token=SECRET, job_api_project="patents")
    assert load_settings(job_api_project="others").job_api_project == "others"
    assert load_settings(job_api_project=None).job_api_project == "patents"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, job_api_root="http://h", job_api_token=SECRET, processes="", source_root="", snapshot="")
    settings = load_settings()
    assert (settings.processes, settings.source_root, settings.snapshot) == (None, None, None)


def test_weights_lie_where_pystow_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, job_api_root="http://h", job_api_token=SECRET)
    assert load_settings().weights_home == Path("~/.data").expanduser()
    monkeypatch.setenv("PYSTOW_HOME", "/pystow")
    assert load_settings().weights_home == Path("/pystow")
    monkeypatch.setenv("UWORKER_WEIGHTS_HOME", "/weights")
    assert load_settings().weights_home == Path("/weights")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"job_api_root": ""}, "UWORKER_JOB_API_ROOT"),
        ({"job_api_token": ""}, "UWORKER_JOB_API_TOKEN"),
        ({"job_api_token": "", "job_api_username": "w"}, "UWORKER_JOB_API_PASSWORD"),
        ({"job_api_token": "", "job_api_password": SECRET}, "UWORKER_JOB_API_USERNAME"),
        ({"processes": "0"}, "UWORKER_PROCESSES"),
        ({"threads_per_process": "two"}, "UWORKER_THREADS_PER_PROCESS"),
        ({"start_below_percent": "0"}, "UWORKER_START_BELOW_PERCENT"),
        ({"memory_high_percent": "101"}, "UWORKER_MEMORY_HIGH_PERCENT"),
        ({"start_below_percent": "90"}, "UWORKER_MEMORY_HIGH_PERCENT: must be more than UWORKER_START_BELOW_PERCENT"),
        ({"image_timeout_seconds": "-1"}, "UWORKER_IMAGE_TIMEOUT_SECONDS"),
        ({"max_image_bytes": "1 GB"}, "UWORKER_MAX_IMAGE_BYTES"),
        ({"weights_sha256": "abc"}, "UWORKER_WEIGHTS_SHA256"),
        ({"engine_command": "'molvec"}, "UWORKER_ENGINE_COMMAND: No closing quotation"),
        ({"engine_command": " "}, "UWORKER_ENGINE_COMMAND: is empty"),
        ({"engine_command_name": "a:b"}, "UWORKER_ENGINE_COMMAND_NAME"),
        ({"engine_command_name": "decimer"}, "UWORKER_ENGINE_COMMAND_NAME: decimer is an engine of its own"),
        ({"log_level": "loud"}, "UWORKER_LOG_LEVEL: must be DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_is_shown(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], named: str
) -> None:
    set_all(monkeypatch, **{"job_api_root": "http://h", "job_api_token": SECRET, **wrong})
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert SECRET not in message


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, processes="0", max_pixels="0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for name in ("JOB_API_ROOT", "PROCESSES", "MAX_PIXELS"):
        assert f"UWORKER_{name}" in str(caught.value)


def test_no_secret_is_in_the_settings_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, job_api_root="http://h", job_api_token=SECRET, job_api_password=SECRET)
    settings = load_settings()
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_every_setting_is_described() -> None:
    assert [name for name, field in WorkerSettings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("hostname", ["vm-1.example.org", "Größe", "", "-x", "a b/c", "h" * 300])
def test_every_process_has_a_worker_id_of_its_own_that_the_service_takes(hostname: str) -> None:
    ids = {new_worker_id(hostname) for _ in range(20)}
    assert len(ids) == 20
    for worker_id in ids:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", worker_id)


def run_uworker(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    command = [sys.executable, "-m", "uworker", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_variable_and_every_exit_code() -> None:
    ended = run_uworker("--help")
    assert ended.returncode == 0
    for name, field in WorkerSettings.model_fields.items():
        assert f"UWORKER_{name.upper()}" in ended.stdout
        assert field.description is not None
        assert field.description.split()[0] in ended.stdout
    for code in ("0 done", "2 wrong settings", "3 the engine", "4 the service"):
        assert code in ended.stdout


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "UWORKER_JOB_API_ROOT"),
        ({"UWORKER_JOB_API_ROOT": "h:8800", "UWORKER_JOB_API_TOKEN": SECRET}, "http://"),
        ({"UWORKER_JOB_API_ROOT": f"http://w:{SECRET}@h", "UWORKER_JOB_API_TOKEN": SECRET}, "login"),
    ],
)
def test_a_worker_that_is_set_up_wrongly_says_so_in_one_line(variables: dict[str, str], named: str) -> None:
    ended = run_uworker("--once", **variables)
    assert ended.returncode == 2
    assert ended.stderr.startswith("uworker: ")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert named in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    set_all(monkeypatch, job_api_root="http://h", job_api_token=SECRET)
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(SettingsError, match="set UWORKER_WEIGHTS_HOME"):
        load_settings()
    set_all(monkeypatch, weights_home=str(tmp_path))
    with pytest.raises(SettingsError, match="set UWORKER_SPOOL_DIR: this user has no home directory"):
        load_settings()
    set_all(monkeypatch, spool_dir=str(tmp_path))
    assert load_settings().spool_dir == tmp_path
