"""Ranges from a histogram agree with exact computation on the values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.calib.histogram import SMALLEST_LIMIT, Histogram
from mwa_export.calib.ranges import METHODS, amax_from, quantization_error
from mwa_export.errors import CalibrationError, UsageError

Floats = NDArray[np.float32]
SEEDS = st.integers(0, 2**32 - 1)


def of(values: NDArray[np.floating]) -> Histogram:
    found = Histogram()
    found.add(values.astype(np.float32))
    return found


def gauss(size: int = 100_000) -> Floats:
    """What stands behind a LayerNorm: dense around zero."""
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


def heavy() -> Floats:
    """Laplace: a long, thin tail."""
    return np.random.default_rng(1).laplace(size=100_000).astype(np.float32)


def outliers() -> Floats:
    """A few values 40 times larger than the rest."""
    return np.append(gauss(), np.random.default_rng(2).uniform(30, 40, 20).astype(np.float32))


def relu() -> Floats:
    """More than half of it exact zeros."""
    return np.maximum(gauss(), 0)


def two_bumps() -> Floats:
    """A gap between small and large values."""
    rng = np.random.default_rng(3)
    return np.append(gauss(), 20 + rng.standard_normal(30_000)).astype(np.float32)


SAMPLES = {"gauss": gauss, "heavy": heavy, "outliers": outliers, "relu": relu, "bumps": two_bumps}
samples = pytest.mark.parametrize("name", SAMPLES)


def exact_error(values: Floats, amax: float) -> float:
    """Of rounding and clipping every value."""
    step = amax / 127
    x = values.astype(np.float64)
    return float(np.mean((x - np.clip(np.rint(x / step), -127, 127) * step) ** 2))


def literal_divergence(counts: NDArray[np.int64], end: int) -> float:
    """KL(P, Q) of one threshold, bin by bin; infinite where P has what Q has not."""
    counts = counts.copy()
    counts[0] = min(counts[0], counts[1])
    p = [float(c) for c in counts[:end]]
    p[-1] += float(counts[end:].sum())
    q = [0.0] * end
    levels: dict[int, list[int]] = {}
    for b in np.flatnonzero(counts[:end]).tolist():
        levels.setdefault(b * 128 // end, []).append(b)
    for filled in levels.values():
        for b in filled:
            q[b] = sum(float(counts[f]) for f in filled) / len(filled)
    p_sum, q_sum = sum(p), sum(q)
    divergence = 0.0
    for one, other in zip(p, q, strict=True):
        if one > 0 and other == 0:
            return math.inf
        if one > 0:
            divergence += one / p_sum * math.log((one / p_sum) / (other / q_sum))
    return divergence


@samples
def test_minmax_is_the_largest_value_exactly(name: str) -> None:
    values = SAMPLES[name]()
    assert amax_from(of(values), "minmax") == float(np.abs(values).max())


@samples
@pytest.mark.parametrize("percentile", [50.5, 90.0, 99.0, 99.9, 99.99])
def test_percentile_is_that_of_the_values_within_a_bin(name: str, percentile: float) -> None:
    values = SAMPLES[name]()
    found = of(values)
    exact = np.abs(values).astype(np.float64)  # numpy before 2.4 rounds the percentile to its type
    expected = np.quantile(exact, percentile / 100, method="inverted_cdf")
    amax = amax_from(found, "percentile", percentile=percentile)
    assert expected <= amax <= expected + found.width


def test_the_hundredth_percentile_is_the_largest_value() -> None:
    values = heavy()
    assert amax_from(of(values), "percentile", percentile=100) == float(np.abs(values).max())


def test_the_default_percentile_clips_one_value_in_ten_thousand() -> None:
    values = np.arange(1, 20_001, dtype=np.float32)  # the percentile is 19998
    found = of(values)
    assert 19_998 <= amax_from(found, "percentile") <= 19_998 + found.width


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, math.nan])
def test_an_impossible_percentile_is_refused(percentile: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        amax_from(of(gauss(100)), "percentile", percentile=percentile)


@samples
@pytest.mark.parametrize("part", [1.0, 0.7, 0.3, 0.05])
def test_error_is_that_of_quantizing_every_value(name: str, part: float) -> None:
    values = SAMPLES[name]()
    values = values[values != 0]  # zeros count as spread over their bin, see the next test
    found = of(values)
    expected = exact_error(values, part * found.amax)
    assert quantization_error(found, part * found.amax) == pytest.approx(expected, rel=0.03)


def test_zeros_add_no_more_than_a_bin_can() -> None:
    found = of(relu())
    error = quantization_error(found, found.amax)
    added = error - exact_error(relu(), found.amax)
    assert 0 < added < found.width**2 / 3


@given(SEEDS, st.floats(0.01, 30))
@settings(deadline=None, max_examples=50)
def test_error_of_values_spread_evenly_is_exact(seed: int, amax: float) -> None:
    """However the grid lies over the bins, and also where its steps are narrower than a bin."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(0, 2048, 40)
    bins[0] = 2047
    width, inside = 16 / 2048, (np.arange(400) + 0.5) / 400
    values = ((bins[:, None] + inside) * width).astype(np.float32)
    found = of(values)
    assert found.width == width
    assert quantization_error(found, amax) == pytest.approx(exact_error(values, amax), rel=2e-3)


def test_error_scales_with_the_square_of_the_values() -> None:
    found, scaled = of(gauss()), of(gauss() * np.float32(2**40))
    expected = quantization_error(found, 3.0) * 2.0**80
    assert quantization_error(scaled, 3.0 * 2.0**40) == pytest.approx(expected)


@pytest.mark.parametrize("amax", [0.0, -1.0, math.nan, math.inf])
def test_error_of_no_grid_is_refused(amax: float) -> None:
    with pytest.raises(CalibrationError, match="above 0"):
        quantization_error(of(gauss(100)), amax)


@samples
def test_mse_is_as_good_as_trying_every_threshold_on_the_values(name: str) -> None:
    values = SAMPLES[name]()[::4]
    largest = float(np.abs(values).max())
    least = min(exact_error(values, t) for t in np.linspace(largest / 300, largest, 300))
    assert exact_error(values, amax_from(of(values), "mse")) <= 1.02 * least


def test_mse_finds_a_threshold_far_below_the_largest_value() -> None:
    """To keep a lone value is not worth a coarse grid for all others."""
    values = np.append(np.tile(gauss(50_000), 40), np.float32(25))
    assert 3 < amax_from(of(values), "mse") < 6


@pytest.mark.slow
@samples
def test_entropy_is_the_threshold_of_the_literal_search(name: str) -> None:
    found = of(SAMPLES[name]()[::50])  # few enough that there are empty bins
    counts = found.counts.astype(np.int64)
    used = int(np.flatnonzero(counts)[-1]) + 1
    ends = range(128, used + 1, 1)
    divergences = {end: literal_divergence(counts, end) for end in ends if counts[end - 1] > 0}
    least = min(divergences.values())
    best = max(end for end, divergence in divergences.items() if divergence <= least + 1e-10)
    assert amax_from(found, "entropy") == min(best * found.width, found.amax)


def test_entropy_clips_a_long_thin_tail() -> None:
    found = of(heavy())
    assert 0.3 * found.amax < amax_from(found, "entropy") < 0.95 * found.amax


def test_entropy_keeps_all_of_a_few_distinct_values() -> None:
    """Every threshold above the first value has divergence 0; most would clip nearly everything."""
    found = of(np.repeat(np.array([0.1, 0.5, 1.9]), 1000))
    assert amax_from(found, "entropy") == found.amax


def test_entropy_does_not_depend_on_how_many_zeros_there_are() -> None:
    values = heavy()
    with_zeros = np.append(values, np.zeros(1_000_000, np.float32))
    assert amax_from(of(with_zeros), "entropy") == amax_from(of(values), "entropy")


def test_entropy_of_fewer_bins_than_levels_clips_nothing() -> None:
    tiny = gauss(1000) * np.float32(SMALLEST_LIMIT / 200)
    found = of(tiny)
    assert found.counts[128:].sum() == 0
    assert amax_from(found, "entropy") == found.amax


@given(
    SEEDS,
    st.integers(1, 60),
    st.sampled_from(METHODS),
    st.sampled_from([1e-42, 1e-9, 1.0, 1e6, 1e30]),
)
@settings(deadline=None, max_examples=60)
def test_the_range_is_above_0_and_at_most_the_largest_value(
    seed: int, size: int, method: str, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(size) * np.exp(2 * rng.standard_normal(size))) * scale
    values[rng.random(size) < 0.5] = 0
    values[0] = scale
    found = of(values)
    assert 0 < amax_from(found, method) <= found.amax


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_histogram_is_refused(method: str) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        amax_from(Histogram(), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_is_refused_as_constant(method: str) -> None:
    zeros = of(np.zeros(50, np.float32))
    with pytest.raises(CalibrationError, match="values are 0"):
        amax_from(zeros, method)
    with pytest.raises(CalibrationError, match="values are 0"):
        quantization_error(zeros, 1.0)


def test_an_unknown_method_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(UsageError, match=r"'median'.*minmax, percentile, entropy, mse"):
        amax_from(of(gauss(100)), "median")
