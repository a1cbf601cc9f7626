"""A TensorFlow function of a SavedModel as nodes that can be walked: what each is, and what flows into it.

Works on what `tf.saved_model.load` gives, and imports no TensorFlow itself. Values are read when they are asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
T = TypeVar("T")

# They pass their first input on as it is. What IdentityN passes on beside it serves gradients.
_PASSING = frozenset({"Identity", "IdentityN", "StopGradient", "ReadVariableOp", "Snapshot", "PreventGradient"})


class StructureError(Exception):
    """A model is built in another way than is known here; says where."""


@dataclass(frozen=True, eq=False)
class Node:
    """An operation, or an argument of the function (`op` is then "Argument")."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Graph:
    """The nodes of one function.

    Args:
        nodes: TensorFlow's NodeDefs.
        captured: What flows into the function from outside, by the name of the argument: a variable, an array, or a
            node of the function around this one.
        used: Collects the variables whose value was taken, each as often as it was.
        around: The function around this one, whose nodes may be captured.
    """

    def __init__(self, nodes: Any, captured: Mapping[str, Any], used: list[Any], around: "Graph | None" = None) -> None:
        self._around = around
        self._captured = captured
        self._used = used
        self._nodes = {name: Node(name, "Argument") for name in captured}
        for node in nodes:
            inputs = tuple(name for name in node.input if not name.startswith("^"))
            if node.name not in self._nodes:
                self._nodes[node.name] = Node(node.name, node.op, inputs, node.attr)

    def find(self, op: str) -> list[Node]:
        """All nodes of that operation, in the order of the function."""
        return [node for node in self._nodes.values() if node.op == op]

    def argument(self, name: str) -> Node:
        """The argument of that name."""
        return self.expect(self._nodes[name], "Argument")

    def captured(self, node: Node) -> Any:
        """What a function inside of this one gets that captures `node`: what it stands for, or the node itself."""
        return self._captured[node.name] if node.op == "Argument" else node

    def source(self, node: Node, index: int = 0) -> Node:
        """What flows into `node` at `index`, past what only passes it on.

        Raises:
            StructureError: nothing does, or it is a side product of an operation.
        """
        while True:
            found = self.directly(node, index)
            if found.op not in _PASSING:
                return found
            node, index = found, 0

    def directly(self, node: Node, index: int = 0) -> Node:
        """What flows into `node` at `index`, whatever it is."""
        if index >= len(node.inputs):
            raise StructureError(f"{node.name} ({node.op}) has no input {index}")
        name, *output = node.inputs[index].split(":")
        if (output and output[-1] != "0") or name not in self._nodes:
            raise StructureError(f"{node.name} ({node.op}) takes {node.inputs[index]}, which is not known here")
        return self._nodes[name]

    def expect(self, node: Node, *ops: str) -> Node:
        """The node itself.

        Raises:
            StructureError: it is another operation.
        """
        if node.op not in ops:
            raise StructureError(f"{node.name} is {node.op}, not {' or '.join(ops)}")
        return node

    def outside(self, node: Node) -> Any:
        """What an argument stands for outside of this function."""
        self.expect(node, "Argument")
        return self._captured[node.name]

    def is_constant(self, node: Node) -> bool:
        """Whether it has the same value for each image."""
        if node.op == "Argument":
            found = self._captured[node.name]
            if isinstance(found, Node):
                return self._around is not None and self._around.is_constant(found)
            return hasattr(found, "numpy")
        return node.op == "Const"

    def constant(self, node: Node) -> Array:
        """The value of a constant, or of a variable, which then counts as used.

        Raises:
            StructureError: it is neither.
        """
        if node.op == "Const":
            from tensorflow import make_ndarray  # noqa: PLC0415 (slow)

            return np.asarray(make_ndarray(node.attributes["value"].tensor))
        found: Any = self._captured.get(node.name)
        if isinstance(found, Node) and self._around is not None:
            return self._around.constant(found)
        if node.op != "Argument" or not hasattr(found, "numpy"):
            raise StructureError(f"{node.name} ({node.op}) is neither a constant nor a variable")
        if hasattr(found, "handle"):
            self._used.append(found)
        return np.asarray(found.numpy())

    def scalar(self, node: Node) -> float:
        """The value of a constant number, also of one that is computed from constants (Cast, Sqrt)."""
        found = self._captured.get(node.name)
        if isinstance(found, Node) and self._around is not None:
            return self._around.scalar(found)
        if node.op in ("Cast", "Sqrt"):
            inner = self.scalar(self.source(node))
            return float(np.sqrt(np.float32(inner))) if node.op == "Sqrt" else inner
        value = self.constant(node)
        if value.size != 1:
            raise StructureError(f"{node.name} has the shape {value.shape} and should be one number")
        return float(value.reshape(()))


def only(found: Sequence[T], what: str) -> T:
    """The one thing that was found.

    Raises:
        StructureError: there are several, or none.
    """
    if len(found) != 1:
        raise StructureError(f"the number of {what} is {len(found)}, not 1")
    return found[0]
