"""Simulated changes of recall, with trials and decisions based on them."""

from __future__ import annotations

from collections.abc import Collection

from mwa_export.calib.precision_search import SiteKey, Trial
from mwa_export.metrics.smoothed import SmoothedChange
from mwa_export.metrics.verdict import Decision, decide


def smoothed(value: float, *, error: float = 1e-3) -> SmoothedChange:
    """A change in points, known so well that any usual set of pictures decides on it."""
    return SmoothedChange(value, error, 1000.0, 0.1, value, error, 0.0, error**2, error**2)


def trial(int8: Collection[SiteKey], drop: float, *, error: float = 1e-3) -> Trial:
    """An assignment that loses so many points of TR@1."""
    changes = {"TR@1": smoothed(0.0 - drop, error=error), "IR@1": smoothed(0.0)}
    return Trial(frozenset(int8), changes, {"vision": 1.0, "text": 1.0}, {})


def decision(drop: float, budget: float = 0.2, *, error: float = 1e-3) -> Decision:
    """What is decided on such a drop."""
    return decide({"TR@1": smoothed(0.0 - drop, error=error)}, budget)
