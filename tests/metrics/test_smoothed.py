"""The change of recall by margins is accurate, and its interval covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.metrics.smoothed import SmoothedChange, smoothed_change

Array = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def change(before: Array, after: Array, owners: NDArray[np.int64] | None = None) -> SmoothedChange:
    """With hits that follow from the margins."""
    owners = np.arange(len(before)) if owners is None else owners
    return smoothed_change((before, after), (before > 0, after > 0), owners)


def flips(before: Array, after: Array) -> float:
    return 100 * float((after > 0).mean() - (before > 0).mean())


def margins(rng: np.random.Generator, count: int) -> Array:
    return np.asarray(0.06 * rng.standard_t(5, count) + 0.02)


@pytest.mark.parametrize("shift", [0.0, -0.002, 0.003])
def test_small_changes_are_measured_with_less_error_than_flips(shift: float) -> None:
    rng = np.random.default_rng(1)
    old = margins(rng, 3_000_000)
    truth = flips(old, old + rng.normal(shift, 0.002, len(old)))
    by_margins, by_flips = [], []
    for _ in range(60):
        before = margins(rng, 2000)
        after = before + rng.normal(shift, 0.002, 2000)
        by_margins.append(change(before, after).value - truth)
        by_flips.append(flips(before, after) - truth)
    assert np.std(by_margins) < np.std(by_flips) / 2.5
    assert abs(np.mean(by_margins)) < 4 * np.std(by_margins) / 60**0.5


@pytest.mark.parametrize("kind", ["small", "wide", "some", "lost"])
def test_interval_covers_the_truth(kind: str) -> None:
    rng = np.random.default_rng(2)

    def draw(count: int) -> tuple[Array, Array]:
        before = margins(rng, count)
        small = before + rng.normal(-0.001, 0.002, count)
        if kind == "some":
            return before, np.where(rng.random(count) < 0.01, -0.1, small)
        if kind == "lost":
            return before, 0.4 * before + rng.normal(-0.02, 0.04, count)
        return before, small if kind == "small" else before + rng.normal(0, 0.02, count)

    truth = flips(*draw(2_000_000))
    intervals = [change(*draw(1000)).interval(0.95) for _ in range(200)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert covered > 0.9


def test_changes_wider_than_the_margins_count_as_flips() -> None:
    rng = np.random.default_rng(3)
    before = margins(rng, 800)
    after = rng.permutation(before) - 0.01
    found = change(before, after)
    assert found.value == pytest.approx(flips(before, after), abs=1.5)
    assert abs(found.disagreement) < 3


def test_queries_of_one_image_are_one_observation() -> None:
    rng = np.random.default_rng(4)
    once = margins(rng, 400)
    moved = once + rng.normal(0, 0.004, 400)
    alone = change(once, moved)
    repeated = change(np.repeat(once, 5), np.repeat(moved, 5), np.repeat(np.arange(400), 5))
    assert repeated.noise == pytest.approx(alone.noise, rel=0.5)
    independent = change(np.repeat(once, 5), np.repeat(moved, 5))
    assert repeated.noise**0.5 / 400**0.5 > 1.4 * independent.noise**0.5 / 2000**0.5


def test_margins_that_nothing_happened_to_leave_the_error_of_unseen_images() -> None:
    """Two of n + 2 images: the exact bound of 0 of n would be 3.7 / n, one sided."""
    before = margins(np.random.default_rng(5), 1000)
    found = change(before, before)
    assert found.value == 0
    assert found.interval(0.95)[0] == pytest.approx(-100 * 3.94 / 1000, rel=0.02)


def test_ties_that_stay_ties_change_nothing() -> None:
    """A caption that two pictures share ties for both; the order of the data breaks it."""
    rng = np.random.default_rng(6)
    before = margins(rng, 300)
    before[:100] = 0.0
    after = before + np.where(before == 0, 0.0, rng.normal(0, 1e-4, 300))
    hits = before > 0
    hits[:50] = True
    settled = after > 0
    settled[:50] = True
    found = smoothed_change((before, after), (hits, settled), np.arange(300))
    assert abs(found.value) < 0.1


def test_collapsed_candidate_loses_what_its_flips_say() -> None:
    before = np.abs(margins(np.random.default_rng(7), 500)) + 0.01
    chance = np.zeros(500, bool)
    chance[0] = True
    found = smoothed_change((before, np.zeros(500)), (before > 0, chance), np.arange(500))
    assert found.value < -80


@given(SEEDS, st.integers(1, 60), st.integers(1, 4), st.sampled_from([0.0, 1e-6, 0.01, 1.0]))
@settings(deadline=None)
def test_any_margins_give_a_finite_interval_around_the_value(
    seed: int, images: int, captions: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    owners = np.sort(np.concatenate([np.arange(images), rng.integers(0, images, captions)]))
    before = rng.choice([0.0, 2.0, 0.1, -0.1], len(owners)) + 0.01 * rng.standard_normal()
    after = before + noise * rng.standard_normal(len(owners))
    found = change(before, after, owners)
    low, high = found.interval(0.95)
    assert -100 <= low <= found.value <= high <= 100
    assert found.error > 0
    assert found.freedom >= 3
    assert np.isfinite(found.disagreement)


@given(SEEDS, st.floats(0.001, 0.1))
@settings(deadline=None)
def test_swapping_the_sides_turns_the_sign(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    before = margins(rng, 200)
    after = before + rng.normal(0, noise, 200)
    there, back = change(before, after), change(after, before)
    assert there.value == pytest.approx(-back.value, abs=1e-9)
    assert there.error == pytest.approx(back.error)


@given(SEEDS, st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_unit_of_the_scores_does_not_matter(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    before = margins(rng, 200)
    after = before + rng.normal(0, 0.01, 200)
    one, other = change(before, after), change(unit * before, unit * after)
    assert other.value == pytest.approx(one.value, abs=1e-6)
    assert other.width == pytest.approx(unit * one.width)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(3, 3.182), (4, 2.776), (10, 2.228), (100, 1.984)]
)
def test_interval_has_the_quantiles_of_student(freedom: float, quantile: float) -> None:
    found = SmoothedChange(0.0, 1.0, freedom, 0.1, 0.0, 1.0, 0.0, 1.0, 1.0)
    assert found.interval(0.95)[1] == pytest.approx(quantile, rel=0.015)
    assert found.sigmas_above(-found.interval(0.95)[1]) == pytest.approx(1.96, abs=1e-3)
