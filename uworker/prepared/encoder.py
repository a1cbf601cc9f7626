"""DECIMER's encoder as ONNX: the same operations, each batch normalisation folded into the convolution before it.

Walks from what the decoder takes back to the image, and takes only what it knows: convolutions, the activations and
sums of an EfficientNet. Whatever else it meets is a `StructureError`.
"""

import numpy as np

from uworker.prepared.graph import Array, Graph, Node, StructureError
from uworker.prepared.writer import Writer

_SPATIAL = (1, 2)
_ELEMENTWISE = {"Mul": "Mul", "AddV2": "Add", "Add": "Add", "Sub": "Sub"}


def translate(writer: Writer, graph: Graph, image: Node, seen: Node) -> str:
    """Write the encoder: from "image", f32[1, 3, height, width], to f32[1, places, depth], whose name is returned.

    Args:
        writer: Gets it.
        graph: The function around the decoder's loop.
        image: Its argument, an image f32[height, width, 3].
        seen: What the loop takes of it.

    Raises:
        StructureError: it is not an encoder as DECIMER's.
    """
    translation = _Translation(writer, graph, image)
    places, depth = translation.shape_of(graph.expect(seen, "Reshape"))
    picture = translation.translated(graph.source(seen))
    # f32[1, depth, rows, columns], where TensorFlow has the depth last.
    flat = writer.emit("Reshape", picture, writer.weight(np.array([1, depth, places]), np.int64))
    return writer.emit("Transpose", flat, perm=[0, 2, 1])


class _Translation:
    def __init__(self, writer: Writer, graph: Graph, image: Node) -> None:
        self._writer = writer
        self._graph = graph
        self._image = image
        self._names: dict[str, str] = {}

    def shape_of(self, reshape: Node) -> tuple[int, int]:
        """Places and depth of the encoder's picture."""
        shape = self._graph.source(reshape, 1)
        sizes = (
            [int(self._graph.scalar(self._graph.source(shape, index))) for index in range(1, len(shape.inputs))]
            if shape.op == "Pack"
            else [int(size) for size in self._graph.constant(shape)[1:]]
        )
        if len(sizes) != 2:
            raise StructureError(f"{reshape.name} makes {len(sizes)} axes of the encoder's picture, not 2")
        return sizes[0], sizes[1]

    def translated(self, node: Node) -> str:
        """The name of a node's value in the new graph; no recursion, for an encoder is deeper than Python's stack."""
        stack = [node]
        while stack:
            last = stack[-1]
            if last.name in self._names:
                stack.pop()
                continue
            needed = [before for before in self._needed(last) if before.name not in self._names]
            if needed:
                stack += needed
            else:
                self._names[last.name] = self._translate(last)
                stack.pop()
        return self._names[node.name]

    def _needed(self, node: Node) -> list[Node]:
        if node.op == "ExpandDims":
            return []
        if node.op == "FusedBatchNormV3":
            return [self._graph.source(self._convolution_before(node))]
        inputs = [self._graph.source(node)]
        if node.op in _ELEMENTWISE:
            inputs.append(self._graph.source(node, 1))
        return [before for before in inputs if not self._graph.is_constant(before)]

    def _convolution_before(self, node: Node) -> Node:
        return self._graph.expect(self._graph.source(node), "Conv2D", "DepthwiseConv2dNative")

    def _translate(self, node: Node) -> str:
        emit = self._writer.emit
        match node.op:
            case "ExpandDims":
                if self._graph.source(node) is not self._image:
                    raise StructureError(f"{node.name} is not made of the image")
                name = "image"
            case "FusedBatchNormV3":
                name = self._convolve(self._convolution_before(node), node)
            case "Conv2D" | "DepthwiseConv2dNative":
                name = self._convolve(node, None)
            case "BiasAdd":
                bias = self._graph.constant(self._graph.source(node, 1))
                name = emit("Add", self._value(node), self._writer.weight(bias.reshape(-1, 1, 1)))
            case "Sigmoid" | "Relu":
                name = emit(node.op, self._value(node))
            case "Mean":
                name = self._average(node)
            case "Mul" | "AddV2" | "Add" | "Sub":
                name = emit(_ELEMENTWISE[node.op], self._value(node), self._value(node, 1))
            case _:
                raise StructureError(f"the encoder has {node.name} ({node.op}), which is not known here")
        return name

    def _average(self, node: Node) -> str:
        axes = tuple(int(axis) for axis in np.atleast_1d(self._graph.constant(self._graph.source(node, 1))))
        if axes != _SPATIAL or not node.attributes["keep_dims"].b:
            raise StructureError(f"{node.name} is a mean over other axes than {_SPATIAL}")
        return self._writer.emit("GlobalAveragePool", self._value(node))

    def _value(self, node: Node, index: int = 0) -> str:
        before = self._graph.source(node, index)
        if self._graph.is_constant(before):
            # One number only: it is the same whatever the order of the axes.
            return self._writer.weight(np.float32(self._graph.scalar(before)))
        return self._names[before.name]

    def _convolve(self, node: Node, normalisation: Node | None) -> str:
        graph = self._graph
        attributes = node.attributes
        if attributes["data_format"].s != b"NHWC" or attributes["padding"].s != b"SAME":
            raise StructureError(f"{node.name} is padded or laid out in another way than is known here")
        if set(attributes["dilations"].list.i) - {1}:
            raise StructureError(f"{node.name} is dilated")
        kernel = graph.constant(graph.source(node, 1)).astype(np.float64)
        depthwise = node.op == "DepthwiseConv2dNative"
        if depthwise and kernel.shape[3] != 1:
            raise StructureError(f"{node.name} makes {kernel.shape[3]} channels of one")
        # [rows, columns, in, out] or [rows, columns, channels, 1] -> [out, in, rows, columns] or [channels, 1, …].
        weights = kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1)
        shift = []
        if normalisation is not None:
            scale, added = self._scale_and_shift(normalisation)
            weights = weights * scale[:, None, None, None]
            shift = [self._writer.weight(added)]
        return self._writer.emit(
            "Conv",
            self._value(node),
            self._writer.weight(weights),
            *shift,
            strides=list(attributes["strides"].list.i)[1:3],
            kernel_shape=list(weights.shape[2:]),
            group=weights.shape[0] if depthwise else 1,
            auto_pad="SAME_UPPER",
        )

    def _scale_and_shift(self, normalisation: Node) -> tuple[Array, Array]:
        """What the normalisation multiplies with and adds, f64[channels] each."""
        if normalisation.attributes["is_training"].b:
            raise StructureError(f"{normalisation.name} normalises by the image itself, as in training")
        values = [self._graph.constant(self._graph.source(normalisation, index)) for index in range(1, 5)]
        gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
        scale = gamma / np.sqrt(variance + normalisation.attributes["epsilon"].f)
        return scale, beta - mean * scale
