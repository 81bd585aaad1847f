"""The benchmark as one SVG file: horizontal bars, a panel per tower and batch size.

The file is self-contained, with colours for light and dark mode like those of the parity report.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mwa_export.bench.result import Bench, Figure, Section
from mwa_export.report.svg import line, text, ticks
from mwa_export.report.text import printable

WIDTH = 860.0
_LEFT, _RIGHT = 292.0, 176.0
_HEAD, _ROW, _FOOT = 58.0, 26.0, 40.0
_BAR = 15.0
_NUMBERS = "font-variant-numeric: tabular-nums"
_STYLE = f"""
:root {{ color-scheme: light dark; }}
.paper {{ fill: #fbfbf9; }} .title {{ fill: #1b1f24; font-weight: 650; font-size: 15px; }}
.name, .value {{ fill: #1b1f24; font-size: 12.5px; {_NUMBERS}; }} .own {{ font-weight: 650; }}
.note, .tick {{ fill: #565d68; font-size: 11.5px; {_NUMBERS}; }}
.peer {{ fill: #1f67b1; }} .ours {{ fill: #b34f08; }}
.grid {{ stroke: #d8dbe0; }} .one {{ stroke: #565d68; stroke-dasharray: 3 3; }}
.whisker {{ stroke: #1b1f24; stroke-width: 1.4; fill: none; }}
text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }}
@media (prefers-color-scheme: dark) {{
.paper {{ fill: #14171a; }} .title, .name, .value {{ fill: #e7e9ec; }}
.note, .tick {{ fill: #a4acb7; }} .peer {{ fill: #6fabea; }} .ours {{ fill: #f0a054; }}
.grid {{ stroke: #373d45; }} .one {{ stroke: #a4acb7; }} .whisker {{ stroke: #e7e9ec; }}
}}
"""


def svg_from_bench(result: Bench) -> str:
    """Draw the chart. A bar is a contender's speed relative to the baseline."""
    panels, y = [], 0.0
    for section in result.sections:
        panels.append(_panel(section, y))
        y += _HEAD + _ROW * len(section.figures) + _FOOT
    title = f"Embedding speed on {result.machine.cpu}, {result.machine.threads} threads"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {y:g}" width="{WIDTH:g}" '
        f'height="{y:g}" role="img" aria-labelledby="bench-title">'
        f'<title id="bench-title">{escape(printable(title))}</title><style>{_STYLE}</style>'
        f'<rect class="paper" width="{WIDTH:g}" height="{y:g}"/>{"".join(panels)}</svg>\n'
    )


def by_speed(section: Section) -> list[Figure]:
    """Figures of a section, slowest first."""
    return sorted(section.figures, key=lambda figure: figure.ratio)


def rate(figure: Figure) -> str:
    """Format rows per second with about three digits."""
    rows = figure.rows_per_second
    return f"{rows:,.0f}" if rows >= 100 else f"{rows:.1f}" if rows >= 10 else f"{rows:.2f}"


def heading(section: Section) -> str:
    """Title of a section: its tower and batch size."""
    what = "images" if section.tower == "vision" else "captions"
    return f"{section.tower} tower, batch of {section.batch}: {what} per second"


def _panel(section: Section, top: float) -> str:
    figures = by_speed(section)
    most = max(1.0, *(figure.ratio_high for figure in figures))
    bottom = top + _HEAD + _ROW * len(figures)
    scale = (WIDTH - _LEFT - _RIGHT) / most
    note = f"bars: speed relative to {section.baseline}; lines: quartiles over the rounds"
    parts = [
        text(16, top + 26, heading(section), "start", "title"),
        text(16, top + 44, note, "start", "note"),
    ]
    for tick in ticks(0.0, most):
        x = _LEFT + tick * scale
        parts.append(line(x, top + _HEAD - 4, x, bottom, "grid"))
        parts.append(text(x, bottom + 15, f"{tick:g}x", "middle", "tick"))
    x = _LEFT + scale
    parts.append(line(x, top + _HEAD - 4, x, bottom, "one"))
    for row, figure in enumerate(figures):
        parts += _bar(figure, top + _HEAD + _ROW * row, scale)
    return "".join(parts)


def _bar(figure: Figure, y: float, scale: float) -> Sequence[str]:
    middle = y + _BAR / 2
    low, high = _LEFT + figure.ratio_low * scale, _LEFT + figure.ratio_high * scale
    own = " own" if figure.kind == "ours" else ""
    width = max(figure.ratio * scale, 0.5)
    speed = f"{figure.ratio:.2f}x, {rate(figure)}/s"
    cap = f"M{low:.1f} {middle - 3:.1f}v6M{high:.1f} {middle - 3:.1f}v6"
    return [
        text(_LEFT - 10, y + 12, figure.name, "end", f"name{own}"),
        f'<rect class="{figure.kind}" x="{_LEFT:g}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{_BAR:g}"/>',
        f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}{cap}"/>',
        text(max(high, _LEFT + width) + 8, y + 12, speed, "start", f"value{own}"),
    ]
