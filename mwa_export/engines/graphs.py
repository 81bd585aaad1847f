"""Make the graph from which an engine is compiled: typed for TensorRT 10 and 11, else float32."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.bundle.manifest import Conformance, Graph
from mwa_export.calib.calibration import CALIBRATION, Calibration
from mwa_export.calib.dialects import DIALECTS, FLOAT8, Dialect
from mwa_export.calib.insert import quantized_graph
from mwa_export.calib.sites import find_sites
from mwa_export.engines.attention import float8_attention
from mwa_export.errors import CalibrationError, VerificationError
from mwa_export.files import scratch_folder
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.check import check
from mwa_export.graphs.rounded import in_float32
from mwa_export.graphs.typed import LIMIT, Typed, to_bfloat16, to_float16
from mwa_export.progress import Progress
from mwa_export.runtimes.backend import (
    BFLOAT16_COSINE,
    inputs_of,
    least_cosine,
    measured_cosine,
)
from mwa_export.runtimes.magnitudes import Inputs, largest_magnitudes
from mwa_export.runtimes.ort_session import run_graph, session
from mwa_export.runtimes.trt import LEAST_8_BITS
from mwa_export.spec import Tower
from mwa_export.towers.engine_form import engine_form
from mwa_export.trt.layers import Inspection
from mwa_export.version import __version__

CALIBRATED: tuple[EnginePrecision, ...] = ("int8", "float8")
"""Precisions that need the bundle's calibration."""
_OPSET = DIALECTS["tensorrt"].opset
_BFLOAT16_RULES = "tensorrt-bfloat16"  # name of the linter's rules
_MANY = 0.1  # share of float32 GEMMs from which the loss of speed matters


@dataclass(frozen=True, slots=True)
class EngineGraph:
    """A graph from which an engine is compiled."""

    path: Path
    sources: tuple[str, ...]  # sha256 of the bundle's files from which it was made
    float32: tuple[str, ...]  # nodes of a typed graph that stay in float32
    cosine: float  # least cosine with the conformance vectors, on ONNX Runtime
    float32_gemms: float = 0.0  # share of the GEMMs that stay in float32
    products: tuple[str, ...] = ()  # nodes that multiply in 8 bits

    def doubts(self, layers: Inspection, precision: str) -> tuple[str, ...]:
        """Warn about quantized GEMMs that the compiled layers do not compute in 8 bits."""
        wider = layers.wider(self.products, precision)
        names = ", ".join(layer.nodes[0] for layer in wider)
        count = f"{self.path.name}: {len(wider)} quantized GEMMs do not compute in 8 bits"
        return (f"{count}: {names}",) if wider else ()

    @property
    def advice(self) -> str | None:
        """Recommend a faster precision if many GEMMs are in float32."""
        if self.float32_gemms < _MANY:
            return None
        return (
            f"{self.float32_gemms:.0%} of the GEMMs compute in float32, because their values do "
            "not fit float16. `engine_precision=bfloat16` can represent them"
        )


def engine_graph(
    bundle: Bundle,
    tower: Tower,
    precision: EnginePrecision,
    typed: bool,
    folder: Path,
    progress: Progress,
    *,
    batches: Iterable[Inputs] = (),
    keep: Collection[str] = (),
    attention8: bool = False,
) -> EngineGraph:
    """Make the graph of a tower in the form that a version of TensorRT needs.

    Args:
        bundle: has the float32 graphs and, for int8 and float8, a calibration.
        tower: of the graph.
        precision: of the engine.
        typed: True for TensorRT 10 and later. The graph is then bfloat16, or float16 except where a
            measured value does not fit, with INT8 and float8 as Q/DQ with float16 scales. For 8.6,
            which supports neither float8 nor bfloat16, the graph stays float32.
        folder: where the graph is written.
        progress: called for each step.
        batches: inputs to measure value ranges, in addition to the conformance vectors.
        keep: nodes of a typed graph that always stay in float32.
        attention8: also put attention into float8, in a typed 8-bit graph.

    Raises:
        CalibrationError: the precision needs a calibration, and the bundle has none or one of a
            different graph.
        VerificationError: the graph does not agree with the float32 graph, or a value does not fit
            the float16 that 8.6 could choose for it.
    """
    own = bundle.graph(tower)
    vectors = bundle.conformance()
    assert typed or precision in ("float16", "int8"), "check_precision comes first"
    int8 = DIALECTS["tensorrt" if typed else "tensorrt8"]
    dialect = {"int8": int8, "float8": FLOAT8}.get(precision)  # of the Q/DQ nodes, if it has any
    sources = [bundle.manifest.files[own[1].file].sha256]
    graph, made = FloatGraph.load(own[0]), None
    if dialect is not None:
        graph = _quantized(bundle, tower, graph, dialect)
        sources.append(bundle.manifest.files[CALIBRATION].sha256)
    graph = engine_form(graph)
    ranges: Mapping[str, float] = {}
    if precision == "bfloat16":
        made = to_bfloat16(graph.whole(), opset=_OPSET, keep_float32=keep)
    else:
        ranges = largest_magnitudes(own, [inputs_of(vectors, tower), *batches], progress)
        if typed:
            made = _float16(graph, ranges, keep)
        else:
            _check_fits_float16(own[0], ranges)
    float32: tuple[str, ...] = ()
    if made is not None:
        graph, float32 = FloatGraph.of(made.model), made.kept
    path = folder / f"{tower}.{precision}.onnx"
    progress(f"{tower} tower: write the {precision} graph and check it on ONNX Runtime")
    metadata = {"mwa_export.version": __version__, "mwa_export.precision": precision}
    graph.write(path, metadata)
    if dialect is not None:
        check(path, dialect.name)
    elif precision == "bfloat16":
        check(path, _BFLOAT16_RULES)
    if attention8:  # after the linter, whose rules are for graphs without it
        graph = _float8_attention(bundle, tower, graph, ranges)
        graph.write(path, metadata)
    cosine = _cosine(path, own[1], vectors, rounded=precision == "bfloat16")
    _check_cosine(bundle, tower, precision, cosine, attention8=attention8)
    share, products = _share(graph, float32), eight_bit_products(graph)
    return EngineGraph(path, tuple(sources), float32, cosine, share, products)


def _float8_attention(
    bundle: Bundle, tower: Tower, graph: FloatGraph, ranges: Mapping[str, float]
) -> FloatGraph:
    graph, blocks = float8_attention(graph, ranges)
    if not blocks and tower == "vision":  # texts have a mask, so their attention stays float16
        raise CalibrationError(
            f"{bundle.path}: no attention of the {tower} tower can be float8, because all of it "
            "stays in float32 or the tower has a single block. Omit `float8_attention`."
        )
    return graph


def _share(graph: FloatGraph, float32: Collection[str]) -> float:
    """Share of the GEMMs that are in float32, 0 to 1."""
    products = [node.name for node in graph.nodes if node.op_type == "MatMul"]
    return sum(name in float32 for name in products) / max(1, len(products))


def eight_bit_products(graph: FloatGraph) -> tuple[str, ...]:
    """Names of the MatMuls whose factors are both dequantized."""
    pairs = {node.output[0] for node in graph.nodes if node.op_type == "DequantizeLinear"}
    return tuple(n.name for n in graph.nodes if n.op_type == "MatMul" and pairs.issuperset(n.input))


def needs_calibration(bundle: Bundle) -> Path:
    """Path of the bundle's calibration.

    Raises:
        CalibrationError: the bundle has no calibration.
    """
    if CALIBRATION not in bundle.manifest.files:
        raise CalibrationError(
            f"{bundle.path}: has no {CALIBRATION}, which an 8-bit engine needs. Make it first: "
            f"`mwa-export quantize {bundle.path}` with `data` and `dialects=tensorrt`"
        )
    return bundle.path / CALIBRATION


def _quantized(bundle: Bundle, tower: Tower, graph: FloatGraph, dialect: Dialect) -> FloatGraph:
    """Add Q/DQ at every calibrated layer, except those kept in high precision by `quantize`."""
    calibration = Calibration.load(needs_calibration(bundle))
    sites = find_sites(graph)
    calibration.check_fits(bundle, tower, sites)
    quantization = bundle.manifest.quantization
    kept = () if quantization is None else quantization.kept[tower]
    int8 = [site.name for site in sites if site.name not in kept]
    if not int8:
        raise CalibrationError(
            f"{bundle.path}: every layer of the {tower} tower is kept in high precision, so no "
            "8-bit engine can be built. Build with `engine_precision=float16`."
        )
    return quantized_graph(graph, sites, calibration.of(tower), dialect, int8)


def _float16(graph: FloatGraph, ranges: Mapping[str, float], keep: Collection[str]) -> Typed:
    known = {value for node in graph.nodes for value in node.output}
    measured = {value: amax for value, amax in ranges.items() if value in known}
    return to_float16(graph.whole(), opset=_OPSET, ranges=measured, keep_float32=keep)


def _check_fits_float16(path: Path, ranges: Mapping[str, float]) -> None:
    large = [value for value, amax in ranges.items() if not amax <= LIMIT]
    if large:
        raise VerificationError(
            f"{path}: {large[0]} reaches {ranges[large[0]]:.4g}, but the largest float16 is 65504. "
            "TensorRT 8.6 chooses precisions itself and might choose float16 there. Use TensorRT "
            "10 or later: `engine_precision=float16` then keeps it in float32, and "
            "`engine_precision=bfloat16` can represent it."
        )


def _cosine(path: Path, own: Graph, vectors: Conformance, *, rounded: bool = False) -> float:
    """Least cosine with the conformance vectors; NaN if a value is not finite.

    ``rounded``: run the graph in float32, rounded to bfloat16 after every node.
    """
    if rounded:
        with scratch_folder() as scratch:
            copy = scratch / path.name
            in_float32(FloatGraph.load(path)).write(copy)
            return _cosine(copy, own, vectors)
    tower = own.spec.tower
    found = run_graph(session(path), own, inputs_of(vectors, tower))
    return least_cosine(found, getattr(vectors, tower))


def _check_cosine(
    bundle: Bundle, tower: Tower, precision: EnginePrecision, found: float, *, attention8: bool
) -> None:
    """Check the cosine; int8 must reach that of the graphs of `quantize`, if it was measured."""
    least = LEAST_8_BITS if precision == "float8" or attention8 else BFLOAT16_COSINE
    if precision == "int8" and not attention8:
        least = measured_cosine(bundle, tower, "int8") or 0.0
    if not found >= least:
        raise VerificationError(
            f"{bundle.path}: the {precision} graph of the {tower} tower does not agree with the "
            f"float32 graph: least cosine {found:.5f}, expected at least {least:.5f}. "
            f"{_ADVICE[precision]}"
        )


_ADVICE: dict[EnginePrecision, str] = {
    "float16": "Use `engine_precision=bfloat16` (the range of float32), or the float32 graphs.",
    "bfloat16": "Use `engine_precision=float16` (more precise), or the float32 graphs.",
    "int8": "Calibrate again (mwa-export quantize), or build with `engine_precision=float16`.",
    "float8": "Calibrate again (mwa-export quantize), or build with `engine_precision=float16`.",
}
