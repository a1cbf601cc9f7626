"""DECIMER's model as it is shipped, a SavedModel: opened, taken apart, and asked. Imports TensorFlow late."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uworker.engines.preprocessing import INPUT_PIXELS
from uworker.prepared.graph import Graph, Node, StructureError, only
from uworker.prepared.structure import Loop, find_probabilities


class Shipped:
    """A loaded SavedModel.

    Attributes:
        outer: The function that the package calls.
        image: Its argument.
        loop: The loop in it, which says the tokens.
    """

    def __init__(self, directory: Path) -> None:
        import tensorflow as tf  # noqa: PLC0415 (slow)

        self.model = tf.saved_model.load(str(directory))
        # As the package calls it; there may be others, and further ones of the same.
        functions = [each for each in self.model.__call__.concrete_functions if _takes_an_image(each)]
        self.function = only(functions[:1], "functions for an image")
        self._used: list[Any] = []
        tf_graph = self.function.graph
        by_handle = {id(variable.handle): variable for variable in self.function.variables}
        captured: dict[str, Any] = {
            inner.op.name: by_handle.get(id(outside), outside) for outside, inner in tf_graph.captures
        }
        given = only([tensor for tensor in tf_graph.inputs if tensor.op.name not in captured], "arguments of the model")
        captured[given.op.name] = [int(size) for size in given.shape]
        self.outer = Graph(tf_graph.as_graph_def().node, captured, self._used)
        self.image = self.outer.argument(given.op.name)
        self.loop = self._find_loop(tf_graph)
        self._next: Any = None

    def _find_loop(self, tf_graph: Any) -> Loop:
        outer = self.outer
        loop = only(outer.find("While") + outer.find("StatelessWhile"), "loops")
        definition = tf_graph.as_graph_def().library
        functions = {function.signature.name: function for function in definition.function}
        body = functions[loop.attributes["body"].func.name]
        arguments = [argument.name for argument in body.signature.input_arg]
        inside = {name: outer.source(loop, index) for index, name in enumerate(arguments)}
        picture = only([name for name, node in inside.items() if node.op == "Reshape"], "reshaped pictures in the loop")
        # Variables and constants pass into the loop as they are.
        captured = {name: outer.captured(node) for name, node in inside.items()}
        inner = Graph(body.node_def, captured, self._used, around=outer)
        stacked = only(inner.find("TensorListStack"), "lists that the loop reads whole")
        tokens_at = arguments.index(inner.source(stacked).name)
        first = outer.expect(outer.source(loop, tokens_at), "TensorListSetItem")
        return Loop(
            node=loop,
            outer=outer,
            body=inner,
            seen=inside[picture],
            seen_inside=inner.argument(picture),
            tokens_at=tokens_at,
            # -1 where it is not known.
            token_shape=tuple(
                max(size, 1) for size in np.atleast_1d(inner.constant(inner.source(stacked, 1))).tolist()
            ),
            start=outer.source(first, 2),
            limit=inside[self._limit(loop, functions, arguments)],
        )

    def _limit(self, loop: Node, functions: Any, arguments: list[str]) -> str:
        """Which argument of the loop's body is the number of rounds: the one that its condition compares with."""
        condition = functions[loop.attributes["cond"].func.name]
        names = [argument.name for argument in condition.signature.input_arg]
        # The first two are TensorFlow's own counter and its limit.
        compared = [node.input[1] for node in condition.node_def if node.op == "Less"]
        limits = [name for name in compared if name in names[2:]]
        return arguments[names.index(only(limits, "limits of the loop"))]

    def check_all_used(self) -> int:
        """Check that each variable of the function was read exactly once; returns how many there are.

        Raises:
            StructureError: some were not.
        """
        known = {id(variable): variable.name for variable in self.function.variables}
        times = Counter(map(id, self._used))
        often = sorted(known[found] for found, count in times.items() if count > 1)
        unused = sorted(name for found, name in known.items() if found not in times)
        if often or unused:
            raise StructureError(f"variables used more than once: {often or 'none'}; not used: {unused or 'none'}")
        return len(known)

    def answer(self, image: Any) -> tuple[list[int], list[float]]:
        """Tokens and probabilities that the shipped model says of an image f32[height, width, 3]."""
        tokens, probabilities = self.model(image)
        return tokens.numpy()[0].tolist(), probabilities.numpy().tolist()

    def probabilities(self, image: Any, said: Sequence[int]) -> npt.NDArray[np.float32]:
        """f32[vocabulary] of the token after those that were said, by the shipped model's own operations."""
        if self._next is None:
            self._next = self._make_next()
        return np.asarray(self._next(image, np.array(said, np.int32)[:, None]).numpy()).reshape(-1)

    def _make_next(self) -> Any:
        """A function that runs the encoder and one round of the loop, and returns what the loop keeps to itself."""
        import tensorflow as tf  # noqa: PLC0415 (slow)

        graph, loop = self.function.graph, self.loop
        definition = graph.as_graph_def()
        [node] = [node for node in definition.node if node.name == loop.node.name]
        [body] = [f for f in definition.library.function if f.signature.name == node.attr["body"].func.name]
        flows = dict(zip((argument.name for argument in body.signature.input_arg), node.input, strict=True))
        flows[body.signature.input_arg[loop.tokens_at].name] = "told_tokens"
        wanted = find_probabilities(loop.body).name
        unrolled = tf.compat.v1.GraphDef()
        unrolled.node.add(name="told_tokens", op="Placeholder").attr["dtype"].type = tf.variant.as_datatype_enum
        around: set[str] = set()
        for inner in _before(body.node_def, {wanted}):
            copied = unrolled.node.add()
            copied.CopyFrom(inner)
            copied.name = f"one_round/{inner.name}"
            del copied.input[:]
            for name in inner.input:
                if name in flows:
                    around.add(flows[name].split(":")[0])
                    copied.input.append(flows[name])
                elif not name.startswith("^"):
                    copied.input.append(f"one_round/{name.split(':')[0]}")
        unrolled.node.extend(_before(definition.node, around))
        there = {node.name for node in unrolled.node}
        for copied in unrolled.node:
            # Where it is placed, beside nodes that are not here.
            copied.attr.pop("_class", None)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def say(image: Any, said: Any) -> Any:
            given = {
                inner.name: tf.raw_ops.Identity(input=outside)
                for outside, inner in graph.captures
                if inner.op.name in there
            }
            shape = tf.constant(loop.token_shape, tf.int32)
            given["told_tokens:0"] = tf.raw_ops.TensorListFromTensor(tensor=said, element_shape=shape)
            given[f"{self.image.name}:0"] = image
            [found] = tf.graph_util.import_graph_def(
                unrolled, input_map=given, return_elements=[f"one_round/{wanted}:0"]
            )
            return found[0, -1]

        return say


def _takes_an_image(function: Any) -> bool:
    given, named = function.structured_input_signature
    return len(given) == 1 and not named and tuple(given[0].shape) == (INPUT_PIXELS, INPUT_PIXELS, 3)


def _before(nodes: Any, names: set[str]) -> list[Any]:
    """The nodes of those names and all that flows into them."""
    by_name = {node.name: node for node in nodes}
    wanted, found = list(names), {}
    while wanted:
        last = wanted.pop()
        if last in by_name and last not in found:
            found[last] = by_name[last]
            wanted += [before.split(":")[0] for before in by_name[last].input if not before.startswith("^")]
    return list(found.values())
