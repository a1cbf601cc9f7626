"""As root, the embedded database gets through private folders, and they are opened no wider than that."""

import os
import stat
from pathlib import Path

import pytest

from tests.serving import Serving, postgres_processes

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
