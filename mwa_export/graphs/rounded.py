"""Rewrite a bfloat16 graph as a float32 graph that rounds in the same places.

ONNX Runtime has hardly any bfloat16 kernels for CPUs. To check such a graph anyway, every bfloat16
value is computed in float32 and then rounded, like on a GPU, which accumulates in float32 and
rounds once per node, or less often if it fuses nodes.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
from onnx import TensorProto, helper

from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.view import MOVES
from mwa_export.graphs.small_floats import BFLOAT16, numpy_type
from mwa_export.graphs.write import typed_value


def in_float32(graph: FloatGraph) -> FloatGraph:
    """Convert a graph from `to_bfloat16` to float32 with explicit rounding to bfloat16.

    The results are equal, except for the order of sums.
    """
    small = numpy_type(BFLOAT16)
    tensors = {
        name: array.astype(np.float32) if array.dtype == small else array
        for name, array in graph.tensors.items()
    }
    types = _types(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        new = deepcopy(node)
        if node.op_type == "Cast" and types.get(node.output[0]) == TensorProto.BFLOAT16:
            del new.attribute[:]
            new.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
        nodes.append(new)
        if node.op_type in MOVES:
            continue  # the values are already rounded
        for index, value in enumerate(node.output):
            if types.get(value) == TensorProto.BFLOAT16:
                new.output[index] = f"{value}.exact"
                nodes += _rounding(value)
    return graph.with_nodes(nodes, tensors)


def _rounding(value: str) -> list[onnx.NodeProto]:
    """Round to the nearest bfloat16, in float32."""
    exact, small = f"{value}.exact", f"{value}.rounded"
    return [
        helper.make_node("Cast", [exact], [small], name=small, to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [small], [value], name=f"{small}.float32", to=TensorProto.FLOAT),
    ]


def _types(graph: FloatGraph) -> dict[str, int]:
    """Infer the type of every value that a node produces."""
    model = deepcopy(graph.model)
    model.graph.input.extend(typed_value(name, array) for name, array in graph.tensors.items())
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True).graph
    values = (*inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}
