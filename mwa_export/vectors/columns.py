"""Carried columns: detect their types and convert values to them.

Parquet uses Arrow's types. JSON Lines use string, int64, double, bool, binary, date and timestamp,
which are detected without Arrow, so an output does not depend on the installed packages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from mwa_export.errors import DataError
from mwa_export.optional import require
from mwa_export.vectors.job import Format

_ARROW = ("string", "int64", "double", "bool", "binary", "date32[day]")
_PLAIN: dict[str, type] = {
    "int64": int,
    "double": float,
    "bool": bool,
    "binary": bytes,
    "date": date,
    "timestamp": datetime,
}


def column_types(
    names: Sequence[str], sample: Sequence[tuple[Any, ...]], format: Format = "parquet"
) -> tuple[tuple[str, str], ...]:
    """Detect the type of each carried column from sample rows: (name, type) pairs.

    Types are scalar, or "string" if none fits; such a column stores other values as JSON.
    """
    kind_of = _arrow_kind if format == "parquet" else _plain_kind
    columns = ([row[index] for row in sample] for index in range(len(names)))
    return tuple((name, kind_of(values)) for name, values in zip(names, columns, strict=True))


def _arrow_kind(values: Sequence[Any]) -> str:
    pa = _arrow()
    try:
        kind = str(pa.array(values).type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return "string"
    return kind if kind in _ARROW or kind.startswith("timestamp") else "string"


def _plain_kind(values: Sequence[Any]) -> str:
    """Return the JSON Lines type that fits all values; a double column may contain integers."""
    given = [value for value in values if value is not None]
    for kind in _PLAIN if given else ():
        if all(_is(value, kind) or (kind == "double" and _is_whole(value)) for value in given):
            return kind
    return "string"


def fit_columns(values: tuple[Any, ...], types: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
    """Convert a row's carried values to the types of their columns.

    Raises:
        DataError: a value does not have its column's type; the message is the row's reason.
    """
    return tuple(_fit(value, name, kind) for value, (name, kind) in zip(values, types, strict=True))


def _fit(value: Any, name: str, kind: str) -> Any:
    if value is None or _is(value, kind):
        return value
    if kind == "string":
        return valid_text(value) if isinstance(value, str) else json.dumps(value, default=str)
    if kind == "double" and _is_whole(value):
        return float(value)
    if kind == "int64" and type(value) is float and value.is_integer() and _is(int(value), kind):
        return int(value)
    if kind not in _PLAIN:
        pa = _arrow()
        try:
            return pa.scalar(value, arrow_type(kind)).as_py()
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass
    raise DataError(
        f"column {name}: {_shown(value)} is not {kind}, the type of the column's first rows."
    )


def _is(value: Any, kind: str) -> bool:
    """Whether a column of type ``kind`` can store a value unchanged."""
    if kind == "timestamp":  # pandas.Timestamp is a datetime with nanoseconds
        return isinstance(value, datetime) and not getattr(value, "nanosecond", 0)
    fits = type(value) is _PLAIN.get(kind)
    return fits and (kind != "int64" or -(2**63) <= value < 2**63)


def _is_whole(value: Any) -> bool:
    """Whether a value is an integer that float64 represents exactly."""
    try:
        return type(value) is int and float(value) == value
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def arrow_type(name: str) -> Any:
    """Return the Arrow type whose str() is ``name``."""
    pa = _arrow()
    if name.startswith("timestamp["):
        unit, _, zone = name[len("timestamp[") : -1].partition(", tz=")
        return pa.timestamp(unit, zone or None)
    return pa.type_for_alias(name.removesuffix("[day]"))


def valid_text(text: str) -> str:
    """Escape lone surrogates, which stand for bytes that are not UTF-8, as \\udcff."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _arrow() -> Any:
    return require("pyarrow")
