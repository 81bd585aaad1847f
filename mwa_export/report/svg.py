"""Building blocks of SVG charts: scales, ticks, lines, boxes and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mwa_export.report.numbers import MINUS
from mwa_export.report.text import printable


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps ``low`` .. ``high`` onto ``start`` .. ``stop``; values outside are clamped."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        share = (inside - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """About ``most`` round numbers, or fewer, from ``low`` to ``high``."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line, styled by its class."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{cls}" {ends}/>'


def text(x: float, y: float, words: str, anchor: str = "end", cls: str = "tick") -> str:
    """A line of text, styled by its class; ``anchor``: start, middle or end is at ``x``."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{cls}" {place}>{escape(printable(words))}</text>'


def rect(x: float, y: float, width: float, height: float, cls: str) -> str:
    """A filled box, styled by its class; at least 0.5 units wide and high, to stay visible."""
    size = f'width="{max(width, 0.5):.1f}" height="{max(height, 0.5):.1f}"'
    return f'<rect class="{cls}" x="{x:.1f}" y="{y:.1f}" {size}/>'


def whisker(
    start: float, stop: float, at: float, cap: float, cls: str, *, upright: bool = False
) -> str:
    """An interval with end caps, horizontal or ``upright``, on the line through ``at``."""
    if upright:
        path = f"M{at - cap:.1f} {start:.1f}h{2 * cap:g}M{at:.1f} {start:.1f}V{stop:.1f}"
        path += f"M{at - cap:.1f} {stop:.1f}h{2 * cap:g}"
    else:
        path = f"M{start:.1f} {at - cap:.1f}v{2 * cap:g}M{start:.1f} {at:.1f}H{stop:.1f}"
        path += f"M{stop:.1f} {at - cap:.1f}v{2 * cap:g}"
    return f'<path class="{cls}" d="{path}"/>'


def plain(value: float) -> str:
    """An axis label: a number with a true minus sign."""
    return f"{value:g}".replace("-", MINUS)


def svg(key: str, title: str, width: float, height: float, parts: Sequence[str]) -> str:
    """An SVG element with a title for screen readers. ``key``: makes its id unique in a page."""
    name = escape(f"chart-{key}")
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}">'
        f'<title id="{name}">{escape(printable(title))}</title>{"".join(parts)}</svg>'
    )
