"""Exact search: the k best rows for a query, holding one block and k rows in memory.

Works on arrays, not files. Scores are inner products with every row; there is no index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError
from mwa_export.progress import ignore

_ROWS = 8192  # converted to float32 at a time: 24 MiB at width 768

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive stored rows."""

    vectors: NDArray[Any]  # (n, D) float32, float16 or int8
    scales: NDArray[Any] | None = None  # (n,) factors for int8 rows


@dataclass(frozen=True, slots=True)
class Best:
    """The best rows in descending order of score; ties are in row order."""

    rows: NDArray[np.int64]  # (<= k,), numbered from 0 across all blocks
    scores: Floats  # (<= k,)
    searched: int  # rows that were scored


def best_rows(
    query: Floats, blocks: Iterable[Block], k: int, *, on_rows: Callable[[int], None] = ignore
) -> Best:
    """Score every row of every block and keep the k best.

    Args:
        query: (D,) float32.
        blocks: the rows in order; each block is released before the next is requested.
        k: rows to find, at least 1.

    Raises:
        DataError: rows differ from the query in width, or have values that are not finite.
    """
    rows: NDArray[np.int64] = np.empty(0, np.int64)
    scores: Floats = np.empty(0, np.float32)
    searched = 0
    for block in blocks:
        for start in range(0, len(block.vectors), _ROWS):
            part = slice(start, start + _ROWS)
            scales = None if block.scales is None else block.scales[part]
            found = score(query, block.vectors[part], scales)
            # A row must beat the worst kept row: kept rows came earlier and win ties.
            better = found > scores[-1] if len(scores) == k else np.ones(len(found), bool)
            rows = np.concatenate([rows, np.flatnonzero(better) + searched])
            scores = np.concatenate([scores, found[better]])
            order = np.argsort(-scores, kind="stable")[:k]
            rows, scores = rows[order], scores[order]
            searched += len(found)
            on_rows(len(found))
    return Best(rows, scores, searched)


def score(query: Floats, vectors: NDArray[Any], scales: NDArray[Any] | None = None) -> Floats:
    """Return inner products (n,) float32 of a query (D,) with stored rows (n, D).

    Equal rows get equal scores. BLAS matrix products would round differently at tile edges.

    Raises:
        DataError: rows differ from the query in width, or have values that are not finite.
    """
    if vectors.ndim != 2 or vectors.shape[1] != len(query):
        raise DataError(
            f"expected rows of {len(query)} values like the query, found shape "
            f"{vectors.shape[1:]}. They belong to different embedding spaces."
        )
    rows = np.ascontiguousarray(vectors, np.float32)
    found: Floats = np.einsum("nd,d->n", rows, np.asarray(query, np.float32))
    if scales is not None:
        found = found * np.asarray(scales, np.float32)
    if not np.isfinite(found).all():
        raise DataError(
            "some rows have values that are not finite, so they cannot be ranked. Check the output "
            "with `mwa-export embed` and `verify`."
        )
    return found
