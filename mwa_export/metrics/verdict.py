"""The verdict on drops of recall: a test of non-inferiority with the budget as the margin.

A figure *passes* when the data show that its drop is below the budget, *fails* when they show that
it is above, and is *undecided* when they show neither.

All figures have to pass, so each is tested at the full level: by the intersection-union test
(Berger, 1982) the whole passes wrongly no more often than one figure does. One figure that fails is
enough, so failing takes Holm's (1979) procedure: the chance that any of them fails wrongly stays at
the level, however they depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Literal

from mwa_export.metrics.recall import SLACK
from mwa_export.metrics.smoothed import SmoothedChange

Verdict = Literal["passes", "fails", "undecided"]
CONFIDENCE = 0.95
_POWER = 0.8  # with which the number of pictures that is named decides
_CHANCE = 0.01  # that two estimates of figures of a sound test set are called contradictory
_MOST = 100_000_000  # pictures; more are no advice


def verdicts(
    changes: Sequence[SmoothedChange], budget: float, confidence: float = CONFIDENCE
) -> list[Verdict]:
    """The verdict on each figure: undecided also where flips contradict the margins.

    Args:
        changes: of all figures that are judged together.
        budget: points that each may drop.
        confidence: of the two-sided interval; half of the rest is the level on either side.
    """
    level = (1 - confidence) / 2
    found: list[Verdict] = [
        "passes" if change.interval(confidence)[0] >= -budget - SLACK else "undecided"
        for change in changes
    ]
    below = [(change.sigmas_above(-budget), number) for number, change in enumerate(changes)]
    for rank, (sigmas, number) in enumerate(sorted(below)):
        if sigmas >= NormalDist().inv_cdf(level / (len(changes) - rank)):
            break
        found[number] = "fails"
    return [
        "undecided" if contradicts(c, len(changes)) and _by_flips(c, budget, level) != v else v
        for c, v in zip(changes, found, strict=True)
    ]


def _by_flips(change: SmoothedChange, budget: float, level: float) -> Verdict:
    sigmas = (change.flips + budget) / change.flips_error
    needed = NormalDist().inv_cdf(1 - level)
    return "passes" if sigmas >= needed else "fails" if sigmas <= -needed else "undecided"


def whole(found: Iterable[Verdict]) -> Verdict:
    """The verdict on all: fails if one fails, passes if every one does."""
    every = set(found)
    return "fails" if "fails" in every else "undecided" if "undecided" in every else "passes"


def contradicts(change: SmoothedChange, figures: int) -> bool:
    """Whether the count of flips is further from the estimate than chance takes one of them."""
    return abs(change.disagreement) > NormalDist().inv_cdf(1 - _CHANCE / 2 / figures)


def pictures_to_decide(
    change: SmoothedChange, budget: float, confidence: float = CONFIDENCE
) -> int | None:
    """Pictures with which a figure would probably be decided, two significant digits.

    It takes the estimate for the truth, and decides with a probability of 80 % then. None: the
    estimate lies so close to the budget that no practical number would.
    """
    sigmas = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(_POWER)
    wanted = ((change.value + budget) / sigmas) ** 2  # squared error: noise / n + floor / n^2
    if wanted <= 0:
        return None
    need = (change.noise + math.sqrt(change.noise**2 + 4 * wanted * change.floor)) / (2 * wanted)
    if need > _MOST:
        return None
    step: int = 10 ** max(0, math.floor(math.log10(max(need, 1))) - 1)
    return max(step, math.ceil(need / step) * step)
