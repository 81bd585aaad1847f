"""Row-by-row comparison of two sets of embeddings of the same inputs."""

from __future__ import annotations

from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.errors import RecallError
from mwa_export.metrics.agreement import check_embeddings, cosine_distances, cosine_summary, overlap

Floats = NDArray[np.float32]
SEEDS = st.integers(0, 2**32 - 1)
getcontext().prec = 60


def unit(rows: NDArray[Any]) -> Floats:
    values = rows.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray((values / lengths).astype(np.float32))


def pairs(seed: int, rows: int, noise: float, width: int = 12) -> tuple[Floats, Floats]:
    """Unit vectors, and the same with noise, whose 1 - cosine is about noise^2 / 2."""
    rng = np.random.default_rng(seed)
    one = unit(rng.standard_normal((rows, width)))
    added = noise * rng.standard_normal((rows, width)) / width**0.5
    return one, unit(one.astype(np.float64) + added)


def exact_distance(one: Floats, other: Floats) -> float:
    """1 - cosine of two rows in 60 decimal digits."""
    a, b = ([Decimal(float(x)) for x in row] for row in (one, other))
    dot = sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0))
    lengths = (sum((x * x for x in a), Decimal(0)) * sum((y * y for y in b), Decimal(0))).sqrt()
    return float(1 - dot / lengths)


# --- 1 - cosine ------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 20), st.floats(-6, 1))
@settings(deadline=None, max_examples=50)
def test_distances_are_those_of_exact_arithmetic(seed: int, rows: int, exponent: float) -> None:
    """Down to 1e-12, where 1 minus a dot product has no digit left in float32."""
    one, other = pairs(seed, rows, 10**exponent)
    expected = [exact_distance(a, b) for a, b in zip(one, other, strict=True)]
    # rounding of the normalization in float64, 1e-16 against differences of 1e-6
    assert cosine_distances(one, other) == pytest.approx(expected, rel=1e-8, abs=1e-20)


def test_distance_of_1e_10_is_measured() -> None:
    angle = np.sqrt(2e-10)
    one = np.array([[1.0, 0.0]], np.float32)
    other = np.array([[np.cos(angle), np.sin(angle)]], np.float32)
    assert cosine_distances(one, other)[0] == pytest.approx(1e-10, rel=1e-4)
    assert 1 - one[0] @ other[0] == 0.0  # what a dot product says


@given(SEEDS, st.integers(1, 50))
@settings(deadline=None)
def test_distance_of_equal_rows_is_exactly_zero(seed: int, rows: int) -> None:
    one, _ = pairs(seed, rows, 0.1)
    assert (cosine_distances(one, one.copy()) == 0.0).all()


def test_distances_of_known_angles() -> None:
    one = np.array([[1, 0], [1, 0], [1, 0], [0.6, 0.8]], np.float32)
    other = np.array([[1, 0], [0, 1], [-1, 0], [0.8, 0.6]], np.float32)
    assert cosine_distances(one, other) == pytest.approx([0, 1, 2, 0.04], abs=1e-7)


@given(SEEDS, st.floats(-5, 1))
@settings(deadline=None)
def test_distance_is_symmetric(seed: int, exponent: float) -> None:
    one, other = pairs(seed, 10, 10**exponent)
    np.testing.assert_array_equal(cosine_distances(one, other), cosine_distances(other, one))


@given(SEEDS, st.floats(-2, 1))
@settings(deadline=None)
def test_rotating_both_sides_changes_no_distance(seed: int, exponent: float) -> None:
    one, other = pairs(seed, 10, 10**exponent)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((12, 12)))
    turned = [(side.astype(np.float64) @ rotation).astype(np.float32) for side in (one, other)]
    before = cosine_distances(one, other)
    # each side is rounded to float32 again, by at most 6e-8 in all, times the difference's length
    margin = 2e-7 * np.sqrt(2 * before.max())
    np.testing.assert_allclose(cosine_distances(*turned), before, atol=margin + 1e-14, rtol=0)


@given(SEEDS)
@settings(deadline=None)
def test_length_of_the_rows_does_not_matter(seed: int) -> None:
    one, other = pairs(seed, 10, 0.1)
    scaled = cosine_distances(one * np.float32(2), other * np.float32(0.5))
    np.testing.assert_allclose(scaled, cosine_distances(one, other), rtol=1e-12)


def test_blocks_give_the_same_as_single_rows() -> None:
    one, other = pairs(0, 2 * 4096 + 3, 0.1, width=4)
    found = cosine_distances(one, other)
    for row in (0, 4095, 4096, 8191, 8192, 8194):
        single = cosine_distances(one[row : row + 1], other[row : row + 1])
        assert found[row] == pytest.approx(single[0], rel=1e-12)


# --- Summary ---------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 200), st.floats(-6, 1), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_summary_says_what_the_distances_say(
    seed: int, rows: int, exponent: float, equal: int
) -> None:
    one, other = pairs(seed, rows, 10**exponent)
    other[:equal] = one[:equal]
    distances = cosine_distances(one, other)
    found = cosine_summary("text", one, other)
    assert (found.tower, found.rows) == ("text", rows)
    assert found.identical == sum(
        a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True)
    )
    assert found.mean == pytest.approx(1 - distances.mean(), abs=1e-15)
    assert found.minimum == 1 - distances.max()
    assert distances[found.minimum_row] == distances.max()
    # a hundredth of the way through the sorted cosines, between two of them where need be
    between = np.interp(0.01 * (rows - 1), np.arange(rows), np.sort(1 - distances))
    assert found.percentile_1 == pytest.approx(between, abs=1e-14)
    assert found.minimum <= found.percentile_1 <= 1.0


@given(SEEDS, st.integers(1, 200), st.floats(-6, 1))
@settings(deadline=None)
def test_histogram_counts_the_rows_between_its_edges(seed: int, rows: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    one, other = pairs(seed, rows, 10**exponent)
    other[rng.random(rows) < 0.2] *= -1
    distances = cosine_distances(one, other)
    found = cosine_summary("vision", one, other)
    assert len(found.counts) == len(found.edges) - 1
    assert sum(found.counts) == rows
    assert found.edges[0] == 0.0
    assert list(found.edges) == sorted(set(found.edges))
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert count == ((distances >= low) & (distances < high)).sum()


def test_histogram_holds_opposite_and_equal_rows() -> None:
    one, _ = pairs(1, 500, 0.0)
    assert cosine_summary("text", one, -one).counts[-1] == 500
    assert cosine_summary("text", one, one).counts[0] == 500


def test_summary_of_equal_sides_is_exactly_one() -> None:
    one, _ = pairs(1, 50, 0.0)
    found = cosine_summary("text", one, one.copy())
    assert (found.mean, found.percentile_1, found.minimum) == (1.0, 1.0, 1.0)
    assert found.identical == found.rows == 50


def test_one_damaged_row_is_named() -> None:
    one, other = pairs(2, 300, 0.001)
    other[123] = unit(one[123:124] + np.float32(0.5) * np.roll(one[123:124], 1))
    found = cosine_summary("vision", one, other)
    assert found.minimum_row == 123
    assert found.minimum == pytest.approx(1 - exact_distance(one[123], other[123]), abs=1e-12)
    assert found.percentile_1 > 0.99999


# --- Overlap ---------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 20), st.integers(1, 10), st.integers(0, 8))
@settings(deadline=None)
def test_overlap_is_that_of_the_sets(seed: int, rows: int, count: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (
        np.array([rng.permutation(count + more)[:count] for _ in range(rows)]) for _ in range(2)
    )
    expected = [
        len(set(a) & set(b)) / count for a, b in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert overlap(one, other).tolist() == pytest.approx(expected)
    assert (overlap(one, one[:, ::-1]) == 1.0).all()


# --- What is refused -------------------------------------------------------------------------


def damaged(row: int, value: float) -> Floats:
    vectors, _ = pairs(0, 6, 0.0)
    vectors[row, 3] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (damaged(4, np.nan), r"1 of 6 rows are not finite, the first is row 4\."),
        (damaged(2, np.inf), r"1 of 6 rows are not finite, the first is row 2\."),
        (damaged(0, -np.inf), "the first is row 0"),
        (damaged(5, 3.0), "1 of 6 rows are not of unit length, the first is row 5 with length 3"),
        (2 * pairs(0, 6, 0.0)[0], "6 of 6 rows .* row 0 with length 2. Normalize them"),
        (np.zeros((6, 12), np.float32), "row 0 with length 0"),
        (np.zeros((6, 0), np.float32), "row 0 with length 0"),
        (0.9979 * pairs(0, 6, 0.0)[0], "not of unit length"),
        (1.0021 * pairs(0, 6, 0.0)[0], "not of unit length"),
        (pairs(0, 5, 0.0)[0], "5 rows, expected 6, one per input"),
        (pairs(0, 7, 0.0)[0], "7 rows, expected 6"),
        (np.eye(6, dtype=np.int64), r"int64 of shape \(6, 6\). Expected floats of shape \(rows"),
        (np.eye(6, dtype=bool), "bool of shape"),
        (np.eye(6, dtype=np.complex64), "complex64 of shape"),
        (np.ones(6, np.float32), r"float32 of shape \(6,\)"),
        (np.ones((6, 1, 1), np.float32), r"float32 of shape \(6, 1, 1\)"),
        (np.full((6, 2), "x"), r"<U1 of shape \(6, 2\)"),
    ],
)
def test_useless_embeddings_are_refused(vectors: Any, message: str) -> None:
    with pytest.raises(RecallError, match="^candidate text embeddings: .*" + message):
        check_embeddings("candidate text embeddings", vectors, 6)


@pytest.mark.parametrize("row", [0, 17])
def test_first_of_several_damaged_rows_is_named(row: int) -> None:
    vectors, _ = pairs(0, 40, 0.0)
    vectors[[row, 20, 39], 5] = np.nan
    with pytest.raises(RecallError, match=f"3 of 40 rows are not finite, the first is row {row}"):
        check_embeddings("x", vectors, 40)


@given(SEEDS, st.sampled_from([np.float16, np.float32, np.float64]), st.integers(1, 1024))
@settings(deadline=None)
def test_unit_vectors_of_every_float_type_are_taken(seed: int, kind: Any, width: int) -> None:
    """Rounding a unit vector to float16 does not make it look as if it were not normalized."""
    vectors = unit(np.random.default_rng(seed).standard_normal((20, width))).astype(kind)
    found = check_embeddings("x", vectors, 20)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors.astype(np.float32))


@pytest.mark.parametrize("length", [0.9981, 1.0019])
def test_length_within_the_tolerance_is_taken_and_kept(length: float) -> None:
    vectors = np.float32(length) * pairs(0, 6, 0.0)[0]
    np.testing.assert_array_equal(check_embeddings("x", vectors, 6), vectors)


def test_lists_of_floats_are_taken() -> None:
    given_: Any = [[0.6, 0.8], [1.0, 0.0]]
    np.testing.assert_array_equal(check_embeddings("x", given_, 2), np.asarray(given_, np.float32))
