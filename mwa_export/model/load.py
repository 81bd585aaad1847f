"""Load a validated model from a checkpoint, or a base and an adapter, at the wanted image size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mwa_export.errors import AdapterError, CheckpointError
from mwa_export.model.adapters import combine
from mwa_export.model.checkpoint import Checkpoint, read_checkpoint
from mwa_export.model.state_dict import (
    EXTRA_VISION_ROWS,
    POSITIONS,
    AdapterOptions,
    Shape,
    check_shapes,
    config_from_shapes,
    expected_shapes,
)
from mwa_export.spec import ModelConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The files of a model: one checkpoint, or a base and an adapter."""

    checkpoint: Path | None = None
    base: Path | None = None
    adapter: Path | None = None
    ema: bool = False
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        pair = (self.base is not None, self.adapter is not None)
        if (self.checkpoint is not None) == any(pair) or any(pair) != all(pair):
            raise CheckpointError(
                "which model? Expected either one checkpoint, or both `base=BASE` and "
                "`adapter=ADAPTER`."
            )


@dataclass(frozen=True, slots=True)
class Model:
    """A complete, validated model. Tensors keep the precision of their file."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]  # exactly those of expected_shapes(config)
    files: tuple[Checkpoint, ...]
    warnings: tuple[str, ...]


def load_model(
    source: ModelSource,
    *,
    options: AdapterOptions | None = None,
    image_size: int | None = None,
) -> Model:
    """Read, infer, validate and, for another image size, interpolate the vision positions.

    Args:
        source: the files.
        options: adapter options that the files do not carry.
        image_size: pixels; None keeps the size of the checkpoint.

    Raises:
        CheckpointError, UsageError, AdapterError: see their messages.
    """
    files, tensors = _read(source)
    # A base checkpoint may bring the head of its pretraining task, which retrieval does not use.
    allow = ("mlm_head.",) if source.base is not None else ()
    shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    path = files[-1].path
    options = options or AdapterOptions()
    config = config_from_shapes(shapes, files[-1].args, options, path)
    check_shapes(shapes, config, path, allow=allow)
    needed = {name: tensors[name] for name in expected_shapes(config)}
    _check_values(needed, path)
    if image_size is not None and image_size != config.backbone.image_size:
        resized = replace(config.backbone, image_size=image_size)
        config = replace(config, backbone=resized)
        table = resize_positions(needed[POSITIONS["vision"]], resized.patches)
        needed[POSITIONS["vision"]] = table
    return Model(config, needed, files, _warnings(config, files[-1], options))


def resize_positions(table: Tensor, patches: int) -> Tensor:
    """Vision positions for another number of patches, as the reference interpolates them.

    Bicubic over the square grid, ``align_corners=False``; the first 3 rows (two unused, class
    token) are kept. (3 + old, D) any float -> (3 + patches, D) float32.
    """
    extra, grid = table[:EXTRA_VISION_ROWS].float(), table[EXTRA_VISION_ROWS:].float()
    old, new = round(len(grid) ** 0.5), round(patches**0.5)
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=(new, new), mode="bicubic", align_corners=False
    )
    return torch.cat([extra, grid.permute(0, 2, 3, 1).reshape(new * new, -1)])


def _read(source: ModelSource) -> tuple[tuple[Checkpoint, ...], Mapping[str, Tensor]]:
    def read(path: Path) -> Checkpoint:
        return read_checkpoint(path, ema=source.ema, trust_pickle=source.trust_pickle)

    if source.checkpoint is not None:
        checkpoint = read(source.checkpoint)
        if checkpoint.metadata.get("base") is not None:
            raise AdapterError(
                f"{checkpoint.path}: is an adapter file. Give it with its base: "
                f"`base=BASE` `adapter={checkpoint.path}`"
            )
        return (checkpoint,), checkpoint.tensors
    assert source.base is not None
    assert source.adapter is not None
    base, adapter = (
        read_checkpoint(source.base, trust_pickle=source.trust_pickle),
        read(source.adapter),
    )
    return (base, adapter), combine(base, adapter)


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}. Expected floating point.")
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{path}: {name} has {count} values that are not finite (NaN or infinite) of "
                f"{tensor.numel()}. Training diverged or the file is damaged; take an earlier one."
            )


def _warnings(config: ModelConfig, file: Checkpoint, options: AdapterOptions) -> tuple[str, ...]:
    found = []
    if config.adapter is not None and config.adapter.option == "sequential":
        found.append(
            "ffn_option is sequential: the reference implementation never applies the adapters "
            "then, so they are left out here too."
        )
    for name, given, stored in (
        ("adapter_scale", options.adapter_scale, file.args.get("ffn_adapter_scalar")),
        ("ffn_option", options.ffn_option, file.args.get("ffn_option")),
        (
            "adapter_layernorm",
            options.adapter_layernorm,
            file.args.get("ffn_adapter_layernorm_option"),
        ),
    ):
        if given is not None and stored is not None and str(given) != str(stored):
            found.append(f"`{name}={given}` overrides the {stored} stored in {file.path.name}.")
    return tuple(found)
