"""Result of a search as plain data, from which terminal output, JSON and page are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mwa_export.inputs.content import Readable
from mwa_export.inputs.pictures import Picture

Where = Literal["images", "texts"]


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found."""

    rank: int  # 1 is best
    score: float  # inner product with the query
    id: str
    columns: Mapping[str, object]  # carried columns: name -> value
    picture: Picture | Readable | bytes | None = None  # the image; None: not found, or a text

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
    """A query, what was searched, and the best rows."""

    query: str  # a text, or the name of an image
    query_picture: Picture | None  # None: the query is a text
    where: Where  # what was searched
    hits: tuple[Hit, ...]
    searched: int  # number of rows
    output: str  # the folder that `embed` wrote
    bundle: str
    runtime: str
    space_id: str
    warnings: tuple[str, ...] = ()  # about rows that were not searched

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
    """Convert a column's value to JSON; dates, bytes and other types become text."""
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
