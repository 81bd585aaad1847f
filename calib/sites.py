"""Find the sites to quantize: activations that feed large GEMMs, and what can absorb a scale.

A site is one activation tensor with all the GEMMs that read it; they share one quantization. GEMMs
on a single token (in the last block of a merged graph) are not sites, as INT8 saves no time there.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from mwa_export.graphs.edit import FloatGraph

_PREFIX, _WEIGHT = "blocks.", ".weight"


@dataclass(frozen=True, slots=True)
class NormFold:
    """Channels produced by a LayerNorm: dividing its weight and bias divides the channels."""

    norm: str  # name of the LayerNormalization node
    width: int


@dataclass(frozen=True, slots=True)
class ReluFold:
    """Channels produced by a ReLU. It commutes with positive scales, so the columns of the GEMM
    before it can be divided instead."""

    linear: str  # name of that GEMM
    start: int  # its first column that produces these channels
    width: int


@dataclass(frozen=True, slots=True)
class Site:
    """An activation tensor that feeds GEMMs, quantized as one."""

    name: str  # name of its first GEMM, "blocks.3.qkv"
    tensor: str  # name of the value in the graph, (B, T, width)
    linears: tuple[str, ...]  # the GEMMs; their weights are `NAME.weight`, (width, out)
    width: int
    outputs: int  # output columns of all its GEMMs
    folds: tuple[NormFold | ReluFold, ...]  # in channel order; empty: no scale can be folded

    @property
    def macs(self) -> int:
        """Multiply-accumulates per token."""
        return self.width * self.outputs


def find_sites(graph: FloatGraph) -> tuple[Site, ...]:
    """Find the sites of a float32 graph made by this package, in graph order."""
    single = _single_token_values(graph)
    readers: dict[str, list[str]] = {}
    for node in graph.nodes:
        linear = _linear_of(node, graph)
        if linear is not None and node.input[0] not in single:
            readers.setdefault(node.input[0], []).append(linear)
    sites = []
    for tensor, linears in readers.items():
        shapes = [graph.tensors[name + _WEIGHT].shape for name in linears]
        width, outputs = shapes[0][0], sum(shape[1] for shape in shapes)
        folds = _folds(graph, tensor, width)
        sites.append(Site(linears[0], tensor, tuple(linears), width, outputs, folds))
    return tuple(sites)


def _linear_of(node: onnx.NodeProto | None, graph: FloatGraph) -> str | None:
    """Name of a block's GEMM, such as "blocks.3.qkv"; None for other nodes."""
    if node is None or node.op_type != "MatMul":
        return None
    weight = node.input[1]
    inside = weight.startswith(_PREFIX) and weight.endswith(_WEIGHT) and weight in graph.tensors
    return weight.removesuffix(_WEIGHT) if inside else None


def _single_token_values(graph: FloatGraph) -> set[str]:
    """Find values with one token per row: all that follow a slice along the tokens."""
    single: set[str] = set()
    for node in graph.nodes:
        cut = node.op_type == "Slice" and node.input[0] not in graph.tensors
        if cut or any(value in single for value in node.input):
            single.update(node.output)
    return single


def _folds(graph: FloatGraph, tensor: str, width: int) -> tuple[NormFold | ReluFold, ...]:
    """Find the producers of a tensor's channels if a scale can be folded into all of them."""
    node = graph.producer(tensor)
    if node is None:
        return ()
    parts = [tensor]
    if node.op_type == "Concat":
        if any(len(graph.consumers(value)) != 1 for value in node.input):
            return ()
        parts = list(node.input)
    elif any(reader.op_type != "MatMul" for reader in graph.consumers(tensor)):
        return ()  # another reader would be scaled too
    folds = [_fold(graph, part, width) for part in parts]
    known = tuple(fold for fold in folds if fold is not None)
    widths = sum(fold.width for fold in known)
    if len(known) != len(folds) or (len(known) > 1 and widths != width):
        return ()
    return known


def _fold(graph: FloatGraph, value: str, width: int) -> NormFold | ReluFold | None:
    node = graph.producer(value)
    if node is None:
        return None
    if node.op_type == "LayerNormalization":
        return NormFold(node.name, len(graph.tensors[node.input[1]]))
    if node.op_type != "Relu" or len(graph.consumers(node.input[0])) != 1:
        return None
    return _relu_fold(graph, node.input[0])


def _relu_fold(graph: FloatGraph, value: str) -> ReluFold | None:
    """Find the GEMM, and its columns, whose output with bias is ``value``."""
    node, start, width = graph.producer(value), 0, None
    if node is not None and node.op_type == "Split":
        sizes = graph.tensors[node.input[1]].tolist()
        index = list(node.output).index(value)
        start, width = sum(sizes[:index]), sizes[index]
        node = graph.producer(node.input[0])
    if node is None or node.op_type != "Add":
        return None
    linear = _linear_of(graph.producer(node.input[0]), graph)
    if linear is None or node.input[1] != f"{linear}.bias":
        return None
    if width is None:
        width = graph.tensors[f"{linear}.bias"].shape[0]
    return ReluFold(linear, start, width)
