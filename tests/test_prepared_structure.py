"""Only what is built as DECIMER's model is prepared; of all else the report says where it differs, and stands alone.

Also what the model as shipped says of itself, for which TensorFlow has to be asked, too.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.replica import Replica, copy_home
from uworker.prepared.files import Unusable, find_prepared, prepared_directory

# The first of them may have to wait for the replica, which on a busy machine takes minutes.
pytestmark = pytest.mark.timeout(1200)

# Edits the models of homes, or not, and prepares them one after the other.
_ASK = """
import json, shutil, sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests import saved_models
from uworker.engines.decimer import import_decimer
from uworker.prepared import preparing
from uworker.prepared.cli import make
from uworker.prepared.decoding import PreparedModel
from uworker.prepared.files import STEP, find_prepared
from uworker.prepared.preparing import Shipped
from uworker.prepared.proof import compare
from uworker.weights import find_weights, model_directory

asked, said = json.load(sys.stdin), {"reports": {}}
images = [(f"image {number}", Path(path)) for number, path in enumerate(asked["images"])]
for name, home in asked["homes"].items():
    change = getattr(saved_models, name, None)
    if change is not None:
        saved_models.edit(model_directory(Path(home), "DECIMER"), change)
    weights = find_weights(Path(home), hand_drawn=False)
    said["reports"][name] = make(weights, images, hand_drawn=False).model_dump(mode="json")

home = Path(asked["home"])
shipped = Shipped(model_directory(home, "DECIMER"))
package = import_decimer(home, 1)
shown = list(preparing._show(package, images, {}, []))
found = find_prepared(home, hand_drawn=False)
said["asked again"] = []
for image in shown:
    tokens, sure = shipped.answer(image.original)
    rows = [shipped.probabilities(image.original, tokens[:at]) for at in range(1, len(tokens))]
    said["asked again"].append(
        {
            "tokens": tokens[1:],
            "chosen": [int(row.argmax()) for row in rows],
            "sums": [float(row.sum()) for row in rows],
            "off": max(abs(float(row.max()) - p) for row, p in zip(rows, sure[1:], strict=True)),
        }
    )

def compared(directory):
    model = PreparedModel(directory, found.about)
    original, words = preparing._Package(shipped, package), found.about.vocabulary
    proof = compare(original, model, shown, margin=0.0001, words=words, say=lambda _: None)
    differences = [found.model_dump() for found in proof.differences]
    return {"fault": proof.fault(0.01), "differences": differences, "tokens": [proof.tokens, proof.tokens_equal]}

damaged = Path(asked["damaged"])
shutil.copytree(found.directory, damaged)
step = onnx.load(damaged / STEP)
width, words = found.about.width, len(found.about.vocabulary)
kernels = [weight for weight in step.graph.initializer if list(weight.dims) == [width, words]]
[kernel] = kernels
values = numpy_helper.to_array(kernel).copy()
# One word becomes likelier.
values[:, 60] = values[:, 23] * 1.5
kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
onnx.save(step, damaged / STEP)
said["damaged"] = compared(damaged)

shipped = Shipped(model_directory(home, "DECIMER"))
preparing._write(shipped, damaged, {}, find_weights(home, hand_drawn=False))
said["variables"] = [shipped.check_all_used(), len(shipped.function.variables)]
json.dump(said, open(sys.argv[1], "w"))
"""

FOREIGN = {
    "miniature": "",
    "smooth_decoder": "Elu",
    "smooth_encoder": "Tanh",
    "deepen_encoder": "added/Softsign",
    "share_weights": "variables used more than once",
    "unmask": "RealDiv, not AddV2",
}
"""Models, and what the report says of each."""
IMAGES = 8


@dataclass(frozen=True)
class Asked:
    """What a process with TensorFlow found, and the homes of the models that it prepared or did not."""

    homes: dict[str, Path]
    said: dict[str, Any]


@pytest.fixture(scope="module")
def asked(prepared_replica: Replica, miniature_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    scratch = tmp_path_factory.mktemp("structure")
    homes = {
        name: copy_home(miniature_home if name == "miniature" else prepared_replica.home, scratch / name)
        for name in FOREIGN
    }
    homes["again"] = copy_home(prepared_replica.shipped, scratch / "again")
    # As a prepare leaves it that is killed.
    (homes["again"] / "DECIMER-V2" / ".DECIMER_prepared.killed" / "fresh").mkdir(parents=True)
    report = scratch / "report.json"
    work = {
        "homes": {name: str(home) for name, home in homes.items()},
        "images": [str(path) for path in prepared_replica.images[:IMAGES]],
        "home": str(prepared_replica.home),
        "damaged": str(scratch / "damaged"),
    }
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(report)],
        input=json.dumps(work),
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Asked(homes, json.loads(report.read_text()))


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_built_otherwise_is_not_prepared(asked: Asked, name: str) -> None:
    report = asked.said["reports"][name]
    assert (report["proved"], report["prepared"], report["images"]) == (False, None, 0)
    assert report["reason"].startswith("the model is not built as DECIMER's: ")
    assert FOREIGN[name] in report["reason"]
    # What was prepared of another model before is gone as well.
    place = prepared_directory(asked.homes[name], hand_drawn=False)
    assert [file.name for file in place.iterdir()] == ["report.json"]
    assert json.loads((place / "report.json").read_text()) == report
    with pytest.raises(Unusable, match="was not proved to give the same answers: the model is not built"):
        find_prepared(asked.homes[name], hand_drawn=False)


def test_weights_that_are_read_twice_are_named(asked: Asked) -> None:
    reason = asked.said["reports"]["share_weights"]["reason"]
    twice, unused = reason.split("not used: ")
    assert "gamma" in twice
    assert "beta" in unused


def test_the_same_weights_make_the_same_model(asked: Asked, prepared_replica: Replica) -> None:
    found = find_prepared(prepared_replica.home, hand_drawn=False)
    assert found is not None
    report = asked.said["reports"]["again"]
    assert (report["proved"], report["prepared"]) == (True, found.sha256)


def test_what_a_killed_prepare_left_is_removed(asked: Asked) -> None:
    names = {place.name for place in (asked.homes["again"] / "DECIMER-V2").iterdir() if place.is_dir()}
    assert names == {"DECIMER_model", "DECIMER_HandDrawn_model", "DECIMER_prepared"}


def test_every_variable_is_used_exactly_once(asked: Asked) -> None:
    used, there = asked.said["variables"]
    assert used == there > 100


def test_the_shipped_model_is_asked_for_its_own_probabilities(asked: Asked) -> None:
    answers = asked.said["asked again"]
    assert len(answers) == IMAGES
    for answer in answers:
        assert answer["chosen"] == answer["tokens"]
        assert answer["sums"] == pytest.approx([1] * len(answer["tokens"]), abs=1e-5)
        assert answer["off"] < 1e-6


def test_a_model_with_one_wrong_array_is_not_proved(asked: Asked) -> None:
    damaged = asked.said["damaged"]
    tokens, equal = damaged["tokens"]
    assert 0 < equal < tokens
    assert f"{len(damaged['differences'])} tokens differ without being near ties" in damaged["fault"]
    for found in damaged["differences"]:
        assert found["prepared"] != found["shipped"]
        assert 1 > found["shipped_first"] > found["shipped_second"] > 0
        assert not found["is_near_tie"]
    # One at a time, and then all of them together.
    alone = [found for found in damaged["differences"] if found["images_at_once"] == 1]
    assert len(alone) >= tokens - equal
    assert {found["images_at_once"] for found in damaged["differences"]} == {1, IMAGES}
