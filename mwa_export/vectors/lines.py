"""JSON Lines for the errors and for rows stored beside .npy files. Needs no optional package.

    {"row":0,"id":"a.jpg","fingerprint":"00ff...","caption":"a red bus","scale":0.0021}

One object per row, with its carried columns. Values that JSON cannot represent become strings:
binary as base64, date and timestamp in ISO 8601, and the doubles NaN, Infinity and -Infinity. Every
value is read back exactly.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from mwa_export.files import new_file
from mwa_export.vectors.entries import FileEntry

_TYPES: dict[str, type] = {"string": str, "int64": int, "double": float, "bool": bool}


def write_lines(out: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> FileEntry:
    """Write one JSON object per line to ``out / name``. Equal rows give equal bytes.

    Raises:
        BundleError: writing failed.
    """
    count = 0
    with new_file(out / name) as partial:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
                file.write(text + "\n")
                count += 1
        return FileEntry.of(name, count, partial)


def read_lines(path: Path, types: Mapping[str, type]) -> Iterator[list[Any]]:
    """Yield the fields of each line that ``types`` names, in that order.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not valid JSON, or a field is missing or of another type.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                yield [_checked(row[name], kind) for name, kind in types.items()]
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise ValueError(f"line {number}: {_reason(error)}") from error


def _checked(value: Any, kind: type) -> Any:
    if kind is object or value is None or type(value) is kind:
        return value
    raise ValueError(f"expected {kind.__name__}, found {str(value)[:40]}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def encoded(value: Any, kind: str) -> Any:
    """Convert a carried value to JSON. It must fit ``kind``, its column's type."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, date):  # or a datetime
        return value.isoformat()
    if kind == "double" and value is not None and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decoded(values: Sequence[Any], kind: str) -> list[Any]:
    """Convert a column's JSON values back.

    Raises:
        ValueError: a value is not of type ``kind``.
    """
    return [None if value is None else _decoded(value, kind) for value in values]


def _decoded(value: Any, kind: str) -> Any:
    if isinstance(value, str) and kind != "string":
        if kind == "binary":
            return base64.b64decode(value, validate=True)
        if kind in ("date", "timestamp"):
            return (date if kind == "date" else datetime).fromisoformat(value)
        if kind == "double" and value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
    return _checked(value, _TYPES.get(kind, bytes))
