"""Towers converted to float16 are fully typed, keep their embeddings, and report overflows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from typed_towers import (
    EVERY,
    KINDS,
    Array,
    arrays,
    cosine,
    embed,
    in_float32,
    inputs,
    overflowing,
    quantized,
    replace,
    tower,
    value_types,
)

from mwa_export.errors import BundleError, CalibrationError, UsageError
from mwa_export.graphs.typed import FLOAT32_NODES, LIMIT, Typed, to_float16
from mwa_export.runtimes.ort_session import session


def casts(typed: Typed) -> int:
    return sum(node.op_type == "Cast" for node in typed.model.graph.node)


@pytest.mark.slow
@EVERY
def test_everything_but_the_unit_norm_is_float16(name: str, kind: str, merged: bool) -> None:
    typed = to_float16(tower(name, kind, merged=merged))
    rest = in_float32(typed.model)
    assert rest[0].op_type == "Cast"
    assert [node.op_type for node in rest[1:]] == ["Squeeze", "ReduceL2", "Max", "Div"]
    assert typed.kept == tuple(node.name for node in rest[1:])
    floats = {k: v.dtype for k, v in arrays(typed.model).items() if v.dtype != np.int64}
    assert {k for k, v in floats.items() if v == np.float32} == {"constant.1e-12"}


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("opset", [17, 19])
def test_embeddings_are_those_of_float32(
    name: str, kind: str, merged: bool, opset: int, tmp_path: Path
) -> None:
    model = tower(name, kind, merged=merged)
    typed = to_float16(model, opset=opset).model
    assert [o.version for o in typed.opset_import] == [opset]
    found = embed(typed, kind, tmp_path)
    assert found.dtype == np.float32
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-6
    assert cosine(found, embed(model, kind, tmp_path)) >= 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_output_stay_as_documented(kind: str) -> None:
    model = tower("mwa", kind)
    typed = to_float16(model, opset=19).model
    assert list(typed.graph.input) == list(model.graph.input)
    assert list(typed.graph.output) == list(model.graph.output)


@pytest.mark.parametrize(("kind", "expected"), [("vision", 2), ("pixels", 2), ("text", 2)])
def test_types_change_behind_the_inputs_and_before_the_unit_norm_only(
    kind: str, expected: int
) -> None:
    assert casts(to_float16(tower("mwa", kind))) == expected


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (19, 9)])
def test_newer_opset_takes_the_axes_as_an_input(opset: int, ir_version: int) -> None:
    old, new = (to_float16(tower(), opset=version).model for version in (17, opset))
    norms = [next(n for n in m.graph.node if n.op_type == "ReduceL2") for m in (old, new)]
    assert [a.name for a in norms[0].attribute] == ["axes", "keepdims"]
    assert [a.name for a in norms[1].attribute] == ["keepdims"]
    assert arrays(new)[norms[1].input[1]].tolist() == [-1]
    assert (old.ir_version, new.ir_version) == (8, ir_version)
    onnx.checker.check_model(new, full_check=True)


def test_layer_norms_say_that_their_statistics_are_float32() -> None:
    typed = to_float16(tower())
    norms = [n for n in typed.model.graph.node if n.op_type == "LayerNormalization"]
    assert len(norms) == 11
    for node in norms:
        assert {a.name: a.i for a in node.attribute}["stash_type"] == 1


def test_model_that_was_given_is_unchanged() -> None:
    model = tower()
    before = model.SerializeToString(deterministic=True)
    to_float16(model, opset=19, keep_float32=["blocks.0.fc2_up.MatMul"])
    assert model.SerializeToString(deterministic=True) == before


def test_weights_are_rounded_once_and_integers_untouched() -> None:
    model = tower()
    before, after = arrays(model), arrays(to_float16(model).model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        rounded = value if value.dtype == np.int64 or name == "constant.1e-12" else None
        expected = value.astype(np.float16) if rounded is None else rounded
        assert after[name].dtype == expected.dtype
        assert np.array_equal(after[name], expected)


def test_neighbours_in_float32_do_not_cast_back_and_forth() -> None:
    nodes = [f"blocks.0.fc2_up.{op}" for op in ("MatMul", "Add")]
    plain, typed = to_float16(tower()), to_float16(tower(), keep_float32=nodes)
    assert typed.kept[:2] == tuple(nodes)
    assert casts(typed) == casts(plain) + 2
    stored = arrays(typed.model)
    assert stored["blocks.0.fc2_up.weight"].dtype == np.float32
    assert stored["blocks.1.fc2_up.weight"].dtype == np.float16
    value_types(typed.model)


def test_constant_that_is_read_in_both_types_exists_in_both() -> None:
    gelu = [n.name for n in tower().graph.node if n.name.startswith("blocks.0.ffn.gelu")]
    typed = to_float16(tower(), keep_float32=gelu).model
    stored = arrays(typed)
    assert stored["constant.0.5"].dtype == np.float16
    assert stored["constant.0.5.float32"].dtype == np.float32
    value_types(typed)
    read = {value for node in typed.graph.node for value in node.input}
    assert not stored.keys() - read


def test_kept_nodes_are_written_into_the_model() -> None:
    model = tower()
    helper.set_model_props(model, {"space": "id"})
    typed = to_float16(model, keep_float32=["blocks.0.fc2_up.MatMul"])
    properties = {entry.key: entry.value for entry in typed.model.metadata_props}
    assert properties[FLOAT32_NODES] == ",".join(typed.kept)
    assert "blocks.0.fc2_up.MatMul" in typed.kept
    assert properties["space"] == "id"


def test_mask_can_be_kept_in_float32() -> None:
    typed = to_float16(tower(), keep_float32=["padding_mask.Cast", "padding_mask.Mul"])
    types = value_types(typed.model)
    assert types["padding_mask.Cast"] == types["padding_mask.Mul"] == TensorProto.FLOAT
    assert types["padding_mask.Unsqueeze"] == TensorProto.FLOAT16


def test_shapes_stay_integers_among_kept_nodes() -> None:
    model = tower("plain", "vision", merged=False)
    names = [n.name for n in model.graph.node if n.name.startswith("cls_token")]
    assert {n.op_type for n in model.graph.node if n.name in names} >= {"Shape", "Expand"}
    typed = to_float16(model, keep_float32=names)
    types = value_types(typed.model)
    assert types["cls_token.Shape"] == types["cls_token.shape.Concat"] == TensorProto.INT64
    assert types["cls_token.Concat"] == TensorProto.FLOAT


def test_output_that_was_computed_in_float16_is_cast() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    typed = to_float16(model).model
    assert [n.op_type for n in typed.graph.node] == ["Cast", "Relu", "Cast"]
    assert value_types(typed)["y"] == TensorProto.FLOAT


# --- values that do not fit -----------------------------------------------------------------------


def measured(model: onnx.ModelProto, kind: str, folder: Path) -> dict[str, float]:
    """The largest magnitude of every float value."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    types = value_types(model)
    names = [name for name, type_ in types.items() if type_ == TensorProto.FLOAT]
    del probe.graph.output[:]
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    path = folder / "probe.onnx"
    onnx.save(probe, path)
    values = session(path).run(names, inputs(kind))
    return {name: float(np.abs(v).max()) for name, v in zip(names, values, strict=True)}


def exactly(model: onnx.ModelProto, kind: str) -> Array:
    """Run with every value rounded to its type, which a CPU runtime may leave out."""
    with np.errstate(all="ignore"):
        results: Any = ReferenceEvaluator(model).run(None, inputs(kind))
    return np.asarray(results[0])


def test_values_beyond_float16_are_kept_in_float32_where_they_were_measured(tmp_path: Path) -> None:
    model = overflowing()
    right, ranges = embed(model, "text", tmp_path), measured(model, "text", tmp_path)
    assert ranges["blocks.0.ffn.sum.Add"] > 65504
    assert not cosine(exactly(to_float16(model).model, "text"), right) >= 0.9
    typed = to_float16(model, ranges=ranges)
    assert cosine(exactly(typed.model, "text"), right) >= 0.9999
    assert cosine(embed(typed.model, "text", tmp_path), right) >= 0.9999
    large = {name for name, amax in ranges.items() if amax > LIMIT}
    for node in typed.model.graph.node:
        touched = {v.removesuffix(".float32") for v in (*node.input, *node.output)} & large
        assert node.name in typed.kept or not touched, node.name
    kept = Counter(name.split(".")[1] for name in typed.kept if name.startswith("blocks"))
    assert kept["0"] < 20, "only what needs it"
    value_types(typed.model)


def test_slice_of_a_value_that_does_not_fit_is_kept_although_it_was_not_measured() -> None:
    stream = "blocks.0.enhancer.sum.Add"
    sliced = next(n for n in tower().graph.node if n.op_type == "Slice" and stream in n.input)
    readers = {n.name for n in tower().graph.node if sliced.output[0] in n.input}
    assert len(readers) == 1
    kept = set(to_float16(tower(), ranges={stream: 1e5}).kept)
    assert {sliced.name, *readers} <= kept
    kept = set(to_float16(tower(), ranges={stream: 1e5, sliced.output[0]: 1.0}).kept)
    assert sliced.name in kept
    assert not readers & kept


@pytest.mark.parametrize(("amax", "kept"), [(LIMIT, False), (LIMIT * 1.01, True), (np.nan, True)])
def test_limit_decides_what_is_kept(amax: float, kept: bool) -> None:
    typed = to_float16(tower(), ranges={"blocks.0.out.Add": amax})
    assert ("blocks.0.out.Add" in typed.kept) == kept
    assert ("blocks.0.attn.sum.Add" in typed.kept) == kept
    assert "blocks.0.out.MatMul" not in typed.kept


def test_weight_that_overflows_is_refused() -> None:
    model = tower()
    weight = arrays(model)["blocks.0.fc2_up.weight"].copy()
    weight[3, 4] = -7e4
    replace(model, "blocks.0.fc2_up.weight", weight)
    with pytest.raises(BundleError, match=r"blocks\.0\.fc2_up\.weight: .*7e\+04.*65504.*float32"):
        to_float16(model)
    typed = to_float16(model, keep_float32=["blocks.0.fc2_up.MatMul"])
    assert arrays(typed.model)["blocks.0.fc2_up.weight"][3, 4] == np.float32(-7e4)


def test_weights_that_underflow_are_counted() -> None:
    before = to_float16(tower()).underflows
    model = tower()
    bias = arrays(model)["blocks.0.fc2_up.bias"].copy()
    assert (np.abs(bias[:4]) > 1e-4).all()
    bias[:4] = 0, 1e-9, -5e-5, 7e-5  # only the second and the third are too small
    replace(model, "blocks.0.fc2_up.bias", bias)
    assert to_float16(model).underflows == before + 2


# --- Q/DQ -----------------------------------------------------------------------------------------


def test_scales_become_float16_and_int8_stays(tmp_path: Path) -> None:
    model = quantized()
    typed = to_float16(model, opset=19).model
    before, after = arrays(model), arrays(typed)
    for name in ("blocks.0.qkv.weight.scale", "blocks.0.qkv.input.scale"):
        assert after[name].dtype == np.float16
        assert np.array_equal(after[name], before[name].astype(np.float16))
    for name in ("blocks.0.qkv.weight.int8", "blocks.0.qkv.weight.zero_point", "zero"):
        assert after[name].dtype == np.int8
        assert np.array_equal(after[name], before[name])
    assert len(in_float32(typed)) == 5
    # ONNX Runtime up to 1.23 rounds the float16 products of INT8 layers more coarsely.
    assert cosine(embed(typed, "text", tmp_path), embed(model, "text", tmp_path)) >= 0.9998


@pytest.mark.parametrize(
    "options",
    [
        {"keep_float32": ["blocks.0.qkv.MatMul"]},
        {"ranges": {"blocks.0.attn_norm.LayerNormalization": 1e5}},
    ],
    ids=["named", "measured"],
)
def test_site_is_kept_whole(options: Any, tmp_path: Path) -> None:
    typed = to_float16(quantized(), opset=19, **options)
    assert {"q", "dq", "w", "blocks.0.qkv.MatMul"} <= set(typed.kept)
    nodes = {node.name: node for node in typed.model.graph.node}
    assert list(nodes["blocks.0.qkv.MatMul"].input) == ["dq", "w"]
    assert nodes["q"].input[1:] == nodes["dq"].input[1:]
    assert arrays(typed.model)["blocks.0.qkv.weight.scale"].dtype == np.float32
    value_types(typed.model)
    expected = embed(quantized(), "text", tmp_path)
    assert cosine(embed(typed.model, "text", tmp_path), expected) >= 0.9999


@pytest.mark.parametrize("scale", [5e-8, 0.0, 7e4, np.nan, np.inf])
def test_scale_that_float16_cannot_hold_is_refused(scale: float) -> None:
    with pytest.raises(CalibrationError, match=r"blocks\.0\.qkv\.input\.scale.*high precision"):
        to_float16(quantized(scale=scale), opset=19)


def test_smallest_and_largest_scales_are_taken() -> None:
    for scale in (2.0**-24, 65504.0):
        stored = arrays(to_float16(quantized(scale=scale), opset=19).model)
        assert float(stored["blocks.0.qkv.input.scale"]) == scale


# --- what cannot be typed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "opset 17 cannot be converted to opset 16.*17 to 19"),
        ({"opset": 20}, "opset 17 cannot be converted to opset 20"),
        ({"keep_float32": ["blocks.0.fc7"]}, "blocks.0.fc7: the graph has no node"),
        ({"ranges": {"blocks.0.fc7": 1e6}}, "blocks.0.fc7: .*1e.06.*no value of this name"),
    ],
)
def test_options_that_do_not_fit_the_graph_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_float16(tower(), **options)


def test_graph_is_never_taken_to_an_older_opset() -> None:
    typed = to_float16(tower(), opset=19).model
    del typed.graph.initializer[:]
    with pytest.raises(UsageError, match="opset 19 cannot be converted to opset 17"):
        to_float16(typed, opset=17)


def test_quantized_graph_needs_the_opset_that_has_float16_scales() -> None:
    with pytest.raises(UsageError, match="Use opset 19"):
        to_float16(quantized())


def test_graph_that_is_float16_already_is_refused() -> None:
    with pytest.raises(BundleError, match=r"is float16.*Expected a float32 graph"):
        to_float16(to_float16(tower()).model)


def test_graph_without_its_data_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    onnx.save(tower(), path, save_as_external_data=True, location="g.onnx.data", size_threshold=99)
    with pytest.raises(BundleError, match="data file"):
        to_float16(onnx.load(path, load_external_data=False))


def test_graph_with_unnamed_nodes_is_refused() -> None:
    model = tower()
    model.graph.node[3].name = ""
    with pytest.raises(BundleError, match="without unique names"):
        to_float16(model)
