"""Choose the range of an int8 grid from a histogram. Knows nothing about graphs or layers.

A range is one number, amax. The symmetric grid has the 255 values k * amax / 127 for k from -127 to
127, and clips larger magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mwa_export.calib.histogram import BINS, Histogram
from mwa_export.errors import CalibrationError, UsageError

METHODS = ("minmax", "percentile", "entropy", "mse")

STEPS = 127  # of the grid, from 0 to amax
_LEVELS = STEPS + 1  # magnitudes of the grid, including 0
_COARSE, _FINE = 256, 64  # thresholds that "mse" tries, then more around the best of them
_SAME = 1e-12  # smaller differences of divergences are rounding errors


def amax_from(histogram: Histogram, method: str, *, percentile: float = 99.99) -> float:
    """Choose the largest magnitude of the grid, above 0 and at most the largest value seen.

    Args:
        histogram: of the tensor.
        method: "minmax" clips nothing; "percentile" clips a fixed share of the values; "entropy"
            minimizes the KL divergence of the distributions; "mse" minimizes the squared error.
        percentile: of the magnitudes, above 0 and at most 100, for the method "percentile".

    Raises:
        UsageError: an unknown method, or an invalid percentile.
        CalibrationError: the histogram is empty, or every value is 0.
    """
    methods: dict[str, Callable[[Histogram], float]] = {
        "minmax": lambda found: found.amax,
        "percentile": lambda found: _percentile(found, percentile),
        "entropy": _least_divergence,
        "mse": _least_error,
    }
    if method not in methods:
        raise UsageError(f"range method {method!r}: unknown. Expected one of {', '.join(METHODS)}.")
    _check(histogram)
    return min(methods[method](histogram), histogram.amax)


def quantization_error(histogram: Histogram, amax: float) -> float:
    """Mean squared error of rounding and clipping to the grid, in squared units of the values.

    Values are assumed to be spread evenly over their bin, and the error is integrated exactly, as a
    grid step may be narrower than a bin. Exact zeros count as part of the first bin, so each adds
    at most width² / 3, which is similar for every amax.

    Raises:
        CalibrationError: the histogram is empty, every value is 0, or amax is not above 0.
    """
    _check(histogram)
    if not (math.isfinite(amax) and amax > 0):
        raise CalibrationError(f"range {amax}: expected a finite number above 0.")
    # In units of a bin, so that neither very small nor very large values under- or overflow.
    step = amax / histogram.width / STEPS
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1
    edges = np.arange(used + 1, dtype=np.float64)
    nearest = np.minimum(np.rint(edges / step), STEPS)
    # The integral of (x - nearest grid value)² from 0 to each edge. Every whole cell of the grid
    # adds step³ / 12; past the last grid value the distance only grows, which is the clipping.
    integral = nearest * step**3 / 12 + (edges - nearest * step) ** 3 / 3
    squares = float(histogram.counts[:used] @ np.diff(integral))
    return squares / histogram.count * histogram.width**2


def _check(histogram: Histogram) -> None:
    if histogram.count == 0:
        raise CalibrationError("the histogram is empty. Expected at least one sample.")
    if histogram.amax == 0:
        raise CalibrationError(
            f"all {histogram.count} values are 0. Expected other values to choose a range from."
        )


def _percentile(histogram: Histogram, percentile: float) -> float:
    """Upper end of the bin that contains the percentile."""
    if not 0 < percentile <= 100:
        raise UsageError(f"percentile {percentile}: expected a number above 0 and at most 100.")
    rank = max(1, math.ceil(percentile / 100 * histogram.count))
    index = int(np.searchsorted(np.cumsum(histogram.counts), rank))
    return (index + 1) * histogram.width


def _least_error(histogram: Histogram) -> float:
    """Threshold with the least squared error, by a coarse search and a fine one around its best."""

    def best(candidates: NDArray[np.floating]) -> int:
        return int(np.argmin([quantization_error(histogram, float(c)) for c in candidates]))

    top = histogram.amax
    # Geometric spacing, because with a few huge values the best threshold can be less than a
    # hundredth of the largest value.
    coarse = np.geomspace(min(histogram.width, top), top, _COARSE)
    index = best(coarse)
    low, high = coarse[max(0, index - 1)], coarse[min(_COARSE - 1, index + 1)]
    fine = np.append(np.linspace(low, high, _FINE), coarse[index])
    return float(fine[best(fine)])


def _least_divergence(histogram: Histogram) -> float:
    """Threshold with the least KL divergence between the distribution and its 128 levels.

    For each threshold, P is the histogram with everything above the threshold moved into the last
    bin below it. Q is the histogram without the moved values, with every level's count spread
    evenly over its filled bins. If the last bin has only moved values, the divergence is infinite,
    and the threshold is not a candidate.

    All thresholds are computed at once: with running sums, KL(P, Q) needs one term per level
    instead of one per bin.
    """
    counts = histogram.counts.astype(np.float64)
    # Zeros (of a ReLU) are exact on every grid. If they counted, their level would seem badly
    # represented, the more so the wider it is, which would push the threshold down.
    counts[0] = min(counts[0], counts[1])
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1
    ends = np.arange(_LEVELS, used + 1)  # bins below the threshold
    ends = ends[counts[ends - 1] > 0]
    if not len(ends):
        return histogram.amax  # fewer filled bins than levels: nothing to clip
    borders = -(np.arange(_LEVELS + 1) * -ends[:, None] // _LEVELS)  # (ends, levels + 1)
    below = _running(counts)
    kept = np.diff(below[borders])  # (ends, levels)
    filled = np.diff(_running((counts > 0).astype(np.float64))[borders])
    moved = below[used] - below[ends]
    last = counts[ends - 1]
    p_log_p = _running(_x_log_x(counts))[ends] - _x_log_x(last) + _x_log_x(last + moved)
    log_q = np.log(np.where(filled > 0, kept, 1) / np.maximum(filled, 1))
    p_log_q = (kept * log_q).sum(axis=1) + moved * log_q[:, -1]
    divergence = (p_log_p - p_log_q) / below[used] + np.log(below[ends] / below[used])
    # Of equal divergences, take the largest threshold: with few distinct values the divergence is 0
    # even if most values are clipped.
    best = int(ends[np.flatnonzero(divergence <= divergence.min() + _SAME)[-1]])
    return best * histogram.width


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2 ... values, (BINS + 1,)."""
    sums = np.zeros(BINS + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values * np.log(np.where(values > 0, values, 1)))
