"""SmoothQuant: move outliers exactly from activations into weights (arXiv 2211.10438).

Channel j of an activation is divided by s_j, and row j of the following weights is multiplied by
it: (X / s)(s W) = X W. Where possible, the division is folded into the operation that produces the
activation, so that no node is added. The strength α of each site minimizes the error of the layer's
output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from mwa_export.calib.collect import ChannelStats
from mwa_export.calib.sites import NormFold, Site
from mwa_export.calib.weights import quantize_weight, weight_scales
from mwa_export.graphs.edit import Array, FloatGraph

Floats = NDArray[np.float32]

ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6)  # clipping thresholds / largest value, in the search of α
_ROWS = 192  # sample rows for the search; more rows do not change any α that matters
# If no operation can absorb the division, a Mul node is added only if that halves the error.
_WORTH_A_NODE = 0.5


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Smoothing chosen for one site."""

    alpha: float | None  # None: not smoothed
    divide: Floats | None  # (width,) divisors of the channels
    error: float  # relative squared error of the layer's output on the sample rows, smoothed
    plain_error: float  # the same error without smoothing


def joint_weight(graph: FloatGraph, site: Site) -> Floats:
    """Concatenate the weights of all GEMMs of a site, (width, outputs)."""
    return np.concatenate([graph.tensors[f"{name}.weight"] for name in site.linears], axis=1)


def choose_smoothing(weight: Floats, stats: ChannelStats, *, foldable: bool) -> Smoothing:
    """Choose α for one site.

    Args:
        weight: (width, outputs) of all GEMMs that read the activation.
        stats: of the activation.
        foldable: whether the division can be folded, so that it costs nothing at run time.
    """
    rows = stats.rows[:_ROWS]
    wanted = rows @ weight
    plain = _least_error(rows, weight, wanted)
    best = Smoothing(None, None, plain, plain)
    for alpha in ALPHAS:
        divide = smoothing_scales(stats.amax, np.abs(weight).max(axis=1), alpha)
        error = _least_error(rows / divide, weight * divide[:, None], wanted)
        if error < best.error:
            best = Smoothing(alpha, divide, error, plain)
    if not foldable and best.error > _WORTH_A_NODE * plain:
        return Smoothing(None, None, plain, plain)
    return best


def smoothing_scales(activation: Floats, weight: Floats, alpha: float) -> Floats:
    """Compute s_j = a_j^α / w_j^(1 - α), scaled to a geometric mean of 1.

    Args:
        activation: (width,) largest magnitude of each channel.
        weight: (width,) largest magnitude of each row of the weights.
        alpha: 0 leaves all outliers to the activations, 1 moves all into the weights.

    Returns:
        (width,) positive; 1 for channels that are always zero or have only zero weights.
    """
    live = (activation > 0) & (weight > 0)
    scales = np.ones(len(activation))
    if live.any():
        logs = alpha * np.log(activation[live]) - (1 - alpha) * np.log(weight[live])
        scales[live] = np.exp(logs - logs.mean())
    return scales.astype(np.float32)


def layer_error(
    rows: Floats, levels: NDArray[Any], scales: Floats, amax: float, wanted: Floats
) -> float:
    """Squared error of a quantized layer's output, relative to the output's energy.

    Args:
        rows: (n, width) smoothed activations.
        levels: (width, out) quantized weights, int8 or, as BLAS multiplies them, float32.
        scales: (out,) of the weights.
        amax: the largest activation that the grid represents.
        wanted: (n, out) exact output without bias.
    """
    step = np.float32(amax / 127)
    quantized = np.clip(np.rint(rows / step), -127, 127)
    found = quantized @ levels.astype(np.float32, copy=False)
    found *= scales * step
    found -= wanted
    error = _energy(found) / max(_energy(wanted), 1e-30)
    return error if math.isfinite(error) else math.inf  # so that min() never returns a NaN


def _energy(values: Floats) -> float:
    """Sum of squares: within rows in float32, which is fast, and over rows in float64."""
    return float(np.einsum("ij,ij->i", values, values).sum(dtype=np.float64))


def _least_error(rows: Floats, weight: Floats, wanted: Floats) -> float:
    """Error with the best of a few clipping thresholds."""
    scales = weight_scales(weight)
    levels = quantize_weight(weight, scales).astype(np.float32)
    largest = float(np.abs(rows).max())
    return min(layer_error(rows, levels, scales, c * largest, wanted) for c in _CLIPS)


def apply_smoothing(
    graph: FloatGraph, sites: Mapping[str, Site], divide: Mapping[str, Floats]
) -> FloatGraph:
    """Return an equivalent graph, smoothed at some sites. ``divide``: site name -> (width,)."""
    tensors: dict[str, Array] = dict(graph.tensors)
    norms: dict[str, Floats] = {}  # LayerNormalization node -> divisor
    nodes_before: dict[str, onnx.NodeProto] = {}  # tensor -> its Mul node
    renamed: dict[str, tuple[str, set[str]]] = {}
    for name, scale in divide.items():
        site = sites[name]
        for linear in site.linears:
            tensors[f"{linear}.weight"] = tensors[f"{linear}.weight"] * scale[:, None]
        start = 0
        for fold in site.folds:
            part = scale[start : start + fold.width]
            start += fold.width
            if isinstance(fold, NormFold):
                norms[fold.norm] = part
                continue
            columns = slice(fold.start, fold.start + fold.width)
            for kind in ("weight", "bias"):
                changed = tensors[f"{fold.linear}.{kind}"].copy()
                changed[..., columns] /= part
                tensors[f"{fold.linear}.{kind}"] = changed
        if not site.folds:
            label = f"{name}.smoothed"
            tensors[f"{label}.factor"] = (1 / scale).astype(np.float32)
            nodes_before[site.tensor] = helper.make_node(
                "Mul", [site.tensor, f"{label}.factor"], [label], name=label
            )
            renamed[site.tensor] = label, {f"{linear}.weight" for linear in site.linears}
    nodes = []
    for node in graph.nodes:
        node = deepcopy(node)
        if node.op_type == "LayerNormalization" and node.name in norms:
            _divide_norm(node, tensors, norms[node.name])
        if node.op_type == "MatMul" and node.input[0] in renamed:
            label, weights = renamed[node.input[0]]
            if node.input[1] in weights:
                before = nodes_before.pop(node.input[0], None)
                if before is not None:
                    nodes.append(before)
                node.input[0] = label
        nodes.append(node)
    return graph.with_nodes(nodes, tensors)


def _divide_norm(node: onnx.NodeProto, tensors: dict[str, Array], scale: Floats) -> None:
    """Give a norm its own weight (and bias), divided by ``scale``."""
    for index, kind in enumerate(("weight", "bias"), start=1):
        if index < len(node.input):
            name = f"{node.name}.{kind}"
            tensors[name] = (tensors[node.input[index]] / scale).astype(np.float32)
            node.input[index] = name
