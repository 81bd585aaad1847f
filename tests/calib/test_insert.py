"""Quantized graphs of all dialects are clean, alike, close to float32; calibration files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from calib_files import cosine, embed, embeddings, float_graph, make_samples, names
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import GraphFile
from mwa_export.calib.calibrate import calibrate
from mwa_export.calib.calibration import Calibration, SiteCalibration
from mwa_export.calib.dialects import CPU_DIALECTS, DIALECTS
from mwa_export.calib.insert import quantized_graph
from mwa_export.calib.sites import Site, find_sites
from mwa_export.calib.smoothing import apply_smoothing
from mwa_export.calib.variants import Variants
from mwa_export.cpu import fast_int8, instruction_sets
from mwa_export.errors import CalibrationError
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.check import lint
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.runtimes.open import cpu_backend
from mwa_export.spec import TOWERS, Tower

pytestmark = pytest.mark.slow

Written = dict[str, dict[Tower, GraphFile]]  # by dialect


@pytest.fixture(scope="session")
def bundle(files: Path) -> Bundle:
    return Bundle.open(files / "bundle")


@pytest.fixture(scope="session")
def variants(bundle: Bundle) -> Variants:
    return Variants(bundle, calibrate(bundle, make_samples()))


@pytest.fixture(scope="session")
def written(variants: Variants, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """All sites in INT8."""
    folder = tmp_path_factory.mktemp("int8")
    return {
        name: {
            tower: variants.write(tower, names(variants.sites(tower)), dialect, folder)
            for tower in TOWERS
        }
        for name, dialect in DIALECTS.items()
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialect_is_clean_and_close_to_float32(
    bundle: Bundle, written: Written, dialect: str
) -> None:
    graphs = written[dialect]
    for path, _graph in graphs.values():
        assert lint(onnx.load(path), dialect) == []
    exact = embeddings(OnnxBackend(bundle, check=False))
    # ONNX Runtime computes what the graph says, on any CPU.
    found = embeddings(OnnxBackend(bundle, graphs=graphs, check=False))
    assert min(map(cosine, exact, found)) >= 0.999
    assert all(not np.array_equal(a, b) for a, b in zip(exact, found, strict=True))


def test_openvino_runs_its_dialect(bundle: Bundle, written: Written) -> None:
    pytest.importorskip("openvino")
    graphs = written["openvino"]
    exact = embeddings(OnnxBackend(bundle, check=False))
    found = embeddings(cpu_backend(bundle, "openvino", graphs, precision="float32"))
    # Without INT8 instructions its kernels add up in 16 bits, which overflow.
    least = 0.999 if fast_int8(instruction_sets()) else 0.99
    assert min(map(cosine, exact, found)) >= least


@pytest.mark.parametrize("tower", TOWERS)
def test_grid_and_weights_are_the_same_in_all_dialects(
    variants: Variants, written: Written, tower: Tower
) -> None:
    graphs = {name: FloatGraph.load(written[name][tower][0]) for name in DIALECTS}
    for name, graph in graphs.items():
        for site, found in variants.calibration.of(tower).items():
            expected = np.float32(found.amax / 127)
            scale = graph.tensors[f"{site}.input.scale"]
            assert scale == expected.astype(scale.dtype), (name, site)
    exact = graphs["onnxruntime"].tensors
    weights = [name for name in exact if name.endswith(".weight.int8")]
    linears = [linear for site in variants.sites(tower) for linear in site.linears]
    assert sorted(weights) == sorted(f"{linear}.weight.int8" for linear in linears)
    for weight in weights:
        assert exact[weight].dtype == np.int8
        for name, graph in graphs.items():
            linear = weight.removesuffix(".weight.int8")
            parts = [graph.tensors.get(f"{linear}.{i}.weight.int8") for i in range(3)]
            cut = [part for part in parts if part is not None]
            axis = 1 if name == "openvino" else 0  # by outputs there, by inputs for TensorRT
            whole = np.concatenate(cut, axis=axis) if cut else graph.tensors[weight]
            assert np.array_equal(whole, exact[weight]), (name, weight)
            assert f"{linear}.weight" not in graph.tensors, "no float32 copy is left"


@pytest.mark.parametrize("dialect", CPU_DIALECTS)
@pytest.mark.parametrize("tower", TOWERS)
def test_gemms_of_a_site_share_one_quantizer_and_nothing_else_reads_it(
    variants: Variants, written: Written, dialect: str, tower: Tower
) -> None:
    graph = FloatGraph.load(written[dialect][tower][0])
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len(variants.sites(tower))
    several = 0
    for site in variants.sites(tower):
        products = [
            node
            for node in graph.nodes
            if node.op_type == "MatMul"
            and any(node.input[1].startswith(f"{linear}.") for linear in site.linears)
        ]
        sources = {node.input[0] for node in products}
        assert sources == {f"{site.name}.input.DequantizeLinear"}
        # So no residual Add and no norm reads a rounded value.
        readers = graph.consumers(f"{site.name}.input.DequantizeLinear")
        assert sorted(n.name for n in readers) == sorted(n.name for n in products)
        several += len(products) > len(site.linears)
    assert (several > 0) == (dialect == "openvino"), "joint GEMMs are cut there alone"


def smoothed_graph(variants: Variants, tower: Tower) -> FloatGraph:
    """What is quantized, in float32."""
    sites = {site.name: site for site in variants.sites(tower)}
    found = variants.calibration.of(tower)
    divide = {name: s.divide for name, s in found.items() if s.divide is not None}
    return apply_smoothing(FloatGraph.load(variants.bundle.graph(tower)[0]), sites, divide)


@pytest.mark.parametrize("tower", TOWERS)
def test_bias_takes_back_what_rounded_weights_do_to_the_mean(
    variants: Variants, written: Written, tower: Tower
) -> None:
    exact = smoothed_graph(variants, tower).tensors
    found = FloatGraph.load(written["onnxruntime"][tower][0]).tensors
    for name, site in variants.calibration.of(tower).items():
        rounded = found[f"{name}.weight.int8"] * found[f"{name}.weight.scale"]
        before = site.mean @ exact[f"{name}.weight"] + exact[f"{name}.bias"]
        after = site.mean @ rounded + found[f"{name}.bias"]
        assert np.allclose(before, after, atol=1e-5), name


@pytest.mark.parametrize("tower", TOWERS)
def test_graph_without_its_pairs_is_the_smoothed_float32_graph(
    variants: Variants, written: Written, tower: Tower
) -> None:
    """Norms, attention, the residual stream: all else stays node by node."""
    smoothed = smoothed_graph(variants, tower)
    graph = FloatGraph.load(written["onnxruntime"][tower][0])
    behind: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            value = node.input[0].removesuffix(".int8")
            behind[node.output[0]] = behind.get(value, value)
        else:
            inputs = [behind.get(value, value) for value in node.input]
            nodes.append((node.name, node.op_type, inputs, list(node.output)))
    assert sorted(map(str, nodes)) == sorted(
        str((n.name, n.op_type, list(n.input), list(n.output))) for n in smoothed.nodes
    )


@pytest.mark.parametrize("dialect", ["onnxruntime", "openvino", "tensorrt8"])
def test_unmerged_query_key_and_value_share_one_quantizer(dialect: str, tmp_path: Path) -> None:
    source = float_graph("plain", "text", tmp_path, steps=())
    sites = find_sites(source)
    assert sites[0].linears == ("blocks.0.q", "blocks.0.k", "blocks.0.v")
    graph = quantized_graph(
        source, sites, {sites[0].name: made_up(sites[0])}, DIALECTS[dialect], {sites[0].name}
    )
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 1
    (pair,) = graph.consumers(quantizers[0].output[0])
    weights = {node.input[1].split(".weight")[0] for node in graph.consumers(pair.output[0])}
    assert weights == set(sites[0].linears)
    exact, found = embed(source, "text", tmp_path), embed(graph, "text", tmp_path)
    assert 0.999 < cosine(exact, found) < 1
    assert lint(onnx.load(tmp_path / "run.onnx"), dialect) == []


def made_up(site: Site) -> SiteCalibration:
    """For an activation that comes out of a LayerNorm."""
    return SiteCalibration(
        tower="text",
        site=site.name,
        tensor=site.tensor,
        width=site.width,
        method="minmax",
        amax=4.0,
        alpha=None,
        error=0.0,
        error_unsmoothed=0.0,
        histogram={},
        divide=None,
        mean=np.zeros(site.width, np.float32),
    )


def test_only_the_named_sites_are_quantized(variants: Variants, tmp_path: Path) -> None:
    path, _graph = variants.write("text", {"blocks.0.qkv"}, DIALECTS["onnxruntime"], tmp_path)
    graph = FloatGraph.load(path)
    quantizers = [node.name for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert quantizers == ["blocks.0.qkv.input.QuantizeLinear"]


def test_unknown_layer_is_refused(variants: Variants, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"blocks\.9\.qkv: cannot be quantized"):
        variants.write("text", {"blocks.9.qkv"}, DIALECTS["onnxruntime"], tmp_path)


def test_saved_calibration_makes_the_same_graphs_without_the_data(
    variants: Variants, written: Written, tmp_path: Path
) -> None:
    variants.calibration.save(tmp_path)
    again = Variants(variants.bundle, Calibration.load(tmp_path))
    for name, dialect in DIALECTS.items():
        for tower in TOWERS:
            path, graph = again.write(tower, names(again.sites(tower)), dialect, tmp_path)
            assert path.read_bytes() == written[name][tower][0].read_bytes()
            assert graph == written[name][tower][1]


def test_learned_weights_survive_in_the_calibration(variants: Variants, tmp_path: Path) -> None:
    found = variants.calibration
    site = found.sites[0]
    learned: dict[str, NDArray[np.int8]] = {site.site: np.full((site.width, 3), -5, np.int8)}
    sites = (replace(site, weights=learned), *found.sites[1:])
    replace(found, sites=sites).save(tmp_path)
    loaded = Calibration.load(tmp_path / "calibration.json")
    assert np.array_equal(loaded.sites[0].weights[site.site], learned[site.site])
    assert loaded.sites[0].weights[site.site].dtype == np.int8
    assert [s.to_json() for s in loaded.sites] == [s.to_json() for s in sites]
    assert (loaded.space_id, loaded.graphs, loaded.data) == (
        found.space_id,
        found.graphs,
        found.data,
    )


@pytest.mark.parametrize("damage", ["cut", "arrays", "missing", "schema", "amax", "field"])
def test_damaged_calibration_is_refused(variants: Variants, damage: str, tmp_path: Path) -> None:
    variants.calibration.save(tmp_path)
    json, arrays = tmp_path / "calibration.json", tmp_path / "calibration.npz"
    text = json.read_text()
    if damage == "arrays":
        arrays.write_bytes(arrays.read_bytes()[:-50])
    elif damage == "missing":
        arrays.unlink()
    else:
        first = f'"amax": {variants.calibration.sites[0].amax},'
        changes = {
            "cut": text[:200],
            "schema": text.replace('"schema": 1', '"schema": 99'),
            "amax": text.replace(first, '"amax": NaN,', 1),
            "field": text.replace('"method"', '"way"'),
        }
        assert changes[damage] != text
        json.write_text(changes[damage])
    with pytest.raises(CalibrationError, match=r"calibration\..*alibrate again"):
        Calibration.load(tmp_path)


def test_missing_calibration_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"calibration\.json: does not exist"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("space", "embedding space 0000.*Calibrate this model"),
        ("graph", "is not the graph that the calibration was made from"),
        ("sites", r"lacks layer blocks\.0\.qkv"),
        ("width", r"lacks layer blocks\.0\.qkv"),
    ],
)
def test_calibration_of_another_graph_is_refused(
    variants: Variants, other: str, message: str, tmp_path: Path
) -> None:
    own = variants.calibration
    wrong = {
        "space": replace(own, space_id="0" * 64),
        "graph": replace(own, graphs={**own.graphs, "text": "0" * 64}),
        "sites": replace(own, sites=tuple(s for s in own.sites if s.site != "blocks.0.qkv")),
        "width": replace(own, sites=tuple(replace(s, width=s.width + 1) for s in own.sites)),
    }[other]
    with pytest.raises(CalibrationError, match=message):
        Variants(variants.bundle, wrong).write("text", set(), DIALECTS["onnxruntime"], tmp_path)
    assert not any(tmp_path.iterdir())
