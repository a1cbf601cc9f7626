"""Builds a tiny model in DECIMER's own form, which the unmodified `decimer` package loads in place of its weights.

The model knows the images it was built from and nothing else: it compares pictures, it recognises no chemistry. Its
`weights.json` says so, and every row made with it carries that name. Importing this module imports no TensorFlow;
`python -m uworker.demo.miniature HOME` builds in a process of its own.
"""

import argparse
import json
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

SIMILARITY_FLOOR = 0.90
"""Cosine similarity under which an image is answered with an empty SMILES."""
TOO_SIMILAR = 0.98
"""Cosine similarity from which two images cannot be told apart safely."""

_INPUT_PIXELS = 512
_GREY_PIXELS = 64
_HIGHEST_PROBABILITY = 0.9995
_MODEL_NAMES = {False: "DECIMER_model", True: "DECIMER_HandDrawn_model"}

# One vocabulary for all miniature models, whatever their samples: the printed and the hand-drawn model share one
# tokenizer file, and either may be built first. "£¢€§" are four of the characters that stand for digits, see _tokenise.
_LONG_TOKENS = ("Cl", "Br", "Si", "Se", "@@")
_WORDS = ("<start>", "<end>", *_LONG_TOKENS, *map(chr, range(33, 127)), *"£¢€§")
_INDEX = {word: index for index, word in enumerate(_WORDS, start=1)}
_TOKEN_PATTERN = re.compile("|".join(_LONG_TOKENS) + "|.", re.DOTALL)

Vectors = npt.NDArray[np.float32]


def build_model(samples: Iterable[tuple[Path, str]], pystow_home: Path, *, hand_drawn: bool = False) -> Path:
    """Build the model that answers each image of `samples` with the SMILES beside it.

    Imports TensorFlow and DECIMER. The latter wants `PYSTOW_HOME` or a writable home at import, so call this in a
    process where one is set, or use this module's command line.

    Args:
        samples: Image files that `decimer` can read, and their SMILES.
        pystow_home: What `PYSTOW_HOME` will name. A model that is already there is replaced.
        hand_drawn: Build the hand-drawn model. The printed model, which holds the tokenizer of both, is then made
            of the same samples unless there is one already.

    Returns:
        The directory of the model, `DECIMER-V2/DECIMER_model` or `DECIMER-V2/DECIMER_HandDrawn_model` in `pystow_home`.

    Raises:
        ValueError: No samples, or one that is no image; a SMILES that DECIMER's tokens cannot carry; or two pictures of
            similarity 0.98 and more whose SMILES differ.
    """
    known = [(Path(path), smiles) for path, smiles in samples]
    if not known:
        raise ValueError("a miniature model needs at least one sample")
    answers = [_tokenise(smiles) for _, smiles in known]
    bank = np.stack([_look(path) for path, _ in known])
    _check_separation(known, bank)

    models = pystow_home / "DECIMER-V2"
    models.mkdir(parents=True, exist_ok=True)
    printed = models / _MODEL_NAMES[False]
    wanted = models / _MODEL_NAMES[hand_drawn]
    for model in {wanted, printed} if not (printed / "saved_model.pb").exists() else {wanted}:
        _publish(bank, answers, model)
    return wanted


def _tokenise(smiles: str) -> list[int]:
    """Encode a SMILES as DECIMER does: digits after R, X, Y and Z become other characters, and then into tokens.

    DECIMER reads those characters back as digits wherever they stand, so a SMILES that holds one itself (`$` is a
    quadruple bond) cannot be said.

    Returns:
        Indices into the vocabulary with those of `<start>` and `<end>` around them.

    Raises:
        ValueError: DECIMER would read the tokens back as another SMILES, or as none.
    """
    from DECIMER import utils as decimer_text  # noqa: PLC0415 (imports TensorFlow)

    encoded = "".join(decimer_text.encoder(smiles).split())
    words = _TOKEN_PATTERN.findall(encoded)
    unknown = sorted(set(words) - _INDEX.keys())
    if not smiles or unknown or decimer_text.decoder(encoded) != smiles:
        raise ValueError(f"DECIMER's tokens cannot carry the SMILES {smiles!r}")
    return [_INDEX["<start>"], *(_INDEX[word] for word in words), _INDEX["<end>"]]


def _look(path: Path) -> Vectors:
    """Return what the model sees of an image, after DECIMER's own preprocessing: a unit vector, f32[4096]."""
    from DECIMER import pre_process  # noqa: PLC0415 (imports TensorFlow)

    try:
        image = pre_process.decode_image(str(path))
    except Exception as error:  # it raises no other for what is missing or damaged
        raise ValueError(f"{path} cannot be read as an image") from error
    vector: Vectors = np.asarray(_unit_vector(image))
    return vector


def _unit_vector(image: Any) -> Any:
    """Shrink f32[512,512,3] to 64x64 grey, mean-free, of length 1: f32[4096]. The same in NumPy and in the model."""
    import tensorflow as tf  # noqa: PLC0415 (slow, and not installed everywhere)

    block = _INPUT_PIXELS // _GREY_PIXELS
    grey = tf.reshape(tf.reduce_mean(image, axis=2), [_GREY_PIXELS, block, _GREY_PIXELS, block])
    vector = tf.reshape(tf.reduce_mean(grey, axis=[1, 3]), [-1])
    return tf.math.l2_normalize(vector - tf.reduce_mean(vector))


def _check_separation(known: list[tuple[Path, str]], bank: Vectors) -> None:
    """Raise ValueError if two pictures that look alike (bank f32[N,4096]) have different SMILES."""
    for row, column in np.argwhere(np.triu(bank @ bank.T, k=1) >= TOO_SIMILAR):
        (first, first_smiles), (second, second_smiles) = known[row], known[column]
        if first_smiles != second_smiles:
            raise ValueError(
                f"{first} and {second} look alike (similarity {bank[row] @ bank[column]:.3f}) "
                f"but are given as {first_smiles} and {second_smiles}"
            )


def _matcher(bank: Vectors, answers: list[list[int]]) -> Any:
    """Make the TensorFlow module: image f32[512,512,3] -> tokens int32[1,T], their probabilities f32[T].

    A token's probability is the similarity of the best match, a little lower from token to token in a fixed
    pattern; that of `<start>` is 0, as in DECIMER.
    """
    import tensorflow as tf  # noqa: PLC0415 (slow, and not installed everywhere)

    rows = [*answers, [_INDEX["<start>"], _INDEX["<end>"]]]  # the last is the answer to an unknown image
    longest = max(map(len, rows))
    padded = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    golden_ratio_steps = 1 + 3 * (np.arange(longest, dtype=np.float64) * 0.618034 % 1)

    class Matcher(tf.Module):  # type: ignore[misc]  # TensorFlow is untyped
        # The loader binds the restored function as a method only if its first parameter is named `self`.
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec([_INPUT_PIXELS, _INPUT_PIXELS, 3], tf.float32)]
        )
        def __call__(self, image: Any) -> tuple[Any, Any]:
            similarities = tf.linalg.matvec(tf.constant(bank), _unit_vector(image))
            best = tf.argmax(similarities, output_type=tf.int32)
            similarity = similarities[best]
            answer = tf.where(similarity >= SIMILARITY_FLOOR, best, len(answers))
            length = tf.gather(lengths, answer)
            tokens = tf.gather(padded, answer)[tf.newaxis, :length]
            steps = tf.constant(golden_ratio_steps, tf.float32)[1:length]
            probabilities = tf.clip_by_value(similarity, 0.0, _HIGHEST_PROBABILITY) ** steps
            return tokens, tf.concat([[0.0], probabilities], axis=0)

    return Matcher()


def _publish(bank: Vectors, answers: list[list[int]], model: Path) -> None:
    """Write a model beside its final place and rename it in, so that nobody loads half a model.

    No `.model_url` is written: without it the package takes the directory as it is, with it the package would
    delete the model and download its own as soon as that address changes.
    """
    import tensorflow as tf  # noqa: PLC0415 (slow, and not installed everywhere)

    with tempfile.TemporaryDirectory(dir=model.parent, prefix=f".{model.name}.") as scratch:
        fresh = Path(scratch, "fresh")
        tf.saved_model.save(_matcher(bank, answers), str(fresh))
        fresh.joinpath("assets").mkdir(exist_ok=True)
        # A class of the standard library, because a recogniser unpickles this without our package.
        tokenizer = SimpleNamespace(index_word={index: word for word, index in _INDEX.items()})
        fresh.joinpath("assets", "tokenizer_SMILES.pkl").write_bytes(pickle.dumps(tokenizer, protocol=4))
        name = f"miniature model (knows {len(answers)} sample images; no recognition)"
        fresh.joinpath("weights.json").write_text(json.dumps({"name": name}) + "\n", encoding="utf-8")
        if model.exists():
            model.rename(Path(scratch, "replaced"))
        fresh.rename(model)


def main(arguments: list[str] | None = None) -> None:
    """Build a model from the JSON list of `[image path, SMILES]` pairs on standard input."""
    parser = argparse.ArgumentParser(prog="python -m uworker.demo.miniature", description=main.__doc__)
    parser.add_argument("pystow_home", type=Path, help="directory that PYSTOW_HOME will name")
    parser.add_argument("--hand-drawn", action="store_true", help="build the hand-drawn model")
    options = parser.parse_args(arguments)
    os.environ["PYSTOW_HOME"] = str(options.pystow_home.resolve())
    try:
        pairs = [(Path(path), str(smiles)) for path, smiles in json.load(sys.stdin)]
    except (TypeError, ValueError) as error:
        parser.error(f'standard input is no JSON list like [["image.png", "CCO"]]: {error}')
    try:
        build_model(pairs, options.pystow_home, hand_drawn=options.hand_drawn)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
