"""Attention in float8: Q/DQ before both of its products, which TensorRT fuses into one kernel.

All four factors have to be float8 for that: with fewer, or with int8, the compiler takes attention
apart. It does the same where a mask is added, so that texts keep theirs (`tests/engines/
test_compiler.py`).
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
    """A typed graph with attention in float8, and in how many blocks.

    A block is left as it is if a range is not known (the last one's, whose single query is no
    work, and those that stay in float32), or if it has a mask.

    Args:
        graph: in float16, with or without Q/DQ elsewhere.
        ranges: value -> largest magnitude measured. Scales leave room for twice as much.
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
    """The attention around a softmax; None: the node is none, or a mask is added before it."""
    if softmax.op_type != "Softmax":
        return None
    scores = graph.producer(softmax.input[0])
    readers = graph.consumers(softmax.output[0])
    if scores is None or scores.op_type != "MatMul" or [r.op_type for r in readers] != ["MatMul"]:
        return None
    return _Attention(scores, softmax, readers[0])


def _pair(value: str, scale: str, nodes: list[onnx.NodeProto]) -> str:
    """Add Q and DQ of a value. Returns what the DQ makes."""
    for op in ("QuantizeLinear", "DequantizeLinear"):
        name = f"{value.removesuffix('.QuantizeLinear')}.{op}"
        nodes.append(helper.make_node(op, [value, scale, _ZERO_POINT], [name], name=name))
        value = name
    return value
