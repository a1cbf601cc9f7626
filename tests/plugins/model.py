"""The sample images and the miniature model that knows them, made once per test run.

pytest itself never imports TensorFlow: the model is built in a process of its own.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from uworker.demo.samples import Sample, draw_samples

_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class DrawnSamples:
    """The sample directories below `root`, and each image in them."""

    root: Path
    items: list[Sample]


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> DrawnSamples:
    """Sample directories of this process, to be read and never changed."""
    root = tmp_path_factory.mktemp("samples")
    return DrawnSamples(root, draw_samples(root))


@pytest.fixture(scope="session")
def miniature_home(tmp_path_factory: pytest.TempPathFactory, samples: DrawnSamples) -> Path:
    """A PYSTOW_HOME with the printed and the hand-drawn miniature model, both of `samples`; never to be changed.

    The processes of pytest-xdist share one, for building takes ten seconds and each draws the same samples.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    home, built = shared / "miniature", shared / "miniature.built"
    with FileLock(shared / "miniature.lock"):
        if not built.exists():
            _build(samples, home)
            built.touch()
    return home


def _build(samples: DrawnSamples, home: Path) -> None:
    build = subprocess.run(
        [sys.executable, "-m", "uworker.demo.miniature", "--hand-drawn", str(home)],
        input=json.dumps([(str(sample.path), sample.smiles) for sample in samples.items]),
        capture_output=True,
        text=True,
        cwd=_REPOSITORY,
        timeout=200,
        check=False,
    )
    if build.returncode != 0:
        raise RuntimeError(f"the miniature model could not be built:\n{build.stderr}")
