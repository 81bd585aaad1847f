"""The conditions a conversion has to meet, and the verdict on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mwa_export.errors import check_option
from mwa_export.metrics.agreement import CosineSummary
from mwa_export.metrics.recall import MAX_RECALL_DROP, check_recall_drop
from mwa_export.metrics.verdict import Verdict, contradicts, pictures_to_decide, verdicts
from mwa_export.parity.result import DirectionResult, GateResult, RecallChange


@dataclass(frozen=True, slots=True)
class Gates:
    """Thresholds of the gates. None leaves a gate out."""

    max_recall_drop: float | None = MAX_RECALL_DROP  # points, for each of the six recall figures
    min_cosine: float | None = None  # for every row of both towers

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
        changes = [(d, change) for d in directions for change in d.recalls]
        found = verdicts([c.smoothed for _, c in changes], gates.max_recall_drop, confidence)
        for (direction, change), verdict in zip(changes, found, strict=True):
            figure = f"{direction.direction.upper()}@{change.k}"
            results.append(
                _recall_gate(
                    figure, change, verdict, gates.max_recall_drop, len(changes), confidence
                )
            )
    if gates.min_cosine is not None:
        results += [_cosine_gate(summary, gates.min_cosine) for summary in cosines]
    return tuple(results)


def pictures_for_verdict(gates: Sequence[GateResult]) -> int | None:
    """Pictures with which an undecided verdict would probably be decided; None: not known."""
    open_ = [gate for gate in gates if gate.verdict == "undecided"]
    failing = [gate.pictures for gate in open_ if gate.found > gate.limit and gate.pictures]
    if failing:
        return min(failing)  # the first that fails decides
    needed = [gate.pictures for gate in open_]
    return None if None in needed else max((n for n in needed if n), default=None)


def _recall_gate(
    figure: str,
    change: RecallChange,
    verdict: Verdict,
    limit: float,
    figures: int,
    confidence: float,
) -> GateResult:
    low, high = change.smoothed_low, change.smoothed_high
    message = f"{figure} changed by {change.smoothed.value:+.2f} points [{low:+.2f}, {high:+.2f}]"
    message += f", allowed to drop by {limit:g}"
    pictures = None
    if contradicts(change.smoothed, figures) and _by_flips(change, limit) != verdict:
        verdict = "undecided"
        message += (
            f". The count of flips contradicts it ({change.difference:+.2f} points "
            f"[{change.low:+.2f}, {change.high:+.2f}]), so neither decides"
        )
    elif verdict == "undecided":
        pictures = pictures_to_decide(change.smoothed, limit, confidence)
        message += ": " + (
            f"about {pictures:,} pictures would probably decide it"
            if pictures
            else "too close to the limit for any number of pictures"
        )
    return GateResult(
        f"{figure} drop", limit, 0.0 - change.smoothed.value, verdict, message, pictures
    )


def _by_flips(change: RecallChange, limit: float) -> Verdict:
    return "passes" if change.low >= -limit else "fails" if change.high < -limit else "undecided"


def _cosine_gate(summary: CosineSummary, limit: float) -> GateResult:
    name = f"{summary.tower} cosine"
    passed = summary.minimum >= limit
    number = _apart(summary.minimum, limit, passed)
    message = f"{name} is {number} at its smallest (row {summary.minimum_row}), allowed {limit:g}"
    return GateResult(name, limit, summary.minimum, "passes" if passed else "fails", message)


def _apart(value: float, limit: float, passed: bool) -> str:
    """A rounded number; with more digits where rounding would hide that it misses its limit."""
    digits = 6
    while not passed and digits < 17 and float(f"{value:.{digits}f}") == limit:
        digits += 1
    return f"{value:.{digits}f}"
