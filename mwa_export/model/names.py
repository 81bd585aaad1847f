"""Names of tensors as the model has them, whatever training wrapped around the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from mwa_export.errors import AdapterError, CheckpointError, OptionsError

T = TypeVar("T")

# Only training needs these; files may lack them. The last counts the models in an average.
UNUSED = ("logit_scale", "beit3.vision_embed.mask_token", "n_averaged")

# Parts that a wrapper adds to a name: DistributedDataParallel and DeepSpeed, torch.compile, FSDP,
# activation checkpointing, and Lightning modules. None is a part of a BEiT-3 name.
WRAPPERS = frozenset(
    (
        *("module", "_orig_mod", "model", "_forward_module"),
        *("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
    )
)


def own_names(tensors: Mapping[str, T], path: Path, *, prefix: str = "") -> dict[str, T]:
    """The tensors under the model's own names.

    Args:
        tensors: by the names in the file.
        path: for messages.
        prefix: take only the names that start so, and cut it off (upstream's `--model_prefix`).

    Raises:
        CheckpointError: two tensors come to have one name.
        OptionsError: no name starts with the prefix.
        AdapterError: the names are those of LoRA.
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
                f"{path}: {one} and {other} are both {both} without what wraps the model. "
                "Expected one model in the file: choose with `model_key` or `model_prefix`."
            )
        found[own], origin[own] = tensor, name
    if prefix and not found:
        some = ", ".join(list(tensors)[:3])
        raise OptionsError("model_prefix", prefix, f"a prefix of names in {path}, such as {some}")
    lora = next((name for name in found if ".lora_" in name or ".base_layer." in name), None)
    if lora is not None:
        raise AdapterError(
            f"{path}: holds LoRA weights ({lora}), which are not MultiWay-Adapters. Merge them "
            "with PEFT's merge_and_unload() and save the model again."
        )
    return found


def without_ignored(tensors: Mapping[str, T], patterns: Iterable[str]) -> dict[str, T]:
    """Leave out the tensors that a pattern names, such as `criterion.*`.

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
