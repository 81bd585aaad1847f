"""Significance of a difference of two recalls: paired bootstrap interval and McNemar's test.

Knows nothing but which queries were won and lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def bootstrap_interval(
    gains: Ints,
    sizes: Ints,
    *,
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Bounds of a difference of recalls in percentage points, by resampling clusters.

    The queries of one image (its five captions) succeed and fail together, so images are resampled
    with all their queries; resampling captions would give intervals that are too narrow.

    One image that won and one that lost are added to the resampled images, as Bonett and Price
    (2012) add a pair for paired proportions. Each changes by the root mean square of the changed
    images. Without them, a set in which no query happened to change would give the interval
    [0, 0], which covers the true difference far too rarely (`benchmarks/coverage.py`). If the
    interval misses the measured difference, as it may at low confidence, it is extended to it.

    Images with equal gain and size are interchangeable. Drawing how often each kind occurs is
    therefore equivalent to drawing images, and 10,000 resamples take milliseconds for any number
    of images.

    Args:
        gains: (n,) per image, queries won minus queries lost.
        sizes: (n,) per image, its number of queries, at least 1.
        confidence: 0.95 leaves 2.5% on each side.
        resamples: number of bootstrap resamples.
        rng: source of random numbers.
    """
    kinds, counts = np.unique(np.stack([gains, sizes], axis=1), axis=0, return_counts=True)
    usual = float(sizes.mean())
    typical = typical_change(gains)
    gain = np.concatenate([kinds[:, 0], [typical, -typical]])
    size = np.concatenate([kinds[:, 1], [usual, usual]])
    shares = np.concatenate([counts, [1.0, 1.0]]) / (len(gains) + 2)
    drawn = rng.multinomial(len(gains), shares, size=resamples)  # (resamples, kinds + 2)
    differences = 100.0 * (drawn @ gain) / (drawn @ size)
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    measured = 100.0 * float(gains.sum()) / float(sizes.sum())
    # An added image may win more queries than an average image has.
    return max(-100.0, min(float(low), measured)), min(100.0, max(float(high), measured))


def typical_change(gains: NDArray[Any]) -> float:
    """Root mean square gain of the images that changed; 1 if no image changed."""
    changed = gains[gains != 0].astype(np.float64)
    return float(np.sqrt(np.mean(changed**2))) if len(changed) else 1.0


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: how likely is this split with a fair coin?

    1.0 if nothing changed. The test assumes independent queries, which the captions of one image
    are not, so for image retrieval the interval is more reliable.
    """
    changed, fewer = won + lost, min(won, lost)
    if fewer * 2 == changed:
        return 1.0
    term = total = 1  # binomial coefficients, as integers: 2^changed does not fit a float
    for i in range(fewer):
        term = term * (changed - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / (1 << changed))
