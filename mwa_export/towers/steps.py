"""The names of the merge steps. Needs no torch, so that the command line can check them at once."""

from __future__ import annotations

from collections.abc import Iterable

from mwa_export.errors import MergeError

STEPS: dict[str, str] = {
    "qkv": "attention scale into q; q, k, v one GEMM; the key bias, which softmax cancels, dropped",
    "layernorm": "LayerNorm weight and bias into the GEMM behind it",
    "adapter-down": "adapter down_proj and fc1 one GEMM (adapter LayerNorm `in` only)",
    "adapter-up": "scale into up_proj; up_proj and fc2 one GEMM (not with LayerNorm `out`)",
    "last-token": "the last block computes only what token 0 needs, without key and value GEMMs",
    "constants": "class token, positions, patch bias and pixel scaling become one constant table",
    "text-mask": "no multiplication by the padding mask, which attention already applies",
}
"""Merge step -> what it does. All are on unless turned off."""


def steps_without(disabled: Iterable[str]) -> frozenset[str]:
    """The merge steps that are left when ``disabled`` ones are switched off.

    Raises:
        MergeError: a name is no merge step.
    """
    disabled = list(disabled)
    for name in disabled:
        if name not in STEPS:
            raise MergeError(f"no merge step is called {name!r}. Expected: {', '.join(STEPS)}.")
    return frozenset(STEPS) - frozenset(disabled)
