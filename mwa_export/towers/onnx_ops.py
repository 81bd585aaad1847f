"""The ONNX interpreter of ``forward``: emits standard nodes of opset 17."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mwa_export.graphs.build import GraphBuilder
from mwa_export.spec import LAYERNORM_EPS
from mwa_export.towers.forward import TowerPlan

Arrays = MutableMapping[str, NDArray[np.float32]]

# Added to the score of a padded key. Low enough for exp() to be exactly 0, and within the range of
# float16 (65504), so that the graph can be converted.
MASKED = -30000.0
NORM_EPS = 1e-12  # torch.nn.functional.normalize


def sum_value(name: str) -> str:
    """Return the name in the graph of the result of ``Ops.add(x, y, name)``."""
    return f"{name}.sum.Add"


class OnnxOps:
    """Emits nodes into a builder. Removes weights from ``tensors`` to free memory.

    Linear weights are stored (in, out), ready for MatMul.
    """

    def __init__(self, graph: GraphBuilder, plan: TowerPlan, tensors: Arrays) -> None:
        self._graph = graph
        self._plan = plan
        self._tensors = tensors

    def linear(self, x: str, tensor: str) -> str:
        weight = self._weight(f"{tensor}.weight", perm=(1, 0))
        x = self._graph.node("MatMul", [x, weight], tensor)
        if f"{tensor}.bias" not in self._tensors:
            return x
        return self._graph.node("Add", [x, self._weight(f"{tensor}.bias")], tensor)

    def norm(self, x: str, tensor: str) -> str:
        attributes = {"axis": -1, "epsilon": LAYERNORM_EPS}
        if f"{tensor}.weight" in self._tensors:
            affine = [self._weight(f"{tensor}.weight"), self._weight(f"{tensor}.bias")]
        else:
            # The bias is optional in ONNX, but ONNX Runtime's transformer optimizer needs it.
            width = self._norm_width(tensor)
            affine = [
                self._graph.constant(np.ones(width, np.float32), np.float32, "ones"),
                self._graph.constant(np.zeros(width, np.float32), np.float32, "zeros"),
            ]
        return self._graph.node("LayerNormalization", [x, *affine], tensor, **attributes)

    def scale(self, x: str, tensor: str) -> str:
        return self._graph.node("Mul", [x, self._weight(tensor)], tensor)

    def gelu(self, x: str, name: str) -> str:
        """Emit 0.5 x (1 + erf(x / sqrt 2)) in the order that runtimes recognize and fuse."""
        root, one, half = (self._float(value) for value in (math.sqrt(2), 1.0, 0.5))
        erf = self._graph.node(
            "Erf", [self._graph.node("Div", [x, root], f"{name}.gelu")], f"{name}.gelu"
        )
        gate = self._graph.node("Add", [erf, one], f"{name}.gelu")
        return self._graph.node(
            "Mul", [self._graph.node("Mul", [x, gate], f"{name}.gelu"), half], f"{name}.gelu"
        )

    def relu(self, x: str, name: str) -> str:
        return self._graph.node("Relu", [x], name)

    def add(self, x: str, y: str, name: str) -> str:
        return self._graph.node("Add", [x, y], f"{name}.sum")

    def concat(self, xs: Sequence[str], name: str) -> str:
        return self._graph.node("Concat", xs, name, axis=-1)

    def split(self, x: str, sizes: Sequence[int], name: str) -> list[str]:
        return self._graph.nodes("Split", [x, self._ints(sizes)], name, len(sizes), axis=-1)

    def first_token(self, x: str, name: str) -> str:
        return self._graph.node(
            "Slice", [x, self._ints([0]), self._ints([1]), self._ints([1])], name
        )

    def attention(
        self, q: str, k: str, v: str, mask: str | None, name: str, *, scaled: bool
    ) -> str:
        heads = self._ints([0, 0, *self._heads])
        q, k, v = (
            self._graph.node(
                "Transpose", [self._graph.node("Reshape", [x, heads], name)], name, perm=perm
            )
            for x, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        if not scaled:
            q = self._graph.node("Mul", [q, self._float(self._heads[1] ** -0.5)], name)
        scores = self._graph.node("MatMul", [q, k], f"{name}.scores")  # (B, heads, asking, T)
        if mask is not None:
            scores = self._graph.node("Add", [scores, mask], f"{name}.scores")
        weights = self._graph.node("Softmax", [scores], name, axis=-1)
        x = self._graph.node("MatMul", [weights, v], f"{name}.values")
        x = self._graph.node("Transpose", [x], f"{name}.values", perm=[0, 2, 1, 3])
        return self._graph.node("Reshape", [x, self._ints([0, 0, self._width])], f"{name}.values")

    def attention_of_one(self, q: str, x: str, mask: str | None, block: str) -> str:
        """Emit attention of one query. Products with weights are batched by head, others by row."""
        node, name = self._graph.node, f"{block}.attn"
        key = self._weight(f"{block}.key_heads")  # (heads, 64, D)
        value = self._weight(f"{block}.value_heads", perm=(0, 2, 1))  # (heads, D, 64)
        q = node("Reshape", [q, self._ints([0, *self._heads])], name)
        q = node("Transpose", [q], name, perm=[1, 0, 2])  # (heads, B, 64)
        asking = node("MatMul", [q, key], f"{name}.query")
        asking = node("Transpose", [asking], f"{name}.query", perm=[1, 0, 2])  # (B, heads, D)
        tokens = node("Transpose", [x], f"{name}.tokens", perm=[0, 2, 1])  # (B, D, T)
        scores = node("MatMul", [asking, tokens], f"{name}.scores")  # (B, heads, T)
        if mask is not None:
            mask = node("Squeeze", [mask, self._ints([1])], "padding_mask.heads")
            scores = node("Add", [scores, mask], f"{name}.scores")
        weights = node("Softmax", [scores], name, axis=-1)
        seen = node("MatMul", [weights, x], f"{name}.values")  # (B, heads, D)
        seen = node("Transpose", [seen], f"{name}.values", perm=[1, 0, 2])
        seen = node("MatMul", [seen, value], f"{name}.values")  # (heads, B, 64)
        seen = node("Transpose", [seen], f"{name}.values", perm=[1, 0, 2])
        seen = node("Reshape", [seen, self._ints([0, 1, self._width])], f"{name}.values")
        return node("Add", [seen, self._weight(f"{block}.value_bias")], f"{name}.values")

    def patches(self, image: str, *, folded: bool) -> str:
        if self._plan.image_input == "uint8":
            return self._pixel_patches(image, folded=folded)
        size = self._plan.backbone.patch_size
        inputs = [image, self._weight("patch.weight")]
        if not folded:
            inputs.append(self._weight("patch.bias"))
        x = self._graph.node("Conv", inputs, "patch", kernel_shape=[size] * 2, strides=[size] * 2)
        x = self._graph.node("Reshape", [x, self._ints([0, self._width, -1])], "patch")
        return self._graph.node("Transpose", [x], "patch", perm=[0, 2, 1])

    def _pixel_patches(self, image: str, *, folded: bool) -> str:
        """Emit the patch projection of bytes: (B, H, W, 3) uint8 -> (B, N, D).

        Patches are cut before the cast, which moves a quarter of the bytes. They stay
        channels-last; the weight is transposed instead.
        """
        size = self._plan.backbone.patch_size
        side = self._plan.backbone.image_size // size
        x = self._graph.node(
            "Reshape", [image, self._ints([-1, side, size, side, size * 3])], "patch"
        )
        x = self._graph.node("Transpose", [x], "patch", perm=[0, 1, 3, 2, 4])
        x = self._graph.node(
            "Reshape", [x, self._ints([-1, side * side, size * size * 3])], "patch"
        )
        x = self._graph.node("Cast", [x], "patch", to=1)
        if not folded:
            for op, value in (("Div", 255.0), ("Sub", 0.5), ("Div", 0.5)):
                x = self._graph.node(op, [x, self._float(value)], "patch.pixels")
        weight = self._tensors.pop("patch.weight")  # (D, 3, size, size)
        flat = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, self._width))
        x = self._graph.node("MatMul", [x, self._graph.weight("patch.weight", flat)], "patch")
        return x if folded else self._graph.node("Add", [x, self._weight("patch.bias")], "patch")

    def with_table(self, patches: str) -> str:
        """Pad a zero row for the class token, so that no shape has to be computed at run time."""
        x = self._graph.node("Pad", [patches, self._ints([0, 1, 0, 0, 0, 0])], "table")
        return self._graph.node("Add", [x, self._weight("table")], "table")

    def with_class_token(self, patches: str) -> str:
        batch = self._size(patches, 0, "cls_token")
        shape = self._graph.node(
            "Concat", [batch, self._ints([1, self._width])], "cls_token.shape", axis=0
        )
        cls = self._graph.node("Expand", [self._weight("cls_token"), shape], "cls_token")
        x = self._graph.node("Concat", [cls, patches], "cls_token", axis=1)
        return self._graph.node("Add", [x, self._weight("positions")], "positions")

    def tokens(self, token_ids: str) -> str:
        x = self._graph.node(
            "Gather", [self._weight("token_embedding"), token_ids], "token_embedding", axis=0
        )
        # Gather rows 0 to T - 1 instead of a Slice, for which symbolic shape inference cannot infer
        # T rows: the table might have fewer.
        length = self._size(token_ids, 1, "length", as_scalar=True)
        zero, one = (self._graph.constant(n, np.int64, f"scalar.{n}") for n in (0, 1))
        rows = self._graph.node("Range", [zero, length, one], "positions")
        positions = self._graph.node("Gather", [self._weight("positions"), rows], "positions")
        return self._graph.node("Add", [x, positions], "positions")

    def zero_padding(self, x: str, padding_mask: str) -> str:
        mask = self._graph.node("Cast", [padding_mask], "padding_mask", to=1)
        keep = self._graph.node("Sub", [self._float(1.0), mask], "padding_mask.keep")
        keep = self._graph.node("Unsqueeze", [keep, self._ints([-1])], "padding_mask.keep")
        return self._graph.node("Mul", [x, keep], "padding_mask.keep")

    def attention_mask(self, padding_mask: str) -> str:
        mask = self._graph.node("Cast", [padding_mask], "padding_mask", to=1)
        mask = self._graph.node("Mul", [mask, self._float(MASKED)], "padding_mask")
        return self._graph.node("Unsqueeze", [mask, self._ints([1, 2])], "padding_mask")

    def unit(self, x: str) -> str:
        x = self._graph.node("Squeeze", [x, self._ints([1])], "embedding.token")
        length = self._graph.node("ReduceL2", [x], "embedding.norm", axes=[-1], keepdims=1)
        length = self._graph.node("Max", [length, self._float(NORM_EPS)], "embedding.norm")
        return self._graph.node("Div", [x, length], "embedding.unit")

    def _size(self, x: str, axis: int, name: str, *, as_scalar: bool = False) -> str:
        """Emit the size of an axis, as int64 of shape (1,) or as a scalar.

        Does not use `start` and `end` of Shape, which TensorRT 8.6 and ONNX Runtime's symbolic
        shape inference ignore.
        """
        shape = self._graph.node("Shape", [x], name)
        index = self._graph.constant(axis if as_scalar else [axis], np.int64, f"axis.{axis}")
        return self._graph.node("Gather", [shape, index], f"{name}.size", axis=0)

    @property
    def _width(self) -> int:
        return self._plan.backbone.embed_dim

    @property
    def _heads(self) -> tuple[int, int]:
        """Number of heads, and width of a head."""
        return self._plan.backbone.heads, self._plan.backbone.head_dim

    def _norm_width(self, tensor: str) -> int:
        wide = tensor.endswith(".mid_norm")
        return self._plan.backbone.ffn_dim if wide else self._width

    def _weight(self, name: str, *, perm: Sequence[int] | None = None) -> str:
        value = self._tensors.pop(name)
        if perm is not None:
            value = np.ascontiguousarray(value.transpose(perm))
        return self._graph.weight(name, value)

    def _float(self, value: float) -> str:
        return self._graph.constant(value, np.float32, f"{value:g}")

    def _ints(self, values: Sequence[int]) -> str:
        return self._graph.constant(list(values), np.int64, "x".join(map(str, values)))
