"""Convert dataclasses to JSON data and back, using their annotations."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, nested too deeply, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value_from_json(dict[str, Any], data, "the file")


def json_from_value(value: Any) -> Any:
    """Convert a value to JSON data. Fields that are None by default are left out if None."""
    if is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in fields(value))
        return {
            f.name: json_from_value(v) for f, v in pairs if v is not None or f.default is not None
        }
    if isinstance(value, Mapping):
        return {name: json_from_value(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [json_from_value(entry) for entry in value]
    return value


def value_from_json(kind: type[T], data: object, where: str) -> T:
    """Convert parsed JSON to a value of an annotated type. Unknown fields are ignored.

    Args:
        kind: a dataclass, or a type of its fields: a scalar, a Literal, a tuple, a Mapping, a
            union of scalars, or one of these and None.
        data: parsed JSON, which may contain converted dataclasses.
        where: the place of the data, for errors: "engines[0]".

    Raises:
        ValueError: the data does not fit the type, or a field without the default None is missing.
        MwaExportError: a dataclass rejects its values.
    """
    found: T = _read(kind, data, where)
    return found


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or type(data) is kind or (kind is float and type(data) is int):
        return data
    if origin is Literal and data in parts:
        return data
    if origin in (Union, UnionType):
        return data if type(data) in parts else _read(parts[0], data, where)
    if origin is tuple and isinstance(data, list):
        kinds = parts[:1] * len(data) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(data):
            entries = enumerate(zip(kinds, data, strict=True))
            return tuple(_read(each, entry, f"{where}[{i}]") for i, (each, entry) in entries)
    if origin in (Mapping, dict) and isinstance(data, dict):
        return {
            _read(parts[0], name, where): _read(parts[1], entry, f"{where}.{name}")
            for name, entry in data.items()
        }
    if is_dataclass(kind) and isinstance(data, dict):
        return _dataclass(kind, data, where)
    expected = f"one of {parts}" if origin is Literal else getattr(kind, "__name__", kind)
    raise ValueError(f"{where}: {reprlib.repr(data)} is not {expected}")


def _dataclass(kind: Any, data: dict[str, Any], where: str) -> Any:
    hints, values = _hints(kind), {}
    for field in fields(kind):
        if field.name in data:
            values[field.name] = _read(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is not None:
            raise ValueError(f"{where}: the field {field.name} is missing")
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)  # takes 0.5 ms, and a manifest may list thousands of files
