"""Rank every query against a gallery, in blocks. Knows nothing about images or texts.

Scores are inner products. The full score matrix is never held in memory: queries are scored and
ranked block by block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.progress import ignore

TOP = 10
KS = (1, 5, 10)
NO_WRONG_ITEM = 2.0  # margin with fewer than k wrong items; the largest for unit vectors
_SCORES = 1 << 25  # scores in a block: 128 MiB
_GROUP = 32  # columns in a group, whose maxima are compared first

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rank and margin of each query's best right item."""

    ranks: Ints  # (n_query,), 1 is best; equal scores rank in gallery order
    right: Ints  # (n_query,) gallery row of the best right item
    margins: Floats  # (n_query, len(KS)) score of the right item - that of the k-th best wrong one
    top: Ints  # (n_query, min(TOP, n_gallery)) gallery rows, best first
    gallery: int  # n_gallery

    def recall(self, k: int) -> float:
        """Percent of queries with a right item among their k best."""
        return 100.0 * int((self.ranks <= k).sum()) / len(self.ranks)


def rank(
    queries: Floats,
    gallery: Floats,
    query_ids: NDArray[Any],
    gallery_ids: NDArray[Any],
    *,
    block: int | None = None,
    on_rows: Callable[[int], None] = ignore,
) -> Ranking:
    """Rank the gallery for every query. An item is right if it has the query's id.

    Args:
        queries: (n_query, D) float32, finite.
        gallery: (n_gallery, D) float32, finite.
        query_ids: (n_query,) ids, each with at least one item in the gallery.
        gallery_ids: (n_gallery,).
        block: queries scored at a time; None: as many as fit into 128 MiB of scores.

    Equal scores rank in gallery order, so that a model that has collapsed to one vector gets the
    recall of chance, not a perfect one. Equal gallery rows have equal scores.
    """
    step = block or max(1, _SCORES // max(1, len(gallery)))
    order = np.argsort(gallery_ids, kind="stable")  # rows of one id are adjacent and in order
    sorted_ids = np.asarray(gallery_ids)[order]
    first = np.searchsorted(sorted_ids, query_ids, "left")
    last = np.searchsorted(sorted_ids, query_ids, "right")
    later, earlier = _twins(gallery)
    parts = []
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        right = _padded(order, first[rows], last[rows])  # (b, most), -1 = none
        with np.errstate(invalid="ignore"):  # some BLAS kernels set the flag in unused lanes
            scores = queries[rows] @ gallery.T  # (b, n_gallery)
        if len(later):
            scores[:, later] = scores[:, earlier]
        parts.append(_rank_block(scores, right))
        on_rows(len(right))
    ranks, best, margins, top = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ranking(ranks, best, margins, top, len(gallery))


def _twins(gallery: Floats) -> tuple[Ints, Ints]:
    """Return rows that are bit-identical to an earlier row, and the number of that earlier row.

    Some BLAS kernels round a product differently at the edges of their tiles, so equal rows would
    not get equal scores.
    """
    seen: dict[bytes, int] = {}
    pairs = []
    for number, row in enumerate(np.ascontiguousarray(gallery)):
        first = seen.setdefault(hashlib.blake2b(row, digest_size=16).digest(), number)
        if first != number:
            pairs.append((number, first))
    columns = np.asarray(pairs, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _padded(order: Ints, first: Ints, last: Ints) -> Ints:
    """Gallery rows of each query's id, ascending and padded with -1. (b, most)."""
    columns = first[:, None] + np.arange(int((last - first).max()))
    inside = columns < last[:, None]
    return np.where(inside, order[np.minimum(columns, len(order) - 1)], -1)


def _rank_block(scores: Floats, right: Ints) -> tuple[Ints, Ints, Floats, Ints]:
    """Rank a block: ranks, best right rows, margins and top. Overwrites ``scores``."""
    queries = np.arange(len(scores))
    right_scores = np.where(right >= 0, scores[queries[:, None], right], -np.inf)  # (b, most)
    first = right_scores.argmax(axis=1)
    best, best_row = right_scores[queries, first], right[queries, first]
    real = right >= 0
    scores[np.nonzero(real)[0], right[real]] = -np.inf  # only wrong items are left
    above = np.count_nonzero(scores > best[:, None], axis=1)
    level = np.count_nonzero(scores >= best[:, None], axis=1)
    for query in np.flatnonzero(level > above):  # a tie: the earlier row ranks first
        above[query] += int((scores[query, : best_row[query]] == best[query]).sum())
    wrong = _largest(scores, TOP)  # (b, <= 10)
    most = min(TOP, scores.shape[1])
    margins = np.full((len(scores), len(KS)), NO_WRONG_ITEM, np.float32)
    for column, k in enumerate(KS):
        if k <= wrong.shape[1]:
            rival = scores[queries, wrong[:, k - 1]]
            margins[:, column] = np.where(np.isneginf(rival), NO_WRONG_ITEM, best - rival)
    rows = np.concatenate([wrong, right], axis=1)
    values = np.concatenate([np.take_along_axis(scores, wrong, 1), right_scores], axis=1)
    top = np.take_along_axis(rows, np.lexsort((rows, -values))[:, :most], 1)
    return above + 1, best_row, margins, top


def _largest(scores: Floats, count: int) -> Ints:
    """Columns of the largest scores, best first, equal scores by column. (b, <= count).

    The ``count`` largest scores lie in the ``count`` groups with the largest maxima, so only these
    groups are sorted. Computing the maxima costs a tenth of partitioning the whole row. A group is
    a run of neighbouring columns, so that among groups of equal maxima, the first groups contain
    the first columns.
    """
    columns = scores.shape[1]
    if columns <= 2 * count * _GROUP:
        return _best(scores, np.broadcast_to(np.arange(columns), scores.shape), count)
    whole = columns - columns % _GROUP
    maxima = scores[:, :whole].reshape(len(scores), -1, _GROUP).max(axis=2)  # (b, groups)
    cut = np.partition(maxima, -count, axis=1)[:, -count, None]
    # All groups above the cut, then the first groups at the cut until ``count`` are chosen.
    kept = maxima > cut
    room = count - kept.sum(axis=1, keepdims=True)
    level = maxima == cut
    kept |= level & (np.cumsum(level, axis=1) <= room)
    groups = np.nonzero(kept)[1].reshape(len(scores), count)
    inside = (groups[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(len(scores), -1)
    rest = np.broadcast_to(np.arange(whole, columns), (len(scores), columns - whole))
    return _best(scores, np.concatenate([inside, rest], axis=1), count)


def _best(scores: Floats, columns: Ints, count: int) -> Ints:
    """The ``count`` best of some columns, ascending in each row; equal scores by column."""
    values = np.take_along_axis(scores, columns, 1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(columns, order, 1)
