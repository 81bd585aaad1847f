"""SVG plots for all reports: a change against its budget, candidates, layers, bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mwa_export.report.numbers import finite
from mwa_export.report.svg import Scale, line, plain, rect, svg, text, ticks, whisker
from mwa_export.report.text import printable

_WIDTH = 440.0
_SQUEEZED = 8.0  # largest / smallest value from which an axis becomes logarithmic


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate: its position, and the interval of its vertical position."""

    label: str
    x: float
    y: float
    low: float
    high: float
    kind: str = "second"  # CSS class of its mark; "chosen" is filled


@dataclass(frozen=True, slots=True)
class Dot:
    """A layer: its value, and a larger value to which a line is drawn."""

    name: str
    value: float
    top: float | None = None
    kind: str = "first"  # "first open" is hollow


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, and the text at the end of the bar."""

    label: str
    value: float
    low: float
    high: float
    text: str
    kind: str = "first"


def budget(key: str, title: str, point: Point, limit: float | None) -> str:
    """Draw the change of one figure with its interval, over the region that the budget allows.

    ``limit``: the lowest allowed change; None: no limit. Of the point, only y, low and high count.
    """
    height, left, right, base = 96.0, 14.0, _WIDTH - 14, 62.0
    low, high = _around([point.y, point.low, point.high, limit, 0.0])
    x = Scale(low, high, left, right)
    parts = [line(x(t), 18, x(t), base, "grid") for t in ticks(low, high)]
    parts += [text(x(t), base + 17, plain(t), "middle") for t in _apart(x, low, high, limit)]
    if limit is not None:
        parts.insert(0, rect(x(limit), 18, right - x(limit), base - 18, "allowed"))
        parts.append(line(x(limit), 12, x(limit), base + 4, "limit"))
        side = "start" if x(limit) < _WIDTH / 2 else "end"
        words = f"budget {plain(limit)}"
        parts.append(text(x(limit), height - 2, words, side, "label"))
    parts.append(line(x(0.0), 18, x(0.0), base, "zero"))
    if len(finite([point.low, point.high])) == 2:
        parts.append(whisker(x(point.low), x(point.high), 40, 8, "interval"))
    if math.isfinite(point.y):
        parts.append(f'<circle class="second" cx="{x(point.y):.1f}" cy="40" r="6"/>')
    return svg(key, title, _WIDTH, height, parts)


def scatter(
    key: str,
    title: str,
    points: Sequence[Point],
    limit: float | None,
    axes: tuple[str, str],
    start: float = 0.0,
) -> str:
    """Draw candidates by two measures, with vertical intervals and the budget as a line.

    ``axes``: labels of the horizontal and the vertical axis. ``start``: left end of the horizontal
    axis, which becomes logarithmic where one candidate would squeeze the others together.
    """
    width, height, left, base = _WIDTH, 300.0, 46.0, 250.0
    low, high = _around([n for p in points for n in (p.y, p.low, p.high)] + [limit, 0.0])
    x, places = _rightwards([p.x for p in points], start, (left, width - 12))
    y = Scale(low, high, base, 42.0)
    parts = [text(4, 16, axes[1], "start"), text(width - 12, height - 6, axes[0])]
    for t in ticks(low, high):
        parts.append(line(left, y(t), width - 12, y(t), "grid" if t else "zero"))
        parts.append(text(left - 8, y(t) + 4, plain(t)))
    parts += [text(x(t), base + 20, plain(t), "middle") for t in places]
    if limit is not None:
        parts.append(line(left, y(limit), width - 12, y(limit), "limit"))
        parts.append(text(left + 3, y(limit) + 16, f"budget {plain(limit)}", "start", "label"))
    for point in points:
        if len(finite([point.x, point.y])) == 2:
            parts += _mark(point, x, y)
    return svg(key, title, width, height, parts)


Place = Callable[[float], float]


def _rightwards(
    values: Sequence[float], start: float, ends: tuple[float, float]
) -> tuple[Place, list[float]]:
    """Return a scale for the horizontal axis from ``start`` on, and its ticks."""
    known = finite(values)
    if start == 0 and known and 0 < _SQUEEZED * min(known) < max(known):
        low, high = 0.8 * min(known), 1.25 * max(known)
        logs = Scale(math.log(low), math.log(high), *ends)
        steps = [m * 10.0**n for n in range(-6, 9) for m in (1, 2, 5)]
        return lambda v: logs(math.log(v)), [t for t in steps if low <= t <= high]
    most = start + 1.15 * max([v - start for v in known] + [1e-3])
    return Scale(start, most, *ends), ticks(start, most)


def _mark(point: Point, x: Place, y: Scale) -> list[str]:
    """Draw a point with its interval and its label above."""
    across, up, top = x(point.x), y(point.y), y(point.y) - 6
    parts = []
    if len(finite([point.low, point.high])) == 2 and point.low < point.high:
        top = y(point.high)
        parts.append(whisker(top, y(point.low), across, 4, "interval", upright=True))
    parts.append(f'<circle class="{point.kind}" cx="{across:.1f}" cy="{up:.1f}" r="5"/>')
    return [*parts, text(across, top - 6, point.label, "middle", "label")]


def dots(key: str, title: str, layers: Sequence[Dot], starts: Mapping[int, str]) -> str:
    """Draw layers from left to right, with a logarithmic vertical axis.

    ``starts``: position at which a block of layers begins -> its name.
    """
    left, right, top, base = 46.0, _WIDTH - 10, 12.0, 190.0
    numbers = [n for n in finite([v for d in layers for v in (d.value, d.top)]) if n > 0]
    low = math.floor(math.log10(min(numbers, default=1.0)))
    high = math.ceil(math.log10(max(numbers, default=10.0)))
    x = Scale(-0.5, max(len(layers), 1) - 0.5, left, right)
    y = Scale(low, max(high, low + 1), base, top)
    parts = []
    for power in range(low, max(high, low + 1) + 1):
        parts.append(line(left, y(power), right, y(power), "grid"))
        label = plain(10.0**power) if -3 < power < 4 else f"1e{plain(power)}"
        parts.append(text(left - 8, y(power) + 4, label))
    every = math.ceil(len(starts) / 12) or 1
    for number, (position, name) in enumerate(starts.items()):
        parts.append(line(x(position - 0.5), top, x(position - 0.5), base, "grid"))
        if number % every == 0:
            parts.append(text(x(position - 0.5) + 3, base + 17, name, "start"))
    for position, dot in enumerate(layers):
        parts += _dot(dot, x(position), y, low)
    return svg(key, title, _WIDTH, 216.0, parts)


def _dot(dot: Dot, x: float, y: Scale, low: float) -> list[str]:
    """Draw a layer's mark, its name as a tooltip, and the line to its upper value."""
    at, top = (y(math.log10(v)) if v and v > 0 else y(low) for v in (dot.value, dot.top))
    parts = [] if dot.top is None else [line(x, at, x, top, "stem")]
    named = f"<title>{escape(printable(dot.name))}: {dot.value:.3g}</title>"
    return [*parts, f'<circle class="{dot.kind}" cx="{x:.1f}" cy="{at:.1f}" r="4">{named}</circle>']


def bars(key: str, title: str, rows: Sequence[Bar], unit: str) -> str:
    """Draw horizontal bars from 0 with intervals, labels above them; ``unit`` follows each tick."""
    step, left, right, foot = 40.0, 4.0, 100.0, 24.0
    height = step * len(rows) + foot
    most = max([1.0, *finite([row.high for row in rows])])
    x = Scale(0.0, most, left, _WIDTH - right)
    parts = []
    for tick in ticks(0.0, most):
        parts.append(line(x(tick), 4, x(tick), height - foot, "grid"))
        anchor = "middle" if tick else "start"
        parts.append(text(x(tick), height - 7, f"{plain(tick)}{unit}", anchor))
    for i, row in enumerate(rows):
        top = step * i + 4
        parts.append(text(left, top + 12, row.label, "start", "label"))
        drawn = finite([row.value, row.low, row.high])
        parts.append(rect(left, top + 17, x(drawn[0] if drawn else 0.0) - left, 13, row.kind))
        if len(drawn) == 3:
            parts.append(whisker(x(row.low), x(row.high), top + 23.5, 3, "whisker"))
        parts.append(text(x(max([0.0, *drawn])) + 7, top + 28, row.text, "start", "value"))
    return svg(key, title, _WIDTH, height, parts)


def _around(values: Sequence[float | None]) -> tuple[float, float]:
    """Ends of an axis, with room on both sides of all values."""
    numbers = finite(values)
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = 0.12 * (high - low) or 1.0
    return low - room, high + room


def _apart(x: Scale, low: float, high: float, limit: float | None) -> list[float]:
    """Ticks whose labels fit into the image."""
    return [t for t in ticks(low, high) if x.start + 10 <= x(t) <= x.stop - 10]
