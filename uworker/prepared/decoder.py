"""DECIMER's decoder as ONNX: one token a step, for several images at once, keeping the keys and values of those before.

What the shipped model computes anew for each token, it computes once: keys and values of the picture when the picture
is there, those of each token when the token is. The operations are those of the package's Transformer_decoder.py.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from uworker.prepared.files import picture_names, told_names
from uworker.prepared.weights import Decoder, Dense, Layer, Norm
from uworker.prepared.writer import FLOAT, INT64, Shape, Writer

# Added to the score of what is not looked at.
_UNSEEN = -1e9


def write_picture(writer: Writer, decoder: Decoder, seen: str) -> dict[str, Shape]:
    """Write what is made of the encoder's picture f32[1, places, depth] for each layer; returns names and shapes.

    Keys are f32[1, heads, width / heads, places], values f32[1, heads, places, width / heads].
    """
    places, heads, size = len(decoder.places), decoder.heads, decoder.width // decoder.heads
    split = writer.weight(np.array([1, places, heads, size]), np.int64)
    outputs: dict[str, Shape] = {}
    names = iter(picture_names(len(decoder.layers)))
    for layer in decoder.layers:
        keys, values = next(names), next(names)
        placed = writer.weight(decoder.places + layer.picture.key.bias)
        key = writer.emit("Add", writer.emit("MatMul", seen, writer.weight(layer.picture.key.kernel)), placed)
        writer.emit("Transpose", writer.emit("Reshape", key, split), output=keys, perm=[0, 2, 3, 1])
        value = _dense(writer, layer.picture.value, seen)
        writer.emit("Transpose", writer.emit("Reshape", value, split), output=values, perm=[0, 2, 1, 3])
        outputs |= {keys: [1, heads, size, places], values: [1, heads, places, size]}
    return outputs


def write_step(decoder: Decoder) -> ModelProto:
    """Make the model of a step.

    Inputs: `said` int64[images, tokens], all tokens so far with the start; the keys and values of each picture, and of
    the tokens before the last. Outputs: `probabilities` f32[images, vocabulary] of the next token, and the keys and
    values of all tokens. Keys of tokens are f32[images, heads, width / heads, tokens], and values f32[images, heads,
    tokens, width / heads].
    """
    return _Step(decoder).model()


def _dense(writer: Writer, part: Dense, value: str) -> str:
    return writer.emit("Add", writer.emit("MatMul", value, writer.weight(part.kernel)), writer.weight(part.bias))


@dataclass(frozen=True)
class _Beside:
    """What is the same for all layers: names of the token's positions, and of the mask of the tokens."""

    own_place: str
    query_place: str
    mask: str


class _Step:
    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._writer = writer = Writer()
        width, heads = decoder.width, decoder.heads
        self._size = width // heads
        self._split = writer.weight(np.array([-1, heads, 1, self._size]), np.int64)
        self._split_keys = writer.weight(np.array([-1, heads, self._size, 1]), np.int64)
        self._joined = writer.weight(np.array([-1, width]), np.int64)
        self._root = writer.weight(np.sqrt(np.float32(self._size)))

    def model(self) -> ModelProto:
        decoder, emit, weight = self._decoder, self._writer.emit, self._writer.weight
        last = emit("Gather", "said", self._number(-1), axis=1)
        tokens = emit("Size", emit("Gather", "said", self._number(0), axis=0))
        place = emit("Sub", tokens, self._number(1))
        # Positions are added to queries and keys of the token, and to the query for the picture; not to values.
        nothing = np.zeros_like(decoder.positions)
        three = np.concatenate([decoder.positions, decoder.positions, nothing], axis=1)
        own_place = emit("Gather", weight(three), place, axis=0)
        query_place = emit("Gather", weight(decoder.positions), place, axis=0)
        padded = emit("Cast", emit("Equal", "said", self._number(decoder.padding)), to=FLOAT)
        unseen = emit("Mul", padded, weight(np.float32(_UNSEEN)))
        mask = emit("Unsqueeze", unseen, weight(np.array([1, 2]), np.int64))
        scaled = np.float32(decoder.embedding_scale)
        value = emit("Mul", emit("Gather", weight(decoder.embedding), last, axis=0), weight(scaled))
        for number, layer in enumerate(decoder.layers):
            value = self._layer(number, layer, value, _Beside(own_place, query_place, mask))
        emit("Softmax", _dense(self._writer, decoder.last, value), output="probabilities", axis=-1)
        return self._writer.model("step", self._inputs(), self._outputs())

    def _layer(self, number: int, layer: Layer, value: str, beside: "_Beside") -> str:
        emit, weight = self._writer.emit, self._writer.weight
        own = layer.itself
        kernel = np.concatenate([own.query.kernel, own.key.kernel, own.value.kernel], axis=1)
        bias = np.concatenate([own.query.bias, own.key.bias, own.value.bias])
        projected = emit("Add", emit("MatMul", value, weight(kernel)), weight(bias))
        query, key, told = self._three(emit("Add", projected, beside.own_place))
        before_keys, before_values = (f"before_{kind}_{number}" for kind in ("keys", "values"))
        after_keys, after_values = (f"after_{kind}_{number}" for kind in ("keys", "values"))
        emit("Concat", before_keys, emit("Reshape", key, self._split_keys), output=after_keys, axis=3)
        emit("Concat", before_values, emit("Reshape", told, self._split), output=after_values, axis=2)
        looked = self._attend(query, after_keys, after_values, beside.mask)
        value = self._norm(layer.itself_norm, emit("Add", _dense(self._writer, own.output, looked), value))
        query = emit("Add", _dense(self._writer, layer.picture.query, value), beside.query_place)
        looked = self._attend(query, f"picture_keys_{number}", f"picture_values_{number}", None)
        value = self._norm(layer.picture_norm, emit("Add", _dense(self._writer, layer.picture.output, looked), value))
        wide = emit("Relu", _dense(self._writer, layer.wider, value))
        return self._norm(layer.last_norm, emit("Add", _dense(self._writer, layer.narrower, wide), value))

    def _number(self, value: int) -> str:
        return self._writer.weight(np.array(value), np.int64)

    def _three(self, value: str) -> list[str]:
        width = self._decoder.width
        starts = [self._writer.weight(np.array([at * width]), np.int64) for at in range(4)]
        axis = self._writer.weight(np.array([1]), np.int64)
        return [self._writer.emit("Slice", value, starts[at], starts[at + 1], axis) for at in range(3)]

    def _attend(self, query: str, keys: str, values: str, mask: str | None) -> str:
        emit = self._writer.emit
        scores = emit("Div", emit("MatMul", emit("Reshape", query, self._split), keys), self._root)
        if mask is not None:
            scores = emit("Add", scores, mask)
        mixed = emit("MatMul", emit("Softmax", scores, axis=-1), values)
        return emit("Reshape", mixed, self._joined)

    def _norm(self, norm: Norm, value: str) -> str:
        gamma, beta = self._writer.weight(norm.gamma), self._writer.weight(norm.beta)
        return self._writer.emit("LayerNormalization", value, gamma, beta, axis=-1, epsilon=norm.epsilon)

    def _inputs(self) -> dict[str, tuple[int, Shape]]:
        decoder, size = self._decoder, self._size
        inputs: dict[str, tuple[int, Shape]] = {"said": (INT64, ["images", "tokens"])}
        pictures, told = picture_names(len(decoder.layers)), told_names(len(decoder.layers), "before")
        for keys, values in zip(pictures[::2], pictures[1::2], strict=True):
            inputs[keys] = (FLOAT, ["images", decoder.heads, size, len(decoder.places)])
            inputs[values] = (FLOAT, ["images", decoder.heads, len(decoder.places), size])
        for keys, values in zip(told[::2], told[1::2], strict=True):
            inputs[keys] = (FLOAT, ["images", decoder.heads, size, "before"])
            inputs[values] = (FLOAT, ["images", decoder.heads, "before", size])
        return inputs

    def _outputs(self) -> dict[str, Shape]:
        decoder, size = self._decoder, self._size
        outputs: dict[str, Shape] = {"probabilities": ["images", decoder.last.kernel.shape[1]]}
        told = told_names(len(decoder.layers), "after")
        for keys, values in zip(told[::2], told[1::2], strict=True):
            outputs[keys] = ["images", decoder.heads, size, "tokens"]
            outputs[values] = ["images", decoder.heads, "tokens", size]
        return outputs
