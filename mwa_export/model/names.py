"""Tensor names without the prefixes of training wrappers such as DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from mwa_export.errors import AdapterError, CheckpointError, OptionsError

T = TypeVar("T")

# Used only in training, so files may lack them. `n_averaged` counts the models in an average.
UNUSED = ("logit_scale", "beit3.vision_embed.mask_token", "n_averaged")

# Parts that wrappers add to a name: DistributedDataParallel and DeepSpeed, torch.compile, FSDP,
# activation checkpointing, and Lightning modules. BEiT-3's own names contain none of them.
WRAPPERS = frozenset(
    (
        *("module", "_orig_mod", "model", "_forward_module"),
        *("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
    )
)


def own_names(tensors: Mapping[str, T], path: Path, *, prefix: str = "") -> dict[str, T]:
    """Rename tensors to the model's own names.

    Args:
        tensors: keyed by the names in the file.
        path: for messages.
        prefix: keep only names that start with it, and strip it (upstream's `--model_prefix`).

    Raises:
        CheckpointError: two tensors get the same name.
        OptionsError: no name starts with the prefix.
        AdapterError: the tensors are LoRA weights.
    """
    found: dict[str, T] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split(".")
        own = ".".join(part for part in parts if part not in WRAPPERS)
        if own in found:
            one, other, both = (text[:200] for text in (origin[own], name, own))
            raise CheckpointError(
                f"{path}: without wrapper prefixes, {one} and {other} are both named {both}. "
                "Expected one model in the file. Choose it with `model_key` or `model_prefix`."
            )
        found[own], origin[own] = tensor, name
    if prefix and not found:
        some = ", ".join(list(tensors)[:3])
        raise OptionsError("model_prefix", prefix, f"a prefix of names in {path}, such as {some}")
    lora = next((name for name in found if ".lora_" in name or ".base_layer." in name), None)
    if lora is not None:
        raise AdapterError(
            f"{path}: contains LoRA weights ({lora}), which are not MultiWay-Adapters. Merge them "
            "with PEFT's merge_and_unload() and save the model again."
        )
    return found


def without_ignored(tensors: Mapping[str, T], patterns: Iterable[str]) -> dict[str, T]:
    """Drop the tensors that match a pattern, such as `criterion.*`.

    Raises:
        OptionsError: a pattern matches nothing.
    """
    left = dict(tensors)
    for pattern in patterns:
        matching = [name for name in tensors if fnmatchcase(name, pattern)]
        if not matching:
            expected = f"a pattern that matches a tensor, such as {', '.join(list(tensors)[:2])}"
            raise OptionsError("ignore", pattern, expected)
        for name in matching:
            left.pop(name, None)
    return left
