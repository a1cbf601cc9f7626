"""`job-api reset-admin` lets in whoever has the machine and lost the password."""

import stat
from pathlib import Path

import pytest

from job_api.client import Client, Refused
from job_api.main import PASSWORD_FILE
from job_api.schemas import NewUser, Role
from tests.serving import Serving, job_api, refusal


def test_where_no_service_has_been_there_is_no_password_to_replace(data_dir: Path) -> None:
    assert "set JOB_API_DATA_DIR" in refusal(data_dir / "elsewhere", "reset-admin")
    assert list(data_dir.iterdir()) == []


def test_a_lost_password_is_replaced_and_jobs_stay(data_dir: Path) -> None:
    with Serving(data_dir) as serving:
        lost = serving.password
        serving.client().put_user("keeper", NewUser(password="x" * 12, role=Role.READ))
        assert "already serves" in refusal(data_dir, "reset-admin")
    done = job_api(data_dir, "reset-admin")
    assert done.returncode == 0, done.stderr
    path = data_dir / PASSWORD_FILE
    assert str(path) in done.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Serving(data_dir) as serving:
        assert serving.password != lost
        assert {user.name for user in serving.client().users()} == {"admin", "keeper"}
        with Client(serving.root, username="admin", password=lost) as client, pytest.raises(Refused):
            client.users()
