"""The conditions a conversion has to meet, and the verdict on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mwa_export.errors import check_option
from mwa_export.metrics.agreement import CosineSummary
from mwa_export.metrics.recall import MAX_RECALL_DROP, SLACK, check_recall_drop
from mwa_export.parity.result import DirectionResult, GateResult, RecallChange


@dataclass(frozen=True, slots=True)
class Gates:
    """Thresholds of the gates. None leaves a gate out."""

    max_recall_drop: float | None = MAX_RECALL_DROP  # points, for each of the six recall figures
    min_cosine: float | None = None  # for every row of both towers
    on_bound: bool = False  # hold the interval's bound against the drop, not the measured drop

    def __post_init__(self) -> None:
        drop, cosine = self.max_recall_drop, self.min_cosine
        check_recall_drop(drop)
        check_option("min_cosine", cosine, cosine is None or -1 <= cosine <= 1, "-1 to 1")


def check_gates(
    gates: Gates,
    confidence: float,
    directions: Sequence[DirectionResult],
    cosines: Sequence[CosineSummary],
) -> tuple[GateResult, ...]:
    """One result per figure that has a gate."""
    results: list[GateResult] = []
    if gates.max_recall_drop is not None:
        for direction in directions:
            for change in direction.recalls:
                figure = f"{direction.direction.upper()}@{change.k}"
                results.append(_recall_gate(figure, change, gates, confidence))
    if gates.min_cosine is not None:
        results += [_cosine_gate(summary, gates.min_cosine) for summary in cosines]
    return tuple(results)


def _recall_gate(figure: str, change: RecallChange, gates: Gates, confidence: float) -> GateResult:
    limit = gates.max_recall_drop
    assert limit is not None
    measured, bound = 0.0 - change.difference, 0.0 - change.low
    found = bound if gates.on_bound else measured
    passed = found <= limit + SLACK
    number = _apart(abs(found), limit, passed)
    moved = f"{change.reference:.2f}% to {change.candidate:.2f}%"
    if gates.on_bound:
        message = (
            f"{figure} may have dropped by {number} points with {confidence * 100:g}% confidence "
            f"(measured: {moved}), allowed {limit:g}"
        )
    elif measured == 0:
        message = f"{figure} is the same ({change.reference:.2f}%), allowed to drop by {limit:g}"
    else:
        verb = "dropped" if measured > 0 else "rose"
        message = f"{figure} {verb} by {number} points ({moved}), allowed to drop by {limit:g}"
    return GateResult(f"{figure} drop", limit, found, passed, message)


def _cosine_gate(summary: CosineSummary, limit: float) -> GateResult:
    name = f"{summary.tower} cosine"
    passed = summary.minimum >= limit
    number = _apart(summary.minimum, limit, passed, digits=6)
    message = f"{name} is {number} at its smallest (row {summary.minimum_row}), allowed {limit:g}"
    return GateResult(name, limit, summary.minimum, passed, message)


def _apart(value: float, limit: float, passed: bool, digits: int = 2) -> str:
    """A rounded number; with more digits where rounding would hide that it misses its limit."""
    value = value + 0.0 if round(value, digits) else 0.0  # no "-0.00"
    while not passed and digits < 17 and float(f"{value:.{digits}f}") == limit:
        digits += 1
    return f"{value:.{digits}f}"
