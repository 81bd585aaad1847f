"""The figures at the top of a report: what a conversion lost, and what it gained."""

from __future__ import annotations

from mwa_export.parity.reports.words import CHANGE, drop_limits, figures
from mwa_export.parity.result import Cost, Parity, RecallChange
from mwa_export.report.numbers import estimate, interval, megabytes, points, small, times
from mwa_export.report.page import Fact


def worst_figure(result: Parity) -> tuple[str, RecallChange]:
    """The recall figure with the worst verdict and, among those, the lowest lower bound."""
    verdicts = {gate.name.removesuffix(CHANGE): gate.verdict for gate in result.gates}
    order = ("fails", "undecided", "passes")
    name, _, change = min(
        figures(result),
        key=lambda f: (order.index(verdicts.get(f[0], "passes")), f[2].smoothed_low),
    )
    return name, change


def facts(result: Parity) -> list[Fact]:
    """Worst change of recall, change of model size, and change of speed if it was measured.

    Size and speed are compared with the candidate in float32; with the reference if the candidate
    itself runs in float32.
    """
    name, change = worst_figure(result)
    limit = drop_limits(result).get(name)
    allowed = "" if limit is None else f", budget {points(-limit)}"
    bounds = interval(change.smoothed_low, change.smoothed_high)
    lost = Fact(
        f"{name}, worst of six recall figures",
        f"{estimate(change.smoothed.value)} points",
        f"{small(result.confidence * 100, 4)}% interval {bounds}{allowed}",
    )
    if not result.costs:
        return [lost]
    *_, other, mine = result.costs
    against = " in float32" if other.side == "float32" else ""
    found = [lost]
    if mine.model_bytes and other.model_bytes:
        sizes = f"{megabytes(mine.model_bytes)} MB instead of {megabytes(other.model_bytes)} MB"
        found.append(
            Fact("Model size", times(mine.model_bytes / other.model_bytes), sizes + against)
        )
    for name, own, theirs in (
        ("Image speed", mine.image_ms, other.image_ms),
        ("Caption speed", mine.text_ms, other.text_ms),
    ):
        if own and theirs:
            speeds = f"{own:.3g} ms instead of {theirs:.3g} ms"
            found.append(Fact(name, times(theirs / own), speeds + against))
    return found


def cost_name(result: Parity, cost: Cost) -> str:
    """Name of the model in the table of costs."""
    if cost.side == "float32":
        return "candidate in float32"
    info = result.reference if cost.side == "reference" else result.candidate
    return f"{cost.side}, {info.runtime} {info.precision}".rstrip(", ")


def cost_sentence(result: Parity) -> str:
    """How times were measured, and whether the reference was read from the cache instead."""
    cached = [cost.side for cost in result.costs if cost.image_ms is None or cost.text_ms is None]
    kept = " The reference was not timed, because its embeddings came from the cache."
    return (
        "Times are the median batch of this run, without decoding and tokenizing. The models ran "
        "one after the other; mwa-export bench compares speed more carefully."
        + (kept if "reference" in cached else "")
    )
