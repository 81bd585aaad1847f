"""Move the cast of pixels to the front: TensorRT supports no other operation on uint8 inputs.

(TensorRT API reference, DataType.UINT8.) Our graphs first rearrange the bytes into patches and
then cast, which moves a quarter of the memory and is faster on a CPU.
"""

from __future__ import annotations

from copy import deepcopy

import onnx
from onnx import TensorProto

from mwa_export.graphs.edit import FloatGraph

_MOVES = ("Reshape", "Transpose")
_UINT8 = TensorProto.UINT8


def cast_first(graph: FloatGraph) -> FloatGraph:
    """Move the Cast of a uint8 input before the nodes that rearrange pixels.

    Graphs without such a Cast are returned unchanged. Only the order of nodes changes: the result
    is bit-identical and keeps its name.
    """
    chain = _before_the_cast(graph)
    if not chain:
        return graph
    *moves, cast = chain
    last = cast.output[0]
    new = deepcopy(cast)
    new.input[0], new.output[0] = moves[0].input[0], f"{moves[0].input[0]}.float32"
    value, moved = new.output[0], [new]
    for move in moves:
        node = deepcopy(move)
        node.input[0] = value
        if move is moves[-1]:
            node.output[0] = last
        value = node.output[0]
        moved.append(node)
    names = {node.name for node in chain}
    at = next(index for index, node in enumerate(graph.nodes) if node.name in names)
    others = [node for node in graph.nodes if node.name not in names]
    return graph.with_nodes([*others[:at], *moved, *others[at:]], dict(graph.tensors))


def _before_the_cast(graph: FloatGraph) -> list[onnx.NodeProto]:
    """Return the nodes that rearrange pixels and the Cast after them; empty if there are none."""
    bytes_ = [p.name for p in graph.model.graph.input if p.type.tensor_type.elem_type == _UINT8]
    chain: list[onnx.NodeProto] = []
    value = bytes_[0] if bytes_ else None
    while value is not None:
        readers = graph.consumers(value)
        if len(readers) != 1 or readers[0].op_type not in (*_MOVES, "Cast"):
            return []
        chain.append(readers[0])
        value = None if readers[0].op_type == "Cast" else readers[0].output[0]
    return chain if len(chain) > 1 else []
