"""Finds DECIMER's decoder in the function of a SavedModel: by what flows into what, not by the names of variables.

Walks back from the token that is chosen: normalisation, attention, embedding, layer by layer, each as in the package's
Transformer_decoder.py. Whatever is not as there is a `StructureError`, which names the place.
"""

from dataclasses import dataclass

import numpy as np

from uworker.prepared.graph import Array, Graph, Node, StructureError, only
from uworker.prepared.weights import Attention, Decoder, Dense, Floats, Layer, Norm

_RESHAPING = ("Reshape", "Transpose")
# Of [batch, token, head, depth]: the heads before the tokens.
_HEADS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True)
class Loop:
    """The loop of a model that says a token in each round.

    Attributes:
        node: The loop itself, a node of `outer`.
        outer: The function around it.
        body: What a round does.
        seen: The encoder's picture, a node of `outer`.
        seen_inside: The same as an argument of `body`.
        tokens_at: Which of its arguments is the list of tokens, each an int32 of the shape `token_shape`.
        start: The first token; a node of `outer`.
        limit: How often the loop runs at most; a node of `outer`.
    """

    node: Node
    outer: Graph
    body: Graph
    seen: Node
    seen_inside: Node
    tokens_at: int
    token_shape: tuple[int, ...]
    start: Node
    limit: Node


def read_decoder(loop: Loop) -> Decoder:
    """Take the decoder out of the loop.

    Raises:
        StructureError: it is not one as DECIMER's.
    """
    return _Reading(loop).decoder()


def find_probabilities(body: Graph) -> Node:
    """The softmax of whose last row the token is chosen.

    Raises:
        StructureError: there is none.
    """
    chosen = only(body.find("ArgMax"), "choices of a token")
    return body.expect(body.source(body.expect(body.source(chosen), "StridedSlice")), "Softmax")


class _Reading:
    def __init__(self, loop: Loop) -> None:
        self._graph = loop.body
        self._loop = loop
        self._heads: set[int] = set()
        self._positions: dict[str, Floats] = {}
        self._places: dict[str, Floats] = {}
        self._padding: set[int] = set()

    def decoder(self) -> Decoder:
        graph = self._graph
        last, node = self._dense(graph.source(find_probabilities(graph)))
        layers: list[Layer] = []
        while node.op == "AddV2":
            layer, node = self._layer(node)
            layers.insert(0, layer)
        if not layers:
            raise StructureError(f"no layer of a decoder ends in {node.name} ({node.op})")
        embedding, scale = self._embedding(node)
        positions, places = _same(self._positions, "positions"), _same(self._places, "places")
        decoder = Decoder(
            embedding=embedding,
            embedding_scale=scale,
            positions=positions,
            places=places,
            layers=tuple(layers),
            last=last,
            heads=_same_number(self._heads, "numbers of heads"),
            start=int(self._loop.outer.scalar(self._loop.start)),
            end=self._end(),
            padding=_same_number(self._padding, "padding tokens"),
            longest=int(self._loop.outer.scalar(self._loop.limit)),
        )
        check(decoder)
        return decoder

    def _dense(self, node: Node) -> tuple[Dense, Node]:
        """The projection that ends in `node`, and what goes into it."""
        graph = self._graph
        graph.expect(node, "BiasAdd")
        product = graph.expect(self._before_reshaping(graph.source(node)), "MatMul")
        if product.attributes["transpose_a"].b or product.attributes["transpose_b"].b:
            raise StructureError(f"{product.name} transposes")
        kernel = graph.constant(graph.source(product, 1))
        bias = graph.constant(graph.source(node, 1))
        return Dense(_floats(kernel), _floats(bias)), self._before_reshaping(graph.source(product))

    def _before_reshaping(self, node: Node) -> Node:
        while node.op in _RESHAPING:
            node = self._graph.source(node)
        return node

    def _norm(self, node: Node) -> tuple[Norm, Node]:
        """The normalisation that ends in `node`: x m + (beta - mean m), with m = gamma / sqrt(variance + epsilon)."""
        graph = self._graph
        scaled = graph.expect(graph.source(graph.expect(node, "AddV2")), "Mul")
        shift = graph.expect(graph.source(node, 1), "Sub")
        beta = graph.constant(graph.source(shift))
        multiplier = graph.expect(graph.source(scaled, 1), "Mul")
        root = graph.expect(graph.source(multiplier), "Rsqrt")
        gamma = graph.constant(graph.source(multiplier, 1))
        epsilon = graph.scalar(graph.source(graph.expect(graph.source(root), "AddV2"), 1))
        return Norm(_floats(gamma), _floats(beta), epsilon), graph.source(scaled)

    def _layer(self, node: Node) -> tuple[Layer, Node]:
        """The layer that ends in `node`, and what goes into it."""
        graph = self._graph
        last_norm, total = self._norm(node)
        graph.expect(total, "AddV2")
        narrower, inner = self._dense(graph.source(total))
        wider, before = self._dense(graph.source(graph.expect(inner, "Relu")))
        self._same_node(before, graph.source(total, 1))
        picture_norm, total = self._norm(before)
        picture, asked, looked_at = self._attention(graph.source(graph.expect(total, "AddV2")), self._places, False)
        self._same_node(looked_at, self._loop.seen_inside)
        self._same_node(asked, graph.source(total, 1))
        itself_norm, total = self._norm(asked)
        itself, asked, looked_at = self._attention(graph.source(graph.expect(total, "AddV2")), self._positions, True)
        self._same_node(asked, graph.source(total, 1))
        self._same_node(looked_at, asked)
        layer = Layer(itself, itself_norm, picture, picture_norm, wider, narrower, last_norm)
        return layer, asked

    def _attention(self, node: Node, key_positions: dict[str, Floats], is_masked: bool) -> tuple[Attention, Node, Node]:
        """The attention that ends in `node`, who asks, and what is looked at; `is_masked`: not at all of it."""
        graph = self._graph
        output, mixed = self._dense(node)
        graph.expect(mixed, "BatchMatMulV2")
        value, looked_at = self._dense(self._split(graph.source(mixed, 1)))
        scores = graph.source(graph.expect(graph.source(mixed), "Softmax"))
        if is_masked:
            graph.expect(scores, "AddV2")
            self._mask(graph.source(scores, 1))
            scores = graph.source(scores)
        products = graph.expect(graph.source(graph.expect(scores, "RealDiv")), "BatchMatMulV2")
        if not products.attributes["adj_y"].b or mixed.attributes["adj_y"].b:
            raise StructureError(f"{products.name} multiplies other axes than queries and keys")
        query, asked = self._placed(self._split(graph.source(products)), self._positions)
        key, also_looked_at = self._placed(self._split(graph.source(products, 1)), key_positions)
        self._same_node(looked_at, also_looked_at)
        return Attention(query, key, value, output), asked, looked_at

    def _split(self, node: Node) -> Node:
        """What is split into heads to make `node`."""
        graph = self._graph
        perm = graph.constant(graph.source(graph.expect(node, "Transpose"), 1))
        reshaped = graph.expect(graph.source(node), "Reshape")
        shape = graph.expect(graph.source(reshaped, 1), "Pack")
        if perm.tolist() != _HEADS_FIRST or len(shape.inputs) != len(_HEADS_FIRST):
            raise StructureError(f"{node.name} does not split into heads")
        self._heads.add(int(graph.scalar(graph.source(shape, 2))))
        return graph.source(reshaped)

    def _placed(self, node: Node, positions: dict[str, Floats]) -> tuple[Dense, Node]:
        """A projection to which positions are added, and what goes into it."""
        graph = self._graph
        added = graph.source(graph.expect(node, "AddV2"), 1)
        if added.op == "StridedSlice":
            # The positions of as many tokens as there are.
            added = graph.source(added)
        if added.name not in positions:
            table = _floats(graph.constant(added))
            positions[added.name] = table.reshape(-1, table.shape[-1])
        return self._dense(graph.source(node))

    def _mask(self, node: Node) -> None:
        """Take from the mask which token is never looked at; that later tokens are not, is so by themselves."""
        graph = self._graph
        masks = graph.expect(graph.source(graph.expect(node, "Mul")), "Maximum")
        sources = [graph.source(masks, index) for index in (0, 1)]
        sliced = [source for source in sources if source.op == "StridedSlice"]
        equal = graph.expect(graph.source(graph.expect(graph.source(only(sliced, "padding masks")), "Cast")), "Equal")
        self._padding.add(int(graph.scalar(graph.source(equal, 1))))

    def _embedding(self, node: Node) -> tuple[Floats, float]:
        graph = self._graph
        scale = graph.scalar(graph.source(graph.expect(node, "Mul"), 1))
        found = graph.expect(graph.source(node), "ResourceGather", "GatherV2")
        return _floats(graph.constant(graph.source(found))), scale

    def _end(self) -> int:
        """The token that ends the loop: what the chosen one is compared with."""
        graph = self._graph
        ends = []
        for equal in graph.find("Equal"):
            chosen = graph.source(equal)
            while chosen.op in ("Cast", "Reshape"):
                chosen = graph.source(chosen)
            if chosen.op == "ArgMax":
                ends.append(int(graph.scalar(graph.source(equal, 1))))
        return only(ends, "tokens that end an answer")

    def _same_node(self, one: Node, other: Node) -> None:
        if one is not other:
            raise StructureError(f"{one.name} and {other.name} should be the same")


def check(decoder: Decoder) -> None:
    """See that all shapes fit together.

    Raises:
        StructureError: some do not.
    """
    width, tokens = decoder.width, decoder.embedding.shape[0]
    depth = decoder.layers[0].picture.key.kernel.shape[0]
    wide = decoder.layers[0].wider.kernel.shape[1]
    expected: list[tuple[Array, tuple[int, ...]]] = [
        (decoder.places, (decoder.places.shape[0], width)),
        (decoder.positions, (decoder.positions.shape[0], width)),
    ]

    def dense(part: Dense, into: int, out: int) -> None:
        expected.extend([(part.kernel, (into, out)), (part.bias, (out,))])

    for layer in decoder.layers:
        for part in (layer.itself.query, layer.itself.key, layer.itself.value, layer.itself.output):
            dense(part, width, width)
        for part in (layer.picture.key, layer.picture.value):
            dense(part, depth, width)
        for part in (layer.picture.query, layer.picture.output):
            dense(part, width, width)
        dense(layer.wider, width, wide)
        dense(layer.narrower, wide, width)
        for norm in (layer.itself_norm, layer.picture_norm, layer.last_norm):
            expected.extend([(norm.gamma, (width,)), (norm.beta, (width,))])
    dense(decoder.last, width, decoder.last.kernel.shape[1])
    for array, shape in expected:
        if array.shape != shape:
            raise StructureError(f"an array of the decoder has the shape {array.shape}, not {shape}")
    # The token that is said is the next one's input.
    if decoder.last.kernel.shape[1] > tokens or width % decoder.heads or decoder.longest > len(decoder.positions):
        raise StructureError(
            f"{decoder.last.kernel.shape[1]} of {tokens} tokens, {decoder.heads} heads of {width}, "
            f"{decoder.longest} tokens with {len(decoder.positions)} positions: these do not fit together"
        )


def _floats(array: Array) -> Floats:
    if array.dtype != np.float32:
        raise StructureError(f"an array of {array.dtype}, not float32")
    return np.ascontiguousarray(array)


def _same(found: dict[str, Floats], what: str) -> Floats:
    arrays = list(found.values())
    if not arrays or any(not np.array_equal(array, arrays[0]) for array in arrays):
        raise StructureError(f"the layers have {len(arrays)} kinds of {what}, not one")
    return arrays[0]


def _same_number(found: set[int], what: str) -> int:
    if len(found) != 1:
        raise StructureError(f"the layers have {len(found)} {what}, not one")
    return next(iter(found))
