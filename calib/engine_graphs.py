"""The graph that an engine is compiled from: typed for TensorRT 10 and 11, float32 for 8.6."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mwa_export import __version__
from mwa_export.backend import BFLOAT16_COSINE, expected_cosine
from mwa_export.backend_onnx import image_feed, run_graph, session
from mwa_export.bundle import Bundle, Conformance, Graph
from mwa_export.calib.calibration import CALIBRATION, Calibration
from mwa_export.calib.dialects import DIALECTS
from mwa_export.calib.float16 import LIMIT, to_float16
from mwa_export.calib.float_graph import FloatGraph
from mwa_export.calib.insert import quantized_graph
from mwa_export.calib.lint import check
from mwa_export.calib.sites import find_sites
from mwa_export.calib.value_ranges import Inputs, largest_magnitudes
from mwa_export.config import Tower
from mwa_export.errors import CalibrationError, VerificationError
from mwa_export.progress import Progress
from mwa_export.trt_versions import EnginePrecision, is_typed

_OPSET = DIALECTS["tensorrt"].opset


@dataclass(frozen=True, slots=True)
class EngineGraph:
    """What is compiled, and where it comes from."""

    path: Path
    sources: tuple[str, ...]  # sha256 of the bundle's files that it was made from
    float32: tuple[str, ...]  # nodes that stay in float32, of a typed graph
    cosine: float  # least one with the conformance vectors, on ONNX Runtime


def engine_graph(
    bundle: Bundle,
    tower: Tower,
    precision: EnginePrecision,
    major: int,
    folder: Path,
    progress: Progress,
    *,
    batches: Iterable[Inputs] = (),
) -> EngineGraph:
    """Make the graph of a tower in the form that a version of TensorRT wants.

    Args:
        bundle: with its float32 graphs, and for int8 with its calibration.
        tower: which.
        precision: of the engine.
        major: of TensorRT. From 10 on the graph is typed: float16 except where a measured value
            does not fit, INT8 as Q/DQ with float16 scales. For 8.6 it stays float32.
        folder: where the graph is written.
        progress: told about each step.
        batches: inputs to measure on, beside the conformance vectors.

    Raises:
        CalibrationError: int8, and the bundle has no calibration, or one of another graph.
        VerificationError: the graph does not compute what the float32 graph computes, or a value
            does not fit the float16 that 8.6 would choose for it.
    """
    own = bundle.graph(tower)
    vectors = bundle.conformance()
    ranges = largest_magnitudes(own, [_inputs(vectors, tower), *batches], progress)
    typed = is_typed(major)
    sources = [bundle.manifest.files[own[1].file]["sha256"]]
    graph, float32 = FloatGraph.load(own[0]), tuple[str, ...]()
    if precision == "int8":
        graph = _quantized(bundle, tower, graph, "tensorrt" if typed else "tensorrt8")
        sources.append(bundle.manifest.files[CALIBRATION]["sha256"])
    if typed:
        graph, float32 = _typed(graph, ranges)
    else:
        _check_fits_float16(own[0], ranges)
    path = folder / f"{tower}.{precision}.onnx"
    progress(f"{tower} tower: write the {precision} graph and check it on ONNX Runtime")
    graph.write(path, {"mwa_export.version": __version__, "mwa_export.precision": precision})
    if precision == "int8":
        check(path, "tensorrt" if typed else "tensorrt8")
    cosine = _cosine(path, own[1], vectors)
    _check_cosine(bundle, tower, precision, cosine)
    return EngineGraph(path, tuple(sources), float32, cosine)


def needs_calibration(bundle: Bundle) -> Path:
    """The bundle's calibration.

    Raises:
        CalibrationError: there is none.
    """
    if CALIBRATION not in bundle.manifest.files:
        raise CalibrationError(
            f"{bundle.path}: has no {CALIBRATION}, and an int8 engine needs one: TensorRT 11 does "
            "not calibrate. Make it first: mwa-export quantize BUNDLE --data PICTURES --dialect "
            "tensorrt"
        )
    return bundle.path / CALIBRATION


def _quantized(bundle: Bundle, tower: Tower, graph: FloatGraph, dialect: str) -> FloatGraph:
    """Q/DQ at every layer that the bundle's calibration has, but those that quantize kept."""
    calibration = Calibration.load(needs_calibration(bundle))
    sites = find_sites(graph)
    calibration.check_fits(bundle, tower, sites)
    kept = (bundle.manifest.quantization or {}).get("kept", {}).get(tower, [])
    int8 = [site.name for site in sites if site.name not in kept]
    if not int8:
        raise CalibrationError(
            f"{bundle.path}: every layer of the {tower} tower is kept in high precision, so it has "
            "no int8 engine. Build --fp16."
        )
    return quantized_graph(graph, sites, calibration.of(tower), DIALECTS[dialect], int8)


def _typed(graph: FloatGraph, ranges: Mapping[str, float]) -> tuple[FloatGraph, tuple[str, ...]]:
    """The graph in float16, and the nodes that stay in float32."""
    known = {value for node in graph.nodes for value in node.output}
    measured = {value: amax for value, amax in ranges.items() if value in known}
    typed = to_float16(graph.whole(), opset=_OPSET, ranges=measured)
    return FloatGraph.of(typed.model), typed.kept


def _check_fits_float16(path: Path, ranges: Mapping[str, float]) -> None:
    large = [value for value, amax in ranges.items() if not amax <= LIMIT]
    if large:
        raise VerificationError(
            f"{path}: {large[0]} reaches {ranges[large[0]]:.4g}, and float16 ends at 65504. "
            "TensorRT 8.6 chooses precisions itself and could choose float16 there. Use TensorRT "
            "10 or later, where the graph keeps it in float32."
        )


def _inputs(vectors: Conformance, tower: Tower) -> Inputs:
    if tower == "vision":
        return (vectors.pixels,)
    return vectors.token_ids, vectors.padding_mask


def _cosine(path: Path, own: Graph, vectors: Conformance) -> float:
    """The least cosine with the reference; NaN if anything is not finite."""
    tower = own.spec.tower
    inputs = _inputs(vectors, tower)
    arrays: tuple[Any, ...] = image_feed(own, inputs[0]) if tower == "vision" else inputs
    found = run_graph(session(path), own, arrays)
    wanted = getattr(vectors, tower)
    return float((found.astype(np.float64) * wanted).sum(axis=1).min())


def _check_cosine(bundle: Bundle, tower: Tower, precision: EnginePrecision, found: float) -> None:
    """float16 must be close; int8 as close as the graphs that quantize measured, if there are."""
    least = BFLOAT16_COSINE
    if precision == "int8":
        measured = [
            expected_cosine(graph) or 0.0
            for graph in bundle.manifest.graphs
            if (graph.spec.tower, graph.precision) == (tower, "int8") and graph.conformance
        ]
        least = min(measured, default=0.0)
    if not found >= least:
        raise VerificationError(
            f"{bundle.path}: the {precision} graph for the {tower} tower does not compute what the "
            f"float32 graph computes. Least cosine {found:.5f}, expected {least:.5f} or more. "
            f"{_ADVICE[precision]}"
        )


_ADVICE: dict[EnginePrecision, str] = {
    "float16": "Use the float32 graphs, and report the model.",
    "int8": "Calibrate again (mwa-export quantize), or build --fp16.",
}
