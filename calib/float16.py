"""A float32 tower typed down to float16, for runtimes that take every precision from the graph.

Float16 ends at 65504 and is coarse below 6e-5. So what divides by a length at the end stays in
float32, and so does all that a measurement says would not fit. LayerNorms need no exception: their
statistics are computed in float32 inside the node (`stash_type`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mwa_export.errors import BundleError, CalibrationError, OptionsError

FLOAT32_NODES = "mwa_export.float32"  # property of a typed model: names of the nodes kept, by comma
LIMIT = 30000.0  # the largest measured value that is left in float16: a factor of 2 for what is not
_FLOAT32, _FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
_OTHER_FLOATS = (_FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_MAX, _NORMAL, _TINY = 65504.0, 2.0**-14, 2.0**-24  # of float16; below _TINY is nothing
_IR_VERSIONS = {17: 8, 18: 8, 19: 9}
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# What comes out is as large as what goes in.
_PASSES_ON = frozenset(
    ("Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Concat", "Pad", "Expand")
) | {_QUANTIZE, _DEQUANTIZE}

Tensors = Mapping[str, onnx.TensorProto]


@dataclass(frozen=True, slots=True)
class Typed:
    """A graph in float16, and what the step from float32 did to it."""

    model: onnx.ModelProto
    kept: tuple[str, ...]  # nodes that compute in float32, in the order of the graph
    underflows: int  # weights below float16's normal numbers: they lose digits, or become 0


def to_float16(
    model: onnx.ModelProto,
    *,
    opset: int | None = None,
    keep_float32: Collection[str] = (),
    ranges: Mapping[str, float] | None = None,
) -> Typed:
    """Type a tower down to float16. Its inputs and its float32 output stay as they are.

    Weights are converted one by one; the model given is not changed.

    Args:
        model: float32, made by this package, with its weights inside; with or without Q/DQ.
        opset: 17 to 19; None keeps the model's. Q/DQ in float16 need 19.
        keep_float32: names of nodes that stay in float32, beside the final normalization.
        ranges: value -> largest magnitude measured. What makes or reads a value above ``LIMIT``
            stays in float32; values that are not named are taken to fit.

    Raises:
        OptionsError: an opset that does not fit, or a name that the graph does not have.
        BundleError: the graph is not a float32 one of this package, or a weight overflows.
        CalibrationError: a scale is too small or too large for float16.
    """
    version = _checked_opset(model, opset)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    _check_graph(model, tensors)
    graph = _Graph(model)
    kept = graph.unit_norm() | graph.named(keep_float32) | graph.around(graph.large(ranges or {}))
    kept = graph.whole_sites(kept)
    typist = _Typist(graph, tensors, kept, version)
    for node in model.graph.node:
        typist.add(node)
    typist.finish(model.graph.output)
    names = tuple(node.name for node in model.graph.node if node.name in kept)
    typed = _without_weights(model, version, typist.nodes, names)
    underflows = typist.add_weights(typed.graph)
    return Typed(typed, names, underflows)


class _Graph:
    """Who makes and who reads a value, and which nodes must stay in float32 for it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.producer = {value: node for node in self.nodes for value in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.inputs = {port.name: port.type.tensor_type.elem_type for port in model.graph.input}

    def unit_norm(self) -> set[str]:
        """The division by the length: its lower bound of 1e-12 would be 0 in float16."""
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

    def named(self, names: Collection[str]) -> set[str]:
        absent = sorted(set(names) - {node.name for node in self.nodes})
        if absent:
            raise OptionsError(
                f"{absent[0]}: the graph has no node of this name, so it cannot stay in float32. "
                "Name nodes as the graph does, for example blocks.0.fc1.MatMul."
            )
        return set(names)

    def large(self, ranges: Mapping[str, float]) -> set[str]:
        """Values that may not fit, and what has the same values in another shape."""
        large = {value for value, amax in ranges.items() if not amax <= LIMIT}  # NaN is large
        absent = sorted(large - self.producer.keys() - self.inputs.keys())
        if absent:
            raise OptionsError(
                f"{absent[0]}: the graph has no value of this name, and its measured range of "
                f"{ranges[absent[0]]:g} does not fit float16. Measure the graph that is converted."
            )
        for node in self.nodes:
            if node.op_type in _PASSES_ON and large.intersection(node.input):
                large.update(value for value in node.output if value not in ranges)
        return large

    def around(self, values: Iterable[str]) -> set[str]:
        """The nodes that make or read any of the values."""
        kept: set[str] = set()
        for value in values:
            kept.update(node.name for node in self.readers.get(value, ()))
            if value in self.producer:
                kept.add(self.producer[value].name)
        return kept

    def whole_sites(self, kept: set[str]) -> set[str]:
        """Q, DQ and the GEMMs between them stay together: a Cast there would end the fusion."""
        edges: dict[str, set[str]] = {}
        for node in self.nodes:
            if node.op_type != _DEQUANTIZE:
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


class _Typist:
    """Writes the nodes again, one by one, with a Cast wherever the type changes."""

    def __init__(self, graph: _Graph, tensors: Tensors, kept: set[str], opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._tensors = tensors
        self._kept = kept
        self._opset = opset
        # Float values that exist already -> their type.
        self._types: dict[str, int] = {
            name: _FLOAT32 for name, kind in graph.inputs.items() if kind == _FLOAT32
        }
        self._casts: dict[tuple[str, int], str] = {}
        self._weights = {name for name, t in tensors.items() if t.data_type == _FLOAT32}
        self._wanted: dict[str, set[int]] = {name: set() for name in self._weights}
        for node in graph.nodes:
            for value in self._weights.intersection(node.input):
                self._wanted[value].add(self._type_of(node))
        self._scales = {
            node.input[1] for node in graph.nodes if node.op_type in (_QUANTIZE, _DEQUANTIZE)
        }
        self._axes: list[onnx.TensorProto] = []

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node in its type."""
        kind = self._type_of(node)
        floats = _gives_floats(node, self._types.keys() | self._weights)
        new = onnx.NodeProto()
        new.CopyFrom(node)
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
        """Outputs are float32 whatever made them."""
        for port in outputs:
            if self._types.get(port.name) != _FLOAT16:
                continue
            inside = f"{port.name}.float16"
            for node in self.nodes:
                node.input[:] = [inside if v == port.name else v for v in node.input]
                node.output[:] = [inside if v == port.name else v for v in node.output]
            self.nodes.append(_cast(inside, port.name, _FLOAT32))

    def add_weights(self, graph: onnx.GraphProto) -> int:
        """Add all weights in the types that the nodes read. Returns how many underflow."""
        graph.initializer.extend(self._axes)
        underflows = 0
        for name, tensor in self._tensors.items():
            wanted = self._wanted.get(name, set())
            if name not in self._weights or _FLOAT32 in wanted:
                graph.initializer.append(tensor)
                if name in self._weights:
                    graph.initializer[-1].name = self._weight_name(name, _FLOAT32)
            if name in self._weights and wanted != {_FLOAT32}:
                half, lost = _half(tensor, scale=name in self._scales)
                graph.initializer.append(half)
                underflows += lost
        return underflows

    def _type_of(self, node: onnx.NodeProto) -> int:
        return _FLOAT32 if node.name in self._kept else _FLOAT16

    def _read(self, value: str, kind: int) -> str:
        """The name under which a value can be read in that type."""
        if value in self._weights:
            return self._weight_name(value, kind)
        if self._types.get(value, kind) == kind:
            return value
        if (value, kind) not in self._casts:
            result = f"{value}.{'float16' if kind == _FLOAT16 else 'float32'}"
            self._casts[value, kind] = result
            self.nodes.append(_cast(value, result, kind))
        return self._casts[value, kind]

    def _weight_name(self, name: str, kind: int) -> str:
        both = len(self._wanted[name]) > 1
        return f"{name}.float32" if both and kind == _FLOAT32 else name

    def _axes_as_input(self, node: onnx.NodeProto) -> None:
        """Since opset 18 the axes of a reduction are an input."""
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if axes is None:
            return
        name = f"{node.name}.axes"
        self._axes.append(numpy_helper.from_array(np.asarray(axes, np.int64), name))
        others = [attribute for attribute in node.attribute if attribute.name != "axes"]
        del node.attribute[:]
        node.attribute.extend(others)
        node.input.append(name)


def _gives_floats(node: onnx.NodeProto, floats: Collection[str]) -> bool:
    """Whether a node's outputs are floats. In the nodes of our graphs the first input decides."""
    if node.op_type == "Cast":
        return any(a.name == "to" and a.i == _FLOAT32 for a in node.attribute)
    if node.op_type in ("Shape", _QUANTIZE):
        return False
    return node.op_type == _DEQUANTIZE or node.input[0] in floats


def _half(tensor: onnx.TensorProto, *, scale: bool) -> tuple[onnx.TensorProto, int]:
    """A float32 tensor in float16, and how many of its values underflow."""
    exact = numpy_helper.to_array(tensor)
    sizes = np.abs(exact)
    largest = float(sizes.max(initial=0.0))
    if scale and not (largest <= _MAX and float(exact.min(initial=_MAX)) >= _TINY):
        raise CalibrationError(
            f"{tensor.name}: scales between {exact.min():.3g} and {exact.max():.3g}. Float16 holds "
            f"{_TINY:.1g} to {_MAX:g}. Keep this layer in high precision."
        )
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
    if not np.isfinite(half).all():
        raise BundleError(
            f"{tensor.name}: has a value of magnitude {largest:.4g}, and float16 ends at {_MAX:g}. "
            "Keep the nodes that read it in float32, or use the float32 graph."
        )
    lost = int(np.count_nonzero((sizes < _NORMAL) & (sizes > 0)))
    return numpy_helper.from_array(half, tensor.name), lost


def _checked_opset(model: onnx.ModelProto, wanted: int | None) -> int:
    current = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    version = current if wanted is None else wanted
    if version not in _IR_VERSIONS or not 17 <= current <= version:
        raise OptionsError(
            f"a graph of opset {current} cannot be typed as opset {version}. Expected 17 to 19, "
            "and not below the graph's own."
        )
    quantized = any(node.op_type in (_QUANTIZE, _DEQUANTIZE) for node in model.graph.node)
    if quantized and version < 19:
        raise OptionsError(
            f"the graph has Q/DQ, whose scales cannot be float16 in opset {version}. Use opset 19."
        )
    return version


def _check_graph(model: onnx.ModelProto, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BundleError(f"{name}: its values lie in a data file. Load the graph with them.")
        if tensor.data_type in _OTHER_FLOATS:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            raise BundleError(f"{name}: is {kind}. Expected a float32 graph, as it was exported.")
    names = {node.name for node in model.graph.node}
    if len(names) != len(model.graph.node) or "" in names:
        raise BundleError(
            "the graph has nodes without a name of their own. Expected a graph of this package."
        )


def _without_weights(
    model: onnx.ModelProto, version: int, nodes: Sequence[onnx.NodeProto], kept: Sequence[str]
) -> onnx.ModelProto:
    typed = helper.make_model(
        helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output),
        opset_imports=[helper.make_opsetid("", version)],
        ir_version=max(model.ir_version, _IR_VERSIONS[version]),
        producer_name=model.producer_name,
    )
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(typed, {**properties, FLOAT32_NODES: ",".join(kept)})
    return typed


def _cast(value: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [result], name=f"{result}.Cast", to=kind)


def _set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    others = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*others, helper.make_attribute(name, value)])
