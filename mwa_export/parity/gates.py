"""The gates that a conversion has to pass, and the verdict on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mwa_export.errors import check_option
from mwa_export.metrics.agreement import CosineSummary
from mwa_export.metrics.recall import MAX_RECALL_DROP, check_recall_drop
from mwa_export.metrics.smoothed import SmoothedChange
from mwa_export.metrics.verdict import (
    Verdict,
    contradicts,
    pictures_to_decide,
    signed,
    verdicts,
    whole,
)
from mwa_export.parity.result import DirectionResult, GateResult


@dataclass(frozen=True, slots=True)
class Gates:
    """Thresholds of the gates; None disables a gate."""

    max_recall_drop: float | None = MAX_RECALL_DROP  # points, for each of the six recall figures
    min_cosine: float | None = None  # of every embedding of both towers

    def __post_init__(self) -> None:
        drop, cosine = self.max_recall_drop, self.min_cosine
        check_recall_drop(drop)
        check_option("min_cosine", cosine, cosine is None or -1 <= cosine <= 1, "-1 to 1")


def check_gates(
    gates: Gates,
    confidence: float,
    directions: Sequence[DirectionResult],
    cosines: Sequence[CosineSummary],
    objection: str | None = None,
) -> tuple[GateResult, ...]:
    """Check every gate. ``objection``: why the data are not evidence about recall, or None."""
    results: list[GateResult] = []
    if gates.max_recall_drop is not None:
        changes = {
            f"{d.direction.upper()}@{r.k}": r.smoothed for d in directions for r in d.recalls
        }
        judge = _Judge(gates.max_recall_drop, confidence, len(changes), objection)
        found = verdicts([*changes.values()], gates.max_recall_drop, confidence)
        results += [judge(*item, v) for item, v in zip(changes.items(), found, strict=True)]
    if gates.min_cosine is not None:
        results += [_cosine_gate(summary, gates.min_cosine) for summary in cosines]
    return tuple(results)


def pictures_for_verdict(gates: Sequence[GateResult]) -> int | None:
    """Number of images that would probably decide an undecided verdict; None: unknown."""
    if whole(gate.verdict for gate in gates) != "undecided":
        return None
    open_ = [gate for gate in gates if gate.verdict == "undecided"]
    failing = [gate.pictures for gate in open_ if gate.found < gate.limit and gate.pictures]
    if failing:
        return min(failing)  # one failed gate is enough
    needed = [gate.pictures for gate in open_]
    return None if None in needed else max((n for n in needed if n), default=None)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Makes the gate result of a recall figure, with its sentence."""

    limit: float
    confidence: float
    figures: int
    objection: str | None

    def __call__(self, figure: str, change: SmoothedChange, verdict: Verdict) -> GateResult:
        low, high = change.interval(self.confidence)
        said = f"{figure} changed by {signed(change.value)} points [{signed(low)}, {signed(high)}]"
        said, pictures = f"{said}, allowed drop {self.limit:g}", None
        if verdict == "passes" and self.objection:
            verdict, said = "undecided", f"{said}; undecided because {self.objection}"
        elif verdict == "undecided" and contradicts(change, self.figures):
            said = f"{said}; the count of flips contradicts this ({signed(change.flips)} points)"
        elif verdict == "undecided":
            pictures = pictures_to_decide(change, self.limit, self.confidence)
            needed = f"about {pictures:,}" if pictures else "no practical number of"
            said = f"{said}; {needed} images would probably decide it"
        return GateResult(
            f"{figure} change", 0.0 - self.limit, change.value, verdict, said, pictures
        )


def _cosine_gate(summary: CosineSummary, limit: float) -> GateResult:
    name = f"{summary.tower} cosine"
    passed = summary.minimum >= limit
    number = _apart(summary.minimum, limit, passed)
    message = (
        f"{name} has a minimum of {number} (row {summary.minimum_row}), expected at least {limit:g}"
    )
    return GateResult(name, limit, summary.minimum, "passes" if passed else "fails", message)


def _apart(value: float, limit: float, passed: bool) -> str:
    """Round a number, with more digits where rounding would hide that it misses its limit."""
    digits = 6
    while not passed and digits < 17 and float(f"{value:.{digits}f}") == limit:
        digits += 1
    return f"{value:.{digits}f}"
