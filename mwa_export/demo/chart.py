"""Plain-text bar chart of what quantization gained and lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mwa_export.parity.reports.words import drop_limits, figures
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import estimate, interval, megabytes, points, small, times

_NAMES = {"reference": "PyTorch", "float32": "ONNX float32", "candidate": "INT8"}
_LABEL, _BAR, _VALUE = 14, 24, 8  # columns; with ratio and spaces a line is below 60
_HALF = 12  # columns on each side of zero
_BEYOND = 2.5  # minimum extent of the axis in points


def chart(result: Parity) -> list[str]:
    """Chart size, speed and recall change of a quantized bundle in lines below 60 columns."""
    costs = {_NAMES[cost.side]: cost for cost in result.costs}
    onnx = [name for name in costs if name != "PyTorch"]
    sizes = [(name, (costs[name].model_bytes or 0) / 1e6) for name in onnx]
    images = [(name, 1000 / cost.image_ms) for name, cost in costs.items() if cost.image_ms]
    texts = [(name, 1000 / cost.text_ms) for name, cost in costs.items() if cost.text_ms]
    return [
        *_bars("Size in MB", sizes, [megabytes(int(size * 1e6)) for _, size in sizes]),
        *_bars("Images per second", images, [f"{rate:,.0f}" for _, rate in images]),
        *_bars("Captions per second", texts, [f"{rate:,.0f}" for _, rate in texts]),
        *_changes(result),
    ]


def _bars(title: str, rows: Sequence[tuple[str, float]], values: Sequence[str]) -> Iterator[str]:
    """Draw a bar per row, scaled to the largest number; ratios are relative to the first row."""
    if len(rows) < 2 or not all(number > 0 for _, number in rows):
        return
    yield title
    most = max(number for _, number in rows)
    for (name, number), value in zip(rows, values, strict=True):
        bar = "#" * max(1, round(_BAR * number / most))
        ratio = "" if name == rows[0][0] else f"  {times(number / rows[0][1])}"
        yield f"  {name:<{_LABEL}}{bar:<{_BAR}}{value:>{_VALUE}}{ratio}".rstrip()
    yield ""


def _changes(result: Parity) -> Iterator[str]:
    """Draw the change of each recall figure with its interval, on an axis centered on zero."""
    limits = [limit for limit in drop_limits(result).values() if limit is not None]
    found = [(name, change) for name, _, change in figures(result)]
    reached = (abs(end) for _, c in found for end in (c.smoothed_low, c.smoothed_high))
    end = max(_BEYOND, *(1.25 * abs(limit) for limit in limits), *reached)
    yield f"Change of recall in points, with {small(result.confidence * 100, 4)}% interval"

    def column(value: float) -> int:
        return _HALF + round(_HALF * value / end)

    for name, change in found:
        axis = [" "] * (2 * _HALF + 1)
        for place in range(column(change.smoothed_low), column(change.smoothed_high) + 1):
            axis[place] = "-"
        axis[_HALF] = "|"
        for limit in limits[:1]:
            axis[column(-abs(limit))] = "!"
        axis[column(change.smoothed.value)] = "*"
        bounds = interval(change.smoothed_low, change.smoothed_high)
        yield f"  {name:<6}{''.join(axis)} {estimate(change.smoothed.value):>6}  {bounds}"
    legend = "  | no change   * estimate"
    yield legend + "".join(f"   ! limit {points(-abs(limit))}" for limit in limits[:1])
