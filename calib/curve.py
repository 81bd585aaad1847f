"""Trade-off found by the precision search, recall drop against speed, as JSON and SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from mwa_export.calib.page import TRADEOFF, write_page
from mwa_export.calib.precision_search import SearchResult, Trial, speedup
from mwa_export.files import new_file
from mwa_export.metrics.verdict import Decision, signed
from mwa_export.report.svg import Scale, line, text, ticks
from mwa_export.spec import TOWERS, Tower

SCHEMA = 1
_WIDTH, _HEIGHT = 640.0, 380.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 28.0, 56.0, 52.0
_STYLE = """
svg { color-scheme: light dark; background: light-dark(#ffffff, #1b1f24); }
text { font: 13px system-ui, sans-serif; fill: light-dark(#565d68, #a4acb7); }
.title { font-size: 15px; font-weight: 600; fill: light-dark(#1b1f24, #e7e9ec); }
.value { fill: light-dark(#1b1f24, #e7e9ec); font-weight: 600; }
.grid { stroke: light-dark(#d8dbe0, #373d45); }
.zero { stroke: light-dark(#565d68, #a4acb7); stroke-width: 1.5; }
.limit { stroke: light-dark(#b0251b, #ff948a); stroke-width: 1.5; stroke-dasharray: 5 3; }
.bar { stroke: light-dark(#1f67b1, #6fabea); stroke-width: 3; }
.over { fill: light-dark(#b0251b, #ff948a); }
.point { fill: none; stroke: light-dark(#1f67b1, #6fabea); stroke-width: 2; }
.chosen { fill: light-dark(#1f67b1, #6fabea); stroke: light-dark(#1f67b1, #6fabea); }
"""


@dataclass(frozen=True, slots=True)
class Point:
    """A measured assignment."""

    int8: int  # number of sites in INT8
    speedup: float  # estimated for one image and one text together, relative to high precision
    drop: float  # largest drop of a recall figure, points
    chosen: bool


def write_curve(
    folder: Path,
    result: SearchResult,
    high_ms: Mapping[Tower, float],
    max_drop: float,
    decision: Decision | None,
) -> None:
    """Write tradeoff.json, tradeoff.svg, and tradeoff.html, which also uses calibration.json.

    Args:
        folder: contains calibration.json.
        result: of the search.
        high_ms: milliseconds per row of each tower without INT8, on the runtime of the search.
        max_drop: the budget in points.
        decision: verdict on the chosen assignment, on data that the search has not seen.
    """
    decided = {"decision": None if decision is None else asdict(decision)}
    points = [_point(measured, result, high_ms) for measured in result.measured]
    with new_file(folder / f"{TRADEOFF}.json") as path:
        text = json.dumps(_to_json(result, points, high_ms, max_drop) | decided, indent=1)
        path.write_text(text + "\n", encoding="utf-8")
    with new_file(folder / f"{TRADEOFF}.svg") as path:
        path.write_text(draw(points, len(result.sensitivity), max_drop, decision), encoding="utf-8")
    write_page(folder)


def _point(measured: Trial, result: SearchResult, high_ms: Mapping[Tower, float]) -> Point:
    # One number for two towers: the time of one image and one text together.
    before = sum(high_ms[tower] for tower in TOWERS)
    after = sum(
        high_ms[tower] / speedup(measured.int8, result.saving, high_ms, tower) for tower in TOWERS
    )
    chosen = measured.int8 == result.chosen.int8
    return Point(len(measured.int8), before / after, measured.drop, chosen)


def _to_json(
    result: SearchResult, points: list[Point], high_ms: Mapping[Tower, float], max_drop: float
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "max_recall_drop": max_drop,
        "stopped": result.stopped,
        "high_precision_ms_per_row": dict(high_ms),
        "points": [
            {
                "int8": point.int8,
                "estimated_speedup": round(point.speedup, 4),
                "recall_drop": round(measured.drop, 6),
                "mean_cosine": measured.cosine,
                "recall": measured.detail,
                "chosen": point.chosen,
                "high_precision": [
                    f"{site.tower}:{site.name}"
                    for site in sorted(set(result.sensitivity) - measured.int8)
                ],
            }
            for point, measured in zip(points, result.measured, strict=True)
        ],
        "layers": [
            {
                "tower": site.tower,
                "name": site.name,
                "sensitivity": value,
                "saved_ms_per_row": result.saving.get(site, 0.0),
                "int8": site in result.chosen.int8,
            }
            for site, value in sorted(result.sensitivity.items(), key=lambda item: -item[1])
        ],
        "kept": [
            {"tower": kept.site.tower, "name": kept.site.name, "reason": kept.reason}
            for kept in result.kept
        ],
    }


def draw(points: list[Point], sites: int, max_drop: float, decision: Decision | None = None) -> str:
    """Draw the curve: speedup to the right, drop of recall upwards, the budget as a line."""
    found = [] if decision is None else [0.0 - decision.high, 0.0 - decision.low]
    drops = [point.drop for point in points] + found
    low, high = min([0.0, *drops]), max([max_drop, *drops])
    margin = 0.1 * (high - low) or 0.1
    fastest = max([point.speedup for point in points], default=1.0)
    x = Scale(1.0, max(fastest, 1.01), _LEFT, _WIDTH - _RIGHT)
    y = Scale(low - margin, high + margin, _HEIGHT - _BOTTOM, _TOP)
    title = "Drop of recall against speedup"
    parts = [f'<text class="title" x="{_LEFT:g}" y="24">{title}</text>']
    for tick in ticks(low, high):
        cls = "zero" if tick == 0 else "grid"
        parts.append(line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), cls))
        parts.append(text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    for tick in ticks(1.0, max(fastest, 1.01)):
        parts.append(text(x(tick), _HEIGHT - _BOTTOM + 20, f"{tick:g}x", "middle"))
    parts.append(line(_LEFT, y(max_drop), _WIDTH - _RIGHT, y(max_drop), "limit"))
    parts.append(text(_LEFT + 6, y(max_drop) - 6, f"budget {max_drop:g} points", "start", "over"))
    parts.append(
        text(
            _LEFT,
            44,
            "worst drop of a recall figure, points (estimate); bar: interval on held-back data",
            "start",
        )
    )
    parts.append(text(_WIDTH - _RIGHT, _HEIGHT - 10, "estimated speedup over high precision"))
    for point in points:
        if found and point.chosen:
            parts.append(line(x(point.speedup), y(found[0]), x(point.speedup), y(found[1]), "bar"))
    for point in sorted(points, key=lambda p: p.chosen):  # the chosen one is drawn on top
        cls, radius = ("chosen", 6) if point.chosen else ("point", 4.5)
        what = (
            f"{point.int8} of {sites} layers in INT8: {point.speedup:.2f}x, "
            f"drop {signed(point.drop)}"
        )
        parts.append(
            f'<circle class="{cls}" cx="{x(point.speedup):.1f}" cy="{y(point.drop):.1f}" '
            f'r="{radius}"><title>{escape(what)}</title></circle>'
        )
        if point.chosen:
            parts.append(_chosen_label(point, sites, x(point.speedup), y(point.drop), y(max_drop)))
    described = f"{len(points)} assignments of {sites} layers; the filled point was chosen"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" '
        f'width="{_WIDTH:g}" height="{_HEIGHT:g}" role="img" aria-labelledby="t d">'
        f'<title id="t">{title}</title><desc id="d">{escape(described)}</desc>'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _chosen_label(point: Point, sites: int, x: float, y: float, limit: float) -> str:
    """Label the chosen point on the side with room, and not on the budget line."""
    right = x > _WIDTH / 2
    below = y + 22
    if abs(below - limit) < 12 or below > _HEIGHT - _BOTTOM:
        below = y - 12
    words = f"chosen: {point.int8} of {sites} layers in INT8"
    return text(x + (8 if right else -8), below, words, "end" if right else "start", "value")
