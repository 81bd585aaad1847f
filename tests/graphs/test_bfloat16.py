"""Towers converted to bfloat16 are fully typed, round where they should, and keep large values.

ONNX Runtime has no bfloat16 kernels for CPUs, so the typed graph is computed by a float32 twin that
rounds after every node. First it is proven that the twin rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from configs import CONFIGS
from onnx import TensorProto, helper, numpy_helper
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

from mwa_export.errors import BundleError, MissingPackageError, UsageError
from mwa_export.graphs import rounded
from mwa_export.graphs.cast_first import cast_first
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.check import check, lint
from mwa_export.graphs.small_floats import BFLOAT16, FLOAT8, FLOAT16, SmallFloat, numpy_type
from mwa_export.graphs.typed import FLOAT32_NODES, to_bfloat16, to_float16
from mwa_export.runtimes.ort_session import session

pytestmark = pytest.mark.slow

UNIT_NORM = ["Squeeze", "ReduceL2", "Max", "Div"]
RULES = "tensorrt-bfloat16"


def twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """What computes the same without bfloat16 kernels. The model given stays."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return rounded.in_float32(FloatGraph.of(copy)).whole()


def nearest(values: Array) -> Array:
    """The nearest bfloat16, found with integers: the upper half of the bits, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    kept = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32)
    return kept.view(np.float32)


def every_value(model: onnx.ModelProto, names: list[str], kind: str, folder: Path) -> list[Array]:
    """The values of that name, of a graph that has nothing but float32."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    path = folder / "probe.onnx"
    onnx.save(probe, path)
    found: list[Array] = session(path).run(names, inputs(kind))
    return found


# --- what is typed --------------------------------------------------------------------------------


@EVERY
def test_float32_is_left_where_bfloat16_does_not_exist_or_underflows(
    name: str, kind: str, merged: bool
) -> None:
    typed = to_bfloat16(tower(name, kind, merged=merged), opset=19)
    nodes = {node.name: node for node in typed.model.graph.node}
    first = "Conv" if kind == "vision" else "Cast"  # of what comes in as integers
    assert [nodes[name].op_type for name in typed.kept] == [first, *UNIT_NORM]
    rest = [n.name for n in in_float32(typed.model) if not n.name.endswith(".float32.Cast")]
    assert rest == list(typed.kept)
    floats = {k: v.dtype for k, v in arrays(typed.model).items() if v.dtype != np.int64}
    read = {value for name in typed.kept for value in nodes[name].input}
    assert {k for k, v in floats.items() if v == np.float32} == read & floats.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_output_and_the_given_model_stay(kind: str) -> None:
    model = tower("mwa", kind)
    before = model.SerializeToString(deterministic=True)
    typed = to_bfloat16(model, opset=19)
    assert model.SerializeToString(deterministic=True) == before
    assert list(typed.model.graph.input) == list(model.graph.input)
    assert list(typed.model.graph.output) == list(model.graph.output)
    properties = {entry.key: entry.value for entry in typed.model.metadata_props}
    assert properties[FLOAT32_NODES] == ",".join(typed.kept)


def test_weights_are_rounded_to_nearest() -> None:
    model = tower()
    before, after = arrays(model), arrays(to_bfloat16(model).model)
    assert before.keys() == after.keys()
    changed = 0
    for name, value in before.items():
        if after[name].dtype == numpy_type(BFLOAT16):
            assert np.array_equal(after[name].astype(np.float32), nearest(value)), name
            changed += 1
        else:
            assert value.dtype == np.int64 or name == "constant.1e-12"
            assert np.array_equal(after[name], value)
    assert changed > 40


def test_nodes_can_be_kept_in_float32() -> None:
    nodes = [f"blocks.0.fc2_up.{op}" for op in ("MatMul", "Add")]
    typed = to_bfloat16(tower(), opset=19, keep_float32=nodes)
    types = value_types(typed.model)
    assert {types[node] for node in nodes} == {TensorProto.FLOAT}
    assert arrays(typed.model)["blocks.0.fc2_up.weight"].dtype == np.float32


# --- what it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixels", "text"])
def test_twin_rounds_every_value_and_has_no_bfloat16_operator(kind: str, tmp_path: Path) -> None:
    typed = to_bfloat16(tower("mwa", kind), opset=19).model
    types = value_types(typed)
    names = [value for value, type_ in types.items() if type_ == TensorProto.BFLOAT16]
    model = twin(typed)
    own = value_types(model)
    assert {n.op_type for n in model.graph.node for v in n.output if own[v] == 16} == {"Cast"}
    found = every_value(model, names, kind, tmp_path)
    assert len(found) > 90
    for name, values in zip(names, found, strict=True):
        assert np.array_equal(values, nearest(values)), name
    exact = every_value(model, [f"{names[-1]}.exact"], kind, tmp_path)[0]
    assert not np.array_equal(exact, nearest(exact))


def test_twin_computes_what_bfloat16_computes(tmp_path: Path) -> None:
    """By hand: 256 + 1 is 256, for 257 needs nine bits; a product of weights is rounded once."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    nodes = [
        helper.make_node("Cast", ["x"], ["small"], name="down", to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["small", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "one"], ["sum"], name="sum"),
        helper.make_node("Cast", ["sum"], ["y"], name="up", to=TensorProto.FLOAT),
    ]
    small = numpy_type(BFLOAT16)
    weights = {"w": np.asarray([[1, 2**-7], [0, 1]], small), "one": np.asarray([1.0, 0], small)}
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path = tmp_path / "g.onnx"
    onnx.save(twin(model), path)
    given = np.asarray([[256.9, 3.0]], np.float32)  # 256.9 is read as 256
    assert session(path).run(None, {"x": given})[0].tolist() == [[256.0, 5.0]]


@EVERY
def test_embeddings_are_those_of_float32_but_for_the_digits(
    name: str, kind: str, merged: bool, tmp_path: Path
) -> None:
    model = tower(name, kind, merged=merged)
    exact = embed(model, kind, tmp_path)
    found = embed(twin(to_bfloat16(model, opset=19).model), kind, tmp_path)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-6
    assert 0.999 <= cosine(found, exact) < 0.9999999


def test_values_beyond_float16_fit(tmp_path: Path) -> None:
    model = overflowing()
    right = embed(model, "text", tmp_path)
    typed = to_bfloat16(model, opset=19)
    assert typed.kept == to_bfloat16(tower(), opset=19).kept, "none of them needs float32"
    assert cosine(embed(twin(typed.model), "text", tmp_path), right) >= 0.999


# --- rules of the linter --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_typed_tower_is_clean(name: str, kind: str, tmp_path: Path) -> None:
    graph = cast_first(FloatGraph.of(tower(name, kind)))  # as engine graphs are made
    typed = to_bfloat16(graph.whole(), opset=19)
    assert lint(typed.model, RULES) == []
    path = tmp_path / "g.onnx"
    FloatGraph.of(typed.model).write(path)
    check(path, RULES)


@pytest.mark.parametrize("external_bytes", [0, 1 << 30])
def test_file_holds_the_weights_of_the_model(external_bytes: int, tmp_path: Path) -> None:
    typed = to_bfloat16(tower(), opset=19).model
    before = arrays(typed)
    path = tmp_path / "g.onnx"
    written = FloatGraph.of(typed).write(path, external_bytes=external_bytes)
    assert len(written) == (2 if external_bytes == 0 else 1)
    after = arrays(onnx.load(path))
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert (after[name].dtype, after[name].shape) == (value.dtype, value.shape)
        assert after[name].tobytes() == value.tobytes(), name


def test_linter_finds_what_does_not_belong_there() -> None:
    def rules(model: onnx.ModelProto) -> set[str]:
        return {finding.rule for finding in lint(model, RULES)}

    assert rules(to_float16(tower(), opset=19).model) == {"types"}
    assert "operators" in rules(to_float16(quantized(), opset=19).model)
    assert rules(to_bfloat16(tower()).model) == {"opset"}
    unnamed = to_bfloat16(tower("mwa", "vision"), opset=19).model
    del unnamed.metadata_props[:]
    assert [f.node for f in lint(unnamed, RULES)] == ["patch.Conv"]


# --- what cannot be typed -------------------------------------------------------------------------


def test_quantized_graph_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^q: Q/DQ in bfloat16.*float16 for quantized"):
        to_bfloat16(quantized(), opset=19)


def test_graph_that_is_bfloat16_already_is_refused() -> None:
    with pytest.raises(BundleError, match=r"is bfloat16.*Expected a float32 graph"):
        to_bfloat16(to_bfloat16(tower(), opset=19).model)


def test_weight_at_the_end_of_float32_is_refused() -> None:
    model = tower()
    weight = arrays(model)["blocks.0.fc2_up.weight"].copy()
    weight[0, 0] = 3.4e38
    replace(model, "blocks.0.fc2_up.weight", weight)
    with pytest.raises(
        BundleError, match=r"fc2_up\.weight: .*3\.4e\+38.*largest bfloat16 is 3\.38"
    ):
        to_bfloat16(model, opset=19)


@pytest.mark.parametrize("small", [BFLOAT16, FLOAT8])
def test_onnx_without_the_type_is_refused(
    small: SmallFloat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(kind: int) -> Any:
        return np.dtype(np.float32)

    monkeypatch.setattr(helper, "tensor_dtype_to_np_dtype", older)
    with pytest.raises(
        MissingPackageError, match=rf'does not support {small.name} weights.*"onnx>=1\.'
    ):
        numpy_type(small)


@pytest.mark.parametrize("small", [FLOAT16, BFLOAT16, FLOAT8])
def test_limits_are_those_of_the_type(small: SmallFloat) -> None:
    kind = numpy_type(small)
    for value in (small.largest, small.normal, small.tiny):
        assert float(np.asarray(value, np.float32).astype(kind)) == value
    with np.errstate(over="ignore"):
        above = np.asarray(small.largest * (1 + 2.0**-3), np.float64).astype(kind)
    assert not np.isfinite(above.astype(np.float32))
    assert float(np.asarray(small.tiny * 0.49, np.float64).astype(kind)) == 0
