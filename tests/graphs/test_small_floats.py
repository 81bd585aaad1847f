"""Float8 graphs quantize the same layers as INT8 ones, and stay close to float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calib_files import cosine, embed, float_graph, names
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto

from mwa_export.calib.calibration import SiteCalibration
from mwa_export.calib.dialects import DIALECTS, FLOAT8
from mwa_export.calib.insert import quantized_graph
from mwa_export.calib.sites import Site, find_sites
from mwa_export.calib.weights import float8_scale, float8_weight
from mwa_export.errors import CalibrationError
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.check import lint
from mwa_export.graphs.small_floats import FLOAT8 as TYPE
from mwa_export.graphs.small_floats import numpy_type
from mwa_export.graphs.typed import to_float16
from mwa_export.spec import Tower

TOWER = pytest.mark.parametrize("tower", ["vision", "text"])
CLIPPED, SEEN = 3.0, 7.0  # what the int8 grid ends at, and the largest value of the calibration


# --- numbers --------------------------------------------------------------------------------------


@given(st.floats(0, 2.9e7))
def test_scale_is_a_normal_number_of_float16_and_brings_the_value_into_range(value: float) -> None:
    scale = float8_scale(value)
    assert float(np.float16(scale)) == scale
    assert scale >= 2.0**-14
    assert value / scale <= 448 * (1 + 2.0**-11), "rounding the scale clips less than a step"
    assert scale == 2.0**-14 or value / scale >= 448 * (1 - 2.0**-11), "and wastes less than one"


@pytest.mark.parametrize("value", [3e7, np.inf, np.nan])
def test_values_that_no_scale_reaches_are_refused(value: float) -> None:
    with pytest.raises(CalibrationError, match=r"float8.*at most 2\.93e\+07.*high prec"):
        float8_scale(value)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 1.0, 1e3]))
def test_weights_are_finite_and_keep_their_digits(seed: int, size: float) -> None:
    weight = (np.random.default_rng(seed).standard_t(2, (16, 8)) * size).astype(np.float32)
    scale = np.float32(float8_scale(float(np.abs(weight).max())))
    stored = float8_weight(weight, scale)
    assert stored.dtype == numpy_type(TYPE)
    lost = np.abs(weight - stored.astype(np.float32) * scale)
    step = np.maximum(np.abs(weight) * 2.0**-4, scale * 2.0**-10)  # half of one, four bits in all
    assert (lost <= step * (1 + 2.0**-9)).all()


def test_weights_beyond_the_range_of_a_scale_are_its_largest() -> None:
    weight = np.asarray([[1000.0, -500.0, 3.0]], np.float32)
    stored = float8_weight(weight, np.float32(1))
    assert stored.astype(np.float32).tolist() == [[448.0, -448.0, 3.0]]


def test_weights_of_zeros_stay_zeros() -> None:
    scale = np.float32(float8_scale(0.0))
    assert not float8_weight(np.zeros((4, 3), np.float32), scale).astype(np.float32).any()


# --- graphs ---------------------------------------------------------------------------------------


def calibration(sites: tuple[Site, ...], tower: Tower) -> dict[str, SiteCalibration]:
    """A calibration that smooths nothing."""
    return {
        site.name: SiteCalibration(
            tower=tower,
            site=site.name,
            tensor=site.tensor,
            width=site.width,
            method="mse",
            amax=CLIPPED,
            alpha=None,
            error=0.0,
            error_unsmoothed=0.0,
            histogram={"amax": SEEN},
            divide=None,
            mean=np.full(site.width, 0.1, np.float32),
        )
        for site in sites
    }


def made(
    tower: Tower, folder: Path, name: str = "mwa", **changes: Any
) -> tuple[FloatGraph, FloatGraph, tuple[Site, ...]]:
    """A float32 tower, the same with every site in float8, and its sites."""
    exact = float_graph(name, tower, folder)
    sites = find_sites(exact)
    known = {n: replace(c, **changes) for n, c in calibration(sites, tower).items()}
    return exact, quantized_graph(exact, sites, known, FLOAT8, names(sites)), sites


def typed(graph: FloatGraph) -> onnx.ModelProto:
    return to_float16(graph.whole(), opset=FLOAT8.opset).model


@TOWER
def test_same_layers_are_quantized_as_in_int8(tower: Tower, tmp_path: Path) -> None:
    exact, float8, sites = made(tower, tmp_path)
    known = calibration(sites, tower)
    int8 = quantized_graph(exact, sites, known, DIALECTS["tensorrt"], names(sites))
    # Float8 has one scale for a weight, and needs no factors of columns.
    of_int8 = [(n.op_type, n.name) for n in int8.nodes if not n.name.endswith(".factors.Mul")]
    assert [(n.op_type, n.name) for n in float8.nodes] == of_int8
    few = frozenset([sites[0].name])
    one = quantized_graph(exact, sites, known, FLOAT8, few)
    pairs = [n.name for n in one.nodes if n.op_type == "QuantizeLinear"]
    assert pairs == [f"{sites[0].name}.input.QuantizeLinear"]


@TOWER
def test_scales_leave_room_for_twice_the_largest_value_seen(tower: Tower, tmp_path: Path) -> None:
    for amax, expected in ((CLIPPED, SEEN), (9.0, 9.0)):
        _exact, graph, sites = made(tower, tmp_path, amax=amax)
        for site in sites:
            scale = graph.tensors[f"{site.name}.input.scale"]
            assert scale.dtype == np.float32
            assert scale.shape == ()
            assert scale == np.float32(np.float16(2 * expected / 448))


@TOWER
def test_weights_are_stored_as_float8_with_one_scale(tower: Tower, tmp_path: Path) -> None:
    exact, graph, sites = made(tower, tmp_path)
    for linear in (linear for site in sites for linear in site.linears):
        weight, name = exact.tensors[f"{linear}.weight"], f"{linear}.weight"
        stored, scale, zero = (
            graph.tensors[f"{name}.{p}"] for p in ("float8", "scale", "zero_point")
        )
        assert stored.dtype == zero.dtype == numpy_type(TYPE)
        assert (scale.shape, zero.shape, float(zero)) == ((), (), 0.0)
        assert scale == np.float32(np.float16(np.abs(weight).max() / 448))
        assert np.array_equal(stored, float8_weight(weight, scale))
        assert name not in graph.tensors, "no float32 copy is left"


def test_int8_weights_that_were_learned_are_not_used(tmp_path: Path) -> None:
    exact = float_graph("mwa", "text", tmp_path)
    sites = find_sites(exact)
    known = calibration(sites, "text")
    learned = {
        n: replace(c, weights={linear: np.zeros((1, 1), np.int8) for linear in (n,)})
        for n, c in known.items()
    }
    graphs = [quantized_graph(exact, sites, k, FLOAT8, names(sites)) for k in (known, learned)]
    assert_same(graphs[0].tensors, graphs[1].tensors)


def assert_same(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name


@TOWER
def test_bias_takes_back_what_rounding_does_to_the_mean(tower: Tower, tmp_path: Path) -> None:
    exact, graph, sites = made(tower, tmp_path)
    checked = 0
    for linear in (linear for site in sites for linear in site.linears):
        bias = f"{linear}.bias"
        if bias not in exact.tensors:
            continue
        parts = (graph.tensors[f"{linear}.weight.{part}"] for part in ("float8", "scale"))
        kept = np.multiply(*(part.astype(np.float32) for part in parts))
        shift = 0.1 * (exact.tensors[f"{linear}.weight"] - kept).sum(axis=0)
        assert np.allclose(graph.tensors[bias], exact.tensors[bias] + shift, atol=1e-6)
        checked += bool(np.abs(shift).max() > 1e-5)
    assert checked > 3


@TOWER
@pytest.mark.parametrize("name", ["mwa", "plain"])
def test_typed_graph_is_clean_and_float16_around_its_float8(
    tower: Tower, name: str, tmp_path: Path
) -> None:
    _exact, graph, _sites = made(tower, tmp_path, name)
    model = typed(graph)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, True, True, True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    made_by = {"QuantizeLinear": TensorProto.FLOAT8E4M3FN, "DequantizeLinear": TensorProto.FLOAT16}
    for node in model.graph.node:
        if node.op_type in made_by:
            assert types[node.output[0]] == made_by[node.op_type]
        if node.op_type in ("MatMul", "Softmax"):
            assert types[node.output[0]] == TensorProto.FLOAT16
    assert lint(model, FLOAT8.name) == []
    assert {finding.rule for finding in lint(model, "tensorrt")} >= {"zero-point", "weight-type"}


@TOWER
def test_embeddings_are_close_to_those_of_float32(tower: Tower, tmp_path: Path) -> None:
    exact, graph, _sites = made(tower, tmp_path)
    wanted = embed(exact, tower, tmp_path)
    found = embed(FloatGraph.of(typed(graph)), tower, tmp_path)
    assert 0.995 <= cosine(found, wanted) < 0.99999
    # Too small a range clips, and that is seen.
    _exact, clipped, _sites = made(tower, tmp_path, amax=0.1, histogram={"amax": 0.1})
    assert cosine(embed(FloatGraph.of(typed(clipped)), tower, tmp_path), wanted) < 0.9


def test_float8_is_no_dialect_of_bundles() -> None:
    assert FLOAT8.name not in DIALECTS
