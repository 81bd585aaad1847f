"""Find the sites to quantize: activations that feed a large GEMM, and what can absorb a scale.

A site is one activation tensor with all the GEMMs that read it: they share one quantization. What
runs on one token only (the last block after the merge) is no site: there is no time to be saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from mwa_export.graphs.edit import FloatGraph

_PREFIX, _WEIGHT = "blocks.", ".weight"


@dataclass(frozen=True, slots=True)
class NormFold:
    """Channels that come out of a LayerNorm: dividing its weight and bias divides them."""

    norm: str  # name of the LayerNormalization node
    width: int


@dataclass(frozen=True, slots=True)
class ReluFold:
    """Channels that come out of a ReLU, which commutes with positive scales: the GEMM before it
    can be divided column by column."""

    linear: str  # name of that GEMM
    start: int  # its first column that leads here
    width: int


@dataclass(frozen=True, slots=True)
class Site:
    """One activation tensor that feeds GEMMs."""

    name: str  # of its first GEMM, "blocks.3.qkv"
    tensor: str  # the value in the graph, (B, T, width)
    linears: tuple[str, ...]  # the GEMMs; their weights are `NAME.weight`, (width, out)
    width: int
    outputs: int  # of all its GEMMs together
    folds: tuple[NormFold | ReluFold, ...]  # in the order of the channels; empty: nothing absorbs

    @property
    def macs(self) -> int:
        """Multiply-accumulates per token."""
        return self.width * self.outputs


def find_sites(graph: FloatGraph) -> tuple[Site, ...]:
    """The sites of a float32 graph that this package made, in the order of the graph."""
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
    """The name of a block's GEMM, "blocks.3.qkv"; None for other nodes."""
    if node is None or node.op_type != "MatMul":
        return None
    weight = node.input[1]
    inside = weight.startswith(_PREFIX) and weight.endswith(_WEIGHT) and weight in graph.tensors
    return weight.removesuffix(_WEIGHT) if inside else None


def _single_token_values(graph: FloatGraph) -> set[str]:
    """Values of one token per row: what follows from a slice along the tokens."""
    single: set[str] = set()
    for node in graph.nodes:
        cut = node.op_type == "Slice" and node.input[0] not in graph.tensors
        if cut or any(value in single for value in node.input):
            single.update(node.output)
    return single


def _folds(graph: FloatGraph, tensor: str, width: int) -> tuple[NormFold | ReluFold, ...]:
    """Producers of a tensor's channels, if a scale can be folded into all of them."""
    node = graph.producer(tensor)
    if node is None:
        return ()
    parts = [tensor]
    if node.op_type == "Concat":
        if any(len(graph.consumers(value)) != 1 for value in node.input):
            return ()
        parts = list(node.input)
    elif any(reader.op_type != "MatMul" for reader in graph.consumers(tensor)):
        return ()  # something else reads it, and would be scaled too
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
    """The GEMM, and its columns, whose output with bias is `value`."""
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
