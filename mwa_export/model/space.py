"""The embedding-space id: two sets of vectors may be compared only if theirs is the same.

It covers what decides an embedding's meaning (weights, options, tokenizer, preprocessing) and not
how it is computed (merge steps, precision, runtime), so that an INT8 engine and the float32 graph
of one model share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mwa_export.spec import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # of the recipe below; part of the hash


def fingerprint(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Hex sha256 over the float32 values of the named tensors, in the order of their names.

    A float16 file and a float32 file with the same values have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        values = tensors[name].float().contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def space_id(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    preprocessing: Mapping[str, Any],
    tokenizer_sha256: str | None,
) -> str:
    """Hex sha256 that names the embedding space of a model with its tokenizer and preprocessing."""
    parts = {
        "version": VERSION,
        "model": config.to_json(),
        "weights": fingerprint(tensors, tensors),
        "preprocessing": dict(preprocessing),
        "tokenizer": tokenizer_sha256,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
