"""What INT8 saves at each layer: the measured saving of a tower, shared out by work."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mwa_export.calib.search import SiteKey
from mwa_export.spec import Tower


def savings(
    macs: Mapping[SiteKey, float], high_ms: Mapping[Tower, float], int8_ms: Mapping[Tower, float]
) -> dict[SiteKey, float]:
    """Milliseconds per row that each site saves in INT8.

    An estimate: a tower with all its sites in INT8 was timed against one with none, and the
    difference is shared by multiply-accumulates, which is where nearly all of it comes from.

    Args:
        macs: per token, of every site that was in INT8.
        high_ms: milliseconds per row of each tower with no site in INT8.
        int8_ms: and with all of them.

    Returns:
        By site; 0 where INT8 saved nothing.
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
