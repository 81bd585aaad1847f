"""Find the fastest assignment of INT8 and high precision that may be expected to pass.

Pure logic: what measures a model is handed in. The search has data of its own, on which it
estimates changes from margins; recall is decided once, afterwards, on data it has not seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import NormalDist
from typing import Any

from mwa_export.errors import UsageError
from mwa_export.metrics.smoothed import SmoothedChange
from mwa_export.metrics.verdict import CONFIDENCE
from mwa_export.progress import Progress
from mwa_export.spec import Tower


@dataclass(frozen=True, slots=True, order=True)
class SiteKey:
    """A site of one tower."""

    tower: Tower
    name: str


@dataclass(frozen=True, slots=True)
class Trial:
    """How recall changes with an assignment, and the cosines, on some data."""

    int8: frozenset[SiteKey]
    changes: Mapping[str, SmoothedChange]  # of each recall figure, by name
    cosine: dict[Tower, float]  # mean with float32, by tower
    detail: dict[str, Any]  # recall figures, for the record

    @property
    def drop(self) -> float:
        """Points that the figure that loses most is estimated to lose; negative if all gain."""
        return max(0.0 - change.value for change in self.changes.values())

    def expected(self, pictures: int | None) -> float:
        """The largest drop that a decision on so many other pictures should leave possible.

        What an estimate shows of a loss, and the reach of the interval then. A loss within its
        error shows nothing (positive-part shrinkage), so that the search does not follow noise.
        None: without the reach, for data that cannot decide the budget anyway.
        """
        return max(_shown(c) + _reach(c, pictures) for c in self.changes.values())


def _shown(change: SmoothedChange) -> float:
    loss = 0.0 - change.value
    return loss * (1 - (change.error / loss) ** 2) if loss > change.error else 0.0


def _reach(change: SmoothedChange, pictures: int | None) -> float:
    if pictures is None:
        return 0.0
    sigmas = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return sigmas * math.sqrt(change.noise / pictures + change.floor / pictures**2)


Evaluate = Callable[[frozenset[SiteKey]], Trial]
"""Measures an assignment. Expensive: embeds the data of the search."""


def names_of(int8: Collection[SiteKey], tower: Tower) -> frozenset[str]:
    """The names of one tower's sites."""
    return frozenset(key.name for key in int8 if key.tower == tower)


@dataclass(frozen=True, slots=True)
class Kept:
    """A site that stays in high precision, and why."""

    site: SiteKey
    reason: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The choice, and everything that was measured on the way."""

    chosen: Trial
    kept: tuple[Kept, ...]  # in the order in which they gave up INT8
    measured: tuple[Trial, ...]  # all, from the fewest to the most INT8 sites
    sensitivity: dict[SiteKey, float]
    saving: dict[SiteKey, float]
    stopped: bool = False  # by the time budget, before it was done


def rank_sites(
    sensitivity: Mapping[SiteKey, float], saving: Mapping[SiteKey, float]
) -> list[SiteKey]:
    """The order in which sites give up INT8: most error per millisecond saved first.

    Where nothing is saved, or nothing is known about time, error alone decides.
    """
    known = all(saving.get(site, 0.0) > 0 for site in sensitivity)

    def price(site: SiteKey) -> float:
        return sensitivity[site] / saving[site] if known else sensitivity[site]

    return sorted(sensitivity, key=lambda site: (-price(site), site))


def search(
    sensitivity: Mapping[SiteKey, float],
    saving: Mapping[SiteKey, float],
    evaluate: Evaluate,
    *,
    max_drop: float,
    pictures: int | None,
    points: int,
    progress: Progress,
    seconds: float = math.inf,
) -> SearchResult:
    """Keep as few sites in high precision as the budget allows.

    All in INT8 is tried first. If that may be expected to lose too much, the ranked list is
    bisected for the fewest sites to keep.

    Args:
        sensitivity: error of the embedding when a site alone is in INT8.
        saving: milliseconds per row that INT8 saves at it.
        evaluate: measures an assignment; called once for each.
        max_drop: budget in points.
        pictures: of the data that will decide; None: they cannot decide the budget anyway.
        points: further assignments along the ranking to measure for the trade-off curve.
        seconds: after which nothing new is tried.

    Returns:
        The fastest assignment that was tried and is expected to pass; with no site in INT8 if none
        is.
    """
    ranked = rank_sites(sensitivity, saving)
    tries = _Tries(ranked, evaluate, progress, points, time.monotonic() + seconds)

    def fits(trial: Trial | None) -> bool:
        return trial is not None and trial.expected(pictures) <= max_drop

    if not fits(tries(0)):
        low, high = 0, len(ranked)  # `low` fails, `high` is taken to fit: it is float32 itself
        while high - low > 1 and not tries.late:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(tries(middle)) else (middle, high)
    for step in range(points):
        tries(round(len(ranked) * (step + 1) / (points + 1)))
    tries.known[frozenset()] = evaluate(frozenset())
    passing = [trial for trial in tries.known.values() if fits(trial) or not trial.int8]

    def worth(trial: Trial) -> tuple[float, int, float]:
        saved = sum(saving.get(site, 0.0) for site in trial.int8)
        return saved, len(trial.int8), -trial.drop

    chosen = max(passing, key=worth)
    everything = tries.known[frozenset(ranked)]
    return SearchResult(
        chosen=chosen,
        kept=tuple(
            Kept(site, _reason(site, sensitivity, saving, everything, max_drop))
            for site in ranked
            if site not in chosen.int8
        ),
        measured=tuple(sorted(tries.known.values(), key=lambda m: (len(m.int8), sorted(m.int8)))),
        sensitivity=dict(sensitivity),
        saving=dict(saving),
        stopped=tries.late,
    )


class _Tries:
    """Assignments that were tried, by how many of the ranked sites stay in high precision."""

    def __init__(
        self,
        ranked: Sequence[SiteKey],
        evaluate: Evaluate,
        progress: Progress,
        points: int,
        deadline: float,
    ) -> None:
        self.ranked, self.evaluate, self.progress = ranked, evaluate, progress
        self.most = points + 1 + math.ceil(math.log2(max(2, len(ranked))))
        self.deadline, self.late = deadline, False
        self.known: dict[frozenset[SiteKey], Trial] = {}

    def __call__(self, kept: int) -> Trial | None:
        """The trial with so many sites kept; None: there is no time for it. The first has time."""
        int8 = frozenset(self.ranked[kept:])
        if int8 not in self.known and int8:
            if self.known and time.monotonic() >= self.deadline:
                self.late = True
                return None
            told = f"{len(int8)} of {len(self.ranked)} layers in INT8"
            self.progress(f"search the precisions, {len(self.known) + 1} of {self.most}: {told}")
            self.known[int8] = self.evaluate(int8)
        return self.known.get(int8)


def _reason(
    site: SiteKey,
    sensitivity: Mapping[SiteKey, float],
    saving: Mapping[SiteKey, float],
    everything: Trial,
    max_drop: float,
) -> str:
    total = sum(sensitivity.values()) or 1.0
    share = 100 * sensitivity[site] / total
    words = f"INT8 here changes the embedding by {sensitivity[site]:.1e} ({share:.0f}% of all)"
    time = sum(saving.values())
    if time > 0:
        words += f" and saves {100 * saving.get(site, 0.0) / time:.0f}% of the time INT8 saves"
    return (
        f"{words}; with every layer in INT8 the drop is estimated at {everything.drop:.2f} "
        f"points, allowed {max_drop:.2f}"
    )


def savings(
    macs: Mapping[SiteKey, float], high_ms: Mapping[Tower, float], int8_ms: Mapping[Tower, float]
) -> dict[SiteKey, float]:
    """Milliseconds per row that each site saves in INT8, 0 where nothing.

    An estimate: a tower with all its sites in INT8 was timed against one with none, and the
    difference is shared by multiply-accumulates, which is where nearly all of it comes from.

    Args:
        macs: per token, of every site that was in INT8.
        high_ms: milliseconds per row of each tower with no site in INT8.
        int8_ms: and with all of them.
    """
    total: dict[Tower, float] = {}
    for site, work in macs.items():
        total[site.tower] = total.get(site.tower, 0.0) + work
    saved = {tower: max(0.0, high_ms[tower] - int8_ms[tower]) for tower in total}
    return {site: saved[site.tower] * work / total[site.tower] for site, work in macs.items()}


def speedup(
    int8: Collection[SiteKey],
    saving: Mapping[SiteKey, float],
    high_ms: Mapping[Tower, float],
    tower: Tower,
) -> float:
    """Estimated speed-up of a tower with these sites in INT8 over one with none."""
    saved = sum(saving.get(site, 0.0) for site in int8 if site.tower == tower)
    return high_ms[tower] / max(1e-9, high_ms[tower] - saved)


def named_sites(sites: Sequence[SiteKey], patterns: Sequence[str]) -> frozenset[SiteKey]:
    """Sites that a pattern names: "blocks.0.*", or for one tower "vision:blocks.0.*"."""
    kept: set[SiteKey] = set()
    for pattern in patterns:
        found = {
            key
            for key in sites
            if fnmatchcase(key.name, pattern) or fnmatchcase(f"{key.tower}:{key.name}", pattern)
        }
        if not found:
            names = ", ".join(f"{key.tower}:{key.name}" for key in sites[:4])
            raise UsageError(
                f"`keep={pattern}`: no layer has such a name. The layers are {names}, ..."
            )
        kept |= found
    if patterns and len(kept) == len(sites):
        raise UsageError(
            f"`keep={', '.join(patterns)}`: keeps all {len(sites)} layers in high precision, "
            "so nothing is left for INT8. Name fewer."
        )
    return frozenset(kept)
