"""The verdict is right as often as promised, and states what would decide it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mwa_export.metrics.smoothed import SmoothedChange
from mwa_export.metrics.verdict import (
    Verdict,
    contradicts,
    fewest_pictures,
    pictures_to_decide,
    signed,
    verdicts,
    whole,
)

SURE = SmoothedChange(0.0, 0.02, 1000.0, 0.1, 0.0, 0.05, 0.0, 1.0, 1.0)


def figures(*values: float, error: float = 0.02) -> list[SmoothedChange]:
    return [replace(SURE, value=value, error=error) for value in values]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 0.1, -0.1), ["passes"] * 3),
        ((0.0, -0.19, -0.1), ["passes", "undecided", "passes"]),
        ((0.0, -0.5, -0.21), ["passes", "fails", "undecided"]),
        ((-0.5, -0.6, -3.0), ["fails"] * 3),
    ],
)
def test_each_figure_is_held_against_the_budget(
    values: tuple[float, ...], expected: list[Verdict]
) -> None:
    assert verdicts(figures(*values), 0.2) == expected


def test_wide_intervals_decide_nothing() -> None:
    assert verdicts(figures(0.3, 0.0, -0.9, error=5.0), 0.2) == ["undecided"] * 3


def test_failing_is_harder_among_more_figures() -> None:
    """2.2 standard errors are significant for one figure, and chance for the worst of six."""
    worst = -0.2 - 2.2 * 0.02
    assert verdicts(figures(worst), 0.2) == ["fails"]
    assert verdicts(figures(worst, *[0.0] * 5), 0.2)[0] == "undecided"


def test_step_down_fails_the_others_at_a_lower_bar() -> None:
    """Holm's procedure: the second of six needs what the worst of five would."""
    needed = [2.638, 2.576]  # quantiles at 0.025 / 6 and 0.025 / 5
    between = -0.2 - 0.02 * sum(needed) / 2
    assert verdicts(figures(between, *[0.0] * 5), 0.2)[0] == "undecided"
    assert verdicts(figures(-5.0, between, *[0.0] * 4), 0.2)[:2] == ["fails", "fails"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["passes", "passes"], "passes"),
        (["passes", "undecided"], "undecided"),
        (["undecided", "fails"], "fails"),
        ([], "passes"),
    ],
)
def test_whole_passes_only_with_every_figure(found: list[Verdict], expected: Verdict) -> None:
    assert whole(found) == expected


@pytest.mark.parametrize("true", [-0.2, 0.0, -0.5])
def test_whole_is_wrong_no_more_often_than_its_level(true: float) -> None:
    """At the budget neither passing nor failing may come up more often than 2.5 %."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((2000, 1))
    drawn = true + 0.05 * (0.5 * shared + 0.75**0.5 * rng.standard_normal((2000, 6)))
    found = [whole(verdicts(figures(*row, error=0.05), 0.2)) for row in drawn]
    if true <= -0.2:
        assert found.count("passes") / 2000 < 0.035
    if true >= -0.2:
        assert found.count("fails") / 2000 < 0.035


@given(st.floats(-5, 5), st.floats(0, 50), st.floats(0.001, 10), st.floats(0.05, 5))
@settings(deadline=None)
def test_so_many_pictures_would_decide(
    value: float, noise: float, floor: float, budget: float
) -> None:
    known = replace(SURE, value=value, noise=noise, floor=floor)
    pictures = pictures_to_decide(known, budget)
    if pictures is None:
        assert abs(value + budget) < 0.05 or noise > 1
        return
    then = replace(known, error=(noise / pictures + floor / pictures**2) ** 0.5)
    assert verdicts([then], budget) == ["passes" if value > -budget else "fails"]


def test_value_at_the_budget_is_decided_by_no_number() -> None:
    assert pictures_to_decide(replace(SURE, value=-0.2), 0.2) is None


def test_number_is_rounded_up_to_two_digits() -> None:
    known = replace(SURE, value=0.0, noise=50.0, floor=0.0)
    assert pictures_to_decide(known, 0.2) == 9900  # 50 * (2.8 / 0.2)^2 = 9811


@pytest.mark.parametrize(("sigmas", "expected"), [(0.0, False), (2.5, False), (-3.5, True)])
def test_estimates_contradict_each_other_beyond_chance(sigmas: float, expected: bool) -> None:
    assert contradicts(replace(SURE, disagreement=sigmas), 6) == expected


def test_number_that_is_named_is_evidence() -> None:
    """A clear loss of few pictures: more of them decide, but never fewer than are evidence."""
    assert pictures_to_decide(replace(SURE, value=-50.0, noise=3000.0), 0.2) == 50


def test_unchanged_model_needs_as_many_pictures_as_the_budget_is_fine() -> None:
    for budget in (0.1, 0.2, 1.0):
        pictures = fewest_pictures(budget)
        assert pictures is not None
        floor = 2 * 100.0**2
        for count, expected in ((pictures - 1, "undecided"), (pictures, "passes")):
            known = replace(SURE, error=floor**0.5 / count, freedom=4.0, noise=0.0, floor=floor)
            assert verdicts([known], budget) == [expected]
    assert fewest_pictures(0.0) is None


@pytest.mark.parametrize(
    ("points", "said"), [(-0.004, "+0.00"), (-0.0, "+0.00"), (0.2, "+0.20"), (-0.006, "-0.01")]
)
def test_a_change_that_rounds_to_zero_has_no_minus_sign(points: float, said: str) -> None:
    assert signed(points) == said
