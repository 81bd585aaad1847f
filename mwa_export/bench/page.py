"""The benchmark as one HTML page: speed of every contender, tower by tower."""

from __future__ import annotations

from typing import Any

from mwa_export.bench.chart import by_speed, heading, rate
from mwa_export.bench.report import (
    method,
    peak_sentence,
    skipped_lines,
    table_of,
    window_sentence,
)
from mwa_export.bench.result import Bench, Figure, Section
from mwa_export.report.numbers import times
from mwa_export.report.page import Fact, rendered
from mwa_export.report.plots import Bar, bars
from mwa_export.report.table import Table


def html_from_bench(result: Bench) -> str:
    """Render the whole document."""
    return rendered(
        "bench.html.j2",
        ["report.css"],
        {},
        result=result,
        facts=[_fact(section) for section in result.sections if section.figures],
        sections=[_section(number, section) for number, section in enumerate(result.sections)],
        skipped=skipped_lines(result),
        method=method(result),
    )


def _fact(section: Section) -> Fact:
    """The fastest mwa-export contender, or the fastest peer if none of ours ran."""
    ours = [figure for figure in section.figures if figure.kind == "ours"] or section.figures
    best = max(ours, key=lambda figure: figure.ratio)
    detail = f"{best.name}: {rate(best)} per second; baseline {section.baseline}"
    return Fact(f"{section.tower} tower, batch of {section.batch}", times(best.ratio), detail)


def _section(number: int, section: Section) -> dict[str, Any]:
    from markupsafe import Markup

    head, *rows = table_of(section)
    name = heading(section)
    drawn = [_bar(figure) for figure in reversed(by_speed(section))]
    words = f"Baseline: {section.baseline}.", window_sentence(section), peak_sentence(section)
    return {
        "id": f"section-{number}",
        "name": name,
        "words": words,
        "chart": Markup(bars(f"bench-{number}", name, drawn, "x")),
        "table": Table.of(name, [word[:1].upper() + word[1:] for word in head], rows, stacked=True),
    }


def _bar(figure: Figure) -> Bar:
    kind = "second" if figure.kind == "ours" else "first"
    said = f"{times(figure.ratio)}, {rate(figure)}/s"
    return Bar(figure.name, figure.ratio, figure.ratio_low, figure.ratio_high, said, kind)
