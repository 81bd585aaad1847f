"""Find the fastest assignment of INT8 and high precision whose recall drop fits a budget.

Pure logic: what measures a model is handed in. Recall is noisy and not quite monotone in the number
of INT8 layers, so nothing is chosen that was not itself measured inside the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mwa_export.errors import UsageError
from mwa_export.progress import Progress
from mwa_export.spec import Tower

_GIVE_BACK = 6  # kept sites that are tried in INT8 again after the bisection


@dataclass(frozen=True, slots=True, order=True)
class SiteKey:
    """A site of one tower."""

    tower: Tower
    name: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Recall and cosine of an assignment on the held-back data."""

    int8: frozenset[SiteKey]
    drop: float  # points, of the recall figure that lost most; negative if all gained
    cosine: dict[Tower, float]  # mean with float32, by tower
    detail: dict[str, Any]  # recall figures, for the record


Evaluate = Callable[[frozenset[SiteKey]], Trial]
"""Measures an assignment. Expensive: embeds the held-back data."""


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
    points: int,
    progress: Progress,
) -> SearchResult:
    """Keep as few sites in high precision as the budget allows.

    All in INT8 is tried first. If that loses too much, the ranked list is bisected for the fewest
    sites to keep, and then the kept ones that would save most are tried in INT8 again, one by one.

    Args:
        sensitivity: error of the embedding when a site alone is in INT8.
        saving: milliseconds per row that INT8 saves at it.
        evaluate: measures an assignment; called once for each.
        max_drop: budget in points.
        points: further assignments along the ranking to measure for the trade-off curve.

    Returns:
        The fastest assignment that was measured inside the budget; with no site in INT8 if none
        was.
    """
    ranked = rank_sites(sensitivity, saving)
    known: dict[frozenset[SiteKey], Trial] = {}

    def keep(sites: Sequence[SiteKey]) -> Trial:
        int8 = frozenset(ranked).difference(sites)
        if int8 not in known:
            known[int8] = evaluate(int8)
        return known[int8]

    progress("search the precisions")
    if keep([]).drop > max_drop:
        low, high = 0, len(ranked)  # `low` fails, `high` is taken to pass: it is float32 itself
        while high - low > 1:
            middle = (low + high) // 2
            if keep(ranked[:middle]).drop <= max_drop:
                high = middle
            else:
                low = middle
        _give_back(ranked[:high], saving, keep, max_drop)
    for step in range(points):
        keep(ranked[: round(len(ranked) * (step + 1) / (points + 1))])
    keep(ranked)
    passing = [m for m in known.values() if m.drop <= max_drop or not m.int8]

    def worth(measured: Trial) -> tuple[float, int, float]:
        saved = sum(saving.get(site, 0.0) for site in measured.int8)
        return saved, len(measured.int8), -measured.drop

    chosen = max(passing, key=worth)
    everything = known[frozenset(ranked)]
    return SearchResult(
        chosen=chosen,
        kept=tuple(
            Kept(site, _reason(site, sensitivity, saving, everything, max_drop))
            for site in ranked
            if site not in chosen.int8
        ),
        measured=tuple(sorted(known.values(), key=lambda m: (len(m.int8), sorted(m.int8)))),
        sensitivity=dict(sensitivity),
        saving=dict(saving),
    )


def _give_back(
    kept: Sequence[SiteKey], saving: Mapping[SiteKey, float], keep: Any, max_drop: float
) -> None:
    """Try kept sites in INT8 again, those that save most first; what passes stays so."""
    left = list(kept)
    for site in sorted(kept, key=lambda site: (-saving.get(site, 0.0), site))[:_GIVE_BACK]:
        fewer = [other for other in left if other != site]
        if fewer and keep(fewer).drop <= max_drop:
            left = fewer


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
        f"{words}; with every layer in INT8 the drop is {everything.drop:.2f} points, "
        f"allowed {max_drop:.2f}"
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
