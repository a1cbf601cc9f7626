"""A small replica of DECIMER, and the models prepared of it, made once per test run.

pytest itself never imports TensorFlow: all of it is made in processes of their own.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from benchmarks.recognition import replica
from tests.plugins.model import DrawnSamples
from uworker.engines import Pixels, Recognition
from uworker.screening import screen

_REPOSITORY = Path(__file__).parents[2]

TOKENS, HAND_DRAWN_TOKENS = 11, 7
# Answers end at different tokens, and some at none.
ARCHITECTURE = replica.Architecture(
    "efficientnetv2-b0",
    192,
    layers=2,
    width=64,
    feed_forward=64,
    heads=2,
    tokens=TOKENS,
    layers_saved=False,
    end_logit=0.4,
    liveliness=1.0,
)
ASKED = 14
"""Samples that the shipped models were asked about."""

# Makes the hand-drawn model, prepares both by the command itself, and has the shipped engine answer images.
_MAKE = """
import json, os, sys
from pathlib import Path

from typer.testing import CliRunner

from tests import saved_models
from uworker.cli import app
from uworker.engines import decimer
from uworker.screening import screen

shipped, home, paths = Path(sys.argv[1]), Path(sys.argv[2]), json.load(sys.stdin)
report = {"said": {}, "answers": {}}
change = saved_models.limit_tokens(*map(int, sys.argv[4:6]))
for place in (shipped, home):
    saved_models.edit(place / "DECIMER-V2" / "DECIMER_HandDrawn_model", change)
for name, options in {"printed": ["--number=9"], "hand-drawn": ["--hand-drawn", "--number=12"]}.items():
    done = CliRunner().invoke(app, ["prepare", "--weights", str(home), *options])
    if done.exit_code:
        sys.exit(f"{done.output}{done.exception!r}")
    report["said"][name] = done.output
    engine = decimer.load({"hand_drawn": name == "hand-drawn"}, home, 1)
    answers = [engine.recognise(screen(Path(path).read_bytes()).pixels) for path in paths]
    report["answers"][name] = [[answer.smiles, answer.tokens] for answer in answers]
json.dump(report, open(sys.argv[3], "w"))
"""


@dataclass(frozen=True)
class Replica:
    """A replica of both of DECIMER's models; never to be changed, but copied.

    Attributes:
        shipped: A PYSTOW_HOME with the models as they are shipped.
        home: Another, where they are prepared, too.
        said: What `uworker prepare` printed, "printed" and "hand-drawn".
        images: Some samples.
        answers: What the shipped engine, over the unmodified package, says of them.
    """

    shipped: Path
    home: Path
    said: dict[str, str]
    images: list[Path]
    answers: dict[str, list[Recognition]]

    def pixels(self) -> list[Pixels]:
        """The samples as engines get them."""
        found = [screen(path.read_bytes()).pixels for path in self.images]
        return [pixels for pixels in found if pixels is not None]


def copy_home(source: Path, target: Path) -> Path:
    """A home with the same files, linked: replace them, and never write into them."""
    # A lock that is linked is the same lock, and others hold that of the home that all share.
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(".*.lock"))
    return target


@pytest.fixture(scope="session")
def prepared_replica(tmp_path_factory: pytest.TempPathFactory, samples: DrawnSamples) -> Replica:
    """The processes of pytest-xdist share one, for it takes half a minute."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "replica"
    images = [sample.path for sample in samples.items[:ASKED]]
    with FileLock(shared / "replica.lock"):
        if not (folder / "made.json").exists():
            _make(folder, images)
    made: Any = json.loads((folder / "made.json").read_text())
    answers = {
        name: [Recognition(smiles, [(token, sure) for token, sure in tokens]) for smiles, tokens in found]
        for name, found in made["answers"].items()
    }
    return Replica(folder / "shipped", folder / "home", made["said"], images, answers)


@pytest.fixture(scope="session")
def prepared_home(prepared_replica: Replica) -> Path:
    """The replica's PYSTOW_HOME with shipped and prepared models; never to be changed."""
    return prepared_replica.home


def _make(folder: Path, images: list[Path]) -> None:
    built = replica.prepare(folder / "built", ARCHITECTURE, lambda _: None)
    shipped = copy_home(built, folder / "shipped")
    copy_home(shipped / "DECIMER-V2" / "DECIMER_model", shipped / "DECIMER-V2" / "DECIMER_HandDrawn_model")
    copy_home(shipped, folder / "home")
    report = folder / "making.json"
    sizes = [str(size) for size in (TOKENS, HAND_DRAWN_TOKENS)]
    made = subprocess.run(
        [sys.executable, "-c", _MAKE, str(shipped), str(folder / "home"), str(report), *sizes],
        input=json.dumps([str(path) for path in images]),
        env=os.environ | {"PYSTOW_HOME": str(shipped), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        cwd=_REPOSITORY,
        timeout=400,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"the replica could not be prepared:\n{made.stderr}")
    report.rename(folder / "made.json")
