"""What the recipes have in common: scripts that shellcheck finds nothing in, and no secret."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.containers.engine import NoEngine, install
from tests.test_cloud_init import written
from uworker.settings import WorkerSettings

RECIPES = Path(__file__).parents[1] / "docker"
SETTINGS = {f"UWORKER_{name.upper()}" for name in WorkerSettings.model_fields}


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    try:
        install("shellcheck")
    except NoEngine as error:
        pytest.skip(f"NO SHELLCHECK, so the recipes' scripts were not checked: {error}")
    fetch = tmp_path / "fetch-snapshot"
    fetch.write_text(written("/usr/local/sbin/fetch-snapshot"))
    # SC1091: the settings of a VM are not here.
    command = ["shellcheck", "--exclude=SC1091", str(RECIPES / "slurm" / "worker.sbatch"), str(fetch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_recipe_holds_a_token_and_every_setting_is_one() -> None:
    # That of the state file comes with the image.
    known = SETTINGS | {"UWORKER_STATE_FILE"}
    for path in (path for folder in ("azure", "kubernetes", "slurm") for path in (RECIPES / folder).iterdir()):
        text = path.read_text()
        assert re.search(r"dj_\w|TOKEN=\S|PASSWORD=\S|KEY=\S", text) is None, path
        assert set(re.findall(r"\bUWORKER_[A-Z0-9_]*[A-Z0-9]\b", text)) <= known, path
