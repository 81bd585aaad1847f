"""Graphs for TensorRT: typed for 10 and 11, float32 for 8.6, checked on ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from manifests import quantization
from onnx import TensorProto, numpy_helper
from trt_files import calibrated_bundle

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.bundle.manifest import write_manifest
from mwa_export.calib.sites import find_sites
from mwa_export.data.test_set import RetrievalData
from mwa_export.engines import graphs
from mwa_export.engines.graphs import (
    CALIBRATED,
    EngineGraph,
    engine_graph,
)
from mwa_export.errors import CalibrationError, VerificationError
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.check import lint
from mwa_export.progress import Silent
from mwa_export.runtimes.magnitudes import Inputs, largest_magnitudes
from mwa_export.spec import Tower
from mwa_export.trt.versions import is_typed

pytestmark = pytest.mark.slow

TOWER = pytest.mark.parametrize("tower", ["vision", "text"])
FLOAT16, FLOAT, INT8 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT8
BFLOAT16, FLOAT8 = TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN


@pytest.fixture(scope="session")
def calibrated(
    files: Path, data: RetrievalData, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle with a calibration, shared and not to be changed."""
    return calibrated_bundle(files / "bundle", data, tmp_path_factory.mktemp("trt") / "bundle")


def made(
    bundle: Bundle,
    tower: Tower,
    folder: Path,
    *,
    precision: EnginePrecision = "float16",
    major: int = 11,
    batches: Iterable[Inputs] = (),
) -> tuple[EngineGraph, onnx.ModelProto]:
    """A graph for an engine, and its content."""
    typed = is_typed(major)
    graph = engine_graph(bundle, tower, precision, typed, folder, Silent(), batches=batches)
    return graph, onnx.load(graph.path)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value that a node makes, by strict inference."""
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, True, True, True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}


def opset(model: onnx.ModelProto) -> int:
    return int(model.opset_import[0].version)


@TOWER
@pytest.mark.parametrize("major", [10, 11])
def test_float16_graph_is_typed_and_computes_the_same(
    tower: Tower, major: int, calibrated: Bundle, tmp_path: Path
) -> None:
    graph, model = made(calibrated, tower, tmp_path, major=major)
    assert opset(model) == 19
    assert graph.cosine >= 0.9999
    types = types_of(model)
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    assert {types[node.output[0]] for node in products} == {FLOAT16}
    assert len(graph.float32) == 4  # the unit norm
    assert not lint(model, "tensorrt", expect_quantized=False)


@TOWER
def test_int8_graph_is_the_float16_graph_with_float16_scales(
    tower: Tower, calibrated: Bundle, tmp_path: Path
) -> None:
    graph, model = made(calibrated, tower, tmp_path, precision="int8")
    types = types_of(model)
    weights = {t.name: t for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 6
    assert {weights[node.input[1]].data_type for node in pairs} == {FLOAT16}
    assert {weights[node.input[2]].data_type for node in pairs} == {INT8}
    assert {types[n.output[0]] for n in pairs if n.op_type == "DequantizeLinear"} == {FLOAT16}
    assert graph.cosine >= 0.95
    assert not lint(model, "tensorrt")


@TOWER
@pytest.mark.parametrize("major", [10, 11])
def test_bfloat16_graph_is_typed_and_computes_the_same(
    tower: Tower, major: int, calibrated: Bundle, tmp_path: Path
) -> None:
    graph, model = made(calibrated, tower, tmp_path, precision="bfloat16", major=major)
    assert opset(model) == 19
    assert 0.999 <= graph.cosine < 0.999999
    types = types_of(model)
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Softmax")]
    assert {types[node.output[0]] for node in products} == {BFLOAT16}
    first = {"vision": "patch.Conv", "text": "padding_mask.Cast"}[tower]
    assert graph.float32[0] == first
    assert len(graph.float32) == 5  # and the unit norm
    assert not lint(model, "tensorrt-bfloat16")
    assert graph.advice is None
    assert [path.name for path in tmp_path.iterdir()] == [f"{tower}.bfloat16.onnx"]


@TOWER
@pytest.mark.parametrize("major", [10, 11])
def test_float8_graph_has_the_sites_of_int8(
    tower: Tower, major: int, calibrated: Bundle, tmp_path: Path
) -> None:
    graph, model = made(calibrated, tower, tmp_path, precision="float8", major=major)
    _graph, int8 = made(calibrated, tower, tmp_path, precision="int8", major=major)
    pairs, wanted = (
        [n for n in m.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        for m in (model, int8)
    )
    assert [node.name for node in pairs] == [node.name for node in wanted]
    weights = {t.name: t for t in model.graph.initializer}
    assert {weights[node.input[1]].data_type for node in pairs} == {FLOAT16}
    assert {weights[node.input[2]].data_type for node in pairs} == {FLOAT8}
    assert INT8 not in {tensor.data_type for tensor in weights.values()}
    types = types_of(model)
    assert {types[n.output[0]] for n in pairs if n.op_type == "QuantizeLinear"} == {FLOAT8}
    assert {types[n.output[0]] for n in pairs if n.op_type == "DequantizeLinear"} == {FLOAT16}
    assert 0.98 <= graph.cosine < 0.99999
    assert not lint(model, "tensorrt-float8")
    hashes = {name: entry.sha256 for name, entry in calibrated.manifest.files.items()}
    assert graph.sources == (hashes[f"{tower}.onnx"], hashes["calibration.json"])


@TOWER
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_graph_for_8_is_float32_at_opset_17(
    tower: Tower, precision: EnginePrecision, calibrated: Bundle, tmp_path: Path
) -> None:
    graph, model = made(calibrated, tower, tmp_path, precision=precision, major=8)
    assert opset(model) == 17
    assert FLOAT16 not in types_of(model).values()
    scales = [n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert bool(scales) == (precision == "int8")
    assert graph.float32 == ()
    assert graph.cosine >= (0.99999 if precision == "float16" else 0.95)


def test_sources_are_the_files_that_a_graph_was_made_from(
    calibrated: Bundle, tmp_path: Path
) -> None:
    hashes = {name: entry.sha256 for name, entry in calibrated.manifest.files.items()}
    half, _model = made(calibrated, "text", tmp_path)
    assert half.sources == (hashes["text.onnx"],)
    whole, _model = made(calibrated, "text", tmp_path, precision="int8")
    assert whole.sources == (hashes["text.onnx"], hashes["calibration.json"])


@TOWER
def test_graphs_for_8_take_sizes_from_whole_shapes(
    tower: Tower, calibrated: Bundle, tmp_path: Path
) -> None:
    """Its parser passes over `start` and `end` of Shape: a slice of a shape would be all of it."""
    _graph, model = made(calibrated, tower, tmp_path, precision="int8", major=8)
    shapes = [node for node in model.graph.node if node.op_type == "Shape"]
    assert not any(node.attribute for node in shapes)
    assert shapes or tower == "vision"


@pytest.mark.parametrize("precision", CALIBRATED)
def test_layers_that_quantize_kept_have_no_pairs(
    precision: EnginePrecision, calibrated: Bundle, tmp_path: Path
) -> None:
    kept = quantization(kept={"text": ("blocks.0.qkv",)})
    bundle = Bundle(calibrated.path, replace(calibrated.manifest, quantization=kept))
    counts = []
    for one in (calibrated, bundle):
        _graph, model = made(one, "text", tmp_path, precision=precision)
        names = {node.name for node in model.graph.node if node.op_type == "QuantizeLinear"}
        counts.append(names)
    assert counts[0] - counts[1] == {"blocks.0.qkv.input.QuantizeLinear"}


def test_a_tower_that_is_kept_whole_has_no_int8_graph(calibrated: Bundle, tmp_path: Path) -> None:
    sites = find_sites(FloatGraph.load(calibrated.graph("text")[0]))
    kept = quantization(kept={"text": tuple(site.name for site in sites)})
    bundle = Bundle(calibrated.path, replace(calibrated.manifest, quantization=kept))
    with pytest.raises(CalibrationError, match="every layer of the text tower"):
        made(bundle, "text", tmp_path, precision="int8")


@pytest.mark.parametrize("precision", CALIBRATED)
def test_8_bits_need_a_calibration(precision: EnginePrecision, files: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"has no calibration\.json.*mwa-export quantize"):
        made(Bundle.open(files / "bundle"), "text", tmp_path, precision=precision)


def test_bfloat16_needs_no_measurement(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> dict[str, float]:
        raise AssertionError("nothing is decided by it")

    monkeypatch.setattr(graphs, "largest_magnitudes", measure)
    made(Bundle.open(files / "bundle"), "text", tmp_path, precision="bfloat16")


@pytest.mark.parametrize(
    ("precision", "major", "rules"),
    [
        ("bfloat16", 11, ["tensorrt-bfloat16"]),
        ("float8", 11, ["tensorrt-float8"]),
        ("int8", 11, ["tensorrt"]),
        ("int8", 8, ["tensorrt8"]),
        ("float16", 11, []),
    ],
)
def test_what_is_compiled_was_checked_by_its_rules(
    precision: EnginePrecision,
    major: int,
    rules: list[str],
    calibrated: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[tuple[Path, str]] = []
    monkeypatch.setattr(graphs, "check", lambda *given: checked.append(given))
    graph, _model = made(calibrated, "text", tmp_path, precision=precision, major=major)
    assert checked == [(graph.path, name) for name in rules]


# --- measured ranges ---


def with_large_values(files: Path, folder: Path, factor: float) -> Bundle:
    """A bundle whose first text block computes large values and divides them again, exactly."""
    shutil.copytree(files / "bundle", folder)
    path = folder / "text.onnx"
    model = onnx.load(path)
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == "blocks.0.fc2_up.Add")
    result = nodes[at].output[0]
    grown = onnx.helper.make_node("Mul", ["before", "factor"], ["grown"], name="grown")
    shrunk = onnx.helper.make_node("Div", ["grown", "factor"], [result], name="shrunk")
    nodes[at].output[0] = "before"
    nodes[at + 1 : at + 1] = [grown, shrunk]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    constant = numpy_helper.from_array(np.asarray(factor, np.float32), "factor")
    model.graph.initializer.append(constant)
    onnx.save(model, path)
    bundle = Bundle(folder, Bundle.open(files / "bundle").manifest)
    write_manifest(folder, bundle.manifest)
    return Bundle.open(folder)


def test_what_measures_too_large_for_float16_stays_in_float32(files: Path, tmp_path: Path) -> None:
    small = with_large_values(files, tmp_path / "small", 2.0**10)
    large = with_large_values(files, tmp_path / "large", 2.0**16)
    graph, _model = made(small, "text", tmp_path)
    assert "grown" not in graph.float32
    graph, model = made(large, "text", tmp_path)
    assert {"grown", "shrunk"} <= set(graph.float32)
    assert types_of(model)["grown"] == FLOAT
    assert graph.cosine >= 0.9999
    graph, model = made(large, "text", tmp_path, precision="bfloat16")
    assert types_of(model)["grown"] == BFLOAT16, "which has room for it"
    assert graph.cosine >= 0.999


def test_many_gemms_in_float32_are_told_and_bfloat16_advised(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(files / "bundle")
    graph, model = made(bundle, "text", tmp_path)
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    assert (graph.float32_gemms, graph.advice) == (0, None)
    shares = []
    for few in (1, len(products) // 2):
        large = {node.output[0]: 1e6 for node in products[:few]}
        monkeypatch.setattr(graphs, "largest_magnitudes", lambda *_, large=large: large)
        graph, _model = made(bundle, "text", tmp_path)
        share = graph.float32_gemms
        assert share >= few / len(products)
        shares.append(share >= 0.1)
        if share < 0.1:
            assert graph.advice is None
        else:
            assert graph.advice is not None
            assert f"{share:.0%} of the GEMMs compute in float32" in graph.advice
            assert "engine_precision=bfloat16" in graph.advice
    assert shares == [False, True]


def test_data_is_measured_beside_the_conformance_vectors(files: Path, tmp_path: Path) -> None:
    """A token that the vectors do not have, and whose row is large, but small enough to be one."""
    bundle = Bundle.open(files / "bundle")
    ids, _mask = _texts(bundle)
    unseen = min(set(range(4, 90)) - set(ids.ravel().tolist()))
    folder = tmp_path / "bundle"
    shutil.copytree(files / "bundle", folder)
    model = onnx.load(folder / "text.onnx")
    gather = next(n for n in model.graph.node if n.op_type == "Gather")
    table = next(t for t in model.graph.initializer if t.name == gather.input[0])
    rows = numpy_helper.to_array(table).copy()
    rows[unseen] *= 40000 / np.abs(rows[unseen]).max()
    table.CopyFrom(numpy_helper.from_array(rows, table.name))
    onnx.save(model, folder / "text.onnx")
    write_manifest(folder, bundle.manifest)
    changed = Bundle.open(folder)
    text = np.asarray([[0, unseen, 2]], np.int64)
    without, _model = made(changed, "text", tmp_path)
    beside, _model = made(changed, "text", tmp_path, batches=[(text, np.zeros_like(text))])
    assert len(without.float32) == 4
    assert gather.name in beside.float32


def _texts(bundle: Bundle) -> tuple[Any, Any]:
    vectors = bundle.conformance()
    return vectors.token_ids, vectors.padding_mask


def test_padding_says_nothing_about_the_model(files: Path) -> None:
    """Padded scores have 30000 subtracted; that must not turn attention to float32."""
    bundle = Bundle.open(files / "bundle")
    ids, mask = _texts(bundle)
    assert mask.any()
    found = largest_magnitudes(bundle.graph("text"), [(ids, mask)], Silent())
    assert max(found.values()) < 1000
    assert len(found) > 90


def test_8_is_refused_where_it_could_choose_float16_for_large_values(
    files: Path, tmp_path: Path
) -> None:
    bundle = with_large_values(files, tmp_path / "bundle", 2.0**16)
    with pytest.raises(
        VerificationError, match=r"grown reaches .*largest float16 is 65504.*precision=bfloat16"
    ):
        made(bundle, "text", tmp_path, major=8)


def test_a_graph_that_computes_something_else_is_refused(
    calibrated: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: dict[EnginePrecision, tuple[str, str]] = {
        "float16": ("0.99800", "Use `engine_precision=bfloat16`"),
        "bfloat16": ("0.99800", "Use `engine_precision=float16`"),
        "float8": ("0.90000", "or build with `engine_precision=float16`"),
    }
    for precision, (least, advice) in expected.items():
        for found in (float(least) - 1e-4, float("nan")):
            monkeypatch.setattr(graphs, "_cosine", lambda *_, found=found, **__: found)
            with pytest.raises(VerificationError, match=rf"expected at least {least}.*{advice}"):
                made(calibrated, "vision", tmp_path, precision=precision)


def test_int8_is_held_to_what_quantize_measured(
    calibrated: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = calibrated.describe("vision")
    known = replace(own, file="x", precision="int8", dialect="openvino", conformance=0.999)
    manifest = replace(calibrated.manifest, graphs=(*calibrated.manifest.graphs, known))
    bundle = Bundle(calibrated.path, manifest)
    monkeypatch.setattr(graphs, "_cosine", lambda *_, **__: 0.98)
    with pytest.raises(VerificationError, match=r"0\.98000, expected at least 0\.99700"):
        made(bundle, "vision", tmp_path, precision="int8")
