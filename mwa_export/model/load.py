"""Load and validate a model from a checkpoint, or from a base and an adapter, at any image size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mwa_export.errors import AdapterError, CheckpointError
from mwa_export.model.adapters import combine, of_towers
from mwa_export.model.checkpoint import Checkpoint, ReadOptions, read_checkpoint
from mwa_export.model.names import without_ignored
from mwa_export.model.options import MAX_IMAGE_SIZE, ModelOptions, StoredOptions, shown
from mwa_export.model.pickled import Placeholder
from mwa_export.model.state_dict import (
    EXTRA_VISION_ROWS,
    POSITIONS,
    Shape,
    check_shapes,
    config_from_shapes,
    expected_shapes,
)
from mwa_export.spec import HEAD_OF_TOWER, MAX_TOKENS, ModelConfig, Tower

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_CHUNK = 1 << 24  # values checked at a time


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The files of a model: one checkpoint, or a base and an adapter."""

    checkpoint: Path | None = None
    base: Path | None = None
    adapter: Path | None = None
    read: ReadOptions = field(default_factory=ReadOptions)  # for the checkpoint or the adapter

    def __post_init__(self) -> None:
        pair = (self.base is not None, self.adapter is not None)
        if (self.checkpoint is not None) == any(pair) or any(pair) != all(pair):
            raise CheckpointError(
                "pass either one checkpoint, or both `base=BASE` and `adapter=ADAPTER`."
            )


@dataclass(frozen=True, slots=True)
class Model:
    """A complete, validated model. Tensors keep the precision of their file."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]  # exactly the tensors in expected_shapes(config)
    files: tuple[Checkpoint, ...]
    warnings: tuple[str, ...]
    only: tuple[Tower, ...] | None = None  # towers to export; None: all of them

    @property
    def towers(self) -> tuple[Tower, ...]:
        """Towers to export. ``config`` and the embedding space describe the complete model."""
        return self.only or self.config.towers


def load_model(source: ModelSource, options: ModelOptions | None = None) -> Model:
    """Read a model, infer its configuration, validate it, and fit it to the image size.

    If the image size differs from that of the stored vision positions, these are interpolated.

    Args:
        source: the files.
        options: options that the files lack, or that override the stored ones.

    Raises:
        CheckpointError: a file cannot be read or is not a BEiT-3 retrieval model.
        UsageError: an option is missing or contradicts the tensors.
        AdapterError: the adapter does not belong to the base.
    """
    files, tensors, notes = _read(source)
    path = files[-1].path
    args = dict(files[-1].args)
    if len(files) == 2 and (heads := files[0].args.get("encoder_attention_heads")) is not None:
        args.setdefault("encoder_attention_heads", heads)  # the backbone comes from the base
    stored = StoredOptions(args, path)
    shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    options = options or ModelOptions()
    if len(files) == 2:
        StoredOptions(files[0].args, files[0].path).refuse_unsupported()
    backbone = files[0].path  # the base, if there are two files
    config = config_from_shapes(shapes, stored, options, backbone)
    origin = {name: file.path for file in files for name in file.tensors}
    check_shapes(shapes, config, backbone, origin, adapter=path)
    needed = {name: tensors[name] for name in expected_shapes(config)}
    _check_values(needed, origin)
    size = options.image_size or (stored.image_size() if "vision" in config.towers else 0)
    if size and "vision" in config.towers and size != config.backbone.image_size:
        if options.image_size is None:
            if size % config.backbone.patch_size:
                raise CheckpointError(
                    f"{path}: its stored option input_size is {size}. Expected a multiple of the "
                    f"patch size {config.backbone.patch_size}. Pass `image_size`."
                )
            notes.append(
                f"{path.name}: was trained at {size} x {size} pixels (input_size), but stores "
                f"positions for {config.backbone.image_size} pixels, which are interpolated."
            )
        if size > MAX_IMAGE_SIZE:
            raise CheckpointError(
                f"{path}: the image size is {size} pixels. Expected at most {MAX_IMAGE_SIZE}. Pass "
                "a smaller `image_size`."
            )
        resized = replace(config.backbone, image_size=size)
        config = replace(config, backbone=resized)
        table = resize_positions(needed[POSITIONS["vision"]], resized.patches)
        needed[POSITIONS["vision"]] = table
    notes += _warnings(config, stored, options)
    return Model(config, needed, files, tuple(notes), options.towers)


def resize_positions(table: Tensor, patches: int) -> Tensor:
    """Interpolate the vision positions for another number of patches, like the reference.

    Bicubic over the square grid with ``align_corners=False``. The first 3 rows (two unused, class
    token) are kept. (3 + old, D) any float -> (3 + patches, D) float32.
    """
    extra, grid = table[:EXTRA_VISION_ROWS].float(), table[EXTRA_VISION_ROWS:].float()
    old, new = round(len(grid) ** 0.5), round(patches**0.5)
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=(new, new), mode="bicubic", align_corners=False
    )
    return torch.cat([extra, grid.permute(0, 2, 3, 1).reshape(new * new, -1)])


def _read(source: ModelSource) -> tuple[tuple[Checkpoint, ...], Mapping[str, Tensor], list[str]]:
    """Read the files. Returns them, their combined tensors, and notes on what was skipped."""
    if source.checkpoint is not None:
        checkpoint = read_checkpoint(source.checkpoint, source.read)
        if checkpoint.metadata.get("base") is not None:
            raise AdapterError(
                f"{checkpoint.path}: is an adapter file. Pass it together with its base: "
                f"`base=BASE` `adapter={checkpoint.path}`"
            )
        return (checkpoint,), checkpoint.tensors, list(checkpoint.notes)
    assert source.base is not None
    assert source.adapter is not None
    base = read_checkpoint(source.base)
    adapter = read_checkpoint(source.adapter, replace(source.read, ignore=()))
    base = replace(base, tensors=of_towers(base.tensors, adapter))
    # A pattern may match tensors of either file.
    kept = without_ignored({**base.tensors, **adapter.tensors}, source.read.ignore)
    base, adapter = (
        replace(file, tensors={name: t for name, t in file.tensors.items() if name in kept})
        for file in (base, adapter)
    )
    notes: list[str] = []
    heads = {f"{head}.weight" for head in HEAD_OF_TOWER.values()}
    if heads & {*base.tensors, *adapter.tensors}:
        # Otherwise the heads stay, because the error names the base's task after them.
        base, notes = _without_heads(base)
    return (base, adapter), combine(base, adapter), [*base.notes, *adapter.notes, *notes]


def _without_heads(base: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """Drop the heads of pretraining tasks. Returns the base and a note that counts them."""
    heads = [n for n in base.tensors if _is_head(n)]
    if not heads:
        return base, []
    counts = Counter(name.split(".")[0] for name in heads)
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    note = (
        f"{base.path.name}: skipped {len(heads)} tensors of heads that retrieval does not use: "
        f"{listed}."
    )
    kept = {name: tensor for name, tensor in base.tensors.items() if name not in heads}
    return replace(base, tensors=kept), [note]


def _is_head(name: str) -> bool:
    """Whether a tensor, by its upstream name, belongs to a head that retrieval does not use."""
    first = name.split(".")[0]
    if first in HEAD_OF_TOWER.values():
        return False
    return "head" in first or first in ("pooler", "fc_norm", "scorer")


def _check_values(tensors: Mapping[str, Tensor], origin: Mapping[str, Path]) -> None:
    """Raise CheckpointError unless every value is finite in float32."""
    for name, tensor in tensors.items():
        path = origin[name]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}. Expected float32, float16, bfloat16 or float64."
            )
        flat = tensor.detach().reshape(-1)
        parts = (torch.isfinite(part.float()) for part in torch.split(flat, _CHUNK))
        count = sum(part.numel() - int(part.sum()) for part in parts)
        if count:
            raise CheckpointError(
                f"{path}: {name} has {count} of {tensor.numel()} values that are not finite in "
                "float32 (NaN, infinite or above 3.4e38). Training diverged or the file is "
                "damaged. Use an earlier checkpoint."
            )


def _warnings(config: ModelConfig, stored: StoredOptions, options: ModelOptions) -> list[str]:
    found = []
    if config.adapter is not None and config.adapter.option == "sequential":
        found.append(
            "ffn_option is sequential, for which the reference implementation never applies the "
            "adapters. They are left out here, too."
        )
    if len(config.towers) == 1:
        found.append(f"{stored.path.name}: contains only the {config.towers[0]} tower.")
    if "text" in config.towers and not options.max_length and "num_max_bpe_tokens" not in stored:
        found.append(
            f"{stored.path.name}: does not store the text length of training "
            "(num_max_bpe_tokens). Texts are cut to "
            f"{min(MAX_TOKENS, config.backbone.text_positions)} tokens, the default of training. "
            "Pass `max_length` for another length."
        )
    for name, in_file in (
        ("adapter_scale", "ffn_adapter_scalar"),
        ("ffn_option", "ffn_option"),
        ("adapter_layernorm", "ffn_adapter_layernorm_option"),
        ("image_size", "input_size"),
        ("max_length", "num_max_bpe_tokens"),
        ("heads", "encoder_attention_heads"),
    ):
        given, kept = getattr(options, name), stored.values.get(in_file)
        if given is not None and kept is not None and str(given) != shown(kept).strip("'"):
            old = kept.name if isinstance(kept, Placeholder) else shown(kept).strip("'")
            found.append(f"`{name}={given}` overrides the {old} stored in {stored.path.name}.")
    return found
