"""Every rule of a quantized graph is kept by clean graphs, and named by the mistake it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from configs import CONFIGS
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mwa_export.calib.lint import RULES, check, lint
from mwa_export.calib.small_floats import FLOAT8, numpy_type
from mwa_export.config import Tower
from mwa_export.errors import BundleError, OptionsError
from mwa_export.extract import tower_from_model
from mwa_export.merge import merge_tower
from mwa_export.merge_steps import STEPS
from mwa_export.model import Model
from mwa_export.onnx_export import onnx_from_tower
from mwa_export.synthetic import random_tensors

INT8 = ("onnxruntime", "openvino", "tensorrt", "tensorrt8")
TYPED = ("tensorrt", "tensorrt-float8")
DIALECTS = (*INT8, "tensorrt-float8")
D, HEADS, FFN, R, VOCAB = 8, 2, 16, 4, 10  # width, heads, hidden widths of FFN and adapter
Array = NDArray[Any]


class Miniature:
    """A tower of two blocks, quantized by hand: the first block whole, the last not at all."""

    def __init__(self, dialect: str, tower: Tower) -> None:
        self.dialect, self.tower = dialect, tower
        typed = dialect in TYPED
        self.real: Any = np.float16 if typed else np.float32
        self.kind = TensorProto.FLOAT16 if typed else TensorProto.FLOAT
        self.opset = 19 if typed else 17
        self.float8 = dialect == "tensorrt-float8"
        self.small: Any = numpy_type(FLOAT8) if self.float8 else np.dtype(np.int8)
        shifted = dialect == "onnxruntime"
        self.zero: Array = np.asarray(128, np.uint8) if shifted else np.asarray(0, self.small)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Array] = {}
        self.rng = np.random.default_rng(0)

    def node(self, op: str, inputs: Sequence[str], name: str, outputs: int = 1, **more: Any) -> str:
        results = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, results, name=name, **more))
        return name

    def store(self, name: str, value: Any) -> str:
        self.stored[name] = value
        return name

    def floats(self, name: str, *shape: int) -> str:
        return self.store(name, self.rng.normal(size=shape).astype(self.real))

    def ints(self, *values: int) -> str:
        name = "ints." + "x".join(map(str, values))
        return self.store(name, np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        return self.store(f"constant.{value:g}", np.asarray(value, self.real))

    def pair(self, x: str, site: str) -> str:
        """Q and DQ of an activation."""
        scale = self.store(f"{site}.input.scale", np.asarray(0.02, self.real))
        grid = [scale, self.store("constant.zero_point", self.zero)]
        self.node("QuantizeLinear", [x, *grid], f"{site}.input.Q")
        return self.node("DequantizeLinear", [f"{site}.input.Q", *grid], f"{site}.input.DQ")

    def weight(self, name: str, rows: int, columns: int) -> str:
        """A dequantized weight."""
        parts = {
            "stored": self.rng.integers(-127, 128, (rows, columns)).astype(self.small),
            "scale": self.rng.uniform(0.001, 0.01, columns).astype(self.real),
            "zero_point": np.zeros(columns, self.small),
        }
        if self.float8:
            parts["scale"], parts["zero_point"] = parts["scale"][0], parts["zero_point"][0]
        inputs = [self.store(f"{name}.weight.{part}", value) for part, value in parts.items()]
        return self.node("DequantizeLinear", inputs, f"{name}.weight.DQ", axis=1)

    def gemm(self, x: str, name: str, rows: int, columns: int, *, quantized: bool = True) -> str:
        if quantized:
            weight = self.weight(name, rows, columns)
        else:
            weight = self.floats(f"{name}.weight", rows, columns)
        x = self.node("MatMul", [x, weight], f"{name}.MatMul")
        return self.node("Add", [x, self.floats(f"{name}.bias", columns)], f"{name}.Add")

    def norm(self, x: str, name: str, width: int = D) -> str:
        affine = [self.floats(f"{name}.weight", width), self.floats(f"{name}.bias", width)]
        return self.node("LayerNormalization", [x, *affine], name, axis=-1, epsilon=1e-5)

    def gelu(self, x: str, name: str) -> str:
        scaled = self.node("Div", [x, self.number(1.41421)], f"{name}.Div")
        erf = self.node("Erf", [scaled], f"{name}.Erf")
        gate = self.node("Add", [erf, self.number(1)], f"{name}.gate")
        product = self.node("Mul", [x, gate], f"{name}.Mul")
        return self.node("Mul", [product, self.number(0.5)], f"{name}.half")

    def heads(self, x: str, name: str, perm: Sequence[int]) -> str:
        x = self.node("Reshape", [x, self.ints(0, 0, HEADS, D // HEADS)], f"{name}.Reshape")
        return self.node("Transpose", [x], f"{name}.Transpose", perm=perm)

    def attention(self, x: str, mask: str | None) -> str:
        """Over all tokens, with a quantized qkv and out."""
        joint = self.gemm(self.pair(x, "0.qkv"), "0.qkv", D, 3 * D)
        self.node("Split", [joint, self.ints(D, D, D)], "0.qkv.Split", outputs=3, axis=-1)
        perms = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
        q, k, v = (
            self.heads(f"0.qkv.Split.{index}", f"0.{name}", perm)
            for index, (name, perm) in enumerate(perms.items())
        )
        scores = self.node("MatMul", [q, k], "0.scores")
        if mask is not None:
            scores = self.node("Add", [scores, mask], "0.masked")
        seen = self.node("Softmax", [scores], "0.softmax", axis=-1)
        x = self.node("MatMul", [seen, v], "0.values")
        x = self.node("Transpose", [x], "0.values.Transpose", perm=[0, 2, 1, 3])
        x = self.node("Reshape", [x, self.ints(0, 0, D)], "0.values.Reshape")
        return self.gemm(self.pair(self.norm(x, "0.inner_norm"), "0.out"), "0.out", D, D)

    def first_block(self, x: str, mask: str | None) -> str:
        h = self.attention(self.norm(x, "0.attn_norm"), mask)
        x = self.node("Add", [x, h], "0.attn.sum")
        h = self.pair(self.norm(x, "0.ffn_norm"), "0.fc1_down")
        if self.dialect == "openvino":
            hidden, narrow = (self.gemm(h, f"0.{n}", D, w) for n, w in (("fc1", FFN), ("down", R)))
        else:
            joint = self.gemm(h, "0.fc1_down", D, FFN + R)
            split = self.node("Split", [joint, self.ints(FFN, R)], "0.cut", outputs=2, axis=-1)
            hidden, narrow = f"{split}.0", f"{split}.1"
        hidden = self.norm(self.gelu(hidden, "0.gelu"), "0.mid_norm", FFN)
        narrow = self.node("Relu", [narrow], "0.relu")
        both = self.node("Concat", [hidden, narrow], "0.concat", axis=-1)
        h = self.gemm(self.pair(both, "0.fc2_up"), "0.fc2_up", FFN + R, D)
        x = self.node("Add", [x, h], "0.ffn.sum")
        h = self.gemm(self.pair(x, "0.enhancer.fc1"), "0.enhancer.fc1", D, FFN)  # the raw stream
        h = self.norm(self.gelu(h, "0.enhancer.gelu"), "0.enhancer.norm", FFN)
        h = self.gemm(self.pair(h, "0.enhancer.fc2"), "0.enhancer.fc2", FFN, D)
        return self.node("Add", [x, h], "0.enhancer.sum")

    def last_block(self, x: str) -> str:
        """A single query, on heads of three dimensions; nothing is worth quantizing."""
        h = self.norm(x, "1.attn_norm")
        one = [self.ints(0), self.ints(1), self.ints(1)]
        x = self.node("Slice", [x, *one], "1.stream")
        q = self.gemm(self.node("Slice", [h, *one], "1.first"), "1.q", D, D, quantized=False)
        q = self.node("Reshape", [q, self.ints(0, HEADS, D // HEADS)], "1.q.Reshape")
        q = self.node("Transpose", [q], "1.q.Transpose", perm=[1, 0, 2])
        asking = self.node(
            "MatMul", [q, self.floats("1.key_heads", HEADS, D // HEADS, D)], "1.query"
        )
        asking = self.node("Transpose", [asking], "1.asking", perm=[1, 0, 2])
        tokens = self.node("Transpose", [h], "1.tokens", perm=[0, 2, 1])
        scores = self.node("MatMul", [asking, tokens], "1.scores")
        seen = self.node("Softmax", [scores], "1.softmax", axis=-1)
        seen = self.node("MatMul", [seen, h], "1.values")
        h = self.node("ReduceSum", [seen, self.ints(1)], "1.joined", keepdims=1)
        x = self.node("Add", [x, h], "1.attn.sum")
        h = self.gemm(self.norm(x, "1.ffn_norm"), "1.fc1", D, D, quantized=False)
        return self.node("Add", [x, h], "1.ffn.sum")

    def vision(self) -> str:
        image = self.cast_from("image")
        weight = self.floats("patch.weight", D, 3, 4, 4)
        x = self.node("Conv", [image, weight], "patch", strides=[4, 4])
        x = self.node("Reshape", [x, self.ints(0, D, -1)], "patch.Reshape")
        return self.node("Transpose", [x], "patch.Transpose", perm=[0, 2, 1])

    def pixels(self) -> str:
        """Patches as a product, as for uint8."""
        if self.dialect.startswith("tensorrt"):
            x = self.node("Cast", ["image"], "patch.Cast", to=self.kind)
            x = self.node("Reshape", [x, self.ints(0, -1, 48)], "patch.Reshape")
            return self.node("MatMul", [x, self.floats("patch.weight", 48, D)], "patch")
        x = self.node("Reshape", ["image", self.ints(0, -1, 48)], "patch.Reshape")
        x = self.node("Cast", [x], "patch.Cast", to=self.kind)
        return self.node("MatMul", [x, self.floats("patch.weight", 48, D)], "patch")

    def text(self) -> tuple[str, str]:
        table = self.floats("token_embedding", VOCAB, D)
        x = self.node("Gather", [table, "token_ids"], "token_embedding.Gather")
        x = self.node("Add", [x, self.floats("positions", 1, D)], "positions.Add")
        mask = self.node("Cast", ["padding_mask"], "mask.Cast", to=self.kind)
        mask = self.node("Mul", [mask, self.number(-30000)], "mask.Mul")
        return x, self.node("Unsqueeze", [mask, self.ints(1, 2)], "mask")

    def cast_from(self, value: str) -> str:
        if self.kind == TensorProto.FLOAT:
            return value
        return self.node("Cast", [value], f"{value}.float16", to=self.kind)

    def unit(self, x: str) -> str:
        x = self.node("MatMul", [self.norm(x, "norm"), self.floats("head.weight", D, D)], "head")
        if self.kind != TensorProto.FLOAT:
            x = self.node("Cast", [x], "head.float32", to=TensorProto.FLOAT)
        x = self.node("Squeeze", [x, self.ints(1)], "squeeze")
        if self.opset >= 18:
            length = self.node("ReduceL2", [x, self.ints(-1)], "length", keepdims=1)
        else:
            length = self.node("ReduceL2", [x], "length", axes=[-1], keepdims=1)
        least = self.store("constant.least", np.asarray(1e-12, np.float32))
        length = self.node("Max", [length, least], "length.Max")
        return self.node("Div", [x, length], "embedding")

    def model(self) -> onnx.ModelProto:
        mask, ports = None, {"image": (TensorProto.FLOAT, ["batch", 3, 8, 8])}
        if self.tower == "text":
            x, mask = self.text()
            axes: list[Any] = ["batch", "length"]
            ports = {n: (TensorProto.INT64, axes) for n in ("token_ids", "padding_mask")}
        else:
            x = self.vision()
        self.unit(self.last_block(self.first_block(x, mask)))
        return self.assembled(ports)

    def pixel_model(self) -> onnx.ModelProto:
        self.unit(self.last_block(self.first_block(self.pixels(), None)))
        return self.assembled({"image": (TensorProto.UINT8, ["batch", 8, 8, 3])})

    def assembled(self, ports: dict[str, Any]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "miniature",
            [helper.make_tensor_value_info(name, *kind) for name, kind in ports.items()],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", D])],
            [numpy_helper.from_array(value, name) for name, value in self.stored.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


class Edit:
    """Mistakes that an inserter could make, on a clean graph."""

    def __init__(self, dialect: str, tower: Tower = "vision", *, pixels: bool = False) -> None:
        miniature = Miniature(dialect, tower)
        self.model = miniature.pixel_model() if pixels else miniature.model()
        self.graph, self.real = self.model.graph, miniature.real
        self.small, self.float8 = miniature.small, miniature.float8
        assert lint(self.model, dialect) == []

    def node(self, name: str) -> onnx.NodeProto:
        found: onnx.NodeProto = next(node for node in self.graph.node if node.name == name)
        return found

    def array(self, name: str) -> Array:
        return numpy_helper.to_array(next(t for t in self.graph.initializer if t.name == name))

    def store(self, name: str, value: Array) -> str:
        """Add a stored tensor, or replace one."""
        kept = [tensor for tensor in self.graph.initializer if tensor.name != name]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])
        return name

    def forget(self, *names: str) -> None:
        kept = [tensor for tensor in self.graph.initializer if tensor.name not in names]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def insert(self, before: str, *new: onnx.NodeProto) -> None:
        nodes = list(self.graph.node)
        at = next(index for index, node in enumerate(nodes) if node.name == before)
        nodes[at:at] = new
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def remove(self, *names: str) -> None:
        kept = [node for node in self.graph.node if node.name not in names]
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def pair(self, value: str, reader: str, site: str = "new", scale: str | None = None) -> str:
        """Put a Q/DQ of its own between a value and one reader."""
        scale = scale or self.store(f"{site}.scale", np.asarray(0.02, self.real))
        grid = [scale, "constant.zero_point"]
        self.insert(
            reader,
            helper.make_node("QuantizeLinear", [value, *grid], [f"{site}.Q"], name=f"{site}.Q"),
            helper.make_node(
                "DequantizeLinear", [f"{site}.Q", *grid], [f"{site}.DQ"], name=f"{site}.DQ"
            ),
        )
        node = self.node(reader)
        node.input[:] = [f"{site}.DQ" if v == value else v for v in node.input]
        return f"{site}.DQ"

    def quantize(self, weight: str, reader: str, axis: int = 1) -> None:
        """Quantize a float weight."""
        value = self.array(weight)
        step = np.abs(value).max() / 127
        scale = np.asarray(step) if self.float8 else np.full(value.shape[axis], step)
        inputs = [
            self.store(f"{weight}.stored", np.rint(value / step).astype(self.small)),
            self.store(f"{weight}.scale", scale.astype(self.real)),
        ]
        self.forget(weight)
        name = f"{weight}.DQ"
        self.insert(reader, helper.make_node("DequantizeLinear", inputs, [name], name, axis=axis))
        node = self.node(reader)
        node.input[:] = [name if v == weight else v for v in node.input]

    def float_again(self, linear: str) -> None:
        """Undo the quantization of a weight."""
        parts = [f"{linear}.weight.{part}" for part in ("stored", "scale", "zero_point")]
        value = (self.array(parts[0]).astype(np.float32) * self.array(parts[1])).astype(self.real)
        self.remove(f"{linear}.weight.DQ")
        self.forget(*parts)
        self.node(f"{linear}.MatMul").input[1] = self.store(f"{linear}.weight", value)

    def bypass(self, site: str) -> None:
        """Undo the quantization of an activation."""
        source = self.node(f"{site}.input.Q").input[0]
        for node in self.graph.node:
            node.input[:] = [source if v == f"{site}.input.DQ" else v for v in node.input]
        self.remove(f"{site}.input.Q", f"{site}.input.DQ")
        self.forget(f"{site}.input.scale")

    def attribute(self, node: str, name: str, value: int) -> None:
        attributes = self.node(node).attribute
        kept = [attribute for attribute in attributes if attribute.name != name]
        del attributes[:]
        attributes.extend([*kept, helper.make_attribute(name, value)])


# --- clean graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_clean_graph_has_no_findings(dialect: str, tower: Tower) -> None:
    model = Miniature(dialect, tower).model()
    onnx.checker.check_model(model, full_check=True)
    assert lint(model, dialect) == []


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
    assert found["tensorrt", "tensorrt8"] == {"opset", "scale-type", "types"}
    assert found["tensorrt8", "tensorrt"] == {"opset", "scale-type", "types"}
    other_numbers = {"zero-point", "weight-type"}
    assert found["tensorrt-float8", "tensorrt"] == other_numbers
    assert found["tensorrt", "tensorrt-float8"] == other_numbers


# --- one mistake for every rule -------------------------------------------------------------------

Mistake = Callable[[Edit], object]
MISTAKES: list[Any] = []
FLOAT32 = ("onnxruntime", "openvino", "tensorrt8")


def mistake(
    rule: str,
    *dialects: str,
    tower: str = "vision",
    made: str | None = None,
    also: Sequence[str] = (),
) -> Callable[[Mistake], Mistake]:
    """Register an edit that breaks exactly one rule, and those that cannot but break with it."""

    def register(edit: Mistake) -> Mistake:
        for dialect in dialects or DIALECTS:
            name = f"{rule}-{edit.__name__}-{dialect}"
            values = (rule, {rule, *also}, dialect, made or dialect, tower, edit)
            MISTAKES.append(pytest.param(*values, id=name))
        return edit

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


def _scale_is(value: Any) -> Mistake:
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


@mistake("weight-axis", *INT8)
def scales_along_the_input(edit: Edit) -> None:
    edit.attribute("0.out.weight.DQ", "axis", 0)


@mistake("weight-scale", "tensorrt-float8")
def scale_for_each_column_of_float8(edit: Edit) -> None:
    edit.store("0.out.weight.scale", np.full(D, 0.01, edit.real))
    edit.store("0.out.weight.zero_point", np.zeros(D, edit.small))


@mistake("weight-scale", "tensorrt-float8")
def scale_of_a_weight_of_zeros(edit: Edit) -> None:
    edit.store("0.out.weight.scale", np.asarray(0, edit.real))


@mistake("weight-scale", *INT8)
def one_scale_for_a_whole_weight(edit: Edit) -> None:
    edit.store("0.out.weight.scale", np.asarray(0.01, edit.real))
    del edit.node("0.out.weight.DQ").input[2]
    edit.forget("0.out.weight.zero_point")


@mistake("weight-scale", *INT8)
def scale_of_a_column_of_zeros(edit: Edit) -> None:
    scales = edit.array("0.out.weight.scale").copy()
    scales[5] = 0
    edit.store("0.out.weight.scale", scales)


@mistake("weight-scale", *INT8)
def scale_that_is_not_a_number(edit: Edit) -> None:
    scales = edit.array("0.fc2_up.weight.scale").copy()
    scales[-1] = np.nan
    edit.store("0.fc2_up.weight.scale", scales)


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
    edit.pair("0.out.MatMul", "0.out.Add")


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


@pytest.mark.parametrize(("rule", "rules", "dialect", "made", "tower", "edit"), MISTAKES)
def test_mistake_is_found_by_its_rule_alone(
    rule: str, rules: set[str], dialect: str, made: str, tower: str, edit: Mistake
) -> None:
    graph = Edit(made, "text" if tower == "text" else "vision", pixels=tower == "pixels")
    edit(graph)
    found = lint(graph.model, dialect)
    assert {finding.rule for finding in found} >= {rule}, found
    assert {finding.rule for finding in found} <= rules, found
    names = {node.name for node in graph.graph.node} | {""}
    assert {finding.node for finding in found} <= names


def test_every_rule_has_a_mistake() -> None:
    assert {parameters.values[0] for parameters in MISTAKES} == RULES.keys()


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
    assert message.startswith(f"{path}: breaks 1 rule(s) of graphs for openvino:\n")
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
    with pytest.raises(BundleError, match=r"breaks 6 rule\(s\)(.|\n)*and 1 more") as caught:
        check(write(edit, tmp_path, outside=False), "openvino")
    assert str(caught.value).count("  [") == 5


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match=r"is no ONNX graph"):
        check(path, "openvino")


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    path = write(Edit("openvino"), tmp_path, outside=True)
    (tmp_path / f"{path.name}.data").unlink()
    with pytest.raises(BundleError, match=r"the data file of .* cannot be read"):
        check(path, "openvino")


def test_unknown_dialect_is_refused() -> None:
    model = Miniature("openvino", "vision").model()
    with pytest.raises(OptionsError, match=r"coreml: no such dialect\. Expected: onnxruntime"):
        lint(model, "coreml")
