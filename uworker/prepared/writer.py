"""Writes an ONNX graph, node by node. Fixed versions, and no names but ours: the same weights make the same file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from uworker.prepared.graph import Array

_OPSET, _IR_VERSION = 17, 8

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str]


class Writer:
    """A graph in the making."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, value: Array | np.float32, dtype: type = np.float32) -> str:
        """Add an array, by default of float32; returns its name."""
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype).reshape(np.shape(value)), name))
        return name

    def emit(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operation; returns the name of its (first) output."""
        name = output or f"value_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def model(self, name: str, inputs: Mapping[str, tuple[int, Shape]], outputs: Mapping[str, Shape]) -> ModelProto:
        """The model: inputs with type and shape, outputs of float32; a size that is a text may be any."""
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(key, FLOAT, shape) for key, shape in outputs.items()],
            self._weights,
        )
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION, producer_name="decimer-jobs")
