"""A histogram in batches equals that of all values at once, for any split and order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.calib import histogram as module
from mwa_export.calib.histogram import BINS, SMALLEST_LIMIT, Histogram
from mwa_export.errors import CalibrationError

Floats = NDArray[np.float32]
SEEDS = st.integers(0, 2**32 - 1)
LARGEST_FLOAT = float(np.finfo(np.float32).max)


def floats(values: Any) -> Floats:
    return np.asarray(values, np.float32)


def of(values: Any) -> Histogram:
    found = Histogram()
    found.add(floats(values))
    return found


def state(found: Histogram) -> tuple[float, float, list[int], str]:
    return found.limit, found.amax, found.counts.tolist(), found.digest()


def spread(rng: np.random.Generator, size: int) -> Floats:
    """Over many powers of two, with zeros, signs, and values exactly on a border of bins."""
    values = rng.standard_normal(size) * 2.0 ** rng.integers(-35, 12, size)
    values[rng.random(size) < 0.1] = 0
    on_border = rng.random(size) < 0.3
    values[on_border] = 2.0 ** rng.integers(-32, 12, int(on_border.sum()))
    return values.astype(np.float32)


@given(SEEDS, st.integers(1, 300), st.lists(st.integers(0, 300), max_size=6))
@settings(deadline=None)
def test_batches_in_any_cut_and_order_give_the_same_state(
    seed: int, size: int, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    values = spread(rng, size)
    found = Histogram()
    for part in np.split(rng.permutation(values), sorted(cuts)):
        found.add(part)
    assert state(found) == state(of(values))


@given(SEEDS, st.integers(1, 300))
@settings(deadline=None)
def test_counts_are_those_of_numpy_on_the_final_limit(seed: int, size: int) -> None:
    values = spread(np.random.default_rng(seed), size)
    found = of(values)
    expected, _edges = np.histogram(np.abs(values.astype(np.float64)), BINS, (0, found.limit))
    assert found.counts.tolist() == expected.tolist()
    assert found.count == size
    assert found.amax == np.abs(values).max()


def test_growth_keeps_the_counts_of_numpy() -> None:
    """The first batch is counted finely, then merged over several doublings at once."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(5000).astype(np.float32)
    found = of(values)
    for large in (3 * found.limit, 40 * found.limit):
        values = np.append(values, np.float32(large))
        found.add(values[-1:])
        expected, _edges = np.histogram(np.abs(values.astype(np.float64)), BINS, (0, found.limit))
        assert found.counts.tolist() == expected.tolist()


def test_a_jump_by_more_than_all_bins_moves_everything_into_the_first_bin() -> None:
    found = of([1e-8, 2e-8, 3e-8])
    found.add(floats([1000]))
    assert found.counts[0] == 3
    assert found.counts[int(1000 / found.width)] == 1
    assert found.count == 4


@pytest.mark.parametrize("limit", [SMALLEST_LIMIT, 0.25, 1.0, 64.0])
def test_a_value_on_the_limit_doubles_the_range(limit: float) -> None:
    below = float(np.nextafter(np.float32(limit), np.float32(0)))
    found = of([below])
    assert found.limit == limit
    assert found.counts[-1] == 1
    found.add(floats([-limit]))
    assert found.limit == 2 * limit
    assert found.counts[BINS // 2 - 1] == 1
    assert found.counts[BINS // 2] == 1
    assert found.width == 2 * limit / BINS


def test_the_largest_and_smallest_floats_have_a_bin() -> None:
    found = of([LARGEST_FLOAT, -LARGEST_FLOAT, 1e-45])
    assert found.limit == 2.0**128
    assert found.counts[-1] == 2
    assert found.counts[0] == 1
    assert of([1e-45]).limit == SMALLEST_LIMIT


def test_the_largest_magnitude_is_exact_and_may_be_negative() -> None:
    assert of([-0.3, 0.2]).amax == float(np.float32(0.3))
    assert of([-0.2, 0.3]).amax == float(np.float32(0.3))


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_values_at_the_border_of_a_chunk_are_counted_once(extra: int) -> None:
    size = 2 * module._CHUNK + extra
    values = np.full(size, 0.5, np.float32)
    values[[0, -1]] = 0.25
    found = of(values)
    assert found.counts[int(0.5 / found.width)] == size - 2
    assert found.counts[int(0.25 / found.width)] == 2


def test_layout_of_the_array_does_not_matter() -> None:
    values = np.random.default_rng(0).standard_normal((6, 7, 8)).astype(np.float32)
    for view in (values.transpose(2, 0, 1), values[:, ::2, 1:], np.asfortranarray(values)):
        assert state(of(view)) == state(of(np.ascontiguousarray(view).ravel()))


def test_the_values_are_left_as_they_were() -> None:
    values = floats([-1, 2, -3])
    Histogram().add(values)
    assert values.tolist() == [-1, 2, -3]


def test_nothing_to_count_changes_nothing() -> None:
    found = Histogram()
    found.add(np.empty((0, 5), np.float32))
    assert state(found) == state(Histogram())
    assert found.count == 0
    assert found.amax == 0


def test_zeros_do_not_widen_the_range() -> None:
    found = of([0, -0.0, 0])
    assert found.limit == SMALLEST_LIMIT
    assert found.counts[0] == found.count == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_that_are_not_finite_are_refused_and_nothing_is_counted(
    bad: float, place: int
) -> None:
    found = of([1.0])
    before = state(found)
    values = floats([5, 6, 7])
    values[place] = bad
    with pytest.raises(CalibrationError, match="among 3"):
        found.add(values)
    assert state(found) == before


def test_the_error_says_how_many_values_are_not_finite() -> None:
    with pytest.raises(CalibrationError, match=r"found 2 NaN and 1 infinite values among 5\."):
        of([math.nan, 1, math.inf, math.nan, 2])


def test_counts_cannot_be_changed_from_outside() -> None:
    with pytest.raises(ValueError, match="read-only"):
        of([1.0]).counts[0] = 7


def test_digest_depends_on_counts_and_amax_and_limit() -> None:
    same_bin = 1 + 2.0**-20
    histograms = [of([]), of([0]), of([1]), of([1, 1]), of([same_bin]), of([2])]
    digests = {found.digest() for found in histograms}
    assert len(digests) == len(histograms)
    assert all(len(digest) == 16 for digest in digests)
