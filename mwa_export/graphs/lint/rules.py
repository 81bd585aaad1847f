"""Rules that a quantized graph must follow for its runtime to fuse it and to preserve recall.

They follow from the needs of the runtimes, independently of the code that inserts Q/DQ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from mwa_export.graphs.lint.view import (
    CONVERTS,
    DQ,
    Constant,
    Q,
    View,
    float32_nodes,
    kind_name,
    label,
)
from mwa_export.graphs.small_floats import FLOAT16

_OTHER_QUANTIZATION = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinear")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Finding:
    """A violation of a rule."""

    rule: str  # a key of RULES
    node: str  # name of the node; "" for the whole graph
    message: str


RULES: dict[str, str] = {
    "has-quantized-linears": "at least one GEMM is quantized",
    "opset": "the opset is 19 for tensorrt (float8 and bfloat16, too), and 17 for other dialects",
    "operators": "only standard operators; INT8 and float8 only as Q/DQ; no Q/DQ in bfloat16 "
    "graphs and onnx-float16",
    "types": "strict type inference passes; floats have the dialect's type; in 16-bit graphs only "
    "the unit norm, nodes after Casts from 16 bits, and nodes that the model lists are float32",
    "pairs": "a Q feeds one DQ and nothing else; the DQ of an activation reads a Q",
    "same-grid": "Q and DQ of a pair use the same scale and zero point tensors",
    "activation-scale": "the scale of an activation is one stored number, finite and positive",
    "zero-point": "zero points of activations have the dialect's type and value",
    "scale-type": "scales are float32; float16 for tensorrt and tensorrt-float8",
    "weight-type": "quantized weights are int8, or float8 (E4M3) for tensorrt-float8, (in, out)",
    "weight-range": "int8 weights are in -127 to 127, float8 weights are finite",
    "weight-axis": "int8 weights are quantized along their outputs, axis 1",
    "weight-scale": "one scale per output, or a single one for tensorrt and float8, finite and "
    "positive",
    "sums": "tensorrt: int8 sums times both scales fit float16 for any activations",
    "weight-zero-point": "zero points of weights, if present, are 0 and have the weights' type",
    "weight-stored": "quantized weights are stored quantized, without a float copy",
    "weight-readers": "a dequantized weight is read only as the second operand of one MatMul",
    "bias": "the bias of a quantized GEMM stays float",
    "shared": "GEMMs that read the same tensor share one Q/DQ, or none of them is quantized",
    "fusable": "the DQ of an activation directly feeds only MatMuls with quantized weights",
    "half-quantized": "both operands of a MatMul are quantized, or neither",
    "attention": "nothing in attention is quantized: scores, softmax, values, single query",
    "residual": "no sum of two activations reads a DQ",
    "norm-branch": "a LayerNorm whose output is quantized feeds nothing else",
    "edges": "there is no Q/DQ at inputs and outputs of the graph",
    "protected": "patch projection, token embedding and head are not quantized",
    "gelu": "openvino: GELU reads the bias sum of a quantized GEMM directly, with no Split between",
    "pixels-first": "tensorrt: a uint8 input is read only by Casts",
    "unused": "every stored tensor is read",
    "dead": "every output of every node is read",
}
"""Rule -> what it requires."""


def structure(view: View) -> Iterator[Finding]:
    """Check the opset and operators, and that every value and stored tensor is used."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in view.model.opset_import}
    if opsets.get("ai.onnx") != view.form.opset:
        found = opsets.get("ai.onnx")
        yield Finding("opset", "", f"opset {found}, expected {view.form.opset}")
    for node in view.nodes:
        foreign = node.domain not in ("", "ai.onnx")
        unwanted = node.op_type in (Q, DQ) and not view.form.quantized
        if foreign or unwanted or node.op_type.startswith(_OTHER_QUANTIZATION):
            yield Finding("operators", label(node), f"{node.domain}{'.' * foreign}{node.op_type}")
        for value in node.output:
            if value and not view.readers(value) and value not in view.outputs:
                yield Finding("dead", label(node), f"nothing reads {value}")
    for port in view.model.graph.input if view.form.floats_first else ():
        for node, _index in view.readers(port.name):
            if port.type.tensor_type.elem_type == TensorProto.UINT8 and node.op_type != "Cast":
                message = f"{node.op_type} reads {port.name}, which is uint8"
                yield Finding("pixels-first", label(node), message)
    small = [name for name, c in view.constants.items() if c.dtype == view.form.weight]
    for name, constant in view.constants.items():
        copies = [other for other in small if other.startswith(f"{name}.")]
        if constant.dtype in _FLOATS and copies:
            yield Finding("weight-stored", "", f"{name} is stored as float next to {copies[0]}")
        elif not view.readers(name):
            yield Finding("unused", "", f"nothing reads the stored tensor {name}")


def pairs(view: View) -> Iterator[Finding]:
    """Check that Q and DQ form pairs with equal scales and zero points, one pair per tensor."""
    for node in view.run_time:
        yield Finding("weight-stored", label(node), f"quantizes {node.input[0]} at run time")
    seen: dict[str, str] = {}
    for node in view.quantizers:
        name, source = label(node), node.input[0]
        if source in seen:
            yield Finding("shared", name, f"{source} is already quantized by {seen[source]}")
        seen.setdefault(source, name)
        readers = view.readers(node.output[0])
        if len(readers) != 1 or readers[0][0].op_type != DQ or node.output[0] in view.outputs:
            ops = ", ".join(sorted(label(reader) for reader, _ in readers)) or "nothing"
            yield Finding("pairs", name, f"is read by {ops}, expected one DequantizeLinear")
        for reader, _index in readers:
            if reader.op_type == DQ and reader.input[1:] != node.input[1:]:
                grids = [", ".join(n.input[1:]) for n in (node, reader)]
                message = f"reads {grids[1]}, but its Q reads {grids[0]}"
                yield Finding("same-grid", label(reader), message)
    for node in view.activations:
        maker = view.producer.get(node.input[0])
        if maker is None or maker.op_type != Q:
            what = node.input[0] if maker is None else label(maker)
            message = f"dequantizes {what}, which is not a QuantizeLinear"
            yield Finding("pairs", label(node), message)
    for source, quantizer in seen.items():
        for node, index in view.readers(source):
            if node.op_type == "MatMul" and index == 0 and _is_linear(view, node):
                message = f"reads {source} as float, although {quantizer} quantizes it"
                yield Finding("shared", label(node), message)


def activation_grids(view: View) -> Iterator[Finding]:
    """Check the scales and zero points of activations."""
    for node in view.quantizers:
        name, form = label(node), view.form
        yield from _scale(view, node, (), "activation-scale")
        zero = view.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None:
            yield Finding("zero-point", name, "has no stored zero point; its type would be uint8")
        elif (zero.dtype, zero.dims) != (form.activation, ()):
            kinds = [kind_name(zero.dtype), kind_name(form.activation)]
            message = f"is {kinds[0]} {list(zero.dims)}, expected {kinds[1]} []"
            yield Finding("zero-point", name, message)
        else:
            value = zero.load()
            if value is not None and float(value) != form.zero_point:
                yield Finding("zero-point", name, f"is {value}, expected {form.zero_point}")


def weights(view: View) -> Iterator[Finding]:
    """Check that weights are quantized as the dialect requires, and read only by GEMMs."""
    for node in view.weights:
        name, stored = label(node), view.constants[node.input[0]]
        readers = view.readers(node.output[0])
        others = {reader.op_type for reader, _ in readers}
        if "Add" in others:
            yield Finding("bias", name, f"quantizes {node.input[0]}, which is added")
            continue
        if len(stored.dims) == 3 and others == {"MatMul"}:
            yield Finding("attention", name, "quantizes the heads of a single query")
            continue
        if others & {"Gather", "Conv"}:
            yield Finding("protected", name, f"quantizes what {label(readers[0][0])} reads")
            continue
        if len(readers) != 1 or (readers[0][0].op_type, readers[0][1]) != ("MatMul", 1):
            found = ", ".join(label(reader) for reader, _ in readers) or "nothing"
            yield Finding("weight-readers", name, f"is read by {found}")
        yield from _weight(view, node, stored)


def _weight(view: View, node: onnx.NodeProto, stored: Constant) -> Iterator[Finding]:
    name, dims = label(node), stored.dims
    form, wanted = view.form, kind_name(view.form.weight)
    if stored.dtype != form.weight or len(dims) != 2:
        found = f"{kind_name(stored.dtype)} {list(dims)}, expected {wanted}"
        yield Finding("weight-type", name, f"{node.input[0]} is {found}")
        return
    yield from _range(name, node.input[0], stored)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % 2
    if form.per_column and axis != 1:
        yield Finding("weight-axis", name, f"axis {axis} of {list(dims)} is the input axis")
    else:
        yield from _scale(view, node, dims[1:] if form.per_column else (), "weight-scale")
    if len(node.input) > 2 and node.input[2]:
        zero, scale = view.constants.get(node.input[2]), view.constants.get(node.input[1])
        values = None if zero is None else zero.load()
        same = zero is not None and scale is not None and zero.dims == scale.dims
        if zero is None or zero.dtype != form.weight or not same:
            message = f"{node.input[2]} is not {wanted}, one per scale"
            yield Finding("weight-zero-point", name, message)
        elif values is not None and values.astype(np.float32).any():
            yield Finding("weight-zero-point", name, f"{node.input[2]} is not 0 everywhere")


def _range(name: str, weight: str, stored: Constant) -> Iterator[Finding]:
    """Find values of weights that correct rounding cannot produce."""
    values = stored.load()
    if values is None or not values.size:
        return
    if stored.dtype == TensorProto.INT8:
        if int(values.min()) < -127:
            yield Finding("weight-range", name, f"{weight} has values of {values.min()}")
    elif not np.isfinite(values.astype(np.float32)).all():
        yield Finding("weight-range", name, f"{weight} has values that are not finite")


def _scale(view: View, node: onnx.NodeProto, dims: tuple[int, ...], rule: str) -> Iterator[Finding]:
    name, scale = label(node), view.constants.get(node.input[1])
    if scale is None or scale.dims != dims:
        found = "computed" if scale is None else f"of shape {list(scale.dims)}"
        message = f"{node.input[1]} is {found}, expected a stored tensor {list(dims)}"
        yield Finding(rule, name, message)
        return
    values = scale.load()
    if values is not None and not (np.isfinite(values).all() and (values > 0).all()):
        yield Finding(rule, name, f"{node.input[1]} has values that are not finite and positive")
    if scale.dtype != view.form.real and node.name not in float32_nodes(view.model):
        kinds = [kind_name(scale.dtype), kind_name(view.form.real)]
        yield Finding("scale-type", name, f"{node.input[1]} is {kinds[0]}, expected {kinds[1]}")


def sums(view: View) -> Iterator[Finding]:
    """Check that sums of int8 products fit float16, in which the compiler stores them."""
    checked = view.form.real == TensorProto.FLOAT16 and view.form.weight == TensorProto.INT8
    makers = {node.output[0]: node for node in (*view.activations, *view.weights)}
    for node in view.nodes if checked else ():
        pair = [makers.get(value) for value in node.input]
        if node.op_type != "MatMul" or pair[0] is None or pair[1] is None:
            continue
        levels = view.constants[pair[1].input[0]].load()
        stored = [view.constants.get(dequantize.input[1]) for dequantize in pair if dequantize]
        scales = [scale.load() for scale in stored if scale is not None and scale.dims == ()]
        known = [float(scale) for scale in scales if scale is not None]
        if levels is None or len(known) != 2:
            continue  # a scale that is not a single number breaks another rule
        most = 127 * math.prod(known)
        most *= float(np.abs(levels.astype(np.int32)).sum(axis=0).max(initial=0))
        if FLOAT16.largest < most < math.inf:  # infinite scales break another rule
            yield Finding("sums", label(node), f"reaches {most:.4g}, above float16's 65504")


def placement(view: View) -> Iterator[Finding]:
    """Check that Q/DQ pairs are only before GEMMs whose two operands are quantized."""
    behind, before = view.near_norms()
    for node in view.nodes:
        if node.op_type != "MatMul":
            continue
        left, right = view.quantized(node)
        if (right and not left) or (left and not right and _is_linear(view, node)):
            what = "weight" if right else "activation"
            yield Finding("half-quantized", label(node), f"only its {what} is quantized")
        if left and right and not (behind.intersection(node.input) and before & {*node.output}):
            what = "before the first" if before & {*node.output} else "after the last"
            yield Finding("protected", label(node), f"is quantized, but is {what} LayerNorm")
    for node in view.quantizers:
        source = node.input[0]
        if view.origin(source) in view.inputs:
            yield Finding("edges", label(node), "quantizes an input of the graph")
            continue
        maker = view.producer.get(source)
        for reader, _ in view.readers(source):
            alone = reader.op_type == Q or (reader.op_type == "MatMul" and _is_linear(view, reader))
            if maker is not None and maker.op_type == "LayerNormalization" and not alone:
                message = f"is quantized by {label(node)}, but also read by {label(reader)}"
                yield Finding("norm-branch", label(maker), message)
        for paired, _ in view.readers(node.output[0]):
            if paired.op_type == DQ:
                yield from _misplaced(view, paired)


def _misplaced(view: View, pair: onnx.NodeProto) -> Iterator[Finding]:
    """Find nodes that must not read a dequantized activation, but do."""
    value = pair.output[0]
    if any(view.origin(output) == value for output in view.outputs):
        yield Finding("edges", label(pair), "becomes an output of the graph")
    for reader, index, direct in view.moved(value):
        product = reader.op_type == "MatMul"
        if product and index == 0 and direct and not view.is_activation(reader.input[1]):
            if len(_dims(view, reader.input[1])) > 2:
                yield Finding("attention", label(reader), f"reads {label(pair)}")
            continue  # a GEMM: another rule checks whether its weight is quantized, too
        both = all(view.is_activation(v) for v in reader.input[:2]) and len(reader.input) > 1
        message = f"reads {label(pair)}" + ("" if direct else " indirectly")
        if reader.op_type == "Softmax" or (product and both) or _leads_to_softmax(view, reader):
            yield Finding("attention", label(reader), message)
        elif reader.op_type == "Add" and both:
            yield Finding("residual", label(reader), message)
        elif reader.op_type == "Conv":
            yield Finding("protected", label(reader), message)
        else:
            yield Finding("fusable", label(reader), message)


def gelu(view: View) -> Iterator[Finding]:
    """Find nodes that prevent a GELU from being fused into its GEMM."""
    for node in view.nodes if view.form.direct_gelu else ():
        if node.op_type != "Erf":
            continue
        scaled = view.producer.get(node.input[0])
        source = None if scaled is None else view.producer.get(scaled.input[0])
        if source is None or source.op_type not in CONVERTS:
            continue
        bias = view.producer.get(view.origin(source.input[0]))
        product = None if bias is None else view.producer.get(bias.input[0])
        if product is not None and product.op_type == "MatMul" and all(view.quantized(product)):
            message = f"{label(source)} is between the GELU and {label(product)}"
            yield Finding("gelu", label(node), message)


def _is_linear(view: View, product: onnx.NodeProto) -> bool:
    """Whether a MatMul multiplies by a stored float matrix."""
    return product.input[1] in view.constants and len(_dims(view, product.input[1])) == 2


def _dims(view: View, value: str) -> tuple[int, ...]:
    maker = view.producer.get(value)
    name = value if maker is None else maker.input[0]
    return view.constants[name].dims if name in view.constants else ()


def _leads_to_softmax(view: View, node: onnx.NodeProto) -> bool:
    return node.op_type == "Add" and any(
        reader.op_type == "Softmax" for value in node.output for reader, _ in view.readers(value)
    )
