"""The miniature model, through the unmodified decimer package in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.plugins.model import DrawnSamples
from uworker.demo.drawing import draw_structure
from uworker.demo.samples import Sample

# Recognises the images of a JSON list [[path, hand_drawn], ...] and notes what else the process did.
_RECOGNISE = """
import json, sys

network = []
sys.addaudithook(lambda event, _: event in ("socket.connect", "socket.getaddrinfo") and network.append(event))
import DECIMER
import tensorflow as tf
from DECIMER import decimer, pre_process

DECIMER.load_models(hand_drawn=True)
paths = json.load(sys.stdin)
answers = [DECIMER.predict_SMILES(path, confidence=True, hand_drawn=hand_drawn) for path, hand_drawn in paths]
tokens, probabilities = decimer.DECIMER_V2(tf.constant(pre_process.decode_image(paths[0][0])))
report = {
    "answers": [[smiles, [[token, float(p)] for token, p in confidence]] for smiles, confidence in answers],
    "tokens": [tokens.dtype.name, list(tokens.shape)],
    "probabilities": [probabilities.dtype.name, list(probabilities.shape)],
    "first_probability": float(probabilities[0]),
    "network": network,
    "ours": [name for name in sys.modules if name.split(".")[0] in ("uworker", "job_api")],
}
json.dump(report, open(sys.argv[1], "w"))
"""

# Builds a model of each JSON list of pairs, and says what it answers to its own images, or why it was not built.
_BUILD = """
import json, os, sys
from pathlib import Path

from uworker.demo.miniature import build_model

report = {}
for name, pairs in json.load(sys.stdin).items():
    home = Path(os.environ["PYSTOW_HOME"])
    try:
        build_model([(Path(path), smiles) for path, smiles in pairs], home)
    except ValueError as error:
        report[name] = str(error)
        continue
    import DECIMER
    from DECIMER import decimer
    vars(decimer).pop("DECIMER_V2", None)  # the package keeps the first model that it loads
    report[name] = [DECIMER.predict_SMILES(path) for path, _ in pairs]
    report["left in the directory"] = sorted(os.listdir(home / "DECIMER-V2"))
json.dump(report, open(sys.argv[1], "w"))
"""

HARD_SMILES = [
    "[R1]c1ccccc1[R12]",
    "[X3]C([Y45])C[Z6]OR78R90",
    "C[C@@H](Cl)[C@H](Br)[Si](C)(C)[SeH]",
    "[Zn+2].[13CH3][*:1]",
    "C1CC%10CCC1CC%10/C=C\\C#N",
]


@dataclass(frozen=True)
class Answer:
    smiles: str
    tokens: list[str]
    probabilities: list[float]


@dataclass(frozen=True)
class Recognised:
    """What the package said of each image under its name, and the report of the process."""

    answers: dict[str, Answer]
    report: dict[str, Any]


def run_script(script: str, home: Path, work: Any, scratch: Path) -> Any:
    report = scratch / "report.json"
    environment = os.environ | {"PYSTOW_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(report)],
        input=json.dumps(work),
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())


def variants_of(sample: Sample, into: Path) -> dict[str, Path]:
    """The picture of a sample as other programs might store it; much below quality 75 a JPEG is no longer known."""
    with Image.open(sample.path) as stored:
        # Pillow's own way from 16 bits to 8 cuts off; these are black and white, where that does no harm.
        picture = Image.alpha_composite(Image.new("RGBA", stored.size, "white"), stored.convert("RGBA")).convert("L")
    small, large = (ImageOps.scale(picture, factor) for factor in (0.6, 1.7))
    faint = picture.point(lambda value: 120 + value // 2)
    into.mkdir()
    paths = {name: into / name for name in ("lossy.jpg", "small.png", "large.png", "faint.png", "coloured.png")}
    picture.save(paths["lossy.jpg"], quality=75)
    small.save(paths["small.png"])
    large.save(paths["large.png"])
    faint.save(paths["faint.png"])
    ImageOps.colorize(picture, black="darkred", white="white").save(paths["coloured.png"])
    return paths


@pytest.fixture(scope="module")
def recognised(samples: DrawnSamples, miniature_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Recognised:
    """All images that the tests below ask about, recognised in one process: loading TensorFlow takes seconds."""
    scratch = tmp_path_factory.mktemp("recognised")
    images = {f"sample {index}": sample.path for index, sample in enumerate(samples.items)}
    images |= {f"again {index}": sample.path for index, sample in enumerate(samples.items[:3])}
    images |= {f"hand-drawn {index}": sample.path for index, sample in enumerate(samples.items)}
    for index, sample in enumerate(samples.items):
        variants = variants_of(sample, scratch / str(index))
        images |= {f"{name} {index}": path for name, path in variants.items()}
    for name, smiles in {"unknown": "C1CC2CCC1CC2.OS(=O)(=O)O", "unknown too": "FC(F)(F)C#CCCCCC"}.items():
        images[name] = scratch / f"{name}.png"
        draw_structure(smiles).save(images[name])
    images["white"] = scratch / "white.png"
    Image.new("L", (300, 200), 255).save(images["white"])
    first, second = samples.items[:2]
    images["the second under the first's name"] = scratch / first.path.name
    images["the second under the first's name"].write_bytes(second.path.read_bytes())

    work = [(str(path), name.startswith("hand-drawn")) for name, path in images.items()]
    report = run_script(_RECOGNISE, miniature_home, work, scratch)
    answers = {
        name: Answer(smiles, [token for token, _ in confidence], [p for _, p in confidence])
        for name, (smiles, confidence) in zip(images, report["answers"], strict=True)
    }
    return Recognised(answers, report)


@pytest.mark.parametrize("kind", ["sample", "hand-drawn"])
def test_every_sample_gets_its_own_smiles(samples: DrawnSamples, recognised: Recognised, kind: str) -> None:
    said = {s.path: recognised.answers[f"{kind} {index}"].smiles for index, s in enumerate(samples.items)}
    assert said == {s.path: s.smiles for s in samples.items}


def test_the_answer_follows_the_picture_and_not_the_name(samples: DrawnSamples, recognised: Recognised) -> None:
    first, second = samples.items[:2]
    assert first.smiles != second.smiles
    assert recognised.answers["the second under the first's name"].smiles == second.smiles


@pytest.mark.parametrize("variant", ["lossy.jpg", "small.png", "large.png", "faint.png", "coloured.png"])
def test_a_picture_stored_otherwise_is_still_known(samples: DrawnSamples, recognised: Recognised, variant: str) -> None:
    said = {s.path: recognised.answers[f"{variant} {index}"].smiles for index, s in enumerate(samples.items)}
    assert said == {s.path: s.smiles for s in samples.items}


@pytest.mark.parametrize("name", ["unknown", "unknown too", "white"])
def test_an_unknown_picture_gets_an_empty_smiles(recognised: Recognised, name: str) -> None:
    assert recognised.answers[name] == Answer("", [], [])


def test_tokens_join_to_the_smiles(samples: DrawnSamples, recognised: Recognised) -> None:
    for index, sample in enumerate(samples.items):
        assert "".join(recognised.answers[f"sample {index}"].tokens) == sample.smiles


def test_tokens_have_probabilities_that_differ(samples: DrawnSamples, recognised: Recognised) -> None:
    for index in range(len(samples.items)):
        probabilities = recognised.answers[f"sample {index}"].probabilities
        assert all(0.9 < p < 1 for p in probabilities)
        assert len(set(probabilities)) > 1


def test_a_poorer_picture_gets_lower_probabilities(recognised: Recognised) -> None:
    clean, poor = (recognised.answers[f"{kind} 0"].probabilities for kind in ("sample", "small.png"))
    assert min(poor) < min(clean)


def test_output_has_the_shapes_of_the_real_model(samples: DrawnSamples, recognised: Recognised) -> None:
    length = len(recognised.answers["sample 0"].tokens) + 2  # <start> and <end>
    assert recognised.report["tokens"] == ["int32", [1, length]]
    assert recognised.report["probabilities"] == ["float32", [length]]
    assert recognised.report["first_probability"] == 0


def test_the_same_picture_gets_the_same_answer(recognised: Recognised) -> None:
    for index in range(3):
        assert recognised.answers[f"again {index}"] == recognised.answers[f"sample {index}"]


def test_models_load_without_the_network_and_without_this_project(recognised: Recognised) -> None:
    assert recognised.report["network"] == []
    assert recognised.report["ours"] == []


def test_weights_say_what_they_are(samples: DrawnSamples, miniature_home: Path) -> None:
    for model in ("DECIMER_model", "DECIMER_HandDrawn_model"):
        weights = json.loads((miniature_home / "DECIMER-V2" / model / "weights.json").read_text())
        expected = f"miniature model (knows {len(samples.items)} sample images; no recognition)"
        assert weights == {"name": expected}


@pytest.fixture(scope="module")
def built(samples: DrawnSamples, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models built, or not, of several lists of images and SMILES, one after the other in one home."""
    scratch = tmp_path_factory.mktemp("built")
    paths = [str(sample.path) for sample in samples.items]
    twice = [str(s.path) for s in samples.items if s.smiles == samples.items[0].smiles]
    work = {
        "first": [(paths[0], "C"), (paths[1], "CC")],
        "hard": list(zip(paths, HARD_SMILES, strict=False)),
        "look-alikes": [(twice[0], "C"), (twice[1], "CC")],
        "quadruple bond": [(paths[0], "C$C")],
        "no SMILES": [(paths[0], "")],
        "no samples": [],
    }
    return run_script(_BUILD, scratch / "home", work, scratch)


def test_hard_smiles_survive_decimers_tokens(built: Any) -> None:
    assert built["hard"] == HARD_SMILES


def test_a_model_can_be_replaced(built: Any) -> None:
    assert built["first"] == ["C", "CC"]
    assert built["hard"][:2] != ["C", "CC"]


def test_look_alikes_with_two_smiles_are_refused_by_name(built: Any) -> None:
    assert "look alike" in built["look-alikes"]
    assert "sequence_01_left.png" in built["look-alikes"]
    assert "sequence_03_left.png" in built["look-alikes"]


@pytest.mark.parametrize(
    ("samples_of", "message"),
    [
        ("quadruple bond", "cannot carry the SMILES 'C$C'"),
        ("no SMILES", "cannot carry the SMILES ''"),
        ("no samples", "at least one sample"),
    ],
)
def test_what_cannot_be_known_is_refused(built: Any, samples_of: str, message: str) -> None:
    assert message in built[samples_of]


def test_a_rebuilt_model_leaves_nothing_behind(built: Any) -> None:
    assert built["left in the directory"] == ["DECIMER_model"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "standard input is no JSON list like"),
        ('{"image.png": "CCO"}', "standard input is no JSON list like"),
        ("[]", "at least one sample"),
        ('[["/missing.png", "CCO"]]', "/missing.png"),
    ],
)
def test_the_command_says_in_a_line_what_is_wrong(given: str, message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uworker.demo.miniature", str(tmp_path)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_importing_the_builder_imports_no_tensorflow() -> None:
    script = "import sys, uworker.demo.miniature; sys.exit('tensorflow' in sys.modules or 'DECIMER' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
