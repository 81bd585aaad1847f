"""Result of a search as plain data. Terminal, JSON and page are made from this alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mwa_export.inputs.content import Readable
from mwa_export.inputs.pictures import Picture

Where = Literal["images", "texts"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that was found."""

    rank: int  # 1 is best
    score: float  # inner product with the query
    id: str
    columns: Mapping[str, object]  # what `embed` carried along
    picture: Picture | Readable | bytes | None = None  # None: its place is unknown

    def to_json(self) -> dict[str, Any]:
        picture = None if self.picture is None or isinstance(self.picture, bytes) else self.picture
        return {
            "rank": self.rank,
            "score": self.score,
            "id": self.id,
            "columns": {name: _plain(value) for name, value in self.columns.items()},
            "picture": None if picture is None else str(picture),
        }


@dataclass(frozen=True, slots=True)
class Found:
    """A query, where it was asked, and its best rows."""

    query: str  # a text, or an image's name
    query_picture: Picture | None  # None: the query is a text
    where: Where  # what was searched
    hits: tuple[Hit, ...]
    searched: int  # rows
    output: str  # folder that `embed` wrote
    bundle: str
    runtime: str
    space_id: str
    warnings: tuple[str, ...] = ()  # what the output lacks

    def to_json(self) -> dict[str, Any]:
        return {
            "query": {"image" if self.query_picture else "text": self.query},
            "in": self.where,
            "searched": self.searched,
            "output": self.output,
            "bundle": self.bundle,
            "runtime": self.runtime,
            "space_id": self.space_id,
            "warnings": list(self.warnings),
            "found": [hit.to_json() for hit in self.hits],
        }


def _plain(value: object) -> object:
    """A column's value as JSON has it; dates, bytes and the like as text."""
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
