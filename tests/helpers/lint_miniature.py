"""A hand-quantized tower of two blocks in every dialect, and edits to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mwa_export.graphs.lint.check import lint
from mwa_export.graphs.small_floats import FLOAT8, numpy_type
from mwa_export.spec import Tower

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
        if self.dialect in TYPED:
            parts["scale"], parts["zero_point"] = parts["scale"][0], parts["zero_point"][0]
        inputs = [self.store(f"{name}.weight.{part}", value) for part, value in parts.items()]
        return self.node("DequantizeLinear", inputs, f"{name}.weight.DQ", axis=1)

    def gemm(self, x: str, name: str, rows: int, columns: int, *, quantized: bool = True) -> str:
        if quantized:
            weight = self.weight(name, rows, columns)
        else:
            weight = self.floats(f"{name}.weight", rows, columns)
        x = self.node("MatMul", [x, weight], f"{name}.MatMul")
        if quantized and self.dialect == "tensorrt":
            x = self.node("Mul", [x, self.floats(f"{name}.factors", columns)], f"{name}.Mul")
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
        self.small, self.one_scale = miniature.small, dialect in TYPED
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
        scale = np.asarray(step) if self.one_scale else np.full(value.shape[axis], step)
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
