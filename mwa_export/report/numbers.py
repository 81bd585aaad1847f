"""Number formatting for reports, without false precision or small values shown as zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
FINE_QUERIES = 5000  # from this many queries on, percentages get a second decimal


def count(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """A number with its noun: "1 row", "2,500 rows"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def percent(value: float | None, queries: int) -> str:
    """A recall figure in percent, with as many decimals as the number of queries justifies."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{2 if queries >= FINE_QUERIES else 1}f}"


def points(value: float | None) -> str:
    """A signed difference in points; exactly zero is "0", and nothing else looks like zero."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    text = f"{abs(value):.2f}"
    text = text if float(text) else f"{abs(value):.1g}"
    return (MINUS if value < 0 else "+") + text


def estimate(value: float) -> str:
    """A signed difference that is only an estimate, so that a tiny one is "0.00"."""
    return points(value) if value == 0 or abs(value) >= 0.005 else "0.00"


def interval(low: float, high: float) -> str:
    """Both bounds of a difference: "-0.10 to +0.20"."""
    return f"{points(low)} to {points(high)}"


def megabytes(size: int | None) -> str:
    """A size in bytes as megabytes (10^6 bytes), with three digits."""
    return DASH if size is None else small(size / 1e6, 3)


def times(ratio: float) -> str:
    """A ratio: "1.13x"."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def small(value: float | None, digits: int = 2) -> str:
    """A number with a few significant digits, and an exponent only where it is needed."""
    numbers = finite([value])
    return _minus(_short(f"{numbers[0]:.{digits}g}")) if numbers else DASH


def cosine(value: float | None) -> str:
    """A cosine with enough digits to tell it from 1."""
    if value is None or not math.isfinite(value):
        return DASH
    distance = 1.0 - value
    if distance == 0:
        return "1"
    if abs(distance) < 1e-3:
        return f"1 {MINUS if distance > 0 else '+'} {_short(f'{abs(distance):.1e}')}"
    return _minus(f"{value:.4f}")


def share(value: float) -> str:
    """A share (0 to 1) in percent, without the sign; only exactly 1 is "100"."""
    text = f"{value * 100:.1f}"
    return "100" if value == 1 else "> 99.9" if text == "100.0" else text


def p_value(value: float) -> str:
    """A probability; anything below 0.001 is "< 0.001"."""
    if not math.isfinite(value):
        return DASH
    return "< 0.001" if value < 0.001 else "1" if value == 1 else f"{value:.3f}"


def _short(text: str) -> str:
    return text.replace("e-0", "e-")


def _minus(text: str) -> str:
    return text.replace("-", MINUS) if text.startswith("-") else text


def finite(values: Sequence[float | None]) -> list[float]:
    """The values that are neither None, NaN nor infinite."""
    return [v for v in values if v is not None and math.isfinite(v)]
