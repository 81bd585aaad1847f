"""Mistakes of a quantizer: for every rule of the linter, edits that break only that rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from lint_miniature import DIALECTS, FFN, INT8, TYPED, D, Edit
from onnx import TensorProto, helper

from mwa_export.graphs.lint.check import lint
from mwa_export.graphs.small_floats import FLOAT8, numpy_type
from mwa_export.spec import Tower

Change = Callable[[Edit], object]
FLOAT32 = ("onnxruntime", "openvino", "tensorrt8")  # these have a scale for each column


@dataclass(frozen=True, slots=True)
class Mistake:
    """An edit of a clean graph that breaks exactly one rule of a dialect."""

    rule: str
    also: tuple[str, ...]  # rules that cannot but break with it
    dialect: str
    made: str  # the dialect of the clean graph
    tower: str
    change: Change

    def problems(self) -> list[str]:
        """What the linter misses, finds too much, or says of nodes that do not exist."""
        tower: Tower = "text" if self.tower == "text" else "vision"
        edit = Edit(self.made, tower, pixels=self.tower == "pixels")
        self.change(edit)
        found = lint(edit.model, self.dialect)
        rules = {finding.rule for finding in found}
        names = {node.name for node in edit.graph.node} | {""}
        said = {
            "not found": {self.rule} - rules,
            "found too": rules - {self.rule, *self.also},
            "unknown nodes": {finding.node for finding in found} - names,
        }
        where = f"{self.change.__name__} for {self.dialect}"
        return [f"{where}: {what}: {sorted(of)}" for what, of in said.items() if of]


MISTAKES: list[Mistake] = []


def mistake(
    rule: str,
    *dialects: str,
    tower: str = "vision",
    made: str | None = None,
    also: Sequence[str] = (),
) -> Callable[[Change], Change]:
    """Register an edit that breaks exactly one rule, and those that cannot but break with it."""

    def register(change: Change) -> Change:
        for dialect in dialects or DIALECTS:
            MISTAKES.append(Mistake(rule, tuple(also), dialect, made or dialect, tower, change))
        return change

    return register


@mistake("has-quantized-linears")
def nothing_chosen(edit: Edit) -> None:
    for name in [n.name for n in edit.graph.node if n.name.endswith(".weight.DQ")]:
        edit.float_again(name.removesuffix(".weight.DQ"))
    for name in [n.name for n in edit.graph.node if n.name.endswith(".input.DQ")]:
        edit.bypass(name.removesuffix(".input.DQ"))
    edit.forget("constant.zero_point")


@mistake("opset", *FLOAT32)
def opset_of_another_dialect(edit: Edit) -> None:
    edit.model.opset_import[0].version = 19
    norm = edit.node("length")
    del norm.attribute[:]
    norm.input.append(edit.store("axes", np.asarray([-1], np.int64)))


@mistake("opset", *TYPED)
def newer_opset(edit: Edit) -> None:
    edit.model.opset_import[0].version = 21


@mistake("operators", *FLOAT32)
def dynamically_quantized(edit: Edit) -> None:
    edit.insert(
        "1.fc1.Add",
        helper.make_node("DynamicQuantizeLinear", ["1.ffn_norm"], ["y", "s", "z"], name="dynamic"),
        helper.make_node("MatMulInteger", ["y", "w", "z"], ["p"], name="integer"),
        helper.make_node("Cast", ["p"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["1.fc1.MatMul"], name="rescale"),
    )
    edit.remove("1.fc1.MatMul")
    edit.store("w", edit.array("1.fc1.weight").astype(np.int8))
    edit.forget("1.fc1.weight")


@mistake("types", *FLOAT32)
def half_precision_between_casts(edit: Edit) -> None:
    node = edit.node("1.ffn_norm")
    half = helper.make_node("Cast", [node.input[0]], ["half"], name="half", to=TensorProto.FLOAT16)
    edit.insert("1.ffn_norm", half)
    edit.insert(
        "1.fc1.MatMul",
        helper.make_node("Cast", ["normed"], ["1.ffn_norm"], name="back", to=TensorProto.FLOAT),
    )
    for part in ("weight", "bias"):
        name = f"1.ffn_norm.{part}"
        edit.store(name, edit.array(name).astype(np.float16))
    node = edit.node("1.ffn_norm")
    node.input[0], node.output[0] = "half", "normed"


@mistake("types", *TYPED)
def first_layer_left_in_float32(edit: Edit) -> None:
    edit.store("patch.weight", edit.array("patch.weight").astype(np.float32))
    edit.node("patch").input[0] = "image"
    edit.node("patch").output[0] = "patch.float32"
    edit.remove("image.float16")
    edit.insert(
        "patch.Reshape",
        helper.make_node("Cast", ["patch.float32"], ["patch"], name="late", to=TensorProto.FLOAT16),
    )


@mistake("types", *TYPED, tower="text")
def mask_left_in_float32(edit: Edit) -> None:
    edit.attribute("mask.Cast", "to", TensorProto.FLOAT)
    edit.store("constant.-30000", np.asarray(-30000, np.float32))
    edit.node("mask.Mul").output[0] = "mask.float32"
    edit.insert(
        "mask",
        helper.make_node(
            "Cast", ["mask.float32"], ["mask.Mul"], name="late", to=TensorProto.FLOAT16
        ),
    )


@mistake("types", *TYPED)
def lower_bound_of_the_length_underflows(edit: Edit) -> None:
    edit.remove("head.float32")
    edit.node("squeeze").input[0] = "head"
    edit.store("constant.least", np.asarray(1e-12, np.float16))
    edit.node("embedding").output[0] = "half"
    last = helper.make_node("Cast", ["half"], ["embedding"], name="out", to=TensorProto.FLOAT)
    edit.graph.node.append(last)


@mistake("types", *TYPED)
def output_in_half_precision(edit: Edit) -> None:
    edit.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    edit.node("embedding").output[0] = "exact"
    last = helper.make_node("Cast", ["exact"], ["embedding"], name="out", to=TensorProto.FLOAT16)
    edit.graph.node.append(last)


@mistake("types", *TYPED, tower="text")
def table_left_in_float32(edit: Edit) -> None:
    edit.store("token_embedding", edit.array("token_embedding").astype(np.float32))
    edit.node("token_embedding.Gather").output[0] = "rows"
    cast = helper.make_node("Cast", ["rows"], ["token_embedding.Gather"], name="late", to=10)
    edit.insert("positions.Add", cast)


@mistake("types")
def parts_that_do_not_add_up(edit: Edit) -> None:
    edit.store(f"ints.{D}x{D}x{D}", np.asarray([D, D, D + 1], np.int64))


@mistake("types")
def widths_that_do_not_fit(edit: Edit) -> None:
    edit.store("0.out.bias", np.zeros(D + 1, edit.real))


@mistake("pairs", "openvino")
def one_dequantizer_for_each_reader(edit: Edit) -> None:
    grid = ["0.fc1_down.input.Q", "0.fc1_down.input.scale", "constant.zero_point"]
    edit.insert("0.down.MatMul", helper.make_node("DequantizeLinear", grid, ["second"], "second"))
    edit.node("0.down.MatMul").input[0] = "second"


@mistake("pairs", "onnxruntime")
def integers_that_no_quantizer_made(edit: Edit) -> None:
    cast = helper.make_node("Cast", ["0.inner_norm"], ["grid"], name="grid", to=TensorProto.UINT8)
    edit.insert("0.out.input.DQ", cast)
    edit.remove("0.out.input.Q")
    edit.node("0.out.input.DQ").input[0] = "grid"


@mistake("pairs", "onnxruntime", also=["half-quantized"])
def integers_read_as_numbers(edit: Edit) -> None:
    cast = helper.make_node("Cast", ["0.out.input.Q"], ["0.out.input.DQ"], name="cast", to=1)
    edit.insert("0.out.input.DQ", cast)
    edit.remove("0.out.input.DQ")


@mistake("same-grid")
def scale_of_the_neighbour(edit: Edit) -> None:
    edit.node("0.out.input.DQ").input[1] = "0.qkv.input.scale"


@mistake("same-grid")
def equal_scale_under_another_name(edit: Edit) -> None:
    edit.node("0.out.input.DQ").input[1] = edit.store("copy", edit.array("0.out.input.scale"))


def _scale_is(value: Any) -> Change:
    def scale(edit: Edit) -> None:
        edit.store("0.out.input.scale", np.asarray(value, edit.real))

    scale.__name__ = f"scale_{value if isinstance(value, float) else 'per_channel'}"
    return scale


for wrong in (0.0, -0.1, float("nan"), float("inf"), [0.1] * D):
    mistake("activation-scale")(_scale_is(wrong))


@mistake("activation-scale")
def scale_computed_at_run_time(edit: Edit) -> None:
    edit.insert(
        "0.out.input.Q",
        helper.make_node("ReduceMax", ["0.inner_norm"], ["peak"], name="peak", keepdims=0),
    )
    for part in ("Q", "DQ"):
        edit.node(f"0.out.input.{part}").input[1] = "peak"
    edit.forget("0.out.input.scale")
    # What else reads the norm is an error of its own.
    edit.node("peak").input[0] = "0.values.Reshape"


@mistake("zero-point")
def zero_point_of_the_middle(edit: Edit) -> None:
    zero = edit.array("constant.zero_point")
    edit.store("constant.zero_point", zero + np.ones((), zero.dtype))


@mistake("zero-point", "tensorrt-float8")
def int8_activations_among_float8(edit: Edit) -> None:
    edit.store("constant.zero_point", np.asarray(0, np.int8))


@mistake("zero-point")
def zero_point_left_out(edit: Edit) -> None:
    for part in ("Q", "DQ"):
        del edit.node(f"0.out.input.{part}").input[2]


@mistake("zero-point", "openvino", *TYPED, "tensorrt8")
def unsigned_activations(edit: Edit) -> None:
    edit.store("constant.zero_point", np.asarray(128, np.uint8))


@mistake("scale-type", *FLOAT32, also=["types"])
def half_precision_scale(edit: Edit) -> None:
    edit.store("0.out.weight.scale", edit.array("0.out.weight.scale").astype(np.float16))


@mistake("scale-type", *TYPED, also=["types"])
def single_precision_scale(edit: Edit) -> None:
    edit.store("0.out.weight.scale", edit.array("0.out.weight.scale").astype(np.float32))


@mistake("weight-type")
def unsigned_weight(edit: Edit) -> None:
    weight = edit.array("0.out.weight.stored").astype(np.int16) + 128
    edit.store("0.out.weight.stored", weight.astype(np.uint8))
    zero = edit.array("0.out.weight.zero_point")
    edit.store("0.out.weight.zero_point", np.full(zero.shape, 128, np.uint8))


@mistake("weight-range", *INT8)
def weight_of_minus_128(edit: Edit) -> None:
    weight = edit.array("0.out.weight.stored").copy()
    weight[2, 3] = -128
    edit.store("0.out.weight.stored", weight)


@mistake("weight-range", "tensorrt-float8")
def weight_beyond_float8(edit: Edit) -> None:
    weight = edit.array("0.out.weight.stored").astype(np.float32)
    weight[2, 3] = 1000
    edit.store("0.out.weight.stored", weight.astype(edit.small))


@mistake("weight-type", "tensorrt-float8")
def int8_weight_among_float8(edit: Edit) -> None:
    weight = edit.array("0.out.weight.stored").astype(np.float32)
    edit.store("0.out.weight.stored", weight.astype(np.int8))
    edit.store("0.out.weight.zero_point", np.asarray(0, np.int8))


@mistake("weight-type", "tensorrt")
def float8_weight_among_int8(edit: Edit) -> None:
    weight = edit.array("0.out.weight.stored").astype(numpy_type(FLOAT8))
    edit.store("0.out.weight.stored", weight)
    edit.store("0.out.weight.zero_point", np.zeros(D, weight.dtype))


@mistake("weight-axis", *FLOAT32)
def scales_along_the_input(edit: Edit) -> None:
    edit.attribute("0.out.weight.DQ", "axis", 0)


@mistake("weight-scale", *TYPED)
def scale_for_each_column(edit: Edit) -> None:
    edit.store("0.out.weight.scale", np.full(D, 0.01, edit.real))
    edit.store("0.out.weight.zero_point", np.zeros(D, edit.small))


@mistake("weight-scale", *TYPED)
def scale_of_a_weight_of_zeros(edit: Edit) -> None:
    edit.store("0.out.weight.scale", np.asarray(0, edit.real))


@mistake("weight-scale", *FLOAT32)
def one_scale_for_a_whole_weight(edit: Edit) -> None:
    edit.store("0.out.weight.scale", np.asarray(0.01, edit.real))
    del edit.node("0.out.weight.DQ").input[2]
    edit.forget("0.out.weight.zero_point")


@mistake("weight-scale", *FLOAT32)
def scale_of_a_column_of_zeros(edit: Edit) -> None:
    scales = edit.array("0.out.weight.scale").copy()
    scales[5] = 0
    edit.store("0.out.weight.scale", scales)


@mistake("weight-scale", *FLOAT32)
def scale_that_is_not_a_number(edit: Edit) -> None:
    scales = edit.array("0.fc2_up.weight.scale").copy()
    scales[-1] = np.nan
    edit.store("0.fc2_up.weight.scale", scales)


@mistake("sums", "tensorrt")
def sums_beyond_float16(edit: Edit) -> None:
    edit.store("0.fc2_up.weight.scale", np.asarray(100, edit.real))


@mistake("weight-zero-point")
def asymmetric_weight(edit: Edit) -> None:
    zero = edit.array("0.out.weight.zero_point").astype(np.float32)
    zero[-1 if zero.ndim else ()] = 3
    edit.store("0.out.weight.zero_point", zero.astype(edit.small))


@mistake("weight-zero-point")
def one_zero_point_for_all_scales(edit: Edit) -> None:
    edit.store("0.out.weight.zero_point", np.asarray([0], edit.small))


@mistake("weight-stored")
def float_copy_left_behind(edit: Edit) -> None:
    edit.store("0.out.weight", np.zeros((D, D), edit.real))


@mistake("weight-stored", *FLOAT32)
def weight_quantized_at_run_time(edit: Edit) -> None:
    parts = [f"0.out.weight.{part}" for part in ("stored", "scale", "zero_point")]
    edit.store("float", (edit.array(parts[0]) * edit.array(parts[1])).astype(edit.real))
    quantize = helper.make_node("QuantizeLinear", ["float", *parts[1:]], ["q"], "q", axis=1)
    edit.insert("0.out.weight.DQ", quantize)
    edit.node("0.out.weight.DQ").input[0] = "q"
    edit.forget(parts[0])


@mistake("weight-readers")
def weight_stored_the_other_way_round(edit: Edit) -> None:
    turn = helper.make_node("Transpose", ["0.out.weight.DQ"], ["turned"], name="turn", perm=[1, 0])
    edit.insert("0.out.MatMul", turn)
    edit.node("0.out.MatMul").input[1] = "turned"


@mistake("weight-readers", "openvino")
def one_weight_for_two_layers(edit: Edit) -> None:
    edit.node("0.fc1.MatMul").input[1] = "0.enhancer.fc1.weight.DQ"
    moved = edit.node("0.enhancer.fc1.weight.DQ")
    copy = onnx.NodeProto()
    copy.CopyFrom(moved)
    edit.remove(moved.name)
    edit.insert("0.fc1.MatMul", copy)
    edit.remove("0.fc1.weight.DQ")
    edit.forget(*(f"0.fc1.weight.{part}" for part in ("stored", "scale", "zero_point")))


@mistake("bias", *FLOAT32)
def bias_in_integers(edit: Edit) -> None:
    inputs = [
        edit.store("0.out.bias.int32", np.arange(D, dtype=np.int32)),
        edit.store("0.out.bias.scale", np.full(D, 0.001, edit.real)),
    ]
    edit.insert("0.out.Add", helper.make_node("DequantizeLinear", inputs, ["b"], "b", axis=0))
    edit.node("0.out.Add").input[1] = "b"
    edit.forget("0.out.bias")


@mistake("shared", "openvino")
def two_pairs_for_one_tensor(edit: Edit) -> None:
    edit.pair("0.ffn_norm", "0.fc1.MatMul", scale="0.fc1_down.input.scale")
    edit.node("0.fc1.MatMul").input[0] = "new.DQ"


@mistake("shared", "openvino")
def one_of_two_layers_left_in_float(edit: Edit) -> None:
    edit.float_again("0.down")
    edit.node("0.down.MatMul").input[0] = "0.ffn_norm"


@mistake("fusable")
def pair_before_a_norm(edit: Edit) -> None:
    edit.pair("0.values.Reshape", "0.inner_norm")


@mistake("fusable")
def pair_inside_the_gelu(edit: Edit) -> None:
    edit.pair("0.enhancer.fc1.Add", "0.enhancer.gelu.Div")


@mistake("fusable")
def pair_before_the_concatenation(edit: Edit) -> None:
    edit.pair("0.relu", "0.concat")


@mistake("fusable")
def pair_between_product_and_bias(edit: Edit) -> None:
    edit.pair(edit.node("0.out.Add").input[0], "0.out.Add")


@mistake("fusable")
def pair_before_the_head_is_cut_off(edit: Edit) -> None:
    edit.pair("1.attn_norm", "1.first")
    # Without the other readers, which are an error of their own.
    edit.node("1.tokens").input[0] = edit.node("1.values").input[1] = "0.enhancer.sum"


@mistake("half-quantized")
def weight_left_in_float(edit: Edit) -> None:
    edit.float_again("0.out")


@mistake("half-quantized")
def only_the_weight_quantized(edit: Edit) -> None:
    edit.quantize("1.fc1.weight", "1.fc1.MatMul")


@mistake("half-quantized")
def only_the_activation_quantized(edit: Edit) -> None:
    edit.pair("1.ffn_norm", "1.fc1.MatMul")


@mistake("attention")
def quantized_softmax(edit: Edit) -> None:
    edit.pair("0.softmax", "0.values")


@mistake("attention")
def quantized_values(edit: Edit) -> None:
    edit.pair("0.v.Transpose", "0.values")


@mistake("attention")
def quantized_queries_before_they_are_split_into_heads(edit: Edit) -> None:
    edit.pair("0.qkv.Add", "0.qkv.Split")


@mistake("attention")
def quantized_scores(edit: Edit) -> None:
    edit.pair("0.scores", "0.softmax")


@mistake("attention", tower="text")
def quantized_scores_under_a_mask(edit: Edit) -> None:
    edit.pair("0.scores", "0.masked")


@mistake("attention")
def quantized_single_query(edit: Edit) -> None:
    edit.pair("1.q.Transpose", "1.query")


@mistake("attention")
def quantized_tokens_of_a_single_query(edit: Edit) -> None:
    edit.pair("1.softmax", "1.values")


@mistake("attention", also=["half-quantized"])
def quantized_heads_of_a_single_query(edit: Edit) -> None:
    edit.quantize("1.key_heads", "1.query", axis=0)


@mistake("residual")
def stream_reads_what_the_enhancer_reads(edit: Edit) -> None:
    edit.node("0.enhancer.sum").input[0] = "0.enhancer.fc1.input.DQ"


@mistake("residual")
def quantized_branch(edit: Edit) -> None:
    edit.pair("0.out.Add", "0.attn.sum")


@mistake("residual")
def quantized_stream_of_the_first_token(edit: Edit) -> None:
    edit.pair("0.enhancer.sum", "1.stream")


@mistake("norm-branch")
def norm_that_the_stream_reads_too(edit: Edit) -> None:
    edit.node("0.ffn.sum").input[0] = "0.ffn_norm"


@mistake("norm-branch")
def norm_that_attention_reads_too(edit: Edit) -> None:
    edit.node("1.values").input[1] = "0.attn_norm"


@mistake("edges", *FLOAT32)
def quantized_image(edit: Edit) -> None:
    edit.pair("image", "patch")


@mistake("edges", *FLOAT32)
def quantized_image_in_another_layout(edit: Edit) -> None:
    turn = helper.make_node("Transpose", ["image"], ["turned"], name="turn", perm=[0, 1, 3, 2])
    edit.insert("patch", turn)
    edit.node("patch").input[0] = "turned"
    edit.pair("turned", "patch")


@mistake("edges", *FLOAT32)
def quantized_embedding(edit: Edit) -> None:
    grid = [edit.store("scale", np.asarray(0.01, np.float32)), "constant.zero_point"]
    edit.node("embedding").output[0] = "exact"
    edit.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["exact", *grid], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", *grid], ["embedding"], name="dq"),
        ]
    )


@mistake("edges", *FLOAT32)
def quantized_embedding_reshaped(edit: Edit) -> None:
    quantized_embedding(edit)
    edit.node("dq").output[0] = "flat"
    shape = edit.store("shape", np.asarray([-1, D], np.int64))
    edit.graph.node.append(helper.make_node("Reshape", ["flat", shape], ["embedding"], name="last"))


@mistake("protected", *TYPED)
def quantized_image_behind_its_cast(edit: Edit) -> None:
    edit.pair("image.float16", "patch")


@mistake("pixels-first", *TYPED, "tensorrt8", tower="pixels")
def pixels_moved_before_they_are_floats(edit: Edit) -> None:
    move, cast = edit.node("patch.Reshape"), edit.node("patch.Cast")
    edit.node("patch").input[0] = "patch.Cast"
    move.input[0], cast.input[0] = "image", "patch.Reshape"
    edit.remove("patch.Reshape", "patch.Cast")
    edit.insert("patch", move, cast)


@mistake("protected", tower="pixels")
def quantized_patches(edit: Edit) -> None:
    edit.pair(edit.node("patch").input[0], "patch")
    edit.quantize("patch.weight", "patch")


@mistake("protected")
def quantized_patch_weights(edit: Edit) -> None:
    edit.quantize("patch.weight", "patch", axis=0)


@mistake("protected")
def quantized_head(edit: Edit) -> None:
    edit.pair("norm", "head")
    edit.quantize("head.weight", "head")


@mistake("protected", tower="text")
def quantized_token_embedding(edit: Edit) -> None:
    edit.quantize("token_embedding", "token_embedding.Gather")


@mistake("gelu", "openvino", made="tensorrt8")
def joint_layer_not_cut(_edit: Edit) -> None:
    pass  # other dialects want it joint


@mistake("gelu", "openvino")
def reshape_before_the_gelu(edit: Edit) -> None:
    inputs = ["0.fc1.Add", edit.store("shape", np.asarray([0, 0, FFN], np.int64))]
    edit.insert("0.gelu.Div", helper.make_node("Reshape", inputs, ["same"], name="same"))
    for name in ("0.gelu.Div", "0.gelu.Mul"):
        edit.node(name).input[0] = "same"


@mistake("unused")
def zero_point_that_nothing_reads(edit: Edit) -> None:
    del edit.node("0.out.weight.DQ").input[2]


@mistake("dead")
def old_bias_sum_left_behind(edit: Edit) -> None:
    inputs = ["0.out.MatMul", "0.out.bias"]
    edit.insert("0.out.Add", helper.make_node("Add", inputs, ["old"], name="old"))


@mistake("dead")
def part_of_a_split_that_nothing_reads(edit: Edit) -> None:
    edit.node("0.k.Reshape").input[0] = "0.qkv.Split.0"
