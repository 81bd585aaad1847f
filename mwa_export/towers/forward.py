"""The forward pass of a tower, written once and run by three interpreters: torch, ONNX and MACs.

A tower is a plan and a flat dict of tensors. The plan lists the applied merge steps, which decide
the form of each layer, so the same code runs the tower with any set of them. A norm without a
`weight` tensor is a plain normalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mwa_export.spec import (
    AdapterConfig,
    BackboneConfig,
    ImageInput,
    Tower,
    TowerSpec,
    text_spec,
    vision_spec,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TowerPlan:
    """The structure of one tower: everything except its tensors."""

    tower: Tower
    backbone: BackboneConfig
    adapter: AdapterConfig | None  # None: this tower runs no adapter
    enhancer: bool
    merges: frozenset[str]  # the applied merge steps, names from towers.steps.STEPS
    image_input: ImageInput = "float32"

    @property
    def spec(self) -> TowerSpec:
        """Inputs and output of the tower."""
        if self.tower == "vision":
            return vision_spec(self.backbone, image_input=self.image_input)
        return text_spec(self.backbone)


class Ops(Protocol[T]):
    """Operations of an interpreter. B: batch, T: tokens, D: width.

    ``tensor`` is the name of a tensor of the tower, or of a pair with `.weight` and `.bias`.
    ``name`` only labels the result.
    """

    def linear(self, x: T, tensor: str) -> T: ...  # (B, T, in) -> (B, T, out)
    def norm(self, x: T, tensor: str) -> T: ...  # over the last axis, eps 1e-5
    def scale(self, x: T, tensor: str) -> T: ...  # multiplied by a scalar
    def gelu(self, x: T, name: str) -> T: ...  # exact, with erf
    def relu(self, x: T, name: str) -> T: ...
    def add(self, x: T, y: T, name: str) -> T: ...
    def concat(self, xs: Sequence[T], name: str) -> T: ...  # along the last axis
    def split(self, x: T, sizes: Sequence[int], name: str) -> list[T]: ...  # along the last axis
    def first_token(self, x: T, name: str) -> T: ...  # (B, T, D) -> (B, 1, D)
    def attention(self, q: T, k: T, v: T, mask: T | None, name: str, *, scaled: bool) -> T: ...
    def attention_of_one(self, q: T, x: T, mask: T | None, block: str) -> T: ...  # one query
    def patches(self, image: T, *, folded: bool) -> T: ...  # image -> (B, N, D)
    def with_table(self, patches: T) -> T: ...  # (B, N, D) -> (B, N + 1, D), adds the merged table
    def with_class_token(self, patches: T) -> T: ...  # like with_table, before that merge
    def tokens(self, token_ids: T) -> T: ...  # (B, T) -> (B, T, D), embeddings plus positions
    def zero_padding(self, x: T, padding_mask: T) -> T: ...
    def attention_mask(self, padding_mask: T) -> T: ...  # (B, T) -> (B, 1, 1, T), added to scores
    def unit(self, x: T) -> T: ...  # (B, 1, D) -> (B, D), L2 norm 1


def run(ops: Ops[T], plan: TowerPlan, inputs: Sequence[T]) -> T:
    """Run a tower: inputs in the order of its TowerSpec -> embedding (B, D), unit L2 norm."""
    mask: T | None = None
    if plan.tower == "vision":
        folded = "constants" in plan.merges
        patches = ops.patches(inputs[0], folded=folded)
        x = ops.with_table(patches) if folded else ops.with_class_token(patches)
    else:
        token_ids, padding_mask = inputs
        x = ops.tokens(token_ids)
        if "text-mask" not in plan.merges:
            x = ops.zero_padding(x, padding_mask)
        mask = ops.attention_mask(padding_mask)
    last = plan.backbone.layers - 1
    for index in range(plan.backbone.layers):
        first_only = "last-token" in plan.merges and index == last
        x = _attend(ops, plan, f"blocks.{index}", x, mask, first_only=first_only)
        x = _feed_forward(ops, plan, f"blocks.{index}", x)
        if plan.enhancer:
            x = _enhance(ops, f"blocks.{index}.enhancer", x)
    if "last-token" not in plan.merges:
        x = ops.first_token(x, "first_token")
    return ops.unit(ops.linear(ops.norm(x, "norm"), "head"))


def _attend(
    ops: Ops[T], plan: TowerPlan, block: str, x: T, mask: T | None, *, first_only: bool
) -> T:
    """Attention and its residual sum. With ``first_only``, only for token 0."""
    width = plan.backbone.embed_dim
    fused = "qkv" in plan.merges
    h = ops.norm(x, f"{block}.attn_norm")
    if first_only:
        x = ops.first_token(x, f"{block}.stream")
        query = ops.linear(ops.first_token(h, f"{block}.query"), f"{block}.q")
        h = ops.attention_of_one(query, h, mask, block)
    elif fused:
        q, k, v = ops.split(ops.linear(h, f"{block}.qkv"), (width,) * 3, f"{block}.qkv")
        h = ops.attention(q, k, v, mask, f"{block}.attn", scaled=True)
    else:
        q, k, v = (ops.linear(h, f"{block}.{name}") for name in "qkv")
        h = ops.attention(q, k, v, mask, f"{block}.attn", scaled=False)
    h = ops.linear(ops.norm(h, f"{block}.inner_norm"), f"{block}.out")
    return ops.add(x, h, f"{block}.attn")


def _feed_forward(ops: Ops[T], plan: TowerPlan, block: str, x: T) -> T:
    """The FFN, the adapter in parallel, and their residual sum."""
    adapter = plan.adapter
    h = ops.norm(x, f"{block}.ffn_norm")
    if adapter is not None and has_joint_down(plan):
        sizes = (plan.backbone.ffn_dim, adapter.bottleneck)
        joint = ops.linear(h, f"{block}.fc1_down")
        hidden, narrow = ops.split(joint, sizes, f"{block}.fc1_down")
    else:
        hidden = ops.linear(h, f"{block}.fc1")
        if adapter is not None:
            into = ops.norm(x, f"{block}.adapter.norm") if adapter.layernorm == "in" else x
            narrow = ops.linear(into, f"{block}.adapter.down")
    hidden = ops.norm(ops.gelu(hidden, f"{block}.ffn"), f"{block}.mid_norm")
    if adapter is None:
        return ops.add(x, ops.linear(hidden, f"{block}.fc2"), f"{block}.ffn")
    narrow = ops.relu(narrow, f"{block}.adapter")
    if has_joint_up(plan):
        both = ops.concat((hidden, narrow), f"{block}.fc2_up")
        return ops.add(x, ops.linear(both, f"{block}.fc2_up"), f"{block}.ffn")
    adapted = ops.linear(narrow, f"{block}.adapter.up")
    if "adapter-up" not in plan.merges:
        adapted = ops.scale(adapted, f"{block}.adapter.scale")
    if adapter.layernorm == "out":
        adapted = ops.norm(adapted, f"{block}.adapter.norm")
    h = ops.add(ops.linear(hidden, f"{block}.fc2"), adapted, f"{block}.adapter")
    return ops.add(x, h, f"{block}.ffn")


def _enhance(ops: Ops[T], enhancer: str, x: T) -> T:
    """The alignment enhancer: x + FFN(x), without a LayerNorm before it."""
    hidden = ops.gelu(ops.linear(x, f"{enhancer}.fc1"), enhancer)
    h = ops.linear(ops.norm(hidden, f"{enhancer}.mid_norm"), f"{enhancer}.fc2")
    return ops.add(x, h, enhancer)


def block_outputs(layers: int, *, enhancer: bool) -> list[str]:
    """Return the names of the blocks' outputs, which are residual sums."""
    return [f"blocks.{index}.{'enhancer' if enhancer else 'ffn'}" for index in range(layers)]


def has_joint_down(plan: TowerPlan) -> bool:
    """Whether `fc1` and `down_proj` are one GEMM, which requires LayerNorm `in`."""
    in_ = plan.adapter is not None and plan.adapter.layernorm == "in"
    return in_ and {"adapter-down", "layernorm"} <= plan.merges


def has_joint_up(plan: TowerPlan) -> bool:
    """Whether `fc2` and `up_proj` are one GEMM, which requires no LayerNorm after `up_proj`."""
    out = plan.adapter is not None and plan.adapter.layernorm == "out"
    return plan.adapter is not None and not out and "adapter-up" in plan.merges
