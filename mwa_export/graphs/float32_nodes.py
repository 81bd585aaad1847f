"""Choose the nodes of a tower that stay in float32 when it is converted to 16 bits.

The choice depends on how nodes are connected and on measured magnitudes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx
from onnx import TensorProto

from mwa_export.errors import UsageError
from mwa_export.graphs.build import connections

LIMIT = 30000.0  # largest measured value allowed in float16: leaves a factor of 2 for other inputs
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FLOAT32 = TensorProto.FLOAT
# Operators whose outputs are as large as their inputs.
_PASSES_ON = frozenset(
    ("Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Concat", "Pad", "Expand")
) | {QUANTIZE, DEQUANTIZE}


class TowerNodes:
    """Producers and consumers of each value, and the nodes that must stay in float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.producer, self.readers = connections(self.nodes)
        self.inputs = {port.name: port.type.tensor_type.elem_type for port in model.graph.input}
        self._floats = {n for n, kind in self.inputs.items() if kind == _FLOAT32}
        self._floats |= {t.name for t in model.graph.initializer if t.data_type == _FLOAT32}
        for node in self.nodes:
            if gives_floats(node, self._floats):
                self._floats.update(node.output)

    def unit_norm(self) -> set[str]:
        """Nodes of the final L2 normalization: its lower bound of 1e-12 would be 0 in float16."""
        kept: set[str] = set()
        behind: set[str] = set()
        for node in self.nodes:
            if node.op_type == "ReduceL2" or behind.intersection(node.input):
                kept.add(node.name)
                behind.update(node.output)
                before = self.producer.get(node.input[0])
                if before is not None and before.op_type == "Squeeze":
                    kept.add(before.name)
        return kept

    def not_in_bfloat16(self) -> set[str]:
        """Nodes that ONNX or TensorRT does not support in bfloat16."""
        return {
            node.name
            for node in self.nodes
            if node.op_type == "Conv"
            or (
                node.op_type == "Cast"
                and node.input[0] not in self._floats
                and self._floats.issuperset(node.output)
            )
        }

    def named(self, names: Collection[str]) -> set[str]:
        """Nodes that the caller names.

        Raises:
            UsageError: the graph has no node of this name.
        """
        absent = sorted(set(names) - {node.name for node in self.nodes})
        if absent:
            raise UsageError(
                f"{absent[0]}: the graph has no node of this name to keep in float32. Pass names "
                "of nodes such as blocks.0.fc1.MatMul."
            )
        return set(names)

    def large(self, ranges: Mapping[str, float]) -> set[str]:
        """Values that may not fit float16, and views of them in other shapes.

        Raises:
            UsageError: a value above the limit is not in the graph.
        """
        large = {value for value, amax in ranges.items() if not amax <= LIMIT}  # NaN is large
        absent = sorted(large - self.producer.keys() - self.inputs.keys())
        if absent:
            raise UsageError(
                f"{absent[0]}: its measured magnitude {ranges[absent[0]]:g} does not fit float16, "
                "but the graph has no value of this name. Measure the graph that is converted."
            )
        for node in self.nodes:
            if node.op_type in _PASSES_ON and large.intersection(node.input):
                large.update(value for value in node.output if value not in ranges)
        for node in self.nodes:  # if a sum of products is large, its terms may be, too
            makers = [self.producer.get(value) for value in node.input]
            products = all(maker is not None and maker.op_type == "MatMul" for maker in makers)
            if node.op_type == "Add" and products and large.intersection(node.output):
                large.update(node.input)
        return large

    def around(self, values: Iterable[str]) -> set[str]:
        """Nodes that produce or read any of the values."""
        kept: set[str] = set()
        for value in values:
            kept.update(node.name for node in self.readers.get(value, ()))
            if value in self.producer:
                kept.add(self.producer[value].name)
        return kept

    def whole_sites(self, kept: set[str]) -> set[str]:
        """Add the Q, DQ and GEMMs connected to kept nodes: a Cast between them prevents fusion."""
        edges: dict[str, set[str]] = {}
        for node in self.nodes:
            if node.op_type != DEQUANTIZE:
                continue
            tied = [reader for value in node.output for reader in self.readers.get(value, ())]
            if node.input[0] in self.producer:
                tied.append(self.producer[node.input[0]])
            for other in tied:
                edges.setdefault(node.name, set()).add(other.name)
                edges.setdefault(other.name, set()).add(node.name)
        kept, waiting = set(kept), list(kept)
        while waiting:
            new = edges.get(waiting.pop(), set()) - kept
            kept |= new
            waiting += new
        return kept


def gives_floats(node: onnx.NodeProto, floats: Collection[str]) -> bool:
    """Whether a node's outputs are floats. In our graphs, the first input decides."""
    if node.op_type == "Cast":
        return any(a.name == "to" and a.i == _FLOAT32 for a in node.attribute)
    if node.op_type in ("Shape", QUANTIZE):
        return False
    return node.op_type == DEQUANTIZE or node.input[0] in floats
