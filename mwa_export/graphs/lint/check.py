"""Check that a graph follows the rules of its dialect, before a runtime loads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from mwa_export.errors import BundleError, UsageError
from mwa_export.graphs.edit import read_model
from mwa_export.graphs.lint import rules
from mwa_export.graphs.lint.rules import RULES, Finding
from mwa_export.graphs.lint.view import (
    FORMS,
    Array,
    Constant,
    View,
    float32_nodes,
    kind_name,
    label,
)

__all__ = ["RULES", "Finding", "check", "lint"]

_SHOWN = 5  # findings that an error message lists
_SMALL = 128  # elements; tensors that shape inference reads (shapes, axes, sizes) are smaller
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def lint(
    model: onnx.ModelProto,
    dialect: str,
    *,
    weights: Mapping[str, Array] | None = None,
    folder: Path | None = None,
    expect_quantized: bool = True,
) -> list[Finding]:
    """Find every violation of a rule, in the order of the graph.

    Values are checked if they are available. For a model loaded without its data file, only
    structure, types and shapes are.

    Args:
        model: the graph to check.
        dialect: a key of FORMS, which selects the rules.
        weights: stored tensors by name whose values are not in the model.
        folder: folder of the model's data file, from which weights are read one at a time.
        expect_quantized: whether a graph without quantized GEMMs breaks a rule.

    Raises:
        UsageError: the dialect does not exist.
    """
    if dialect not in FORMS:
        raise UsageError(f"{dialect}: unknown dialect. Expected one of: {', '.join(FORMS)}.")
    constants = _constants(model, weights or {}, folder)
    view = View(model, constants, FORMS[dialect])
    found = [
        *rules.structure(view),
        *_types(view),
        *rules.pairs(view),
        *rules.activation_grids(view),
        *rules.weights(view),
        *rules.sums(view),
        *rules.placement(view),
        *rules.gelu(view),
    ]
    linears = [node for node in view.nodes if node.op_type == "MatMul"]
    expect_quantized = expect_quantized and view.form.quantized
    if expect_quantized and not any(all(view.quantized(node)) for node in linears):
        found.append(Finding("has-quantized-linears", "", f"none of {len(linears)} MatMuls is"))
    order = {label(node): index for index, node in enumerate(view.nodes)}
    return sorted(dict.fromkeys(found), key=lambda finding: order.get(finding.node, -1))


def check(path: Path, dialect: str) -> None:
    """Raise BundleError if a quantized, bfloat16 or float16 graph breaks a rule.

    Raises:
        BundleError: the file is not an ONNX graph, or breaks rules; the message lists the first.
    """
    model = read_model(path, "Quantize again.", values=False)
    found = lint(model, dialect, folder=path.parent)
    if not found:
        return
    lines = [
        f"[{finding.rule}] {finding.node or 'graph'}: {finding.message}. "
        f"Expected: {RULES[finding.rule]}."
        for finding in found[:_SHOWN]
    ]
    more = f" And {len(found) - _SHOWN} more." if len(found) > _SHOWN else ""
    raise BundleError(
        f"{path}: breaks {len(found)} rule(s) for {dialect} graphs: "
        + " ".join(lines)
        + f"{more} Do not run this graph. Quantize again, and report it if this happens again."
    )


def _constants(
    model: onnx.ModelProto, weights: Mapping[str, Array], folder: Path | None
) -> dict[str, Constant]:
    """Return the stored tensors, whose values are read on demand."""

    def load(tensor: onnx.TensorProto) -> Array | None:
        if not _is_outside(tensor):
            return numpy_helper.to_array(tensor)
        if folder is None:
            return None
        copy = deepcopy(tensor)  # to_array stores the values in the tensor that it gets
        try:
            return numpy_helper.to_array(copy, str(folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise BundleError(
                f"{folder}: the data file of {tensor.name} cannot be read ({error}). Quantize "
                "again."
            ) from error

    constants = {
        tensor.name: Constant(tensor.data_type, tuple(tensor.dims), partial(load, tensor))
        for tensor in model.graph.initializer
    }
    for name, array in weights.items():
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        constants[name] = Constant(dtype, array.shape, partial(weights.__getitem__, name))
    return constants


def _is_outside(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _types(view: View) -> Iterator[Finding]:
    """Run strict type inference, and check the float types that it finds."""
    try:
        types = _inferred(view)
    except Exception as error:  # ONNX raises types of its own without a common base class
        if not type(error).__module__.startswith("onnx"):
            raise
        yield Finding("types", "", f"type inference fails: {' '.join(str(error).split())}")
        return
    for port in view.model.graph.output:
        if port.type.tensor_type.elem_type != TensorProto.FLOAT:
            yield Finding("types", label(view.producer[port.name]), "the output is not float32")
    if view.form.real != TensorProto.FLOAT:
        yield from _float32_regions(view, types)
        return
    for node in view.nodes:
        others = {types.get(value, 0) for value in node.output} & {*_FLOATS} - {view.form.real}
        if others:
            yield Finding(
                "types", label(node), f"computes in {kind_name(others.pop())}, not float32"
            )


def _float32_regions(view: View, types: Mapping[str, int]) -> Iterator[Finding]:
    """Find float32 nodes in a 16-bit graph that are neither named nor after a Cast from 16 bits."""
    named = float32_nodes(view.model)
    allowed: set[str] = set()
    for node in view.nodes:
        kinds = {types.get(value, 0) for value in node.output} & {*_FLOATS}
        if TensorProto.FLOAT not in kinds:
            if node.op_type == "ReduceL2":
                yield Finding("types", label(node), "the unit norm is not float32")
            elif kinds - {view.form.real}:
                found = (kinds - {view.form.real}).pop()
                yield Finding("types", label(node), f"computes in {kind_name(found)}")
            continue
        sources = [value for value in node.input if value not in view.constants]
        if node.op_type == "Cast":
            fine = all(types.get(value) == view.form.real for value in sources)
        else:
            floats = [value for value in sources if types.get(value) == TensorProto.FLOAT]
            fine = bool(floats) and allowed.issuperset(floats)
        if not fine and node.name not in named:
            yield Finding("types", label(node), "computes in float32 without a Cast before it")
        allowed.update(node.output)  # one finding per region


def _inferred(view: View) -> dict[str, int]:
    """Infer the type of each value strictly. Only the shapes of large weights are used."""
    graph = view.model.graph
    light = helper.make_model(
        helper.make_graph(view.nodes, "lint", [], graph.output),
        opset_imports=view.model.opset_import,
        ir_version=view.model.ir_version,
    )
    light.graph.input.extend(port for port in graph.input if port.name in view.inputs)
    for name, constant in view.constants.items():
        small = math.prod(constant.dims) <= _SMALL
        values = constant.load() if small else None
        if values is not None:
            light.graph.initializer.append(numpy_helper.from_array(values, name))
        else:
            port = helper.make_tensor_value_info(name, constant.dtype, constant.dims)
            light.graph.input.append(port)
    inferred = onnx.shape_inference.infer_shapes(
        light, check_type=True, strict_mode=True, data_prop=True
    ).graph
    ports = (*inferred.input, *inferred.value_info, *inferred.output)
    return {port.name: port.type.tensor_type.elem_type for port in ports}
