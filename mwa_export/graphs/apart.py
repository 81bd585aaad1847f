"""Split GEMMs over a concatenation: [a, b] W = a W[:n] + b W[n:], where n is the width of a.

On a CPU, one GEMM is faster. TensorRT computes all parts of a concatenation in one kernel. If a
part is the normalized hidden layer of an FFN, this splits the FFN's kernel in two, with a float32
round trip of the activation through memory (`benchmarks/trt_kernels.py`).
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
from onnx import helper

from mwa_export.graphs.edit import Array, FloatGraph

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def without_concatenations(graph: FloatGraph) -> FloatGraph:
    """Replace each GEMM over a concatenation of channels by a sum of GEMMs.

    There may be Q/DQ between the two, and a DQ before the weights: the parts keep their scales.
    The sum keeps the name of the product's value. Only the order of additions changes.
    """
    tensors: dict[str, Array] = dict(graph.tensors)
    nodes: list[onnx.NodeProto] = []
    gone: set[str] = set()
    for node in graph.nodes:
        found = _concatenation(graph, node) if node.op_type == "MatMul" else None
        if found is None:
            nodes.append(node)
            continue
        concat, pair, widths = found
        weight = graph.producer(node.input[1])
        nodes += _parts(node, concat, pair, weight, widths, tensors)
        gone.update(part.name for part in (concat, *pair, weight) if part is not None)
    kept = [node for node in nodes if node.name not in gone]
    return graph.with_nodes(kept, tensors)


def _concatenation(
    graph: FloatGraph, product: onnx.NodeProto
) -> tuple[onnx.NodeProto, list[onnx.NodeProto], list[int]] | None:
    """Find the Concat that a product reads. Returns it, the Q/DQ between, and its parts' widths."""
    pair: list[onnx.NodeProto] = []
    node = graph.producer(product.input[0])
    while node is not None and node.op_type in _PAIR and len(graph.consumers(node.output[0])) == 1:
        pair.insert(0, node)
        node = graph.producer(node.input[0])
    if node is None or node.op_type != "Concat" or len(graph.consumers(node.output[0])) != 1:
        return None
    weight = graph.producer(product.input[1])
    stored = graph.tensors.get(product.input[1] if weight is None else weight.input[0])
    if stored is None:
        return None
    widths = [_norm_width(graph, part) for part in node.input]
    if widths.count(0) != 1:
        return None
    widths[widths.index(0)] = stored.shape[0] - sum(widths)
    return node, pair, widths


def _norm_width(graph: FloatGraph, value: str) -> int:
    """Return the number of channels of a LayerNorm's output; 0 for other values."""
    node = graph.producer(value)
    known = node is not None and node.op_type == "LayerNormalization"
    return len(graph.tensors[node.input[1]]) if known and node is not None else 0


def _parts(
    product: onnx.NodeProto,
    concat: onnx.NodeProto,
    pair: list[onnx.NodeProto],
    weight: onnx.NodeProto | None,
    widths: list[int],
    tensors: dict[str, Array],
) -> list[onnx.NodeProto]:
    linear = product.name.removesuffix(".MatMul")
    stored = product.input[1] if weight is None else weight.input[0]
    edges = np.cumsum(widths)[:-1].tolist()
    nodes: list[onnx.NodeProto] = []
    sums: list[str] = []
    for index, rows in enumerate(np.split(tensors[stored], edges)):
        part = f"{linear}.{index}"
        value = concat.input[index]
        for old in pair:
            value = _copy(old, value, old.name.replace(linear, part, 1), nodes)
        name = stored.replace(linear, part, 1)
        tensors[name] = np.ascontiguousarray(rows)
        if weight is not None:
            name = _copy(weight, name, weight.name.replace(linear, part, 1), nodes)
        sums.append(f"{part}.MatMul")
        nodes.append(helper.make_node("MatMul", [value, name], [sums[-1]], name=sums[-1]))
    del tensors[stored]
    for index, more in enumerate(sums[1:], start=1):
        last = index == len(sums) - 1
        result = product.output[0] if last else f"{linear}.sum{index}.Add"
        nodes.append(helper.make_node("Add", [sums[0], more], [result], name=f"{result}.parts"))
        sums[0] = result
    return nodes


def _copy(node: onnx.NodeProto, value: str, name: str, nodes: list[onnx.NodeProto]) -> str:
    """Add a copy of a Q or DQ that reads another value. Returns the name of its output."""
    new = deepcopy(node)
    new.name, new.input[0], new.output[0] = name, value, name
    nodes.append(new)
    return name
