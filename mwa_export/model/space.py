"""The embedding-space id: vectors may be compared only if they have the same one.

It covers everything that defines an embedding (weights, options, tokenizer, preprocessing) but not
how it is computed (merge steps, precision, runtime). An INT8 engine and the float32 graph of a
model therefore share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mwa_export.spec import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # version of the hash below, and part of it


def fingerprint(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Return the hex sha256 of the named tensors' float32 values, sorted by name.

    Float16 and float32 files with equal values have the same fingerprint.
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
    """Return the embedding-space id of a model, its tokenizer and preprocessing: a hex sha256."""
    parts = {
        "version": VERSION,
        "model": config.to_json(),
        "weights": fingerprint(tensors, tensors),
        "preprocessing": dict(preprocessing),
        "tokenizer": tokenizer_sha256,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
