"""Attention in float8: Q/DQ before both of its products, which TensorRT then fuses.

All four factors must be float8. With fewer of them, or with int8, the compiler does not fuse
attention. It does not fuse attention with a mask either, so texts keep float16 attention
(`tests/engines/test_compiler.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from mwa_export.calib.insert import FLOAT8_HEADROOM
from mwa_export.calib.weights import float8_scale
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.small_floats import FLOAT8, numpy_type

_ZERO_POINT = "constant.float8_zero_point"


@dataclass(frozen=True, slots=True)
class _Attention:
    """The two products of one block's attention."""

    scores: onnx.NodeProto  # of queries and keys
    softmax: onnx.NodeProto
    values: onnx.NodeProto  # of weights and values


def float8_attention(graph: FloatGraph, ranges: Mapping[str, float]) -> tuple[FloatGraph, int]:
    """Put attention of a typed graph into float8. Returns the graph and the number of such blocks.

    A block is not changed if it has a mask or a range is unknown, as in the last block, whose
    single query is little work, and in blocks that stay in float32.

    Args:
        graph: in float16, with or without Q/DQ elsewhere.
        ranges: value -> largest measured magnitude. Scales leave room for twice that.
    """
    found = [a for a in map(lambda node: _attention(graph, node), graph.nodes) if a is not None]
    tensors = {**graph.tensors, _ZERO_POINT: np.zeros((), numpy_type(FLOAT8))}
    inputs: dict[str, list[str]] = {}  # a product's name -> what it reads
    pairs: dict[str, list[onnx.NodeProto]] = {}  # a product's name -> the Q/DQ before it
    blocks = 0
    for attention in found:
        factors = [*attention.scores.input, attention.values.input[1]]
        if not all(value in ranges for value in factors):
            continue
        blocks += 1
        scales = {value: float8_scale(FLOAT8_HEADROOM * ranges[value]) for value in factors}
        scales[attention.softmax.output[0]] = float8_scale(1.0)
        for product in (attention.scores, attention.values):
            pairs[product.name], inputs[product.name] = [], []
            for value in product.input:
                scale = f"{value}.scale"
                tensors[scale] = np.asarray(scales[value], np.float16)
                inputs[product.name].append(_pair(value, scale, pairs[product.name]))
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        new = deepcopy(node)
        if node.name in inputs:
            nodes += pairs[node.name]
            new.input[:] = inputs[node.name]
        nodes.append(new)
    return graph.with_nodes(nodes, tensors), blocks


def _attention(graph: FloatGraph, softmax: onnx.NodeProto) -> _Attention | None:
    """Attention around a softmax; None: not a softmax, or a mask is added before it."""
    if softmax.op_type != "Softmax":
        return None
    scores = graph.producer(softmax.input[0])
    readers = graph.consumers(softmax.output[0])
    if scores is None or scores.op_type != "MatMul" or [r.op_type for r in readers] != ["MatMul"]:
        return None
    return _Attention(scores, softmax, readers[0])


def _pair(value: str, scale: str, nodes: list[onnx.NodeProto]) -> str:
    """Add Q and DQ of a value. Returns the name of the dequantized value."""
    for op in ("QuantizeLinear", "DequantizeLinear"):
        name = f"{value.removesuffix('.QuantizeLinear')}.{op}"
        nodes.append(helper.make_node(op, [value, scale, _ZERO_POINT], [name], name=name))
        value = name
    return value
