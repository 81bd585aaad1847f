"""Int8 weights: scales, nearest rounding, and rounding adapted to the layer's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.calib.learned_rounding import learned_rounding
from mwa_export.calib.weights import common_scale, quantize_weight, weight_scales
from mwa_export.errors import CalibrationError

Floats = NDArray[np.float32]
SEEDS = st.integers(0, 2**32 - 1)


def floats(values: Any) -> Floats:
    return np.asarray(values, np.float32)


def random_weight(rng: np.random.Generator, n_in: int, n_out: int) -> Floats:
    """Columns of different size."""
    columns = np.exp(rng.standard_normal(n_out))
    return floats(0.02 * rng.standard_normal((n_in, n_out)) * columns)


def inputs(rng: np.random.Generator, width: int, *, rank: int, tokens: int = 1000) -> Floats:
    """Low rank and noise, some channels much larger: what activations look like."""
    common = rng.standard_normal((tokens, rank)) @ rng.standard_normal((rank, width))
    noise = 0.3 * rng.standard_normal((tokens, width))
    return floats((common + noise) * np.exp(rng.standard_normal(width)))


def output_error(x: Floats, weight: Floats, quantized: NDArray[np.int8], scales: Floats) -> Any:
    """(out,) squared error of the layer's output over all tokens."""
    rounded = quantized.astype(np.float64) * scales
    return np.square(x.astype(np.float64) @ (weight - rounded)).sum(axis=0)


# --- scales and nearest


@given(SEEDS, st.integers(1, 30), st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_nearest_is_off_by_half_a_step_at_most(seed: int, n_in: int, n_out: int) -> None:
    weight = random_weight(np.random.default_rng(seed), n_in, n_out)
    scales = weight_scales(weight)
    quantized = quantize_weight(weight, scales)
    assert quantized.dtype == np.int8
    difference = np.abs(weight - quantized * scales.astype(np.float64))
    assert (difference <= scales * (0.5 + 1e-4)).all()


def test_each_channel_uses_its_whole_grid() -> None:
    weight = random_weight(np.random.default_rng(0), 40, 6)
    scales = weight_scales(weight)
    assert scales.dtype == np.float32
    np.testing.assert_array_equal(scales, np.abs(weight).max(axis=0) / np.float32(127))
    largest = np.abs(quantize_weight(weight, scales).astype(int)).max(axis=0)
    assert largest.tolist() == [127] * 6


def test_weights_beyond_the_grid_are_clipped_to_127_on_both_sides() -> None:
    weight = floats([[1000.0, -1000.0, 129.0, -128.0, 0.0, 1.4]])
    assert quantize_weight(weight, np.ones(6, np.float32)).tolist() == [
        [127, -127, 127, -127, 0, 1]
    ]


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39])
def test_a_column_of_zeros_has_a_scale_that_float16_can_hold(value: float) -> None:
    """A magnitude that no float32 scale can represent counts as zero."""
    weight = floats([[value, 0.5], [-value, -1.0]])
    scales = weight_scales(weight)
    assert scales.astype(np.float16)[0] >= np.finfo(np.float16).tiny
    assert quantize_weight(weight, scales)[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = np.ones((3, 4), np.float32)
    weight[1, 2] = bad
    with pytest.raises(CalibrationError, match=r"1 of 4 .* first is channel 2"):
        weight_scales(weight)


# --- learned rounding


def literal_method(weight: Floats, scales: Floats, gram: Any, damping: float) -> NDArray[np.int8]:
    """The paper's: quantize a row, let the others make up for it, take it out of the inverse."""
    hessian = gram.astype(np.float64)
    hessian += damping * np.diagonal(hessian).mean() * np.eye(len(hessian))
    inverse = np.linalg.inv(hessian)
    left = weight.astype(np.float64)
    quantized = np.zeros(weight.shape, np.int8)
    for row in np.argsort(-np.diagonal(gram), kind="stable"):
        quantized[row] = np.clip(np.rint(left[row] / scales), -127, 127)
        error = (left[row] - quantized[row] * scales.astype(np.float64)) / inverse[row, row]
        left -= np.outer(inverse[:, row], error)
        inverse -= np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
        inverse[row] = inverse[:, row] = 0
        inverse[row, row] = 1  # never read again
    return quantized


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_the_result_is_that_of_the_literal_method(damping: float) -> None:
    rng = np.random.default_rng(0)
    weight, x = random_weight(rng, 90, 40), inputs(rng, 90, rank=8)
    scales, gram = weight_scales(weight), x.T @ x
    expected = literal_method(weight, scales, gram, damping)
    found = learned_rounding(weight, scales, gram, damping=damping, block=32)
    better = output_error(x, weight, expected, scales) < output_error(
        x, weight, quantize_weight(weight, scales), scales
    )
    assert better.all()  # else the comparison is with nearest
    assert (found != expected).mean() < 0.001  # a tie may fall either way


@given(SEEDS, st.integers(2, 80), st.integers(1, 12), st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_no_channel_is_worse_than_nearest(seed: int, n_in: int, n_out: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    weight, x = random_weight(rng, n_in, n_out), inputs(rng, n_in, rank=rank, tokens=60)
    scales = weight_scales(weight)
    learned = learned_rounding(weight, scales, x.T @ x)
    found = output_error(x, weight, learned, scales)
    nearest = output_error(x, weight, quantize_weight(weight, scales), scales)
    assert (found <= nearest * (1 + 1e-4) + 1e-12).all()


def test_nearest_is_kept_where_the_method_alone_makes_a_channel_worse() -> None:
    worse = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        weight, x = random_weight(rng, 4, 300), inputs(rng, 4, rank=2, tokens=60)
        scales, gram = weight_scales(weight), x.T @ x
        nearest = output_error(x, weight, quantize_weight(weight, scales), scales) * (1 + 1e-4)
        alone = literal_method(weight, scales, gram, 0.01)
        worse += int((output_error(x, weight, alone, scales) > nearest).sum())
        found = output_error(x, weight, learned_rounding(weight, scales, gram), scales)
        assert (found <= nearest).all()
    assert worse  # else nothing was tested


@pytest.mark.parametrize("seed", range(3))
def test_correlated_inputs_lose_most_of_the_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, x = random_weight(rng, 300, 60), inputs(rng, 300, rank=20)
    scales = weight_scales(weight)
    learned = learned_rounding(weight, scales, x.T @ x)
    nearest = output_error(x, weight, quantize_weight(weight, scales), scales).sum()
    assert output_error(x, weight, learned, scales).sum() < 0.2 * nearest


def test_what_was_learned_holds_for_inputs_that_were_not_seen() -> None:
    rng = np.random.default_rng(5)
    weight, x = random_weight(rng, 200, 50), inputs(rng, 200, rank=15, tokens=4000)
    scales = weight_scales(weight)
    seen, unseen = x[:2000], x[2000:]
    learned = learned_rounding(weight, scales, seen.T @ seen)
    nearest = output_error(unseen, weight, quantize_weight(weight, scales), scales).sum()
    assert output_error(unseen, weight, learned, scales).sum() < 0.3 * nearest


def test_the_largest_channels_are_rounded_first() -> None:
    """So the others can make up for them. The error is that of rounding in this order."""
    rng = np.random.default_rng(6)
    weight, x = random_weight(rng, 200, 50), inputs(rng, 200, rank=15)
    x = x[:, np.argsort(np.square(x).sum(axis=0))]  # the worst case for the order as given
    scales, gram = weight_scales(weight), x.T @ x
    learned = output_error(x, weight, learned_rounding(weight, scales, gram), scales).sum()
    nearest = output_error(x, weight, quantize_weight(weight, scales), scales).sum()
    assert learned < 0.1 * nearest


@given(SEEDS, st.integers(1, 60), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_without_correlations_the_result_is_nearest(seed: int, n_in: int, n_out: int) -> None:
    rng = np.random.default_rng(seed)
    weight = random_weight(rng, n_in, n_out)
    scales = weight_scales(weight)
    between = rng.random(weight.shape) < 0.3  # as near to the middle of two levels as floats go
    middle = (rng.integers(-100, 100, weight.shape) + np.float32(0.5)) * scales
    weight[between] = middle[between]
    gram = np.diag(rng.uniform(0.1, 9, n_in)).astype(np.float32)
    expected = quantize_weight(weight, scales)
    np.testing.assert_array_equal(learned_rounding(weight, scales, gram), expected)


@pytest.mark.parametrize("block", [1, 7, 64, 65, 1000])
def test_the_size_of_the_blocks_does_not_matter(block: int) -> None:
    rng = np.random.default_rng(1)
    weight, x = random_weight(rng, 65, 20), inputs(rng, 65, rank=6)
    scales, gram = weight_scales(weight), x.T @ x
    expected = learned_rounding(weight, scales, gram, block=16)
    found = learned_rounding(weight, scales, gram, block=block)
    assert (found != expected).mean() < 0.002  # sums in another order; a tie may fall either way


def test_channels_that_are_always_zero_are_rounded_to_nearest() -> None:
    rng = np.random.default_rng(2)
    weight, x = random_weight(rng, 50, 30), inputs(rng, 50, rank=5)
    dead = [0, 17, 49]
    x[:, dead] = 0
    scales = weight_scales(weight)
    learned = learned_rounding(weight, scales, x.T @ x)
    nearest = quantize_weight(weight, scales)
    np.testing.assert_array_equal(learned[dead], nearest[dead])
    alive = np.setdiff1d(np.arange(50), dead)
    assert (learned[alive] != nearest[alive]).mean() > 0.05


def test_inputs_that_are_always_zero_give_nearest() -> None:
    weight = random_weight(np.random.default_rng(3), 20, 5)
    scales = weight_scales(weight)
    learned = learned_rounding(weight, scales, np.zeros((20, 20), np.float32))
    np.testing.assert_array_equal(learned, quantize_weight(weight, scales))


def test_corrections_stay_on_the_grid() -> None:
    """The scales leave no room: many weights plus corrections lie beyond the last level."""
    rng = np.random.default_rng(4)
    weight, x = random_weight(rng, 60, 30), inputs(rng, 60, rank=4)
    scales = weight_scales(weight) * np.float32(0.3)
    learned = learned_rounding(weight, scales, x.T @ x)
    assert learned.dtype == np.int8
    assert learned.max() == 127
    assert learned.min() == -127
    found = output_error(x, weight, learned, scales).sum()
    assert found < 0.5 * output_error(x, weight, quantize_weight(weight, scales), scales).sum()


def test_same_input_same_result_and_nothing_is_changed() -> None:
    rng = np.random.default_rng(5)
    weight, x = random_weight(rng, 60, 30), inputs(rng, 60, rank=4)
    scales, gram = weight_scales(weight), x.T @ x
    copies = weight.copy(), scales.copy(), gram.copy()
    first = learned_rounding(weight, scales, gram)
    np.testing.assert_array_equal(first, learned_rounding(*copies))
    for now, before in zip((weight, scales, gram), copies, strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_matrix_that_cannot_be_factorized_gets_more_damping() -> None:
    """Rounding errors of sums in float32 can make it slightly indefinite."""
    rng = np.random.default_rng(6)
    weight, scale = random_weight(rng, 40, 20), rng.uniform(1, 2, 40)
    x = (rng.standard_normal((500, 3)) @ rng.standard_normal((3, 40)) * scale).astype(np.float32)
    gram = (x.T @ x).astype(np.float64)
    _values, vectors = np.linalg.eigh(gram)
    gram -= np.outer(vectors[:, 0], vectors[:, 0]) * 0.05 * np.diagonal(gram).mean()
    assert np.diagonal(gram).min() > 0
    scales = weight_scales(weight)
    for damping in (0.01, 0.0):
        learned = learned_rounding(weight, scales, gram, damping=damping)
        nearest = output_error(x, weight, quantize_weight(weight, scales), scales).sum()
        assert output_error(x, weight, learned, scales).sum() < 0.7 * nearest


def test_a_matrix_that_is_no_gram_matrix_is_refused() -> None:
    weight = random_weight(np.random.default_rng(7), 30, 4)
    gram = np.ones((30, 30), np.float32) - 100 * np.eye(30, dtype=np.float32)[::-1]
    gram[np.arange(30), np.arange(30)] = 1
    with pytest.raises(CalibrationError, match="not positive semidefinite"):
        learned_rounding(weight, weight_scales(weight), gram)


@pytest.mark.parametrize(("bad", "column"), [(np.nan, 2), (np.inf, 2), (np.nan, 3), (-1e-3, 3)])
def test_products_that_are_not_finite_or_negative_squares_are_refused(
    bad: float, column: int
) -> None:
    weight = random_weight(np.random.default_rng(8), 10, 4)
    gram = np.eye(10, dtype=np.float32)
    gram[3, column] = bad
    with pytest.raises(CalibrationError, match="not finite"):
        learned_rounding(weight, weight_scales(weight), gram)


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 12),
    amax=st.floats(1e-3, 1e4),
)
def test_one_scale_and_factors_are_the_scales_and_keep_sums_inside_float16(
    seed: int, spread: float, amax: float
) -> None:
    rng = np.random.default_rng(seed)
    scales = (0.01 * np.exp(rng.uniform(-spread, spread, 24))).astype(np.float32)
    levels = rng.integers(-127, 128, (96, 24)).astype(np.int8)
    scale, factors = common_scale(scales, levels, amax)
    assert scale.shape == ()
    assert np.float16(scale) == scale, "a power of two is the same in float16"
    assert np.allclose(scale * factors, scales, rtol=1e-6)
    # Activations at the ends of their grid, with the signs of the weights: the largest sum.
    grid = amax / 127 * 127 * np.sign(levels.astype(np.float64))
    largest = np.abs((grid * levels).sum(axis=0)).max() * float(scale)
    assert largest <= 30000 * (1 + 1e-6)
