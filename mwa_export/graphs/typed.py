"""Convert a float32 tower to 16 bits, for runtimes that take the precision from the graph.

The largest float16 is 65504, and below 6e-5 it loses digits. The final normalization therefore
stays in float32, and so do values that a measurement shows to be too large. LayerNorms need no
exception: they compute their statistics in float32 (`stash_type`).

Bfloat16 has the range of float32, so no measurement is needed, but only 8 bits of precision.
Float16 is more precise if all values fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mwa_export.errors import BundleError, UsageError
from mwa_export.graphs.build import rename
from mwa_export.graphs.float32_nodes import (
    DEQUANTIZE,
    LIMIT,
    QUANTIZE,
    TowerNodes,
    gives_floats,
)
from mwa_export.graphs.small_floats import BFLOAT16, FLOAT16, SmallFloat, rounded_tensor

__all__ = ["FLOAT32_NODES", "LIMIT", "Typed", "to_bfloat16", "to_float16"]

FLOAT32_NODES = "mwa_export.float32"  # model property: comma-separated names of float32 nodes
_FLOAT32 = TensorProto.FLOAT
_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_IR_VERSIONS = {17: 8, 18: 8, 19: 9}

Tensors = Mapping[str, onnx.TensorProto]


@dataclass(frozen=True, slots=True)
class Typed:
    """A graph converted to 16 bits, with a record of the conversion."""

    model: onnx.ModelProto
    kept: tuple[str, ...]  # nodes that compute in float32, in the order of the graph
    underflows: int  # weights below the smallest normal number, which lose digits or become 0


def to_float16(
    model: onnx.ModelProto,
    *,
    opset: int | None = None,
    keep_float32: Collection[str] = (),
    ranges: Mapping[str, float] | None = None,
) -> Typed:
    """Convert a tower to float16. Its inputs and its float32 output keep their types.

    Weights are converted one at a time. The given model is not modified.

    Args:
        model: float32, made by this package, including its weights; with or without Q/DQ.
        opset: 17 to 19; None keeps the model's. Q/DQ in float16 need 19.
        keep_float32: names of nodes that stay in float32, in addition to the final normalization.
        ranges: value -> largest measured magnitude. Nodes that produce or read a value above
            ``LIMIT`` stay in float32; values that are not listed are assumed to fit.

    Raises:
        UsageError: the opset is not supported, or the graph lacks a given name.
        BundleError: the graph is not a float32 graph of this package, or a weight overflows.
        CalibrationError: a scale is too small or too large for float16.
    """
    graph = TowerNodes(model)
    kept = graph.named(keep_float32) | graph.around(graph.large(ranges or {}))
    return _typed(model, graph, kept, opset, FLOAT16)


def to_bfloat16(
    model: onnx.ModelProto, *, opset: int | None = None, keep_float32: Collection[str] = ()
) -> Typed:
    """Convert a tower to bfloat16. Its inputs and its float32 output keep their types.

    In addition to the final normalization, two kinds of nodes stay in float32: convolutions, which
    ONNX does not support in bfloat16 before opset 22, and Casts of integers to bfloat16, which
    TensorRT does not support: it converts uint8 only to float32 or float16.

    Args:
        model: float32, made by this package, including its weights and without Q/DQ.
        opset: 17 to 19; None keeps the model's.
        keep_float32: names of other nodes that stay in float32.

    Raises:
        UsageError: the opset is not supported, the graph lacks a given name, or it has Q/DQ.
        BundleError: the graph is not a float32 graph of this package, or a weight overflows.
        MissingPackageError: the installed onnx does not support bfloat16.
    """
    quantized = [node.name for node in model.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE)]
    if quantized:
        raise UsageError(
            f"{quantized[0]}: Q/DQ in bfloat16 are not supported. Use float16 for quantized graphs."
        )
    graph = TowerNodes(model)
    kept = graph.named(keep_float32) | graph.not_in_bfloat16()
    return _typed(model, graph, kept, opset, BFLOAT16)


def _typed(
    model: onnx.ModelProto, graph: TowerNodes, kept: set[str], opset: int | None, small: SmallFloat
) -> Typed:
    """Convert a model to a small type, except for ``kept`` nodes and the final normalization."""
    version = _checked_opset(model, opset)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    _check_graph(model, tensors)
    kept = graph.whole_sites(kept | graph.unit_norm())
    typist = _Typist(graph, tensors, kept, version, small)
    for node in model.graph.node:
        typist.add(node)
    typist.finish(model.graph.output)
    names = tuple(node.name for node in model.graph.node if node.name in kept)
    written = helper.make_graph(
        typist.nodes, model.graph.name, model.graph.input, model.graph.output
    )
    typed = helper.make_model(
        written,
        opset_imports=[helper.make_opsetid("", version)],
        ir_version=max(model.ir_version, _IR_VERSIONS[version]),
        producer_name=model.producer_name,
    )
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(typed, {**properties, FLOAT32_NODES: ",".join(names)})
    return Typed(typed, names, typist.add_weights(typed.graph))


class _Typist:
    """Copies nodes one by one in their new types, with a Cast wherever the type changes."""

    def __init__(
        self, graph: TowerNodes, tensors: Tensors, kept: set[str], opset: int, small: SmallFloat
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._small = small
        self._tensors = tensors
        self._kept = kept
        self._opset = opset
        # Existing float values -> their type.
        floats = [name for name, kind in graph.inputs.items() if kind == _FLOAT32]
        self._types: dict[str, int] = dict.fromkeys(floats, _FLOAT32)
        self._casts: dict[tuple[str, int], str] = {}
        self._weights = {name for name, t in tensors.items() if t.data_type == _FLOAT32}
        self._wanted: dict[str, set[int]] = {name: set() for name in self._weights}
        for node in graph.nodes:
            for value in self._weights.intersection(node.input):
                self._wanted[value].add(self._type_of(node))
        self._scales = {
            node.input[1] for node in graph.nodes if node.op_type in (QUANTIZE, DEQUANTIZE)
        }
        self._axes: list[onnx.TensorProto] = []

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node in its new type."""
        kind = self._type_of(node)
        floats = gives_floats(node, self._types.keys() | self._weights)
        new = deepcopy(node)
        new.input[:] = [self._read(value, kind) for value in node.input]
        if node.op_type == "Cast" and floats:
            _set_attribute(new, "to", kind)
        elif node.op_type == "LayerNormalization":
            _set_attribute(new, "stash_type", 1)
        elif node.op_type == "ReduceL2" and self._opset >= 18:
            self._axes_as_input(new)
        self.nodes.append(new)
        if floats:
            self._types.update((value, kind) for value in node.output)

    def finish(self, outputs: Iterable[onnx.ValueInfoProto]) -> None:
        """Cast the graph's outputs to float32."""
        for port in outputs:
            if self._types.get(port.name) != self._small.kind:
                continue
            inside = f"{port.name}.{self._small.name}"
            rename(self.nodes, port.name, inside)
            self.nodes.append(_cast(inside, port.name, _FLOAT32))

    def add_weights(self, graph: onnx.GraphProto) -> int:
        """Add all weights in the types that the nodes read. Returns how many values underflow."""
        graph.initializer.extend(self._axes)
        underflows = 0
        for name, tensor in self._tensors.items():
            wanted = self._wanted.get(name, set())
            if name not in self._weights or _FLOAT32 in wanted:
                graph.initializer.append(tensor)
                if name in self._weights:
                    graph.initializer[-1].name = self._weight_name(name, _FLOAT32)
            if name in self._weights and wanted != {_FLOAT32}:
                half, lost = rounded_tensor(tensor, self._small, scale=name in self._scales)
                graph.initializer.append(half)
                underflows += lost
        return underflows

    def _type_of(self, node: onnx.NodeProto) -> int:
        return _FLOAT32 if node.name in self._kept else self._small.kind

    def _read(self, value: str, kind: int) -> str:
        """Return the name of a value in the given type; adds a Cast if needed."""
        if value in self._weights:
            return self._weight_name(value, kind)
        if self._types.get(value, kind) == kind:
            return value
        if (value, kind) not in self._casts:
            result = f"{value}.{'float32' if kind == _FLOAT32 else self._small.name}"
            self._casts[value, kind] = result
            self.nodes.append(_cast(value, result, kind))
        return self._casts[value, kind]

    def _weight_name(self, name: str, kind: int) -> str:
        both = len(self._wanted[name]) > 1
        return f"{name}.float32" if both and kind == _FLOAT32 else name

    def _axes_as_input(self, node: onnx.NodeProto) -> None:
        """Turn the axes of a reduction into an input, as required since opset 18."""
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if axes is None:
            return
        name = f"{node.name}.axes"
        self._axes.append(numpy_helper.from_array(np.asarray(axes, np.int64), name))
        _drop_attribute(node, "axes")
        node.input.append(name)


def _checked_opset(model: onnx.ModelProto, wanted: int | None) -> int:
    current = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    version = current if wanted is None else wanted
    if version not in _IR_VERSIONS or not 17 <= current <= version:
        raise UsageError(
            f"a graph of opset {current} cannot be converted to opset {version}. Expected 17 to "
            "19, and at least the graph's own opset."
        )
    quantized = any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node)
    if quantized and version < 19:
        raise UsageError(
            f"the graph has Q/DQ, for which opset {version} does not support float16 scales. Use "
            "opset 19."
        )
    return version


def _check_graph(model: onnx.ModelProto, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BundleError(
                f"{name}: its values are in a data file. Load the graph with external data."
            )
        if tensor.data_type in _OTHER_FLOATS:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            raise BundleError(f"{name}: is {kind}. Expected a float32 graph. Use the exported one.")
    names = {node.name for node in model.graph.node}
    if len(names) != len(model.graph.node) or "" in names:
        raise BundleError(
            "the graph has nodes without unique names. Expected a graph that this package wrote."
        )


def _cast(value: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [result], name=f"{result}.Cast", to=kind)


def _set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    _drop_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    others = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(others)
