"""Connections of a graph for the linter: producers, consumers and origins of values.

Shares no code with the insertion of Q/DQ, and depends on connections, not on names of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

Array = NDArray[Any]
Reader = tuple[onnx.NodeProto, int]  # a node, and the index of its input

Q, DQ = "QuantizeLinear", "DequantizeLinear"
# Operators that move values without computing.
MOVES = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Pad", "Expand")
)
CONVERTS = MOVES | {"Cast", "Identity"}


@dataclass(frozen=True, slots=True)
class Form:
    """Number formats that a dialect requires."""

    opset: int
    activation: int  # type of quantized activations
    zero_point: int  # of quantized activations
    real: int  # float type of the graph and of all scales
    direct_gelu: bool = False  # GELU is fused only into the GEMM directly before it
    weight: int = TensorProto.INT8  # type of quantized weights
    per_column: bool = True  # whether weights have one scale per output, or a single one
    quantized: bool = True  # whether Q/DQ are allowed
    floats_first: bool = False  # whether a uint8 input must be cast first


FORMS: dict[str, Form] = {
    "onnxruntime": Form(17, TensorProto.UINT8, 128, TensorProto.FLOAT),
    "openvino": Form(17, TensorProto.INT8, 0, TensorProto.FLOAT, direct_gelu=True),
    "tensorrt": Form(
        19, TensorProto.INT8, 0, TensorProto.FLOAT16, per_column=False, floats_first=True
    ),
    "tensorrt8": Form(17, TensorProto.INT8, 0, TensorProto.FLOAT, floats_first=True),
    "tensorrt-float8": Form(
        19,
        TensorProto.FLOAT8E4M3FN,
        0,
        TensorProto.FLOAT16,
        weight=TensorProto.FLOAT8E4M3FN,
        per_column=False,
        floats_first=True,
    ),
    "tensorrt-bfloat16": Form(
        19, TensorProto.INT8, 0, TensorProto.BFLOAT16, quantized=False, floats_first=True
    ),
    "onnx-float16": Form(17, TensorProto.INT8, 0, TensorProto.FLOAT16, quantized=False),
}


@dataclass(frozen=True, slots=True)
class Constant:
    """A stored tensor."""

    dtype: int  # as in TensorProto
    dims: tuple[int, ...]
    load: Callable[[], Array | None]  # returns its values; None if they are not available


class View:
    """A graph and its connections."""

    def __init__(
        self, model: onnx.ModelProto, constants: Mapping[str, Constant], form: Form
    ) -> None:
        graph = model.graph
        self.model, self.form, self.constants = model, form, constants
        self.nodes = list(graph.node)
        self.inputs = {port.name for port in graph.input} - constants.keys()
        self.outputs = {port.name for port in graph.output}
        self.producer = {value: node for node in self.nodes for value in node.output}
        self._readers: dict[str, list[Reader]] = {}
        for node in self.nodes:
            for index, value in enumerate(node.input):
                self._readers.setdefault(value, []).append((node, index))
        stored = constants.keys()
        makers = {node.output[0]: node for node in self.nodes if node.op_type == Q}
        # Weights that are quantized at run time count as weights, too.
        in_graph = {value for value, node in makers.items() if node.input[0] in stored}
        self.quantizers = [node for node in makers.values() if node.input[0] not in stored]
        self.run_time = [makers[value] for value in in_graph]
        pairs = [node for node in self.nodes if node.op_type == DQ]
        self.weights = [node for node in pairs if node.input[0] in stored]
        self.activations = [n for n in pairs if n.input[0] not in stored | in_graph]
        self._activation_values = {node.output[0] for node in self.activations}
        self._weight_values = {node.output[0] for node in pairs} - self._activation_values
        self._live = set(self.inputs)
        for node in self.nodes:
            if self._live.intersection(node.input):
                self._live.update(node.output)

    def readers(self, value: str) -> list[Reader]:
        return self._readers.get(value, [])

    def quantized(self, product: onnx.NodeProto) -> tuple[bool, bool]:
        """Whether a MatMul's activation, and whether its weight, come from a DQ."""
        left, right = product.input
        return left in self._activation_values, right in self._weight_values

    def is_activation(self, value: str) -> bool:
        """Whether a value depends on the input."""
        return value in self._live

    def moved(self, value: str) -> Iterator[tuple[onnx.NodeProto, int, bool]]:
        """Yield the consumers of a value, also after moves: node, input index, whether direct."""
        waiting, seen = [(value, True)], {value}
        while waiting:
            value, direct = waiting.pop()
            for node, index in self.readers(value):
                if node.op_type not in CONVERTS:
                    yield node, index, direct
                    continue
                new = set(node.output) - seen
                seen |= new
                waiting += [(output, False) for output in new]

    def origin(self, value: str) -> str:
        """Return the value that a value was moved from."""
        node = self.producer.get(value)
        while node is not None and node.op_type in MOVES:
            value = node.input[0]
            node = self.producer.get(value)
        return value

    def near_norms(self) -> tuple[set[str], set[str]]:
        """Return the values after any LayerNorm, and the values before any LayerNorm."""
        behind: set[str] = set()
        before: set[str] = set()
        for node in self.nodes:
            if node.op_type == "LayerNormalization" or behind.intersection(node.input):
                behind.update(node.output)
        for node in reversed(self.nodes):
            if node.op_type == "LayerNormalization" or before.intersection(node.output):
                before.update(node.input)
        return behind, before


def label(node: onnx.NodeProto) -> str:
    """Return a node's name for messages."""
    return node.name or (node.output[0] if node.output else node.op_type)


def kind_name(kind: int) -> str:
    """Return the name of a TensorProto type for messages."""
    return str(TensorProto.DataType.Name(kind)).lower()


def float32_nodes(model: onnx.ModelProto) -> set[str]:
    """Return the nodes of a 16-bit graph that its metadata lists as float32."""
    found = [e.value for e in model.metadata_props if e.key == "mwa_export.float32"]
    return {name for value in found for name in value.split(",")}
