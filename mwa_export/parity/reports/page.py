"""The parity report as one HTML file: no script, nothing fetched, verdict first.

This module decides which figures go where; ``words`` and ``report.numbers`` word them.
``assets/report.html.j2`` decides where it stands, ``assets/report.css`` how it looks.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from mwa_export.parity.reports import charts as draw
from mwa_export.parity.reports.words import (
    certain_changes,
    cross_sentence,
    drop_limits,
    figures,
    gate_numbers,
    has_float32,
    headline,
    is_identical,
    layer_sentences,
    layer_table,
    margin_sentence,
    not_passed,
    stage_sentence,
)
from mwa_export.parity.result import DIRECTION_NAMES, Parity, Which
from mwa_export.report.numbers import (
    MINUS,
    cosine,
    count,
    counted,
    p_value,
    percent,
    points,
    share,
    small,
)
from mwa_export.report.page import rendered
from mwa_export.spec import TOWERS

VERDICTS = ("fails", "undecided", "passes")
SIDES: tuple[Which, ...] = ("reference", "candidate")


def html_from_parity(result: Parity, thumbnails: Mapping[int, bytes] | None = None) -> str:
    """The whole document. ``thumbnails``: image row -> JPEG; other rows show the picture's name."""
    numbers = (count, counted, percent, points, cosine, p_value, share, small)
    page = rendered(
        "report.html.j2",
        ["report.css"],
        {function.__name__: function for function in numbers},
        result=result,
        thumbnails={row: b64encode(jpeg).decode() for row, jpeg in (thumbnails or {}).items()},
        names=DIRECTION_NAMES,
        sides=SIDES,
        charts=_charts(result),
        **_sentences(result),
    )
    return page.replace("\0", "\N{REPLACEMENT CHARACTER}")


def thumbnail_rows(result: Parity) -> list[int]:
    """Image rows whose pictures the gallery shows, each once, in the order of the page."""
    return list(dict.fromkeys(row for e in result.examples for row in (e.image, e.winner_image)))


def _sentences(result: Parity) -> dict[str, Any]:
    """Sentences of the page that depend on the figures."""
    ordered = sorted(result.gates, key=lambda gate: VERDICTS.index(gate.verdict))
    return {
        "marks": {"passes": "✓", "fails": "✗", "undecided": "?"},
        "headline": headline(result),
        "not_passed": not_passed(result),
        "gates": [(gate, *gate_numbers(gate)) for gate in ordered],
        "identical": is_identical(result),
        "exact": has_float32(result),
        "certain": certain_changes(result),
        "stage_sentence": stage_sentence(result.stages),
        "layer_sentences": layer_sentences(result),
        "layer_table": layer_table(result),
        "cross": {(cell.images, cell.texts): cell for cell in result.cross},
        "cross_sentence": cross_sentence(result),
        "margin_sentences": [margin_sentence(d) for d in result.directions],
    }


def _charts(result: Parity) -> dict[str, Any]:
    """Every chart of the page as safe markup."""
    from markupsafe import Markup

    limits = drop_limits(result)
    bars, rows = [], []
    for label, n, r in figures(result):
        texts = percent(r.reference, n), percent(r.candidate, n)
        ends = r.reference + r.low, r.reference + r.high
        bars.append(draw.Bars(label, r.reference, r.candidate, *ends, *texts))
        limit = -limits[label] if label in limits else None
        rows.append(draw.Interval(label, r.difference, r.low, r.high, points(r.difference), limit))
    towers = [(tower, [n for n in result.layers if n.tower == tower]) for tower in TOWERS]
    lines = [draw.Curve(t, [n.layer for n in ns], [n.snr_db for n in ns]) for t, ns in towers]
    found = {
        "recall": draw.grouped_bars("recall", "Recall of reference and candidate in percent", bars),
        "forest": draw.forest("forest", "Differences of recall in points, with intervals", rows),
        "layers": draw.curves("layers", "Signal-to-noise ratio after every block, in dB", lines),
    }
    bins = draw.filled_bins([c.counts for c in result.cosines])
    for c, kind in zip(result.cosines, ("first", "second"), strict=False):
        title = f"Histogram of 1 {MINUS} cosine, {c.tower} tower"
        found[c.tower] = draw.histogram(c.tower, title, c.edges, c.counts, bins, kind)
    return {name: Markup(svg) for name, svg in found.items()}
