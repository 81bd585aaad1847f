"""Measures of one retrieval direction: recall, ranks, flips, and their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mwa_export.metrics.agreement import overlap
from mwa_export.metrics.ranking import KS, Ranking
from mwa_export.metrics.significance import bootstrap_interval, mcnemar
from mwa_export.metrics.smoothed import ranking_change
from mwa_export.parity.result import Direction, DirectionResult, Margins, RecallChange

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of the intervals; resamples and seed are those of the bootstrap."""

    confidence: float
    resamples: int
    seed: int


def measure_direction(
    name: Direction, before: Ranking, after: Ranking, owners: Ints, sampling: Sampling
) -> DirectionResult:
    """Compare two rankings of the same queries.

    ``owners``: (n_query,) image row of each query; the bootstrap resamples images.
    """
    flipped = (before.ranks == 1) != (after.ranks == 1)
    margins = np.abs(before.margins[:, 0])
    return DirectionResult(
        direction=name,
        queries=len(before.ranks),
        gallery=before.gallery,
        recalls=tuple(_recall_change(k, name, before, after, owners, sampling) for k in KS),
        mean_rank=(float(before.ranks.mean()), float(after.ranks.mean())),
        median_rank=(float(np.median(before.ranks)), float(np.median(after.ranks))),
        changed_ranks=int((before.ranks != after.ranks).sum()),
        overlap=float(overlap(before.top, after.top).mean()),
        margins=Margins(
            flipped=int(flipped.sum()),
            flipped_median=float(np.median(margins[flipped])) if flipped.any() else None,
            flipped_largest=float(margins[flipped].max()) if flipped.any() else None,
            all_median=float(np.median(margins)),
        ),
    )


def with_float32(direction: DirectionResult, exact: Ranking) -> DirectionResult:
    """Add the recall that the candidate has in float32, before quantization."""
    recalls = tuple(replace(r, float32=exact.recall(r.k)) for r in direction.recalls)
    return replace(direction, recalls=recalls)


def _recall_change(
    k: int, name: Direction, before: Ranking, after: Ranking, owners: Ints, sampling: Sampling
) -> RecallChange:
    old, new = before.ranks <= k, after.ranks <= k
    won, lost = int((new & ~old).sum()), int((old & ~new).sum())
    gains = np.bincount(owners, weights=new.astype(np.int64) - old).astype(np.int64)
    low, high = bootstrap_interval(
        gains,
        np.bincount(owners),
        confidence=sampling.confidence,
        resamples=sampling.resamples,
        # one stream per figure, so that no figure depends on which others are computed
        rng=np.random.default_rng([sampling.seed, ("tr", "ir").index(name), k]),
    )
    smoothed = ranking_change(before, after, k, owners)
    smoothed_low, smoothed_high = smoothed.interval(sampling.confidence)
    return RecallChange(
        k=k,
        reference=before.recall(k),
        candidate=after.recall(k),
        difference=100.0 * (won - lost) / len(old),
        low=low,
        high=high,
        smoothed=smoothed,
        smoothed_low=smoothed_low,
        smoothed_high=smoothed_high,
        won=won,
        lost=lost,
        p_value=mcnemar(won, lost),
    )
