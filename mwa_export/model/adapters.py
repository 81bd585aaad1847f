"""Adapter files: store what training added to a base, and rejoin the two."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwa_export.errors import AdapterError
from mwa_export.files import new_file
from mwa_export.model.checkpoint import Checkpoint
from mwa_export.model.names import UNUSED
from mwa_export.model.space import fingerprint
from mwa_export.optional import require
from mwa_export.spec import TOWERS, ModelConfig, tower_of

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "mwa-export adapter 1"


def combine(base: Checkpoint, adapter: Checkpoint) -> dict[str, Tensor]:
    """Combine the tensors of a base and an adapter; the adapter's take precedence.

    Raises:
        AdapterError: the adapter was split from another base or has another width.
    """
    _check_width(base, adapter)
    if "base" in adapter.metadata:
        kept = _names_of_base(adapter)
        absent = [name for name in kept if name not in base.tensors]
        if absent or fingerprint(base.tensors, kept) != adapter.metadata["base"]:
            found = f"lacks {absent[0]}" if absent else "has other values in the shared tensors"
            raise AdapterError(
                f"{adapter.path}: was split from another base. {base.path} {found}. "
                "Pass the base that was used with `mwa-export split`."
            )
    return {**base.tensors, **adapter.tensors}


def of_towers(tensors: Mapping[str, Tensor], adapter: Checkpoint) -> dict[str, Tensor]:
    """Drop the tensors of a tower that the adapter was not trained with.

    The enhancers are shared by both towers: trained with one, they would alter the other.
    """
    try:
        towers = json.loads(adapter.metadata.get("towers", "null"))
    except (ValueError, RecursionError):
        towers = None
    known = towers if isinstance(towers, list) and towers else TOWERS
    return {name: tensor for name, tensor in tensors.items() if tower_of(name) in (None, *known)}


def split(
    model: Mapping[str, Tensor], config: ModelConfig, base: Checkpoint, out: Path
) -> dict[str, Tensor]:
    """Write the tensors that differ from the base, and the options, to a safetensors file.

    Args:
        model: the trained state dict.
        config: its configuration; the adapter options are stored in the metadata.
        base: the checkpoint that training started from, in any float precision.
        out: the `.safetensors` file. Written completely or not at all.

    Returns:
        The tensors written.

    Raises:
        AdapterError: no tensor differs, no tensor is shared, or the file cannot be written.
    """
    torch = require("torch")
    safetensors = require("safetensors")
    save = require("safetensors.torch").save_file
    added: dict[str, Tensor] = {}
    kept: list[str] = []
    for name, tensor in model.items():
        other = base.tensors.get(name)
        if other is not None and torch.equal(tensor.float(), other.float()):
            kept.append(name)
        elif name not in UNUSED:
            added[name] = tensor.contiguous()
    if not kept:
        raise AdapterError(
            f"{base.path}: shares no tensor with the checkpoint. Expected the base that training "
            "started from. If they differ only by rounding, pass both in the same precision."
        )
    if not added:
        raise AdapterError(
            f"{base.path}: contains every tensor of the checkpoint, so there is nothing to split "
            "off. Pass the base that training started from."
        )
    kept = [name for name in kept if name not in UNUSED]
    metadata = {
        "format": FORMAT,
        "args": json.dumps(training_options(config)),
        "base": fingerprint(base.tensors, kept),
        "base_tensors": json.dumps(kept),
        "towers": json.dumps(config.towers),
    }
    with new_file(out) as partial:
        try:
            save(added, os.fspath(partial), metadata)
        except safetensors.SafetensorError as error:  # raised for a full disk, too
            raise AdapterError(f"{out}: cannot be written ({error}).") from error
    return added


def training_options(config: ModelConfig) -> dict[str, Any]:
    """Express a configuration in the option names of the authors' argument parser."""
    options: dict[str, Any] = {
        "encoder_attention_heads": config.backbone.heads,
        "ffn_adapt": config.adapter is not None,
        "ffn_enhance": config.enhancer,
    }
    if "vision" in config.towers:
        options["input_size"] = config.backbone.image_size
    if "text" in config.towers:
        options["num_max_bpe_tokens"] = config.backbone.max_text_length
    if config.adapter is not None:
        scale = config.adapter.scale
        options |= {
            "ffn_mode": config.adapter.mode,
            "ffn_num": config.adapter.bottleneck,
            "ffn_option": config.adapter.option,
            "ffn_adapter_layernorm_option": config.adapter.layernorm,
            "ffn_adapter_scalar": "learnable_scalar" if scale is None else str(scale),
        }
    return options


def _names_of_base(adapter: Checkpoint) -> list[str]:
    """Names of the base tensors that the adapter needs, as recorded by `split`."""
    written = adapter.metadata.get("format")
    if written != FORMAT:
        raise AdapterError(
            f"{adapter.path}: the format in its metadata is {written!r}. Expected {FORMAT!r}. "
            "Use the version of mwa-export that wrote it, or split again."
        )
    try:
        names = json.loads(adapter.metadata["base_tensors"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of names")
    except (KeyError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{adapter.path}: its metadata does not list the base tensors ({error!r}). Split again."
        ) from error
    return names


def _check_width(base: Checkpoint, adapter: Checkpoint) -> None:
    for name, tensor in adapter.tensors.items():
        if name.endswith((".up_proj.weight", ".fc2.weight")):
            width = tensor.shape[0]
            break
    else:
        return
    widths = [
        base.tensors[known].shape[axis]
        for known, axis in (("beit3.vision_embed.proj.weight", 0), ("beit3.text_embed.weight", -1))
        if known in base.tensors and base.tensors[known].dim()
    ]
    if not widths:
        raise AdapterError(
            f"{base.path}: is not a BEiT-3 base (beit3.vision_embed.proj and beit3.text_embed are "
            "missing). Pass the checkpoint that training started from."
        )
    if widths[0] != width:
        raise AdapterError(
            f"{adapter.path}: was trained for width {width} ({name}), but {base.path} has width "
            f"{widths[0]}. Expected an adapter and a base of the same model size."
        )
