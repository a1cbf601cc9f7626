"""As root, the embedded database gets through private folders, and they are opened no wider than that."""

import os
import stat
import threading
from pathlib import Path

import pytest

from job_api import embedded
from job_api.embedded import _kept_permissions
from tests.serving import Serving, postgres_processes, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account run the database")


def test_a_private_folder_on_the_way_is_made_passable_and_no_more(data_dir: Path) -> None:
    private = data_dir / "private"
    private.mkdir(mode=0o700)
    inner = private / "data"
    with Serving(inner) as serving:
        assert stat.S_IMODE(private.stat().st_mode) == 0o711
        assert f"{private} is now passable" in serving.log
        assert serving.get("/readyz").status_code == 200
    log = (inner / "postgresql" / "log").read_text()
    assert "database system is shut down" in log.splitlines()[-1]
    assert "PANIC" not in log
    assert postgres_processes(inner) == []


def test_services_that_start_together_do_not_take_what_is_open_for_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PERMISSIONS_LOCK", tmp_path / "lock")
    private = tmp_path / "private"
    private.mkdir(mode=0o711)
    said: list[str] = []

    def start_other() -> None:
        said.append("begins")
        with _kept_permissions(private / "package"):
            said.append("has looked")

    with _kept_permissions(private / "package"):
        private.chmod(0o755)  # as pgserver does
        other = threading.Thread(target=start_other)
        other.start()
        wait_for(lambda: said)
        other.join(0.5)
        assert said == ["begins"]
    other.join(30)
    assert said == ["begins", "has looked"]
    assert stat.S_IMODE(private.stat().st_mode) == 0o711


def test_a_start_does_not_wait_for_ever_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PERMISSIONS_LOCK", tmp_path / "lock")
    monkeypatch.setattr(embedded, "PERMISSIONS_SECONDS", 0.1)
    with _kept_permissions(tmp_path), _kept_permissions(tmp_path):
        pass
    monkeypatch.setattr(embedded, "PERMISSIONS_LOCK", tmp_path / "no folder" / "lock")
    with _kept_permissions(tmp_path):
        pass
