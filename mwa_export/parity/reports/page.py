"""The parity report as one HTML file: no scripts, no external resources, verdict first.

This module collects the figures; ``words`` and ``report.numbers`` turn them into text.
``assets/report.html.j2`` is the layout, ``assets/report.css`` the style.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from mwa_export.parity.reports import charts as draw
from mwa_export.parity.reports import tables
from mwa_export.parity.reports.facts import cost_sentence, facts, worst_figure
from mwa_export.parity.reports.words import (
    by_change,
    certain_changes,
    cross_sentence,
    drop_limits,
    figures,
    headline,
    is_identical,
    layer_sentences,
    left_out,
    margin_sentence,
    not_passed,
    stage_sentence,
)
from mwa_export.parity.result import DIRECTION_NAMES, Parity
from mwa_export.report.numbers import MINUS, count, counted, estimate, percent, small
from mwa_export.report.page import rendered
from mwa_export.report.plots import Point, budget
from mwa_export.report.table import MARKS
from mwa_export.spec import TOWERS

OPEN = 3  # examples of each kind that are shown unfolded


def html_from_parity(result: Parity, thumbnails: Mapping[int, bytes] | None = None) -> str:
    """Render the page. ``thumbnails``: image row -> JPEG; other rows show the image's name."""
    numbers = (count, counted, small)
    page = rendered(
        "report.html.j2",
        ["report.css"],
        {function.__name__: function for function in numbers},
        result=result,
        thumbnails={row: b64encode(jpeg).decode() for row, jpeg in (thumbnails or {}).items()},
        names=DIRECTION_NAMES,
        sides=tables.SIDES,
        charts=_charts(result),
        tables=_tables(result),
        **_sentences(result),
    )
    return page.replace("\0", "\N{REPLACEMENT CHARACTER}")


def thumbnail_rows(result: Parity) -> list[int]:
    """Rows of the images that the page shows, each once."""
    shown = (*result.examples, *result.improved)
    return list(dict.fromkeys(row for e in shown for row in (e.image, e.winner_image)))


def _sentences(result: Parity) -> dict[str, Any]:
    """Every sentence of the page that depends on the figures."""
    return {
        "mark": MARKS[result.verdict] if result.gates else "?",
        "headline": headline(result),
        "not_passed": not_passed(result),
        "worst": worst_figure(result)[0],
        "facts": facts(result),
        "left_out": left_out(result),
        "identical": is_identical(result),
        "certain": certain_changes(result),
        "cost_sentence": cost_sentence(result),
        "stage_sentence": stage_sentence(result.stages),
        "layer_sentences": layer_sentences(result),
        "cross_sentence": cross_sentence(result),
        "margin_sentences": [margin_sentence(d) for d in result.directions],
        "lost": by_change(result.examples),
        "won": by_change(result.improved),
        "open": OPEN,
    }


def _tables(result: Parity) -> dict[str, Any]:
    """Every table of the page."""
    return {
        "recall": tables.recall_table(result),
        "flips": tables.flips_table(result),
        "gates": tables.gates_table(result),
        "costs": tables.cost_table(result),
        "sides": tables.sides_table(result),
        "ranks": tables.ranks_table(result),
        "cosines": tables.cosine_table(result),
        "histograms": tables.histogram_tables(result),
        "stages": tables.stage_table(result),
        "layers": tables.layers_table(result),
        "cross": tables.cross_table(result),
    }


def _charts(result: Parity) -> dict[str, Any]:
    """Every chart of the page as safe markup."""
    from markupsafe import Markup

    limits = drop_limits(result)
    bars, rows = [], []
    for label, n, r in figures(result):
        texts = percent(r.reference, n), percent(r.candidate, n)
        low, high = r.smoothed_low, r.smoothed_high
        ends = r.reference + low, r.reference + high
        bars.append(draw.Bars(label, r.reference, r.candidate, *ends, *texts))
        limit = -limits[label] if label in limits else None
        change = r.smoothed.value
        rows.append(draw.Interval(label, change, low, high, estimate(change), limit))
    towers = [(tower, [n for n in result.layers if n.tower == tower]) for tower in TOWERS]
    lines = [draw.Curve(t, [n.layer for n in ns], [n.snr_db for n in ns]) for t, ns in towers]
    name, worst = worst_figure(result)
    point = Point(name, 0.0, worst.smoothed.value, low=worst.smoothed_low, high=worst.smoothed_high)
    allowed = -limits[name] if name in limits else None
    found = {
        "verdict": budget("verdict", f"Change of {name} against the budget", point, allowed),
        "recall": draw.grouped_bars("recall", "Recall of reference and candidate in percent", bars),
        "forest": draw.forest("forest", "Differences of recall in points, with intervals", rows),
        "layers": draw.curves("layers", "Signal-to-noise ratio after every block, in dB", lines),
    }
    bins = draw.filled_bins([c.counts for c in result.cosines])
    for c, kind in zip(result.cosines, ("first", "second"), strict=False):
        title = f"Histogram of 1 {MINUS} cosine, {c.tower} tower"
        found[c.tower] = draw.histogram(c.tower, title, c.edges, c.counts, bins, kind)
    return {name: Markup(svg) for name, svg in found.items()}
