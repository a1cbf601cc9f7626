"""A replica of DECIMER's printed model: the architecture from the package's own modules, random but fixed weights.

It costs what the real model costs and recognises nothing, so that speed can be measured where the weights cannot be
downloaded. Importing this module imports no TensorFlow; `python -m benchmarks.recognition.replica HOME` builds, in a
process of its own, since the package's modules want the Keras they were written for (`TF_USE_LEGACY_KERAS`).
"""

import argparse
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.recognition.module import run_module
from uworker.weights import find_weights, model_directory

SEED = 1
PIXELS = 512
# The encoder hands over 16 x 16 places of the picture; longest SMILES as in Predictor_usingCheckpoints.py.
PLACES = 256
LONGEST = 302
# Two minutes on a machine that has nothing else to do.
BUILD_SECONDS = 1800.0

_START, _END = "<start>", "<end>"
# Added to a logit.
_UNSAID = -1e9
# Index 0 is the padding. DECIMER has about a hundred tokens too.
_WORDS = ("<pad>", _START, _END, *map(chr, range(33, 127)))


@dataclass(frozen=True)
class Architecture:
    """What the replica is made of; the default is DECIMER's, as in the package's Repack_model.py.

    Args:
        encoder: name of an EfficientNetV2; `encoder_width`: the depth of what it hands over.
        tokens: how many tokens every answer has, or may have. Each is found by reading all those before it again.
        layers_saved: the layers are saved one by one beside the whole, as DECIMER's are. They are never called, but
            take their time to load and more than half of the memory.
        end_logit: added to the logit of the token that ends an answer; None: it is never said, and every answer has
            all its tokens. With the encoder of `SMALL` and two layers, answers to the demo's samples end after 6 to
            30 tokens at 0.0 and a `liveliness` of 1, and after 1 to 30 at 0.5.
        liveliness: what the kernels of attention are multiplied with. With six layers, a fresh decoder (1.0) says one
            token for ever, of which nothing could be learned about another way to compute; from 3 on, rounding decides
            many tokens.
    """

    encoder: str = "efficientnetv2-m"
    encoder_width: int = 512
    layers: int = 6
    width: int = 512
    feed_forward: int = 2048
    heads: int = 8
    tokens: int = 40
    layers_saved: bool = True
    end_logit: float | None = None
    liveliness: float = 2.5


DECIMER = Architecture()
# Through the same code in a fraction of the time.
SMALL = Architecture(
    "efficientnetv2-b0", 192, layers=1, width=64, feed_forward=64, heads=2, tokens=2, layers_saved=False
)


def prepare(folder: Path, architecture: Architecture, say: Callable[[str], None]) -> Path:
    """What `PYSTOW_HOME` must name to have the replica: built now, or found from an earlier run.

    Raises:
        BenchmarkError: it cannot be built.
    """
    home = folder / f"replica-{architecture.encoder}-{_key(architecture)}"
    if find_weights(home, hand_drawn=False) is not None:
        say(f"replica of DECIMER's model: {home}")
        return home
    say(f"building the replica of DECIMER's model in {home}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        fresh = Path(scratch, "home")
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "TMPDIR": scratch}
        built = run_module(
            __spec__.name,
            [fresh],
            ("the replica", "built"),
            environment=environment | {"PYSTOW_HOME": str(fresh)},
            seconds=BUILD_SECONDS,
            given=json.dumps(asdict(architecture)),
        )
        # Of earlier versions, or incomplete; each takes some hundred megabytes.
        for old in folder.glob(f"replica-{architecture.encoder}-*"):
            shutil.rmtree(old)
        fresh.rename(home)
    say(built.strip())
    return home


def tensorflow_version() -> str:
    """Return the version of TensorFlow without importing it; its distribution is one of several builds."""
    return version(packages_distributions()["tensorflow"][0])


def _key(architecture: Architecture) -> str:
    """Names all that a saved replica depends on: the packages, this file and the sizes."""
    parts = [version("decimer"), tensorflow_version(), Path(__file__).read_text(encoding="utf-8"), str(architecture)]
    return f"{parts[0]}-{sha256(json.dumps(parts).encode()).hexdigest()[:12]}"


def build(home: Path, architecture: Architecture) -> str:
    """Build the replica below `home`; imports TensorFlow and DECIMER. Returns a line about its size."""
    import tensorflow as tf  # noqa: PLC0415 (as the module says)

    tf.keras.utils.set_random_seed(SEED)
    encoder, decoder = _parts(architecture)
    _tame(encoder)
    predictor = _predictor(encoder, decoder, architecture.tokens)
    # Traced once, as the published model is: for one picture. It also makes the decoder's variables.
    predictor(tf.zeros([PIXELS, PIXELS, 3]))
    _enliven(decoder, architecture.liveliness)
    # No token that stands for no character is ever said.
    added = [_UNSAID if len(word) > 1 else 0.0 for word in _WORDS]
    if architecture.end_logit is not None:
        added[_WORDS.index(_END)] = architecture.end_logit
    decoder.final_layer.bias.assign_add(added)
    predictor.DECIMER = tf.Module()
    if architecture.layers_saved:
        predictor.DECIMER.encoder, predictor.DECIMER.transformer = encoder, decoder
    else:
        predictor.DECIMER.variables_used = (encoder.variables, decoder.variables)
    model = model_directory(home, "DECIMER")
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(predictor, str(model), options=options)
    tokenizer = SimpleNamespace(index_word=dict(enumerate(_WORDS)))
    model.joinpath("assets").mkdir(exist_ok=True)
    model.joinpath("assets", "tokenizer_SMILES.pkl").write_bytes(pickle.dumps(tokenizer, protocol=4))
    name = "replica of DECIMER's architecture (random weights; no recognition)"
    model.joinpath("weights.json").write_text(json.dumps({"name": name}) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    counts = [sum(int(tf.size(variable)) for variable in part.variables) for part in (encoder, decoder)]
    return (
        f"parameters: encoder {counts[0] / 1e6:.1f} million, decoder {counts[1] / 1e6:.1f} million; "
        f"{size / 1e6:.0f} MB on disk"
    )


def _parts(architecture: Architecture) -> tuple[Any, Any]:
    """Make encoder and decoder as the package's Repack_model.py does."""
    import tensorflow as tf  # noqa: PLC0415
    from DECIMER import Efficient_Net_encoder as encoders  # noqa: PLC0415
    from DECIMER import config  # noqa: PLC0415

    encoders.MODEL = architecture.encoder
    setting = config.Config()
    setting.initialize_encoder_config(
        image_embedding_dim=(PLACES, architecture.encoder_width),
        preprocessing_fn=tf.keras.applications.efficientnet.preprocess_input,
        backbone_fn=encoders.get_efficientnetv2_backbone,
        image_shape=(PIXELS, PIXELS, 3),
    )
    setting.initialize_transformer_config(
        vocab_len=len(_WORDS),
        max_len=LONGEST,
        n_transformer_layers=architecture.layers,
        transformer_d_dff=architecture.feed_forward,
        transformer_n_heads=architecture.heads,
        image_embedding_dim=architecture.width,
    )
    _, encoder, decoder = config.prepare_models(
        encoder_config=setting.encoder_config,
        transformer_config=setting.transformer_config,
        replica_batch_size=1,
    )
    return encoder, decoder


def _tame(encoder: Any) -> None:
    """Set the encoder's normalisations by some drawings, as training does.

    Without it values grow from layer to layer until rounding decides what the encoder says, and nothing that computes
    in another order could agree with it.
    """
    import tensorflow as tf  # noqa: PLC0415

    normalisations = [part for part in encoder.submodules if isinstance(part, tf.keras.layers.BatchNormalization)]
    usual = [part.momentum for part in normalisations]
    for part in normalisations:
        part.momentum = 0.0
    encoder(tf.constant(_drawings()), training=True)
    for part, momentum in zip(normalisations, usual, strict=True):
        part.momentum = momentum


def _enliven(decoder: Any, liveliness: float) -> None:
    """Let the decoder look at few places rather than at all alike, and see more of them than of its last token."""
    for layer in decoder.dec_layers:
        for attention in (layer.mha1, layer.mha2):
            for part in (attention.wq, attention.wk, attention.wv):
                part.kernel.assign(part.kernel * liveliness)


def _drawings(number: int = 3) -> Any:
    """Random lines on white, f32[number, 512, 512, 3] in the range of what DECIMER's preprocessing makes."""
    random = np.random.default_rng(SEED)
    drawings = []
    for _ in range(number):
        page = Image.new("L", (PIXELS, PIXELS), 255)
        ImageDraw.Draw(page).line([tuple(at) for at in random.integers(60, PIXELS - 60, (20, 2)).tolist()], 0, 3)
        drawings.append(np.asarray(page, np.float32)[..., None].repeat(3, axis=-1) / 60 - 2)
    return np.stack(drawings)


def _predictor(encoder: Any, decoder: Any, tokens: int) -> Any:
    """Make the module that is saved: greedy, without a cache, what was said is read again for each token.

    It is written as the package's export is, whose module cannot be imported (it loads checkpoints).
    """
    import tensorflow as tf  # noqa: PLC0415
    from DECIMER import Transformer_decoder as decoders  # noqa: PLC0415

    start, end = _WORDS.index(_START), _WORDS.index(_END)

    class Predictor(tf.Module):  # type: ignore[misc]  # TensorFlow is untyped
        # The loader binds the restored function as a method only if its first parameter is named `self`.
        @tf.function(input_signature=[tf.TensorSpec([PIXELS, PIXELS, 3], tf.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, image: Any) -> tuple[Any, Any]:
            seen = encoder(tf.expand_dims(image, 0), training=False)
            # Made outside of the loop, and captured by it.
            first, last_of_all = (tf.cast(tf.convert_to_tensor([token]), tf.int32) for token in (start, end))
            said = tf.TensorArray(dtype=tf.int32, size=0, dynamic_size=True).write(0, first)
            sure = tf.TensorArray(dtype=tf.float32, size=0, dynamic_size=True)
            for place in tf.range(tokens):
                before = tf.transpose(said.stack())
                mask = decoders.create_masks_decoder(before)
                batch = decoder(before, seen, training=False, look_ahead_mask=mask)
                last = batch[:, -1:, :]
                token = tf.cast(tf.argmax(last, axis=-1), tf.int32)
                said = said.write(place + 1, token[0])
                sure = sure.write(place + 1, last[0, 0, token[0, 0]])
                if token == last_of_all:
                    break
            return tf.transpose(said.stack()), sure.stack()

    return Predictor()


def main() -> None:
    """Build the replica that the JSON object on standard input describes."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("home", type=Path, help="directory that PYSTOW_HOME will name")
    home = parser.parse_args().home
    sys.stdout.write(build(home, Architecture(**json.load(sys.stdin))) + "\n")


if __name__ == "__main__":
    main()
