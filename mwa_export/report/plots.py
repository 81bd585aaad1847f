"""Plots of changes against a budget, for all reports: one figure, many candidates, layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mwa_export.report.numbers import finite
from mwa_export.report.svg import Scale, line, plain, rect, svg, text, ticks, whisker

_WIDTH = 440.0


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate: where it lies, and the interval of its vertical place."""

    label: str
    x: float
    y: float
    low: float
    high: float
    kind: str = "second"  # class of its mark; "chosen" is filled


def budget(key: str, title: str, point: Point, limit: float | None) -> str:
    """The change of one figure with its interval over the region that the budget allows.

    ``limit``: the lowest change that is allowed, None if any is. Only y, low and high are drawn.
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
    key: str, title: str, points: Sequence[Point], limit: float | None, axes: tuple[str, str]
) -> str:
    """Candidates by two measures, with intervals upwards and the budget as a line.

    ``axes``: what lies to the right and what upwards.
    """
    width, height, left, base = _WIDTH, 300.0, 46.0, 250.0
    low, high = _around([n for p in points for n in (p.y, p.low, p.high)] + [limit, 0.0])
    most = max(finite([p.x for p in points]), default=1.0) * 1.15 or 1.0
    x, y = Scale(0.0, most, left, width - 12), Scale(low, high, base, 42.0)
    parts = [text(4, 16, axes[1], "start"), text(width - 12, height - 6, axes[0])]
    for t in ticks(low, high):
        parts.append(line(left, y(t), width - 12, y(t), "grid" if t else "zero"))
        parts.append(text(left - 8, y(t) + 4, plain(t)))
    parts += [text(x(t), base + 20, plain(t), "middle") for t in ticks(0.0, most)]
    if limit is not None:
        parts.append(line(left, y(limit), width - 12, y(limit), "limit"))
        parts.append(text(width - 14, y(limit) + 16, f"budget {plain(limit)}", "end", "label"))
    for point in points:
        if len(finite([point.x, point.y])) == 2:
            parts += _mark(point, x, y)
    return svg(key, title, width, height, parts)


def _mark(point: Point, x: Scale, y: Scale) -> list[str]:
    """A point with its interval, and its label above."""
    across, up, top = x(point.x), y(point.y), y(point.y) - 6
    parts = []
    if len(finite([point.low, point.high])) == 2:
        top = y(point.high)
        parts.append(whisker(top, y(point.low), across, 4, "interval", upright=True))
    parts.append(f'<circle class="{point.kind}" cx="{across:.1f}" cy="{up:.1f}" r="5"/>')
    return [*parts, text(across, top - 6, point.label, "middle", "label")]


def bars(key: str, title: str, rows: Sequence[tuple[str, float, str, str]]) -> str:
    """Horizontal bars from 0: label, value, class, and what to write at the end of each."""
    step, left, right = 22.0, 190.0, 78.0
    width, height = 640.0, 22.0 * len(rows) + 12
    x = Scale(0.0, max(finite([row[1] for row in rows]), default=1.0) or 1.0, left, width - right)
    parts = []
    for i, (label, value, kind, words) in enumerate(rows):
        top = 6 + step * i
        parts.append(text(left - 8, top + 13, label, "end", "label"))
        drawn = value if math.isfinite(value) else 0.0
        parts.append(rect(left, top + 2, x(drawn) - left, 14, kind))
        parts.append(text(x(drawn) + 6, top + 13, words, "start", "value"))
    return svg(key, title, width, height, parts)


def _around(values: Sequence[float | None]) -> tuple[float, float]:
    """Ends of an axis with room on both sides of everything."""
    numbers = finite(values)
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = 0.12 * (high - low) or 1.0
    return low - room, high + room


def _apart(x: Scale, low: float, high: float, limit: float | None) -> list[float]:
    """Ticks whose labels do not run out of the picture."""
    return [t for t in ticks(low, high) if x.start + 10 <= x(t) <= x.stop - 10]
