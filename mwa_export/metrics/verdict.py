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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from mwa_export.metrics.evidence import FEWEST_PICTURES
from mwa_export.metrics.recall import SLACK
from mwa_export.metrics.smoothed import SmoothedChange, reach_of_unseen

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict on a candidate, for the record: figures are those of the worst one."""

    verdict: Verdict
    figure: str  # whose lower bound is the lowest, "TR@1"
    change: float  # estimate, points
    low: float  # its interval at the confidence
    high: float
    confidence: float
    pictures: int | None = None  # with which it would probably be decided, if it is undecided
    objection: str | None = None  # why the data are no evidence
    accepted: bool = False  # undecided, and the user said that this passes

    @property
    def takes(self) -> bool:
        """Whether the candidate may be taken without being told."""
        return self.verdict == "passes" or self.accepted

    def words(self) -> str:
        """The figure with its interval."""
        return f"{self.figure} {self.change:+.2f} points [{self.low:+.2f}, {self.high:+.2f}]"


def decide(
    changes: Mapping[str, SmoothedChange],
    budget: float,
    *,
    confidence: float = CONFIDENCE,
    objection: str | None = None,
    accept: bool = False,
) -> Decision:
    """The verdict on all figures of a candidate, by name.

    Args:
        objection: why the data are no evidence, so that nothing passes.
        accept: an undecided verdict is good enough.
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
    return max(FEWEST_PICTURES, math.ceil(need / step) * step)


def fewest_pictures(budget: float, confidence: float = CONFIDENCE) -> int | None:
    """Pictures below which not even an unchanged model passes; None: no number is enough."""
    reach = reach_of_unseen(confidence)
    return None if reach / _MOST > budget else math.ceil(reach / budget)
