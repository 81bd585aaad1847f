"""Names of the merge steps. Does not import torch, so the command line can check them quickly."""

from __future__ import annotations

from collections.abc import Iterable

from mwa_export.errors import MergeError

STEPS: dict[str, str] = {
    "qkv": "fold the attention scale into q; join q, k, v; drop the key bias (softmax cancels it)",
    "layernorm": "fold LayerNorm weight and bias into the GEMM after it",
    "adapter-down": "join adapter down_proj and fc1 (only with adapter LayerNorm `in`)",
    "adapter-up": "fold the scale into up_proj; join up_proj and fc2 (not with LayerNorm `out`)",
    "last-token": "compute only token 0 in the last block, without key and value GEMMs",
    "constants": "fold class token, positions, patch bias and pixel scaling into one table",
    "text-mask": "drop the multiplication by the padding mask, which attention already applies",
}
"""Merge step -> what it does. All steps are on by default."""


def steps_without(disabled: Iterable[str]) -> frozenset[str]:
    """Return all merge steps except the ``disabled`` ones.

    Raises:
        MergeError: a name is not a merge step.
    """
    disabled = list(disabled)
    for name in disabled:
        if name not in STEPS:
            raise MergeError(f"unknown merge step {name!r}. Expected one of: {', '.join(STEPS)}.")
    return frozenset(STEPS) - frozenset(disabled)
