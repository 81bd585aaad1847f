"""Rewrite a tower so that TensorRT compiles it to fewer and larger kernels.

Merges that help CPUs but prevent TensorRT from fusing are undone. The function stays the same.
`benchmarks/trt_kernels.py` counts kernels and bytes with and without each step.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mwa_export.graphs.apart import without_concatenations
from mwa_export.graphs.cast_first import cast_first
from mwa_export.graphs.edit import Array, FloatGraph

_KEYS, _VALUES = ".key_heads", ".value_heads"


def engine_form(graph: FloatGraph) -> FloatGraph:
    """Rewrite a tower, with or without Q/DQ, for TensorRT.

    Bytes are cast before they are moved, GEMMs over concatenations become sums of GEMMs, and the
    single query of the last block attends to keys and values instead of tokens.
    """
    return without_concatenations(keys_and_values(cast_first(graph)))


def keys_and_values(graph: FloatGraph) -> FloatGraph:
    """Add the key and value GEMMs that `attention_of_one` avoids.

    The merge step `last-token` saves these two GEMMs, 1.4% of a base model. But it makes the heads
    as wide as the model, for which TensorRT has no fused attention: it copies, pads and transposes
    all tokens.
    """
    for name in graph.tensors:
        if name.endswith(_KEYS):
            return _with_keys(graph, name.removesuffix(_KEYS))
    return graph


def _with_keys(graph: FloatGraph, block: str) -> FloatGraph:
    attention = f"{block}.attn"
    by_name = {node.name: node for node in graph.nodes}
    tensors: dict[str, Array] = dict(graph.tensors)
    heads, head_dim, width = tensors[block + _KEYS].shape
    asking = by_name[f"{attention}.Reshape"].input[0]  # (B, 1, D)
    tokens = by_name[f"{attention}.values.MatMul"].input[1]  # (B, T, D)
    end = by_name[f"{attention}.values.Add"]  # adds the value bias
    masked = by_name.get(f"{attention}.scores.Add")
    squeeze = None if masked is None else graph.producer(masked.input[1])
    # (heads, 64, D) and (heads, D, 64) -> (D, D), head by head
    tensors[f"{block}.k.weight"] = _flat(tensors.pop(block + _KEYS).transpose(2, 0, 1), width)
    tensors[f"{block}.v.weight"] = _flat(tensors.pop(block + _VALUES).transpose(1, 0, 2), width)
    tensors[f"{attention}.heads"] = np.asarray([0, 0, heads, head_dim], np.int64)
    tensors[f"{attention}.width"] = np.asarray([0, 0, width], np.int64)
    new = _Nodes(attention)
    k = new.add("MatMul", [tokens, f"{block}.k.weight"], f"{block}.k")
    v = new.add("MatMul", [tokens, f"{block}.v.weight"], f"{block}.v")
    q, k, v = (
        new.heads(value, f"{attention}.{name}", perm)
        for value, name, perm in ((asking, "q", "0213"), (k, "k", "0231"), (v, "v", "0213"))
    )
    scores = new.add("MatMul", [q, k], f"{attention}.scores")  # (B, heads, 1, T)
    if squeeze is not None:
        scores = new.add("Add", [scores, squeeze.input[0]], f"{attention}.scores")
    weights = new.add("Softmax", [scores], attention, axis=-1)
    seen = new.add("MatMul", [weights, v], f"{attention}.values")
    seen = new.add("Transpose", [seen], f"{attention}.values", perm=[0, 2, 1, 3])
    seen = new.add("Reshape", [seen, f"{attention}.width"], f"{attention}.values")
    last = deepcopy(end)
    last.input[0] = seen
    gone = _before(graph, end, {asking, tokens, *([] if squeeze is None else squeeze.input)})
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.name == end.name:
            nodes += [*new.nodes, last]
        elif node.name not in gone:
            nodes.append(node)
    return graph.with_nodes(nodes, tensors)


class _Nodes:
    """Collects nodes, named after their outputs like in `OnnxOps`."""

    def __init__(self, attention: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._attention = attention

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        result = f"{name}.{op}"
        self.nodes.append(helper.make_node(op, inputs, [result], name=result, **attributes))
        return result

    def heads(self, value: str, name: str, perm: str) -> str:
        """Split into heads: (B, T, D) -> (B, heads, T, head_dim), with axes ordered by ``perm``."""
        value = self.add("Reshape", [value, f"{self._attention}.heads"], name)
        return self.add("Transpose", [value], name, perm=[int(axis) for axis in perm])


def _flat(weight: Array, width: int) -> Array:
    return np.ascontiguousarray(weight.reshape(width, -1))


def _before(graph: FloatGraph, end: onnx.NodeProto, borders: set[str]) -> set[str]:
    """Return the names of all nodes between the values ``borders`` and a node."""
    names: set[str] = set()
    waiting = [end.input[0]]
    while waiting:
        value = waiting.pop()
        node = graph.producer(value)
        if node is not None and value not in borders and node.name not in names:
            names.add(node.name)
            waiting += node.input
    return names
