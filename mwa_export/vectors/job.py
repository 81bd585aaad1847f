"""A job of `embed`: everything that decides its bytes, and the shards it is cut into.

Knows neither models nor files. What decides nothing (decoding threads, the display) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import check_option
from mwa_export.inputs.content import Kind

SCHEMA = 1  # of job.json and manifest.json
Dtype = Literal["float32", "float16", "int8"]
Format = Literal["parquet", "npy"]
FOLDERS: dict[Kind, str] = {"image": "images", "text": "texts"}
KINDS: dict[str, Kind] = {folder: kind for kind, folder in FOLDERS.items()}
SHARD_ROWS: dict[Kind, int] = {"image": 2048, "text": 16384}
"""Rows of a shard where none are given: what a killed run loses at most."""
BATCH_ROWS: dict[Kind, int] = {"image": 32, "text": 128}
RESERVED = ("row", "id", "embedding", "scale")
"""Columns of the output that a carried column may not be called."""


# Fields that job.json has as they are.
_INPUT = ("source", "fingerprint", "rows", "taken", "shard_size", "batch")
_JOB = ("bundle", "space_id", "runtime", "precision", "width", "dtype", "format")


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How to embed, as far as it decides the output; None takes the default of the kind."""

    dtype: Dtype = "float32"
    format: Format = "parquet"
    shard_size: int | None = None  # rows
    batch: int | None = None  # rows of a batch
    limit: int | None = None  # rows taken of each source

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch", "limit"):
            value = getattr(self, name)
            check_option(name, value, value is None or value >= 1, "1 or more")


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that was not embedded, and why."""

    row: int
    id: str
    code: str  # a word for programs, such as "duplicate-id"
    reason: str  # a sentence for people


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows ``start`` to before ``stop`` of one source. They share no batch with other rows."""

    kind: Kind
    number: int
    start: int
    stop: int
    duplicates: tuple[int, ...] = ()  # rows in it whose id an earlier row of the source has

    @property
    def stem(self) -> str:
        """Its files below the output folder, without their endings: `images/part-00000`."""
        return f"{FOLDERS[self.kind]}/part-{self.number:05d}"

    @property
    def key(self) -> str:
        """Its name in the ledger: `images-00000`."""
        return f"{FOLDERS[self.kind]}-{self.number:05d}"

    def __str__(self) -> str:
        return f"{self.stem} (rows {self.start:,} to {self.stop - 1:,})"


@dataclass(frozen=True, slots=True)
class Input:
    """A source after its scan, and how its rows are cut."""

    kind: Kind
    source: str  # for people
    fingerprint: str
    rows: int  # of the source
    taken: int  # the first rows, that are embedded; the rest is skipped
    shard_size: int
    batch: int
    columns: tuple[tuple[str, str], ...] = ()  # carried along: name, Arrow type

    @property
    def shard_count(self) -> int:
        return -(-self.taken // self.shard_size)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _INPUT} | {"columns": dict(self.columns)}

    @classmethod
    def from_json(cls, kind: Kind, data: Mapping[str, Any]) -> Input:
        fields = {name: data[name] for name in _INPUT}
        return cls(kind, **fields, columns=tuple(data["columns"].items()))


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that decides an output. Can be pickled: workers get a copy."""

    bundle: str  # its path, for people and for `search`; a moved bundle is still the same
    space_id: str
    files: dict[str, str]  # the bundle's files that are used -> sha256
    runtime: str
    precision: str
    width: int  # of an embedding
    dtype: Dtype
    format: Format
    inputs: tuple[Input, ...]
    versions: dict[str, str] = field(default_factory=dict)  # package -> version

    def input(self, kind: Kind) -> Input:
        """The input of that kind."""
        return next(entry for entry in self.inputs if entry.kind == kind)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in _JOB},
            "bundle_files": self.files,
            "inputs": {FOLDERS[entry.kind]: entry.to_json() for entry in self.inputs},
            "versions": self.versions,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """Parse the content of job.json.

        Raises:
            KeyError, TypeError, AttributeError: something is missing or is of another type.
        """
        inputs = tuple(Input.from_json(KINDS[n], entry) for n, entry in data["inputs"].items())
        fields = {name: data[name] for name in _JOB}
        return cls(**fields, files=data["bundle_files"], inputs=inputs, versions=data["versions"])


def shards(entry: Input, duplicates: NDArray[np.int64] | Sequence[int] = ()) -> Iterator[Shard]:
    """All shards of an input, in order. ``duplicates``: as in `Scan`, ascending."""
    doubled = np.asarray(duplicates, np.int64)
    for number in range(entry.shard_count):
        start = number * entry.shard_size
        stop = min(start + entry.shard_size, entry.taken)
        first, last = np.searchsorted(doubled, (start, stop))
        yield Shard(entry.kind, number, start, stop, tuple(doubled[first:last].tolist()))


def differences(old: Job, new: Job) -> list[str]:
    """Differences from an earlier job in words; empty if the output is the same."""
    before, after = _flat(old.to_json()), _flat(new.to_json())
    names = dict.fromkeys([*before, *after])
    ignored = {"bundle", *(f"inputs.{folder}.source" for folder in FOLDERS.values())}
    return [
        f"{name}: was {_short(before.get(name))}, is {_short(after.get(name))}"
        for name in names
        if name not in ignored and before.get(name) != after.get(name)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
