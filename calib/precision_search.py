"""Find the fastest assignment of INT8 and high precision that is expected to pass.

This module is pure logic; the caller supplies the function that measures a model. The search
estimates changes from margins on its own data. Recall is decided once, afterwards, on data that the
search has not seen.
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
    """Identifies a site: its tower and its name."""

    tower: Tower
    name: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Changes of recall, and cosines, of an assignment on some data."""

    int8: frozenset[SiteKey]
    changes: Mapping[str, SmoothedChange]  # of each recall figure, by name
    cosine: dict[Tower, float]  # mean cosine with float32, by tower
    detail: dict[str, Any]  # recall figures, for the record

    @property
    def drop(self) -> float:
        """Largest estimated drop of a recall figure in points; negative if all gain."""
        return max(0.0 - change.value for change in self.changes.values())

    def expected(self, pictures: int | None) -> float:
        """Largest drop that a decision on other data is expected to leave possible, in points.

        It is the estimated loss plus the half-width of the interval on ``pictures`` images. The
        loss is shrunk (positive-part shrinkage): one within its standard error counts as 0, so that
        the search does not follow noise. ``pictures`` is None for data that cannot decide on the
        budget anyway; the half-width is then left out.
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
"""Measures an assignment. Expensive, as it embeds the data of the search."""


def names_of(int8: Collection[SiteKey], tower: Tower) -> frozenset[str]:
    """Names of one tower's sites."""
    return frozenset(key.name for key in int8 if key.tower == tower)


@dataclass(frozen=True, slots=True)
class Kept:
    """A site that stays in high precision, with the reason."""

    site: SiteKey
    reason: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Result of `search`: the chosen assignment, and everything that was measured."""

    chosen: Trial
    kept: tuple[Kept, ...]  # in the order in which they gave up INT8
    measured: tuple[Trial, ...]  # all trials, from the fewest to the most INT8 sites
    sensitivity: dict[SiteKey, float]
    saving: dict[SiteKey, float]
    stopped: bool = False  # whether the time budget ended the search


def rank_sites(
    sensitivity: Mapping[SiteKey, float], saving: Mapping[SiteKey, float]
) -> list[SiteKey]:
    """Sort sites in the order in which they give up INT8: most error per millisecond saved first.

    If a site saves nothing, or times are unknown, sites are sorted by error alone.
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

    First, all sites are tried in INT8. If that is expected to lose too much, the ranked list is
    bisected for the smallest number of sites to keep.

    Args:
        sensitivity: error of the embedding when only that site is in INT8.
        saving: milliseconds per row that INT8 saves at that site.
        evaluate: measures an assignment; called once per assignment.
        max_drop: budget in points.
        pictures: number of images that will decide; None: they cannot decide on the budget anyway.
        points: further assignments along the ranking to measure for the trade-off curve.
        seconds: time after which no new assignment is tried.

    Returns:
        The fastest tried assignment that is expected to pass, or the one without INT8 if there is
        none.
    """
    ranked = rank_sites(sensitivity, saving)
    tries = _Tries(ranked, evaluate, progress, points, time.monotonic() + seconds)

    def fits(trial: Trial | None) -> bool:
        return trial is not None and trial.expected(pictures) <= max_drop

    if not fits(tries(0)):
        low, high = 0, len(ranked)  # `low` fails; `high` is float32 itself and assumed to fit
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
    """Tries assignments, given how many of the ranked sites stay in high precision."""

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
        """Try keeping this many sites; None: the time is up (but the first trial always runs)."""
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
        words += f" and gives {100 * saving.get(site, 0.0) / time:.0f}% of the time saved by INT8"
    return (
        f"{words}; with all layers in INT8, the estimated drop is {everything.drop:.2f} "
        f"points, allowed {max_drop:.2f}"
    )


def savings(
    macs: Mapping[SiteKey, float], high_ms: Mapping[Tower, float], int8_ms: Mapping[Tower, float]
) -> dict[SiteKey, float]:
    """Estimate the milliseconds per row that INT8 saves at each site, at least 0.

    The time of a tower with all sites in INT8 is compared with that of one without INT8. The
    difference is divided among the sites by multiply-accumulates, which cause nearly all of it.

    Args:
        macs: multiply-accumulates per token of every site that was in INT8.
        high_ms: milliseconds per row of each tower with no site in INT8.
        int8_ms: milliseconds per row of each tower with all sites in INT8.
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
    """Estimate the speedup of a tower with these sites in INT8 over one without INT8."""
    saved = sum(saving.get(site, 0.0) for site in int8 if site.tower == tower)
    return high_ms[tower] / max(1e-9, high_ms[tower] - saved)


def named_sites(sites: Sequence[SiteKey], patterns: Sequence[str]) -> frozenset[SiteKey]:
    """Find the sites that match any pattern: "blocks.0.*", or for a tower "vision:blocks.0.*"."""
    kept: set[SiteKey] = set()
    for pattern in patterns:
        found = {
            key
            for key in sites
            if fnmatchcase(key.name, pattern) or fnmatchcase(f"{key.tower}:{key.name}", pattern)
        }
        if not found:
            names = ", ".join(f"{key.tower}:{key.name}" for key in sites[:4])
            raise UsageError(f"`keep={pattern}`: matches no layer. The layers are {names}, ...")
        kept |= found
    if patterns and len(kept) == len(sites):
        raise UsageError(
            f"`keep={', '.join(patterns)}`: matches all {len(sites)} layers, so none is left for "
            "INT8. Match fewer layers."
        )
    return frozenset(kept)
