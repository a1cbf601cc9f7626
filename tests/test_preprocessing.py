"""What the model sees and how its answer is spelt: as the unmodified package says, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.plugins.model import DrawnSamples
from uworker.engines import EngineError, Pixels
from uworker.engines.preprocessing import INPUT_PIXELS, NoInk, SquareTooLarge, preprocess
from uworker.engines.spelling import spell_smiles, spell_tokens
from uworker.screening import screen

# Lets the package preprocess each image of a folder, and spell each answer [words, probabilities] of a JSON list.
_ASK = """
import json, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow as tf
from DECIMER import decimer, pre_process, utils

folder, report = Path(sys.argv[1]), {"raised": [], "spelt": []}
for path in sorted(folder.glob("*.npy")):
    try:
        seen = pre_process.decode_image(np.load(path))
    except ValueError:
        report["raised"].append(path.stem)
    else:
        assert seen.dtype == tf.float32
        np.save(path.with_suffix(".seen.npy"), seen.numpy())
for words, probabilities in json.load(sys.stdin):
    decimer.tokenizer = SimpleNamespace(index_word=dict(enumerate(words)))
    tokens = tf.constant([list(range(len(words)))])
    smiles = utils.decoder(decimer.detokenize_output(tokens))
    pairs = decimer.detokenize_output_add_confidence(tokens, tf.constant(probabilities))
    report["spelt"].append([smiles, [[token, float(probability)] for token, probability in pairs]])
json.dump(report, open(sys.argv[2], "w"))
"""

Floats = npt.NDArray[np.float32]


def page(height: int, width: int, shade: int = 255) -> Pixels:
    return np.full((height, width, 3), shade, np.uint8)


def drawing(height: int, width: int, paper: int = 255, ink: int = 0) -> Pixels:
    """A ring and a diagonal, with soft edges, in the middle of a page."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    distance = np.minimum(np.abs(np.hypot(x, y) - 0.6), np.abs(x - y) + np.maximum(np.abs(x), np.abs(y)) // 0.8)
    grey = ink + (paper - ink) * np.clip(distance * min(height, width) / 8, 0, 1)
    return np.repeat(grey.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)


def spotted(pixels: Pixels, *spots: tuple[Any, Any], ink: int | tuple[int, int, int] = 0) -> Pixels:
    for rows, columns in spots:
        pixels[rows, columns] = ink
    return pixels


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def shaded(height: int, width: int, darkest: int) -> Pixels:
    """Ink begins where it is just dark enough, which after the contrast is 200 where the darkest is 0, not where 4."""
    shades = np.linspace(255, darkest, width).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shades[:, np.newaxis], (height, width, 3)))


def coloured(pixels: Pixels, ink: tuple[int, int, int], paper: tuple[int, int, int]) -> Pixels:
    share = pixels / 255
    return np.asarray(np.array(ink) + share * (np.array(paper) - np.array(ink)), np.uint8)


AWKWARD: dict[str, Callable[[], Pixels]] = {
    "one pixel, black": lambda: page(1, 1, 0),
    "one pixel, white": lambda: page(1, 1),
    "one pixel of ink, small": lambda: spotted(page(100, 150), (20, 30)),
    "one pixel of ink, large": lambda: spotted(page(900, 700), (899, 0)),
    "one row": lambda: noise(1, 300),
    "one row, long": lambda: noise(1, 3000),
    "one column": lambda: noise(77, 1),
    "one column, long": lambda: noise(1500, 1),
    "tiny": lambda: noise(3, 2),
    "tall": lambda: drawing(1400, 120),
    "wide": lambda: drawing(90, 1300),
    "wide and small": lambda: drawing(40, 333),
    "square below 512": lambda: drawing(301, 301),
    "square whose ratio falls short": lambda: drawing(425, 425),
    "side whose ratio falls short": lambda: drawing(417, 300),
    "one below 512": lambda: drawing(511, 510),
    "exactly 512": lambda: drawing(512, 512),
    "512 by 100": lambda: noise(512, 100),
    "square above 512": lambda: drawing(801, 801),
    "noise above 512": lambda: noise(700, 1033),
    "all ink below 512": lambda: noise(500, 500),
    "huge": lambda: drawing(3000, 4000),
    "off-white paper": lambda: drawing(600, 640, paper=243),
    "white on black": lambda: drawing(480, 640, paper=0, ink=255),
    "white on black, large": lambda: drawing(1000, 900, paper=20, ink=240),
    "low contrast": lambda: drawing(400, 600, paper=140, ink=120),
    "faint": lambda: drawing(700, 600, paper=255, ink=251),
    "red on white": lambda: coloured(drawing(600, 500), (200, 10, 10), (255, 255, 255)),
    "blue on yellow": lambda: coloured(drawing(300, 500), (0, 0, 160), (255, 240, 90)),
    "colours": lambda: np.linspace((0, 90, 255), (250, 3, 60), 530 * 600).reshape(530, 600, 3).astype(np.uint8),
    "from white to black": lambda: shaded(600, 900, darkest=0),
    "from white to nearly black": lambda: shaded(600, 900, darkest=4),
    "nearly blank": lambda: spotted(page(600, 800), (300, 400), ink=254),
    "yellow all over": lambda: coloured(page(40, 50), (0, 0, 0), (255, 255, 0)),
    "grey all over": lambda: page(640, 480, 200),
    "white all over": lambda: page(30, 40),
    "a frame at the border": lambda: spotted(page(640, 900), (0, slice(None)), (-1, slice(None)), (slice(None), 0)),
    "lines at the border, small": lambda: spotted(page(64, 90), (-1, slice(None)), (slice(None), -1)),
    "a line across": lambda: spotted(page(640, 900), (320, slice(None))),
    "a line of one column": lambda: spotted(page(640, 900), (slice(None), 77)),
    "not contiguous": lambda: noise(800, 1200)[::2, ::-1],
}
"""Images that the package takes, and some that are seldom seen."""

INKLESS: dict[str, Callable[[], Pixels]] = {
    "light blue all over": lambda: coloured(page(40, 50), (0, 0, 0), (0, 255, 255)),
    "light blue all over, large": lambda: coloured(page(600, 700), (0, 0, 0), (0, 255, 255)),
    "light blue on white": lambda: spotted(page(600, 700), (slice(10, 40), slice(50, 90)), ink=(0, 255, 255)),
    "no rows": lambda: page(0, 40),
    "no columns": lambda: page(40, 0),
}
"""Images that the package raises on."""

WORDS = {
    "plain": ["<start>", "C", "Cl", "1", "[C@@H]", "<end>"],
    "numbers": ["<start>", "[R", "!", "$", "]", "X", "^", "<", ">", "?", "Y", "£", "¢", "€", "Z", "§", "<end>"],
    "digits in one word": ["<start>", "[R!§]", "C", "<4>", "<end>"],
    "cut at the longest length": ["<start>", "C", "N", "O"],
    "cut, and the last is a number": ["<start>", "R", "<"],
    "end at once": ["<start>", "<end>"],
    "start alone": ["<start>"],
    "start again": ["<start>", "C", "<start>", "C", "<end>"],
    "goes on after the end": ["<start>", "C", "<end>", "C", "N"],
    "a start in pieces": ["<start>", "<", "start", ">", "<e", "nd>", "C", "<end>"],
    "a start within another": ["<start>", "<st<start>art>", "<e<start>nd>", "C", "<end>"],
}


@dataclass(frozen=True)
class Package:
    """What the package makes of images, by name, and of words; `raised` names the images that it raised on."""

    seen: dict[str, Floats]
    raised: set[str]
    spelt: dict[str, tuple[str, list[tuple[str, float]]]]


def probabilities_of(words: list[str]) -> list[float]:
    """As the model gives them: 0 for the first, and then as exact as f32 is."""
    return [float(np.float32(0.9) ** number) if number else 0.0 for number in range(len(words))]


@pytest.fixture(scope="module")
def drawn(samples: DrawnSamples) -> dict[str, Pixels]:
    """The sample images as engines get them."""
    pixels = {sample.path: screen(sample.path.read_bytes()).pixels for sample in samples.items}
    return {f"sample {number}": image for number, image in enumerate(pixels.values()) if image is not None}


@pytest.fixture(scope="module")
def package(drawn: dict[str, Pixels], tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("pixels")
    images = drawn | {name: make() for name, make in (AWKWARD | INKLESS).items()}
    for name, pixels in images.items():
        np.save(folder / f"{name}.npy", pixels)
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(folder), str(report)],
        input=json.dumps([(words, probabilities_of(words)) for words in WORDS.values()]),
        env=os.environ | {"PYSTOW_HOME": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(report.read_text())
    spelt = {
        name: (smiles, [(token, probability) for token, probability in pairs])
        for name, (smiles, pairs) in zip(WORDS, answer["spelt"], strict=True)
    }
    seen = {name: folder / f"{name}.seen.npy" for name in images}
    return Package({n: np.load(p) for n, p in seen.items() if p.exists()}, set(answer["raised"]), spelt)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_images_look_as_the_package_has_them(name: str, package: Package) -> None:
    seen = preprocess(AWKWARD[name]())
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, package.seen[name])


def test_the_samples_look_as_the_package_has_them(drawn: dict[str, Pixels], package: Package) -> None:
    assert len(drawn) > 30
    for name, pixels in drawn.items():
        np.testing.assert_array_equal(preprocess(pixels), package.seen[name], err_msg=name)


def test_the_package_raises_on_these_alone(package: Package) -> None:
    assert package.raised == set(INKLESS)


@pytest.mark.parametrize("name", INKLESS)
def test_what_the_package_raises_on_is_refused(name: str) -> None:
    with pytest.raises(NoInk):
        preprocess(INKLESS[name]())


def test_what_tensorflow_decodes_no_more_is_refused() -> None:
    """Not shown beside the package, which takes gigabytes to say so: it raises from 19,310 pixels on, too."""
    widest = spotted(page(1, 19_310), (0, 0), (0, -2))
    assert preprocess(widest).shape == (INPUT_PIXELS, INPUT_PIXELS, 3)
    with pytest.raises(SquareTooLarge, match="23172 x 23172"):
        preprocess(spotted(widest, (0, -1)))
    assert issubclass(SquareTooLarge, EngineError)
    assert issubclass(NoInk, EngineError)


def test_an_image_is_left_as_it_is() -> None:
    pixels = drawing(300, 400)
    pixels.flags.writeable = False
    preprocess(pixels)


@pytest.mark.parametrize("name", WORDS)
def test_words_are_spelt_as_the_package_spells_them(name: str, package: Package) -> None:
    words = WORDS[name]
    smiles, tokens = package.spelt[name]
    assert spell_smiles(words) == smiles
    assert spell_tokens(words, probabilities_of(words)) == tokens


def test_every_word_has_a_probability() -> None:
    with pytest.raises(ValueError, match="shorter"):
        spell_tokens(["<start>", "C", "<end>"], [0.0, 0.5])


def test_importing_both_imports_no_tensorflow() -> None:
    script = (
        "import sys, uworker.engines.preprocessing, uworker.engines.spelling\n"
        "sys.exit('tensorflow' in sys.modules or 'DECIMER' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
