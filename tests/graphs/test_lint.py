"""Clean graphs follow every rule of the linter, and each mistake breaks the expected rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from configs import CONFIGS
from lint_miniature import DIALECTS, Edit, Miniature
from lint_mistakes import (
    MISTAKES,
    mask_left_in_float32,
    scale_of_a_column_of_zeros,
    scale_of_the_neighbour,
    unsigned_activations,
    weight_of_minus_128,
    zero_point_that_nothing_reads,
)
from onnx import TensorProto, helper, numpy_helper

from mwa_export.errors import BundleError, UsageError
from mwa_export.graphs.lint.check import RULES, check, lint
from mwa_export.model.load import Model
from mwa_export.model.synthetic import random_tensors
from mwa_export.spec import Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS

# --- clean graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_clean_graph_has_no_findings(dialect: str, tower: Tower) -> None:
    model = Miniature(dialect, tower).model()
    onnx.checker.check_model(model, full_check=True)
    assert lint(model, dialect) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [tuple(STEPS), ()], ids=["merged", "unmerged"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_exported_tower_breaks_no_rule_but_that_nothing_is_quantized(
    name: str, steps: tuple[str, ...], tower: Tower, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    made = Model(config, random_tensors(config), (), ())
    plan, tensors = tower_from_model(config, made.tensors, tower)
    path = onnx_from_tower(*merge_tower(plan, tensors, steps), tmp_path / "g.onnx")[0]
    for dialect in ("onnxruntime", "openvino", "tensorrt8"):
        model = onnx.load(path)
        assert lint(model, dialect, expect_quantized=False) == []
        assert [finding.rule for finding in lint(model, dialect)] == ["has-quantized-linears"]


def test_raw_stream_may_branch_into_a_quantizer() -> None:
    model = Miniature("openvino", "vision").model()
    readers = {node.name for node in model.graph.node if "0.ffn.sum" in node.input}
    assert readers == {"0.enhancer.fc1.input.Q", "0.enhancer.sum"}


def test_dialects_differ_in_what_they_take() -> None:
    models = {dialect: Miniature(dialect, "vision").model() for dialect in DIALECTS}
    found = {
        (made, judged): {finding.rule for finding in lint(model, judged)}
        for made, model in models.items()
        for judged in DIALECTS
        if made != judged
    }
    assert found["onnxruntime", "tensorrt8"] == {"zero-point"}
    assert found["tensorrt8", "onnxruntime"] == {"zero-point"}
    assert found["tensorrt8", "openvino"] == {"gelu"}
    assert found["openvino", "tensorrt8"] == set()
    others = {"opset", "scale-type", "types", "weight-scale"}
    assert found["tensorrt", "tensorrt8"] == others
    assert found["tensorrt8", "tensorrt"] == others
    other_numbers = {"zero-point", "weight-type"}
    assert found["tensorrt-float8", "tensorrt"] == other_numbers
    assert found["tensorrt", "tensorrt-float8"] == other_numbers


# --- one mistake for every rule -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_mistakes_are_found_by_their_rule_alone(rule: str) -> None:
    mistakes = [mistake for mistake in MISTAKES if mistake.rule == rule]
    assert mistakes, "a rule that nothing breaks"
    problems = [problem for mistake in mistakes for problem in mistake.problems()]
    assert not problems, "\n".join(problems)


def test_every_mistake_is_for_a_rule() -> None:
    assert {mistake.rule for mistake in MISTAKES} <= RULES.keys()


# --- values, order, files -------------------------------------------------------------------------


def test_findings_come_in_the_order_of_the_graph() -> None:
    edit = Edit("openvino")
    zero_point_that_nothing_reads(edit)
    edit.pair("0.softmax", "0.values")
    scale_of_the_neighbour(edit)
    weight_of_minus_128(edit)
    edit.float_again("0.fc2_up")
    rules = [finding.rule for finding in lint(edit.model, "openvino")]
    expected = ["unused", "attention", "same-grid", "weight-range", "half-quantized"]
    assert rules == expected


def test_every_finding_is_reported_once() -> None:
    edit = Edit("openvino")
    edit.pair("0.qkv.Add", "0.qkv.Split")
    found = lint(edit.model, "openvino")
    assert len(found) == len(set(found))
    assert {finding.node for finding in found} == {"0.scores", "0.values"}


def test_float32_nodes_that_the_model_names_are_taken() -> None:
    edit = Edit("tensorrt")
    for name in ("weight", "bias"):
        edit.store(f"1.ffn_norm.{name}", edit.array(f"1.ffn_norm.{name}").astype(np.float32))
    cast = helper.make_node("Cast", ["1.attn.sum"], ["up"], name="up", to=TensorProto.FLOAT)
    back = helper.make_node("Cast", ["1.ffn_norm"], ["down"], name="down", to=TensorProto.FLOAT16)
    edit.insert("1.ffn_norm", cast)
    edit.insert("1.fc1.MatMul", back)
    edit.node("1.ffn_norm").input[0], edit.node("1.fc1.MatMul").input[0] = "up", "down"
    assert lint(edit.model, "tensorrt") == [], "a Cast leads there"
    mask_left = Edit("tensorrt", "text")
    mask_left_in_float32(mask_left)
    assert [finding.node for finding in lint(mask_left.model, "tensorrt")] == ["mask.Cast"]
    helper.set_model_props(mask_left.model, {"mwa_export.float32": "mask.Cast,mask.Mul"})
    assert lint(mask_left.model, "tensorrt") == []


def test_values_may_be_given_beside_the_graph() -> None:
    edit = Edit("openvino")
    weight_of_minus_128(edit)
    arrays = {t.name: numpy_helper.to_array(t) for t in edit.graph.initializer}
    edit.forget(*arrays)
    found = lint(edit.model, "openvino", weights=arrays)
    assert [(finding.rule, finding.node) for finding in found] == [
        ("weight-range", "0.out.weight.DQ")
    ]


def test_weights_listed_as_inputs_are_no_inputs() -> None:
    edit = Edit("openvino")
    for tensor in list(edit.graph.initializer):
        port = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        edit.graph.input.append(port)
    assert lint(edit.model, "openvino") == []


def write(edit: Edit, folder: Path, *, outside: bool) -> Path:
    path = folder / "vision.int8.openvino.onnx"
    more: dict[str, Any] = {"location": f"{path.name}.data", "size_threshold": 0} if outside else {}
    onnx.save(edit.model, path, save_as_external_data=outside, **more)
    return path


@pytest.mark.parametrize("outside", [False, True])
def test_clean_file_passes(outside: bool, tmp_path: Path) -> None:
    check(write(Edit("openvino"), tmp_path, outside=outside), "openvino")


@pytest.mark.parametrize("outside", [False, True])
def test_file_is_refused_with_rule_node_and_what_is_wrong(outside: bool, tmp_path: Path) -> None:
    edit = Edit("openvino")
    scale_of_a_column_of_zeros(edit)
    path = write(edit, tmp_path, outside=outside)
    with pytest.raises(BundleError) as caught:
        check(path, "openvino")
    message = str(caught.value)
    assert message.startswith(f"{path}: breaks 1 rule(s) for openvino graphs: ")
    assert "[weight-scale] 0.out.weight.DQ: 0.out.weight.scale has values that" in message
    assert RULES["weight-scale"] in message


def test_structure_is_checked_without_the_data_file(tmp_path: Path) -> None:
    edit = Edit("openvino")
    scale_of_a_column_of_zeros(edit)
    edit.float_again("0.fc2_up")
    model = onnx.load(write(edit, tmp_path, outside=True), load_external_data=False)
    rules = {finding.rule for finding in lint(model, "openvino")}
    assert rules - {"types"} == {"half-quantized"}


def test_long_list_of_findings_is_cut(tmp_path: Path) -> None:
    edit = Edit("openvino")
    unsigned_activations(edit)
    with pytest.raises(BundleError, match=r"breaks 6 rule\(s\).*And 1 more") as caught:
        check(write(edit, tmp_path, outside=False), "openvino")
    assert str(caught.value).count("Expected: ") == 5


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match=r"is not an ONNX graph"):
        check(path, "openvino")


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    path = write(Edit("openvino"), tmp_path, outside=True)
    (tmp_path / f"{path.name}.data").unlink()
    with pytest.raises(BundleError, match=r"the data file of .* cannot be read"):
        check(path, "openvino")


def test_unknown_dialect_is_refused() -> None:
    model = Miniature("openvino", "vision").model()
    with pytest.raises(UsageError, match=r"coreml: unknown dialect\. Expected one of: onnxruntime"):
        lint(model, "coreml")
