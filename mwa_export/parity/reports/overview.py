"""One report for several candidates of a bundle: recall, speed and a verdict for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mwa_export.metrics.verdict import whole
from mwa_export.parity.reports.facts import cost_sentence, worst_figure
from mwa_export.parity.reports.tables import COST_HEAD
from mwa_export.parity.reports.words import drop_limits, figures
from mwa_export.parity.result import SCHEMA, Cost, Parity
from mwa_export.report.numbers import (
    DASH,
    count,
    counted,
    estimate,
    interval,
    megabytes,
    small,
)
from mwa_export.report.page import rendered
from mwa_export.report.plots import Point, scatter
from mwa_export.report.table import MARKS, Table

Results = Mapping[str, Parity]
"""Results by candidate name, which is also the name of the candidate's folder."""


def overview_headline(results: Results) -> str:
    """How many candidates pass, and which of them is the fastest."""
    passing = [name for name, result in results.items() if result.verdict == "passes"]
    if not any(result.gates for result in results.values()):
        return "No verdict: no gate was set"
    said = f"{len(passing)} of {counted(len(results), 'candidate')} pass"
    timed = {name: ms for name in passing if (ms := total_ms(results[name])) is not None}
    if len(timed) > 1:
        said += f"; the fastest is {min(timed, key=lambda name: timed[name])}"
    verdict = whole(result.verdict for result in results.values())
    return f"{verdict.capitalize()}: {said}"


def overview_table(results: Results) -> Table:
    """Worst recall figure, verdict, size and speed of each candidate."""
    rows = []
    for number, (name, result) in enumerate(results.items(), 1):
        figure, change = worst_figure(result)
        cost = _cost(result)
        rows.append(
            (
                f"{number}. {name}",
                estimate(change.smoothed.value),
                interval(change.smoothed_low, change.smoothed_high),
                figure,
                f"{MARKS[result.verdict]} {result.verdict}" if result.gates else DASH,
                DASH if result.pictures is None else count(result.pictures),
                megabytes(cost.model_bytes),
                *(DASH if ms is None else f"{ms:.3g}" for ms in (cost.image_ms, cost.text_ms)),
            )
        )
    head = ("Candidate", "Change", "Interval", "Figure", "Verdict", "Images needed", *COST_HEAD)
    caption = "Worst change of six recall figures in points, with size and speed"
    return Table.of(caption, head, rows, words=(4,), stacked=True)


def figures_table(results: Results) -> Table:
    """Change of every recall figure, for each candidate."""
    first = next(iter(results.values()))
    rows = [
        (name, *(estimate(change.smoothed.value) for *_, change in figures(result)))
        for name, result in results.items()
    ]
    head = ("Candidate", *(name for name, *_ in figures(first)))
    return Table.of("Change of recall in points, estimated from margins", head, rows, stacked=True)


def html_from_overview(results: Results) -> str:
    """Render the page that lists all candidates and links to the report of each."""
    from markupsafe import Markup

    first = next(iter(results.values()))
    verdict = whole(result.verdict for result in results.values())
    return rendered(
        "overview.html.j2",
        ["report.css"],
        {"counted": counted, "small": small},
        mark=MARKS[verdict] if first.gates else "?",
        headline=overview_headline(results),
        first=first,
        names=list(results),
        chart=Markup(_chart(results)),
        tables=(overview_table(results), figures_table(results)),
        cost_sentence=cost_sentence(first),
    )


def json_from_overview(results: Results) -> dict[str, Any]:
    """The overview as JSON; the full result of each candidate is in the candidate's folder."""
    return {
        "schema": SCHEMA,
        "verdict": whole(result.verdict for result in results.values()),
        "candidates": [_json(name, result) for name, result in results.items()],
    }


def markdown_from_overview(results: Results) -> str:
    """The overview as Markdown, for a pull request comment."""
    parts = (
        f"## {overview_headline(results)}",
        overview_table(results).markdown(),
        figures_table(results).markdown(),
        cost_sentence(next(iter(results.values()))),
    )
    return "\n\n".join(parts) + "\n"


def _json(name: str, result: Parity) -> dict[str, Any]:
    figure, change = worst_figure(result)
    cost = _cost(result)
    return {
        "name": name,
        "report": f"{name}/report.json",
        "verdict": result.verdict,
        "pictures": result.pictures,
        "worst": figure,
        "change": change.smoothed.value,
        "low": change.smoothed_low,
        "high": change.smoothed_high,
        "model_bytes": cost.model_bytes,
        "image_ms": cost.image_ms,
        "text_ms": cost.text_ms,
    }


def _chart(results: Results) -> str:
    placed = []
    limit = None
    for number, result in enumerate(results.values(), 1):
        figure, change = worst_figure(result)
        allowed = drop_limits(result).get(figure)
        limit = None if allowed is None else -allowed
        place, ends = change.smoothed.value, (change.smoothed_low, change.smoothed_high)
        if (ms := total_ms(result)) is not None:
            placed.append(Point(f"{number}", ms, place, *ends))
    axes = ("ms for one image and one caption", "worst change of a recall figure, points")
    return scatter("candidates", "Recall against time of each candidate", placed, limit, axes)


def _cost(result: Parity) -> Cost:
    return result.costs[-1]


def total_ms(result: Parity) -> float | None:
    """Milliseconds for one image and one caption; None if either was not timed."""
    cost = _cost(result)
    both = cost.image_ms, cost.text_ms
    return None if None in both else sum(ms for ms in both if ms)
