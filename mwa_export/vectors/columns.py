"""The columns that are carried along: their Arrow types, and values that fit them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from mwa_export.errors import DataError
from mwa_export.optional import require

_SCALARS = ("string", "int64", "double", "bool", "binary", "date32[day]")


def column_types(
    names: Sequence[str], sample: Sequence[tuple[Any, ...]]
) -> tuple[tuple[str, str], ...]:
    """A type for each carried column from some rows of it: a scalar's, or else "string".

    Values of a "string" column that are no text are stored as JSON.
    """
    pa = _arrow()
    found = []
    for index, name in enumerate(names):
        try:
            kind = str(pa.array([row[index] for row in sample]).type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            kind = "string"
        known = kind in _SCALARS or kind.startswith("timestamp")
        found.append((name, kind if known else "string"))
    return tuple(found)


def fit_columns(values: tuple[Any, ...], types: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
    """A row's carried values in the types of their columns.

    Raises:
        DataError: a value is of another type than its column; the message is the row's reason.
    """
    return tuple(_fit(value, name, kind) for value, (name, kind) in zip(values, types, strict=True))


def _fit(value: Any, name: str, kind: str) -> Any:
    if value is None:
        return None
    if kind == "string":
        return valid_text(value) if isinstance(value, str) else json.dumps(value, default=str)
    whole = isinstance(value, float) and value.is_integer() and kind == "int64"
    if whole or (kind == "double" and isinstance(value, int) and not isinstance(value, bool)):
        return int(value) if whole else float(value)
    plain: Any = {"int64": int, "double": float, "bool": bool, "binary": bytes}.get(kind)
    if plain is not None and type(value) is plain:
        if kind != "int64" or -(2**63) <= value < 2**63:
            return value
    elif plain is None:
        pa = _arrow()
        try:
            return pa.scalar(value, arrow_type(kind)).as_py()
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass
    raise DataError(
        f"column {name}: {_shown(value)} is not {kind}, as the first rows of the column are."
    )


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def arrow_type(name: str) -> Any:
    """The Arrow type that str() calls ``name``."""
    pa = _arrow()
    if name.startswith("timestamp["):
        unit, _, zone = name[len("timestamp[") : -1].partition(", tz=")
        return pa.timestamp(unit, zone or None)
    return pa.type_for_alias(name.removesuffix("[day]"))


def valid_text(text: str) -> str:
    """Text that UTF-8 can hold: bytes that were no UTF-8 in a name are shown as \\udcff."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _arrow() -> Any:
    return require("pyarrow", extra="embed", why="write embeddings")
