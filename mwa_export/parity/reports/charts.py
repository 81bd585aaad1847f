"""Charts of the HTML report as inline SVG. Pure functions from numbers to strings.

Colours come from the page's style sheet by class. Every chart has a title for screen readers.
Numbers that are not finite are not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mwa_export.report.numbers import finite
from mwa_export.report.svg import Scale, line, plain, rect, svg, text, ticks, whisker

WIDTH = 440.0
_FEWEST_BINS = 12  # fewer bars would be too wide
_ROW = 38.0  # height of one row of bars or intervals
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 64.0, 8.0, 30.0


@dataclass(frozen=True, slots=True)
class Bars:
    """Two values to compare, the interval of the second, and the texts at the bars' ends."""

    label: str
    first: float
    second: float
    low: float
    high: float
    first_text: str
    second_text: str


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval, the text beside it, and the limit that it must not cross."""

    label: str
    value: float
    low: float
    high: float
    text: str
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line over layers; ``None`` means infinity (no noise)."""

    name: str
    labels: Sequence[str]
    values: Sequence[float | None]


def grouped_bars(key: str, title: str, rows: Sequence[Bars]) -> str:
    """Two horizontal bars per row from 0 to 100, the second with its interval."""
    height = _TOP + _ROW * len(rows) + _BOTTOM
    x = Scale(0.0, 100.0, _LEFT, WIDTH - _RIGHT)
    parts = [_grid(x, t, height, f"{t:g}") for t in ticks(0.0, 100.0)]
    for i, row in enumerate(rows):
        y = _TOP + _ROW * i
        parts.append(text(_LEFT - 8, y + 23, row.label, "end", "label"))
        parts += _bar(x, y + 4, row.first, row.first_text, "first")
        parts += _bar(x, y + 20, row.second, row.second_text, "second")
        if row.low < row.high and len(finite([row.low, row.high])) == 2:
            parts.append(whisker(x(row.low), x(row.high), y + 26, 3.5, "whisker"))
    return svg(key, title, WIDTH, height, parts)


def forest(key: str, title: str, rows: Sequence[Interval]) -> str:
    """One row per value: a dot, its interval as a line, zero and the limits as vertical lines."""
    height = _TOP + _ROW * len(rows) + _BOTTOM
    numbers = finite([n for r in rows for n in (r.value, r.low, r.high, r.limit)])
    reach = max([abs(n) for n in numbers] + [0.0]) * 1.08 or 1.0
    low = -reach if min(numbers, default=0.0) < 0 else -reach * 0.1
    high = max(max(numbers, default=0.0) * 1.15, reach * 0.1)
    x = Scale(low, high, _LEFT, WIDTH - _RIGHT)
    parts = [_grid(x, t, height, plain(t)) for t in ticks(low, high)]
    parts.append(line(x(0.0), _TOP, x(0.0), height - _BOTTOM, "zero"))
    for i, row in enumerate(rows):
        y = _TOP + _ROW * (i + 0.5)
        parts.append(text(_LEFT - 8, y + 4.5, row.label, "end", "label"))
        if row.limit is not None and math.isfinite(row.limit):
            parts.append(line(x(row.limit), y - _ROW / 2, x(row.limit), y + _ROW / 2, "limit"))
        if len(finite([row.low, row.high])) == 2:
            parts.append(whisker(x(row.low), x(row.high), y, 4, "interval"))
        if math.isfinite(row.value):
            parts.append(f'<circle class="second" cx="{x(row.value):.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(text(WIDTH - _RIGHT + 8, y + 4.5, row.text, "start", "value"))
    return svg(key, title, WIDTH, height, parts)


def histogram(
    key: str,
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    bins: tuple[int, int],
    kind: str = "first",
) -> str:
    """Bars over a logarithmic axis; the bin that starts at 0 is at its left end.

    ``bins`` is the range of bins to draw, first and one past the last, so that two histograms can
    share an axis.
    """
    height, first, last = 190.0, *bins
    tallest = max([*counts[first:last], 0])
    y = Scale(0.0, float(tallest or 1), height - _BOTTOM, _TOP + 14)
    width = (WIDTH - _LEFT - 12) / max(last - first, 1)
    parts = [
        line(_LEFT, y(t), WIDTH - 12, y(t), "grid") + text(_LEFT - 8, y(t) + 4, f"{t:,.0f}")
        for t in ticks(0.0, float(tallest), 3)
        if t == int(t)
    ]
    for i in range(first, min(last, len(counts))):
        left, top = _LEFT + (i - first) * width, y(max(counts[i], 0))
        if counts[i] > 0:
            top = min(top, height - _BOTTOM - 1.5)  # a single row stays visible
            parts.append(rect(left + 0.75, top, width - 1.5, height - _BOTTOM - top, kind))
    parts += _log_ticks(edges, first, last, width, height)
    if not tallest:
        parts.append(text(WIDTH / 2, height / 2, "no data", "middle", "label"))
    return svg(key, title, WIDTH, height, parts)


def filled_bins(histograms: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The range of bins that any histogram fills, with an empty bin on either side."""
    filled = [i for counts in histograms for i, n in enumerate(counts) if n > 0]
    longest = max((len(counts) for counts in histograms), default=0)
    if not filled:
        return 0, longest
    first = max(min(filled) - 1, 0)
    return first, min(max(max(filled) + 2, first + _FEWEST_BINS), longest)


def curves(key: str, title: str, lines: Sequence[Curve]) -> str:
    """Lines over layers. ``None`` is drawn in a row of its own above the axis, "no noise"."""
    numbers = finite([v for curve in lines for v in curve.values])
    width, height, left, top = 900.0, 290.0 if numbers else 78.0, 78.0, 46.0
    low, high = min([*numbers, 0.0]), max([*numbers, 1.0])
    y = Scale(low, high, height - 46, top)
    longest = max((curve.labels for curve in lines), key=len, default=())
    x = Scale(0.0, float(max(len(longest) - 1, 1)), left, width - 20)
    parts = [
        line(left, y(t), width - 12, y(t), "grid") + text(left - 8, y(t) + 4, plain(t))
        for t in (ticks(low, high) if numbers else [])
    ]
    if any(v is None for curve in lines for v in curve.values):
        parts.append(line(left, 15, width - 12, 15, "endless"))
        parts.append(text(left - 12, 19, "no noise"))
    for i, (curve, kind) in enumerate(zip(lines, ("first", "second"), strict=False)):
        parts += _curve(curve, x, y, kind, square=bool(i))
    parts += _layer_ticks(longest, x, height)
    return svg(key, title, width, height, parts)


def _curve(curve: Curve, x: Scale, y: Scale, kind: str, *, square: bool) -> list[str]:
    """One line with its markers; it is interrupted where there is no noise."""
    runs: list[list[str]] = [[]]
    marks = []
    for i, value in enumerate(curve.values):
        drawable = value is not None and math.isfinite(value)
        if value is not None and not drawable:
            continue
        height = y(value) if value is not None else (21.0 if square else 9.0)
        if value is not None:
            runs[-1].append(f"{x(i):.1f},{height:.1f}")
        else:
            runs.append([])
        cls = kind if drawable else f"{kind} open"
        marks.append(_marker(x(i), height, cls, square=square))
    lines = [
        f'<polyline class="curve {kind}" points="{" ".join(points)}"/>'
        for points in runs
        if len(points) > 1
    ]
    return lines + marks


def _marker(x: float, y: float, cls: str, *, square: bool) -> str:
    if square:
        return f'<rect class="{cls}" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    return f'<circle class="{cls}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _layer_ticks(labels: Sequence[str], x: Scale, height: float) -> list[str]:
    """Layer names under the axis, as many as fit; "block 7" is shortened to "7"."""
    every = max(1, math.ceil(len(labels) / 13))
    parts = []
    for i, label in enumerate(labels):
        if i % every == 0 or i == len(labels) - 1:
            short = label.removeprefix("block ")
            last = i == len(labels) - 1 and len(short) > 3  # "embedding" at the right border
            anchor = "end" if last else "middle"
            parts.append(text(x.stop + 8 if last else x(i), height - 28, short, anchor))
    return [*parts, text(x.stop, height - 8, "after block", "end", "label")]


def _log_ticks(
    edges: Sequence[float], first: int, last: int, width: float, height: float
) -> list[str]:
    """Powers of ten under a histogram, and 0 under a bin that starts at 0; labels as they fit."""
    places: list[tuple[float, str]] = []
    for i in range(first, min(last, len(edges) - 1)):
        left = _LEFT + (i - first) * width
        if edges[i] <= 0:
            places.append((left, "0"))
        elif edges[i] < edges[i + 1] < math.inf:
            start, stop = math.log10(edges[i]), math.log10(edges[i + 1])
            for power in range(math.ceil(start - 1e-6), math.floor(stop + 1e-6) + 1):
                share = (power - start) / (stop - start)
                label = f"1e{power}" if power < -2 or power > 3 else f"{10.0**power:g}"
                places.append((left + share * width, label))
    parts, labelled = [], -math.inf
    for left, label in places:
        parts.append(line(left, height - _BOTTOM, left, height - _BOTTOM + 4, "axis"))
        if left - labelled >= 40:
            parts.append(text(left, height - 11, label, "middle"))
            labelled = left
    return parts


def _bar(x: Scale, y: float, value: float, words: str, cls: str) -> list[str]:
    if not math.isfinite(value):
        return []
    parts = [text(WIDTH - _RIGHT + 8, y + 10.5, words, "start", "value")]
    if value > 0:
        parts.append(rect(x.start, y, x(value) - x.start, 12, cls))
    return parts


def _grid(x: Scale, value: float, height: float, label: str) -> str:
    drawn = line(x(value), _TOP, x(value), height - _BOTTOM, "grid")
    return drawn + text(x(value), height - 11, label, "middle")
