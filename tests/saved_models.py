"""Small edits of SavedModels, each of which makes another model of it. Imports TensorFlow when it is called.

They are made in the graph as it is stored: names and variables stay, and only the structure tells them
apart.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Function = Any
"""A FunctionDef of TensorFlow's."""


def edit(model: Path, change: Callable[[Function], int]) -> int:
    """Change each function of a SavedModel; returns how many changes were made, of which there must be some."""
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415 (slow)

    file = model / "saved_model.pb"
    stored = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    changes = 0
    for function in stored.meta_graphs[0].graph_def.library.function:
        changes += change(function)
        for node in function.node_def:
            # They are noted for the model as it was.
            node.attr.pop("_output_shapes", None)
    assert changes, change
    # Others may have it as a hard link.
    file.unlink()
    file.write_bytes(stored.SerializeToString(deterministic=True))
    return changes


def limit_tokens(before: int, after: int) -> Callable[[Function], int]:
    """Have each answer end after another number of tokens."""

    def change(function: Function) -> int:
        changes = 0
        for node in function.node_def if _find(function, "While", "StatelessWhile") else []:
            if node.op == "Const" and list(node.attr["value"].tensor.int_val) == [before]:
                node.attr["value"].tensor.int_val[:] = [after]
                changes += 1
        return changes

    return change


def smooth_decoder(function: Function) -> int:
    """In the decoder another activation: ELU."""
    for node in _find(function, "Relu"):
        node.op = "Elu"
    return len(_find(function, "Elu"))


def smooth_encoder(function: Function) -> int:
    """In the encoder another activation, once: tanh."""
    for node in _find(function, "Sigmoid")[-1:]:
        node.op = "Tanh"
    return len(_find(function, "Tanh"))


def deepen_encoder(function: Function) -> int:
    """One more layer in the encoder: softsign after the last convolution's bias."""
    for node in _find(function, "Sigmoid")[-1:]:
        added = function.node_def.add(name="added/Softsign", op="Softsign", input=list(node.input))
        added.attr["T"].CopyFrom(node.attr["T"])
        node.input[0] = "added/Softsign:activations:0"
    return len(_find(function, "Softsign"))


def share_weights(function: Function) -> int:
    """What a normalisation adds is what it multiplies with: read twice, and the other never."""
    for node in _find(function, "FusedBatchNormV3")[:1]:
        node.input[2] = node.input[1]
    return len(_find(function, "FusedBatchNormV3")[:1])


def unmask(function: Function) -> int:
    """Let each token look at those after it."""
    nodes, changes = {node.name: node for node in function.node_def}, 0
    for node in _find(function, "Softmax"):
        before = nodes.get(node.input[0].split(":")[0])
        if before is not None and before.op == "AddV2" and nodes[before.input[0].split(":")[0]].op == "RealDiv":
            node.input[0] = before.input[0]
            changes += 1
    return changes


def _find(function: Function, *ops: str) -> list[Any]:
    return [node for node in function.node_def if node.op in ops]
