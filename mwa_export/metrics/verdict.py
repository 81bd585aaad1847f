"""The verdict on drops of recall: a non-inferiority test with the budget as its margin.

A figure *passes* when the data show that its drop is below the budget, *fails* when they show that
it is above, and is *undecided* when they show neither.

All figures have to pass, so each is tested at the full level: with an intersection-union test
(Berger, 1982) a wrong pass overall is no likelier than for a single figure. One failed figure is
enough to fail, so failing uses Holm's (1979) procedure: the chance that any figure fails wrongly
stays at the level, however the figures depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from mwa_export.metrics.evidence import FEWEST_PICTURES
from mwa_export.metrics.recall import SLACK
from mwa_export.metrics.smoothed import SmoothedChange, reach_of_unseen

Verdict = Literal["passes", "fails", "undecided"]
CONFIDENCE = 0.95
_POWER = 0.8  # probability that the suggested number of images decides
_CHANCE = 0.01  # probability of a false contradiction between the two estimates of a change
_MOST = 100_000_000  # images; a larger number is not practical advice


def verdicts(
    changes: Sequence[SmoothedChange], budget: float, confidence: float = CONFIDENCE
) -> list[Verdict]:
    """Judge each figure. Where flips contradict the margins, it is undecided too.

    Args:
        changes: all figures that are judged together.
        budget: percentage points that each figure may drop.
        confidence: of the two-sided interval; the level of each side is (1 - confidence) / 2.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict on a candidate as it is recorded, with the numbers of its worst figure."""

    verdict: Verdict
    figure: str  # the one with the lowest lower bound, "TR@1"
    change: float  # estimate, points
    low: float  # its interval at the confidence
    high: float
    confidence: float
    pictures: int | None = None  # images that would probably decide an undecided verdict
    objection: str | None = None  # why the data are not evidence
    accepted: bool = False  # undecided, and the user accepted that

    @property
    def takes(self) -> bool:
        """Whether the candidate may be used by default."""
        return self.verdict == "passes" or self.accepted

    def words(self) -> str:
        """The figure with its interval."""
        return (
            f"{self.figure} {signed(self.change)} points [{signed(self.low)}, {signed(self.high)}]"
        )


def signed(points: float) -> str:
    """Format points with a sign and two decimals; zero is always +0.00, never -0.00."""
    return f"{round(points, 2) + 0.0:+.2f}"


def decide(
    changes: Mapping[str, SmoothedChange],
    budget: float,
    *,
    confidence: float = CONFIDENCE,
    objection: str | None = None,
    accept: bool = False,
) -> Decision:
    """Judge a candidate by all its figures.

    Args:
        changes: change of each figure, by figure name.
        budget: percentage points that each figure may drop.
        confidence: of the intervals.
        objection: why the data are not evidence; if given, nothing passes.
        accept: treat an undecided verdict as good enough.
    """
    verdict = whole(verdicts([*changes.values()], budget, confidence))
    if objection is not None and verdict == "passes":
        verdict = "undecided"
    intervals = {name: change.interval(confidence) for name, change in changes.items()}
    figure = min(intervals, key=lambda name: intervals[name][0])
    needed = pictures_to_decide(changes[figure], budget, confidence)
    return Decision(
        verdict=verdict,
        figure=figure,
        change=round(changes[figure].value, 6),
        low=round(intervals[figure][0], 6),
        high=round(intervals[figure][1], 6),
        confidence=confidence,
        pictures=needed if verdict == "undecided" and objection is None else None,
        objection=objection,
        accepted=accept and verdict == "undecided",
    )


def whole(found: Iterable[Verdict]) -> Verdict:
    """Combine verdicts: fails if one fails, passes if all pass, else undecided."""
    every = set(found)
    return "fails" if "fails" in every else "undecided" if "undecided" in every else "passes"


def contradicts(change: SmoothedChange, figures: int) -> bool:
    """Whether the count of flips differs from the estimate by more than chance explains."""
    return abs(change.disagreement) > NormalDist().inv_cdf(1 - _CHANCE / 2 / figures)


def pictures_to_decide(
    change: SmoothedChange, budget: float, confidence: float = CONFIDENCE
) -> int | None:
    """Number of images that would probably decide a figure, to two significant digits.

    If the estimate is the true change, that many images decide with a probability of 80%. None: the
    estimate is so close to the budget that no practical number of images would.
    """
    sigmas = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(_POWER)
    wanted = ((change.value + budget) / sigmas) ** 2  # squared error: noise / n + floor / n^2
    if wanted <= 0:
        return None
    need = (change.noise + math.sqrt(change.noise**2 + 4 * wanted * change.floor)) / (2 * wanted)
    if need > _MOST:
        return None
    step: int = 10 ** max(0, math.floor(math.log10(max(need, 1))) - 1)
    return max(FEWEST_PICTURES, math.ceil(need / step) * step)


def fewest_pictures(budget: float, confidence: float = CONFIDENCE) -> int | None:
    """Fewest images with which an unchanged model can pass; None: no number is enough."""
    reach = reach_of_unseen(confidence)
    return None if reach / _MOST > budget else math.ceil(reach / budget)
