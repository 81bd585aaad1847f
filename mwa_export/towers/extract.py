"""Extract the tensors of one tower from a checkpoint, renamed for ``forward``, without copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mwa_export.spec import (
    ADAPTER_OF_TOWER,
    BRANCH_OF_TOWER,
    HEAD_OF_TOWER,
    POSITION_OFFSET,
    ImageInput,
    ModelConfig,
    Tower,
)
from mwa_export.towers.forward import TowerPlan


def tower_from_model(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tower: Tower,
    *,
    image_input: ImageInput = "float32",
    dtype: torch.dtype = torch.float32,
) -> tuple[TowerPlan, dict[str, Tensor]]:
    """Extract the unmerged tower of a validated checkpoint.

    Args:
        config: as inferred from the checkpoint.
        tensors: its state dict, named as in the file.
        tower: "vision" or "text".
        image_input: dtype of the vision tower's input, see `vision_spec`.
        dtype: precision of the result; tensors that already have it are not copied.

    Returns:
        The plan of the unmerged tower, and its tensors.
    """
    adapter = config.adapter
    if adapter is not None and not adapter.applies_to(tower):
        adapter = None
    plan = TowerPlan(tower, config.backbone, adapter, config.enhancer, frozenset(), image_input)
    out: dict[str, Tensor] = {}
    for source, target in _names(plan).items():
        out[target] = tensors[source].to(dtype)
    positions = out["positions"][POSITION_OFFSET:]
    if tower == "text":
        positions = positions[: config.backbone.max_text_length]
    else:
        out["cls_token"] = out["cls_token"].reshape(-1)
    out["positions"] = positions
    if adapter is not None:
        for index in range(config.backbone.layers):
            scale = f"blocks.{index}.adapter.scale"
            learned = tensors.get(f"{_layer(index)}.{ADAPTER_OF_TOWER[tower]}.scale")
            value = torch.tensor(adapter.scale) if learned is None else learned
            out[scale] = value.reshape(()).to(dtype)
    return plan, out


def _names(plan: TowerPlan) -> dict[str, str]:
    """Map names in the checkpoint to names in the tower."""
    branch, names = BRANCH_OF_TOWER[plan.tower], {}

    def add(source: str, target: str) -> None:
        names[source] = target

    def pair(source: str, target: str) -> None:
        for part in ("weight", "bias"):
            names[f"{source}.{part}"] = f"{target}.{part}"

    if plan.tower == "vision":
        add("beit3.vision_embed.cls_token", "cls_token")
        pair("beit3.vision_embed.proj", "patch")
    else:
        add("beit3.text_embed.weight", "token_embedding")
    add(f"beit3.encoder.embed_positions.{branch}.weight", "positions")
    for index in range(plan.backbone.layers):
        _layer_names(plan, index, pair)
    pair(f"beit3.encoder.layer_norm.{branch}", "norm")
    add(f"{HEAD_OF_TOWER[plan.tower]}.weight", "head.weight")
    return names


def _layer_names(plan: TowerPlan, index: int, pair: Callable[[str, str], None]) -> None:
    branch, layer, block = BRANCH_OF_TOWER[plan.tower], _layer(index), f"blocks.{index}"
    for name in ("q", "k", "v", "out"):
        pair(f"{layer}.self_attn.{name}_proj.{branch}", f"{block}.{name}")
    pair(f"{layer}.self_attn_layer_norm.{branch}", f"{block}.attn_norm")
    pair(f"{layer}.self_attn.inner_attn_ln.{branch}", f"{block}.inner_norm")
    pair(f"{layer}.final_layer_norm.{branch}", f"{block}.ffn_norm")
    pair(f"{layer}.ffn.{branch}.fc1", f"{block}.fc1")
    pair(f"{layer}.ffn.{branch}.ffn_layernorm", f"{block}.mid_norm")
    pair(f"{layer}.ffn.{branch}.fc2", f"{block}.fc2")
    if plan.adapter is not None:
        adapter = f"{layer}.{ADAPTER_OF_TOWER[plan.tower]}"
        pair(f"{adapter}.down_proj", f"{block}.adapter.down")
        pair(f"{adapter}.up_proj", f"{block}.adapter.up")
        if plan.adapter.layernorm != "none":
            pair(f"{adapter}.adapter_layer_norm_before", f"{block}.adapter.norm")
    if plan.enhancer:
        pair(f"{layer}.enhancemlp.fc1", f"{block}.enhancer.fc1")
        pair(f"{layer}.enhancemlp.ffn_layernorm", f"{block}.enhancer.mid_norm")
        pair(f"{layer}.enhancemlp.fc2", f"{block}.enhancer.fc2")


def _layer(index: int) -> str:
    return f"beit3.encoder.layers.{index}"
