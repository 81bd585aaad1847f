"""Insert Q/DQ into a float32 graph: one pair per site, int8 weights, one grid for all dialects.

Float8 uses scales of its own. Its steps grow with the values, so neither clipping outliers nor
per-column scales would help.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from mwa_export.calib.calibration import SiteCalibration
from mwa_export.calib.dialects import Dialect
from mwa_export.calib.sites import Site
from mwa_export.calib.smoothing import apply_smoothing
from mwa_export.calib.weights import (
    LARGEST,
    common_scale,
    float8_scale,
    float8_weight,
    quantize_weight,
    weight_scales,
)
from mwa_export.errors import CalibrationError
from mwa_export.graphs.edit import Array, FloatGraph
from mwa_export.graphs.small_floats import FLOAT8, numpy_type

Floats = NDArray[np.float32]
_ZERO_POINT = "constant.activation_zero_point"
# Later data may exceed the calibrated range, and float8 clips at its largest number. A power of two
# costs no precision, except for values below the largest / 2^14.
FLOAT8_HEADROOM = 2.0


def quantized_graph(
    graph: FloatGraph,
    sites: Sequence[Site],
    calibration: Mapping[str, SiteCalibration],
    dialect: Dialect,
    int8: Collection[str],
) -> FloatGraph:
    """Quantize the chosen sites of a graph to INT8 (or float8, by dialect); the rest is unchanged.

    Raises:
        CalibrationError: a name is not a site of the graph, or the calibration lacks it.
    """
    by_name = {site.name: site for site in sites}
    for name in sorted(int8):
        if name not in by_name or name not in calibration:
            raise CalibrationError(
                f"{name}: cannot be quantized. Layers of this graph that can: {', '.join(by_name)}."
            )
    chosen = {name: calibration[name] for name in by_name if name in int8}
    divide = {name: c.divide for name, c in chosen.items() if c.divide is not None}
    smoothed = apply_smoothing(graph, by_name, divide)
    # After smoothing, a site without folds reads the output of its own Mul node.
    tensors: dict[str, Array] = dict(smoothed.tensors)
    kind = numpy_type(FLOAT8) if dialect.activation == "float8" else dialect.activation
    tensors[_ZERO_POINT] = np.asarray(dialect.zero_point, kind)
    linear_site = {linear: name for name in chosen for linear in by_name[name].linears}
    editor = _Editor(tensors, chosen, dialect)
    for node in smoothed.nodes:
        linear = node.input[1].removesuffix(".weight") if node.op_type == "MatMul" else ""
        if linear in linear_site:
            editor.quantize_product(node, linear, linear_site[linear])
        else:
            editor.nodes.append(node)
    quantized = smoothed.with_nodes(editor.nodes, tensors)
    return _cut_joint(quantized, set(linear_site)) if dialect.cut_joint else quantized


class _Editor:
    """Collects the nodes of the new graph, and adds its weights to ``tensors``."""

    def __init__(
        self, tensors: dict[str, Array], chosen: Mapping[str, SiteCalibration], dialect: Dialect
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._tensors = tensors
        self._chosen = chosen
        self._float8 = dialect.activation == "float8"
        self._factors = dialect.column_factors
        self._dequantized: dict[str, str] = {}  # site -> the value that its GEMMs read

    def quantize_product(self, node: onnx.NodeProto, linear: str, site: str) -> None:
        """Add a MatMul with its Q/DQ; the activation's pair is added once per site."""
        if site not in self._dequantized:
            self._dequantized[site] = self._quantize_activation(node.input[0], site)
        weight = self._quantize_weight(linear, self._chosen[site])
        product = deepcopy(node)
        product.input[:] = [self._dequantized[site], weight]
        self.nodes.append(product)
        if self._factors:
            product.output[0] = f"{linear}.sums"
            inputs = [product.output[0], f"{linear}.factors"]
            name = f"{linear}.factors.Mul"
            self.nodes.append(helper.make_node("Mul", inputs, list(node.output), name=name))

    def _quantize_activation(self, value: str, site: str) -> str:
        scale = f"{site}.input.scale"
        self._tensors[scale] = np.asarray(self._activation_scale(site), np.float32)
        for op in ("QuantizeLinear", "DequantizeLinear"):
            name = f"{site}.input.{op}"
            self.nodes.append(helper.make_node(op, [value, scale, _ZERO_POINT], [name], name=name))
            value = name
        return value

    def _activation_scale(self, site: str) -> float:
        if not self._float8:
            return self._chosen[site].amax / LARGEST
        # The largest value seen in calibration, which the int8 grid may clip.
        seen = max(self._chosen[site].amax, float(self._chosen[site].histogram["amax"]))
        return float8_scale(FLOAT8_HEADROOM * seen)

    def _quantize_weight(self, linear: str, calibration: SiteCalibration) -> str:
        name = f"{linear}.weight"
        weight = self._tensors.pop(name)
        if self._float8:
            scales = np.asarray(float8_scale(float(np.abs(weight).max())), np.float32)
            stored, kind = float8_weight(weight, scales), "float8"
        else:
            scales = weight_scales(weight)
            learned = calibration.weights.get(linear)
            stored = quantize_weight(weight, scales) if learned is None else learned
            kind = "int8"
        self._correct_bias(linear, weight - stored.astype(np.float32) * scales, calibration.mean)
        if self._factors:
            scales, factors = common_scale(scales, stored, calibration.amax)
            self._tensors[f"{linear}.factors"] = factors
        self._tensors[f"{name}.{kind}"] = stored
        self._tensors[f"{name}.scale"] = scales
        self._tensors[f"{name}.zero_point"] = np.zeros(scales.shape, stored.dtype)
        self.nodes.append(_dequantize(name, kind))
        return f"{name}.DequantizeLinear"

    def _correct_bias(self, linear: str, lost: Floats, mean: Floats) -> None:
        """Correct the bias for the mean shift E[x]·(W - W') that rounding the weights causes."""
        bias = f"{linear}.bias"
        if bias in self._tensors:
            shift = mean.astype(np.float64) @ lost.astype(np.float64)
            self._tensors[bias] = (self._tensors[bias] + shift).astype(np.float32)


def _dequantize(weight: str, kind: str) -> onnx.NodeProto:
    """Make the DequantizeLinear node of a stored weight."""
    inputs = [f"{weight}.{part}" for part in (kind, "scale", "zero_point")]
    result = f"{weight}.DequantizeLinear"
    return helper.make_node("DequantizeLinear", inputs, [result], axis=1, name=result)


def _cut_joint(graph: FloatGraph, linears: Collection[str]) -> FloatGraph:
    """Replace quantized GEMMs whose output is only split by one GEMM per part."""
    tensors = dict(graph.tensors)
    cuts: dict[str, tuple[onnx.NodeProto, onnx.NodeProto]] = {}  # Split's name -> its GEMM
    for node in graph.nodes:
        add = graph.producer(node.input[0]) if node.op_type == "Split" else None
        product = None if add is None else graph.producer(add.input[0])
        if add is None or product is None or add.op_type != "Add" or product.op_type != "MatMul":
            continue
        linear = add.input[1].removesuffix(".bias")
        if linear in linears and len(graph.consumers(node.input[0])) == 1:
            cuts[node.name] = product, add
    replaced = {part.name for pair in cuts.values() for part in pair}
    replaced |= {
        f"{add.input[1].removesuffix('.bias')}.weight.DequantizeLinear" for _, add in cuts.values()
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.name in cuts:
            nodes += _parts(node, *cuts[node.name], tensors)
        elif node.name not in replaced:
            nodes.append(node)
    return graph.with_nodes(nodes, tensors)


def _parts(
    split: onnx.NodeProto, product: onnx.NodeProto, add: onnx.NodeProto, tensors: dict[str, Array]
) -> list[onnx.NodeProto]:
    linear = add.input[1].removesuffix(".bias")
    edges = np.cumsum(tensors[split.input[1]])[:-1].tolist()
    names = {
        kind: tensors.pop(f"{linear}.{kind}")
        for kind in ("weight.int8", "weight.scale", "weight.zero_point", "bias")
    }
    pieces = {kind: np.split(array, edges, axis=-1) for kind, array in names.items()}
    nodes = []
    for index, result in enumerate(split.output):
        part = f"{linear}.{index}"
        for kind, arrays in pieces.items():
            tensors[f"{part}.{kind}"] = np.ascontiguousarray(arrays[index])
        weight, out = _dequantize(f"{part}.weight", "int8"), f"{part}.MatMul"
        nodes += [
            weight,
            helper.make_node("MatMul", [product.input[0], weight.name], [out], name=out),
            helper.make_node("Add", [out, f"{part}.bias"], [result], name=f"{part}.Add"),
        ]
    return nodes
