"""The change of a recall figure, estimated from the margins of all queries near the boundary.

A margin is the score of a query's best right item minus that of its k-th best wrong item. A query
counts in Recall@k if its margin is above 0. Counting flips compares this hard step for two models,
so only queries that cross zero carry information. Here a smooth step of width ``h`` replaces the
hard one on both sides, so every query within about ``h`` of zero carries information. The method,
its sources and its limits are in ``docs/verdict.md``; ``benchmarks/verdict.py`` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mwa_export.metrics.ranking import KS, Ranking
from mwa_export.metrics.significance import typical_change

Array = NDArray[np.float64]
Margins = NDArray[np.floating]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_WIDEST, _QUERIES, _POWER = 0.5, 500, 1 / 7
_NARROWER = (1.0, 0.7, 0.5, 0.35, 0.25)  # shares of the widest that are tried
_BIAS = 0.5  # largest apparent bias, in standard errors
_QUARTILES = 1.349  # standard deviations between the quartiles of a normal distribution
_FEWEST = 3.0  # smallest number of degrees of freedom
_FAR = 8.0  # distance from zero, in widths, from which the steps are flat

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class SmoothedChange:
    """Recall of the candidate minus that of the reference, in points, estimated from margins."""

    value: float
    error: float  # standard error, including the apparent bias
    freedom: float  # degrees of freedom of Student's t
    width: float  # h, in units of the scores; 0: flips were counted
    flips: float  # the change from a count of flips, points
    flips_error: float  # its standard error
    disagreement: float  # flips minus value, in standard errors of that difference
    noise: float  # squared points: variance of one image's contribution
    floor: float  # squared points: error^2 is about noise / images + floor / images^2

    def interval(self, confidence: float) -> tuple[float, float]:
        """Bounds in points; a confidence of 0.95 leaves 2.5% on each side."""
        reach = _student(NormalDist().inv_cdf((1 + confidence) / 2), self.freedom) * self.error
        return max(-100.0, self.value - reach), min(100.0, self.value + reach)

    def sigmas_above(self, points: float) -> float:
        """Distance of the value above ``points``, as a quantile of the normal distribution."""
        return _normal((self.value - points) / self.error, self.freedom)


def smoothed_change(
    margins: tuple[Margins, Margins], hits: tuple[Bools, Bools], owners: Ints
) -> SmoothedChange:
    """Estimate the change of one recall figure. Pairs are (reference, candidate).

    Queries whose margin changed by more than ``h`` are counted as flips or not, without smoothing:
    a smooth step says little about them, and would hide the effect of a fault in some images.

    For the error, one image that won and one that lost are added to the data, as in
    `bootstrap_interval`: images unlike any of the test set may exist.

    Args:
        margins: (n_query,) floats each, see the module's docstring.
        hits: (n_query,) bools each, whether the query counts. Ties are broken by the order of the
            gallery, so this is not quite ``margins > 0``.
        owners: (n_query,) image of each query, 0 to n_image - 1; each image has a query. Queries
            of one image rise and fall together, so the error is computed over images.
    """
    before, after = (side.astype(np.float64) for side in margins)
    sizes = np.bincount(owners)
    flips = hits[1].astype(np.float64) - hits[0]
    floor = 2 * (100 * typical_change(np.bincount(owners, flips)) / float(sizes.mean())) ** 2
    counted, counted_rest = value, rest = _mean(flips, owners, sizes)
    width = bias = 0.0
    for h in _widths(before, after):
        smooth, smoother = _smooth_flips(before, after, flips, h)
        mean, spread = _mean(smooth, owners, sizes)
        shift = mean - _mean(smoother, owners, sizes)[0]
        if abs(shift) <= _BIAS * _error(spread, floor):
            value, rest, width, bias = mean, spread, h, shift
            break
    return SmoothedChange(
        value=value,
        error=math.hypot(_error(rest, floor), bias),
        freedom=_freedom(rest, floor),
        width=width,
        flips=counted,
        flips_error=_error(counted_rest, floor),
        disagreement=(counted - value) / _error(counted_rest - rest, floor),
        noise=float(rest @ rest) / len(rest),
        floor=floor,
    )


def ranking_change(before: Ranking, after: Ranking, k: int, owners: Ints) -> SmoothedChange:
    """Estimate the change of Recall@k from two rankings of the same queries."""
    margins = before.margins[:, KS.index(k)], after.margins[:, KS.index(k)]
    return smoothed_change(margins, (before.ranks <= k, after.ranks <= k), owners)


def reach_of_unseen(confidence: float) -> float:
    """Half-width of the interval of an unchanged figure, in points times the number of images.

    Only the two added images contribute then, with one query each and four degrees of freedom.
    """
    return 100 * math.sqrt(2) * _student(NormalDist().inv_cdf((1 + confidence) / 2), 4.0)


def _widths(before: Array, after: Array) -> Iterator[float]:
    """Widths to try, widest first: shares of the margins' spread, smaller for more queries.

    The bias falls with h^4 and the variance rises with 1 / h, so h ~ n^(-1/9) minimizes the mean
    squared error. With any faster decrease, the bias vanishes relative to the error.
    """
    low, high = np.quantile(np.concatenate([before, after]), [0.25, 0.75])
    widest = _WIDEST * (high - low) / _QUARTILES * min(1.0, (_QUERIES / len(before)) ** _POWER)
    return (float(share * widest) for share in _NARROWER if widest > 0)


def _smooth_flips(before: Array, after: Array, flips: Array, h: float) -> tuple[Array, Array]:
    """Contribution of each query, with smooth steps of fourth and of sixth order. (n_query,)."""
    fourth, sixth = flips.copy(), flips.copy()
    near = np.abs(after - before) <= h
    fourth[near] = sixth[near] = 0.0
    rows = np.flatnonzero(near & (np.minimum(np.abs(before), np.abs(after)) < _FAR * h))
    old, new = _steps(before[rows] / h), _steps(after[rows] / h)
    fourth[rows], sixth[rows] = new[0] - old[0], new[1] - old[1]
    return fourth, sixth


def _steps(x: Array) -> tuple[Array, Array]:
    """Integrals of the Gaussian kernels of order four and six (Wand and Schucany, 1990)."""
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    step = 0.5 + 0.5 * _erf(x / math.sqrt(2))
    return step + density * x / 2, step + density * (7 * x - x**3) / 8


def _mean(values: Array, owners: Ints, sizes: Ints) -> tuple[float, Array]:
    """Return the mean over queries in points, and each image's deviation from it (n_image,)."""
    sums = np.bincount(owners, values)
    mean = 100 * float(sums.sum() / sizes.sum())
    return mean, (100 * sums - mean * sizes) / sizes.mean()


def _error(rest: Array, floor: float) -> float:
    return math.sqrt(float(rest @ rest) + floor) / len(rest)


def _freedom(rest: Array, floor: float) -> float:
    """Degrees of freedom of the variance over the images and the two added ones (Satterthwaite).

    The variance of a sample variance depends on the kurtosis: a few changed images among many
    unchanged ones carry little information.
    """
    squares = np.concatenate([rest**2, [floor / 2, floor / 2]])
    kurtosis = len(squares) * float(squares @ squares) / float(squares.sum()) ** 2
    return max(_FEWEST, 2 * len(rest) / max(kurtosis - 1, 1e-9))


def _normal(t: float, freedom: float) -> float:
    """The normal quantile that is as probable as ``t``, to 1% (Wallace, 1959)."""
    scale = (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(scale * math.sqrt(freedom * math.log1p(t * t / freedom)), t)


def _student(z: float, freedom: float) -> float:
    """The inverse of `_normal`."""
    scale = (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(math.sqrt(freedom * math.expm1((z / scale) ** 2 / freedom)), z)
