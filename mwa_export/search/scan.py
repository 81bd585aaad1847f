"""Exact search: the k best rows for a query, block by block, in memory of one block and k rows.

Knows nothing about files. Scores are inner products, computed for every row; there is no index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError
from mwa_export.progress import ignore

_ROWS = 8192  # converted to float32 at a time: 24 MiB of width 768

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """Stored rows that follow those of the block before."""

    vectors: NDArray[Any]  # (n, D) float32, float16 or int8
    scales: NDArray[Any] | None = None  # (n,): what int8 rows are multiplied by


@dataclass(frozen=True, slots=True)
class Best:
    """The rows found, best first; equal scores in the order of the rows."""

    rows: NDArray[np.int64]  # (<= k,), counted from 0 over all blocks
    scores: Floats  # (<= k,)
    searched: int  # rows that were scored


def best_rows(
    query: Floats, blocks: Iterable[Block], k: int, *, on_rows: Callable[[int], None] = ignore
) -> Best:
    """Score every row of every block and keep the k best.

    Args:
        query: (D,) float32.
        blocks: the rows in order; each block is dropped before the next is asked for.
        k: rows to find, at least 1.

    Raises:
        DataError: rows of another width than the query, or with values that are not finite.
    """
    rows: NDArray[np.int64] = np.empty(0, np.int64)
    scores: Floats = np.empty(0, np.float32)
    searched = 0
    for block in blocks:
        for start in range(0, len(block.vectors), _ROWS):
            part = slice(start, start + _ROWS)
            scales = None if block.scales is None else block.scales[part]
            found = score(query, block.vectors[part], scales)
            # A row must beat the last one kept: the rows kept came earlier and win a tie.
            better = found > scores[-1] if len(scores) == k else np.ones(len(found), bool)
            rows = np.concatenate([rows, np.flatnonzero(better) + searched])
            scores = np.concatenate([scores, found[better]])
            order = np.argsort(-scores, kind="stable")[:k]
            rows, scores = rows[order], scores[order]
            searched += len(found)
            on_rows(len(found))
    return Best(rows, scores, searched)


def score(query: Floats, vectors: NDArray[Any], scales: NDArray[Any] | None = None) -> Floats:
    """Inner products of a query (D,) with rows (n, D) as they are stored. (n,) float32.

    A row's score depends on the row alone. Matrix products of BLAS round differently at the edges
    of their tiles, so that equal rows would not be ties there.
    """
    if vectors.ndim != 2 or vectors.shape[1] != len(query):
        raise DataError(
            f"the rows have shape {vectors.shape[1:]}, and the query has {len(query)} values. "
            "They are of different embedding spaces."
        )
    rows = np.ascontiguousarray(vectors, np.float32)
    found: Floats = np.einsum("nd,d->n", rows, np.asarray(query, np.float32))
    if scales is not None:
        found = found * np.asarray(scales, np.float32)
    if not np.isfinite(found).all():
        raise DataError(
            "rows hold values that are not finite, so they cannot be ranked. Check the output: "
            "`mwa-export embed` with `verify`."
        )
    return found
