"""Merge adapters, norms, scales and constants exactly into as few GEMMs as possible.

Every step is algebra without approximation, so only float32 rounding differs. The functions on
tensors come first, then the steps that apply them to a tower's flat dict of tensors. Linear weights
are (out, in) like in torch.nn.Linear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mwa_export.towers.forward import TowerPlan, has_joint_down, has_joint_up

Tensors = dict[str, Tensor]

# --- algebra on tensors ---------------------------------------------------------------------------


def fold_norm(
    gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Fold a LayerNorm's weight and bias into the linear after it.

    W (γ n + β) + b = (W diag γ) n + (W β + b). gamma, beta: (in,); weight: (out, in).
    Sums are computed in float64: rounded once, and independent of the memory layout.
    """
    folded = weight.double() @ beta.double()
    if bias is not None:
        folded = folded + bias.double()
    return weight * gamma, folded.to(weight.dtype)


def fold_attention_scale(weight: Tensor, bias: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Fold 1 / sqrt(head_dim) into the query projection. For 64 this is exact (a power of two)."""
    scale = head_dim**-0.5
    return weight * scale, bias * scale


def stack_rows(*linears: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join linears with the same input into one that concatenates their outputs."""
    return torch.cat([w for w, _ in linears]), torch.cat([b for _, b in linears])


def stack_columns(*linears: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join linears whose outputs are added into one that reads their concatenated inputs."""
    weight = torch.cat([w for w, _ in linears], dim=1)
    return weight, torch.stack([b for _, b in linears]).sum(0)


def by_head(weight: Tensor, head_dim: int) -> Tensor:
    """Group the rows of a projection by head. (D, D) -> (heads, head_dim, D).

    With a single query, q (K x) = (K^T q) x and Σ a (V x) = V (Σ a x) for each head: two small
    products per query replace the key and value GEMMs over all tokens.
    """
    return weight.view(-1, head_dim, weight.shape[1])


def vision_table(cls_token: Tensor, positions: Tensor, patch_bias: Tensor) -> Tensor:
    """Make the table to add to [0, patches without bias]: (D,), (N + 1, D), (D,) -> (N + 1, D)."""
    table = positions.clone()
    table[0] += cls_token
    table[1:] += patch_bias
    return table


def fold_pixel_scaling(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the scaling of pixels from [0, 255] to [-1, 1] into the projection.

    W (x 2/255 - 1) + b = (W 2/255) x + (b - ΣW). weight: (out, in).
    """
    shift = weight.double().sum(dim=1)
    return weight * (2 / 255), (bias.double() - shift).to(bias.dtype)


# --- the steps ------------------------------------------------------------------------------------


def merge_tower(
    plan: TowerPlan, tensors: Mapping[str, Tensor], steps: Iterable[str]
) -> tuple[TowerPlan, Tensors]:
    """Apply merge steps to an unmerged tower.

    Args:
        plan: plan of the unmerged tower.
        tensors: as extracted by ``tower_from_model``, in any float precision; not modified.
        steps: names from towers.steps.STEPS.

    Returns:
        The new plan, and the tensors it needs.
    """
    merged = replace(plan, merges=frozenset(steps))
    out = dict(tensors)
    for index in range(plan.backbone.layers):
        block = f"blocks.{index}"
        # Norms first: later steps join GEMMs that then read the same plain normalization.
        if "layernorm" in merged.merges:
            _fold_block_norms(out, merged, block)
        if "last-token" in merged.merges and index == plan.backbone.layers - 1:
            _absorb_key_and_value(out, merged, block)
        elif "qkv" in merged.merges:
            _fuse_qkv(out, merged, block)
        _merge_adapter(out, merged, block)
    if "layernorm" in merged.merges:
        _fold_norm_into(out, "norm", ["head"])
    if plan.tower == "vision" and "constants" in merged.merges:
        _fold_constants(out, pixels=plan.image_input == "uint8")
    return merged, out


def _fold_block_norms(tensors: Tensors, plan: TowerPlan, block: str) -> None:
    _fold_norm_into(tensors, f"{block}.attn_norm", [f"{block}.{name}" for name in "qkv"])
    _fold_norm_into(tensors, f"{block}.inner_norm", [f"{block}.out"])
    _fold_norm_into(tensors, f"{block}.ffn_norm", [f"{block}.fc1"])
    _fold_norm_into(tensors, f"{block}.mid_norm", [f"{block}.fc2"])
    if plan.adapter is not None and plan.adapter.layernorm == "in":
        _fold_norm_into(tensors, f"{block}.adapter.norm", [f"{block}.adapter.down"])
    if plan.enhancer:
        enhancer = f"{block}.enhancer"
        _fold_norm_into(tensors, f"{enhancer}.mid_norm", [f"{enhancer}.fc2"])


def _fold_norm_into(tensors: Tensors, norm: str, linears: Iterable[str]) -> None:
    gamma, beta = tensors.pop(f"{norm}.weight"), tensors.pop(f"{norm}.bias")
    for linear in linears:
        weight, bias = tensors[f"{linear}.weight"], tensors.get(f"{linear}.bias")
        _put(tensors, linear, fold_norm(gamma, beta, weight, bias))


def _fuse_qkv(tensors: Tensors, plan: TowerPlan, block: str) -> None:
    query = fold_attention_scale(*_take(tensors, f"{block}.q"), plan.backbone.head_dim)
    key_weight, key_bias = _take(tensors, f"{block}.k")
    # q (k + b) adds the constant q b to all scores of a query, which softmax cancels.
    key = key_weight, torch.zeros_like(key_bias)
    _put(tensors, f"{block}.qkv", stack_rows(query, key, _take(tensors, f"{block}.v")))


def _absorb_key_and_value(tensors: Tensors, plan: TowerPlan, block: str) -> None:
    head_dim = plan.backbone.head_dim
    _put(tensors, f"{block}.q", fold_attention_scale(*_take(tensors, f"{block}.q"), head_dim))
    key, _ = _take(tensors, f"{block}.k")  # its bias cancels in softmax, as above
    value, bias = _take(tensors, f"{block}.v")
    tensors[f"{block}.key_heads"] = by_head(key, head_dim)
    tensors[f"{block}.value_heads"] = by_head(value, head_dim)
    tensors[f"{block}.value_bias"] = bias  # unchanged, because attention weights sum to 1


def _merge_adapter(tensors: Tensors, plan: TowerPlan, block: str) -> None:
    if has_joint_down(plan):
        parts = _take(tensors, f"{block}.fc1"), _take(tensors, f"{block}.adapter.down")
        _put(tensors, f"{block}.fc1_down", stack_rows(*parts))
    if plan.adapter is not None and "adapter-up" in plan.merges:
        scale = tensors.pop(f"{block}.adapter.scale")
        weight, bias = _take(tensors, f"{block}.adapter.up")
        up = weight * scale, bias * scale
        if has_joint_up(plan):
            _put(tensors, f"{block}.fc2_up", stack_columns(_take(tensors, f"{block}.fc2"), up))
        else:
            _put(tensors, f"{block}.adapter.up", up)


def _fold_constants(tensors: Tensors, *, pixels: bool) -> None:
    weight, bias = _take(tensors, "patch")
    if pixels:
        flat, bias = fold_pixel_scaling(weight.flatten(1), bias)
        weight = flat.view_as(weight)
    tensors["patch.weight"] = weight
    table = vision_table(tensors.pop("cls_token"), tensors.pop("positions"), bias)
    tensors["table"] = table


def _take(tensors: Tensors, linear: str) -> tuple[Tensor, Tensor]:
    return tensors.pop(f"{linear}.weight"), tensors.pop(f"{linear}.bias")


def _put(tensors: Tensors, linear: str, parts: tuple[Tensor, Tensor]) -> None:
    tensors[f"{linear}.weight"], tensors[f"{linear}.bias"] = parts
