"""A job of `embed`: everything that decides its bytes, and the shards it is cut into.

Knows neither models nor files. What decides nothing (decoding threads, the display) is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import check_option
from mwa_export.inputs.content import Kind
from mwa_export.typed_json import value_from_json

SCHEMA = 1  # of job.json and manifest.json
Dtype = Literal["float32", "float16", "int8"]
Format = Literal["parquet", "npy"]
Folder = Literal["images", "texts"]
FOLDERS: dict[Kind, Folder] = {"image": "images", "text": "texts"}
ERRORS: dict[Format, str] = {"parquet": "errors.parquet", "npy": "errors.jsonl"}
KINDS: dict[str, Kind] = {folder: kind for kind, folder in FOLDERS.items()}
SHARD_ROWS: dict[Kind, int] = {"image": 2048, "text": 16384}
"""Rows of a shard where none are given: a killed run loses at most this many."""
BATCH_ROWS: dict[Kind, int] = {"image": 32, "text": 128}
RESERVED = ("row", "id", "fingerprint", "embedding", "scale")
"""Columns of the output that a carried column may not be called."""

_MOST_SHARDS = 1 << 24  # that a job may claim
# Fields that job.json has as they are.
_INPUT = ("source", "fingerprint", "rows", "taken", "shard_size", "batch", "kept")
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
            check_option(name, value, value is None or value >= 1, "at least 1")


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that was not embedded, and why."""

    row: int
    id: str
    code: str  # a word for programs, such as "duplicate-id"
    reason: str  # a sentence for people
    fingerprint: str = ""  # hex, of the row's content, where it has any


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
    rows: int  # of the source, and those kept
    taken: int  # the first rows, that are embedded; the rest is skipped
    shard_size: int
    batch: int
    columns: tuple[tuple[str, str], ...] = ()  # carried along: name, type
    kept: int = 0  # the last rows, which the source no longer has

    def __post_init__(self) -> None:
        sizes = min(self.shard_size, self.batch) >= 1 and 0 <= self.kept <= self.taken <= self.rows
        if not sizes or self.shard_count > _MOST_SHARDS or self.rows >= 1 << 63:
            raise ValueError(f"{FOLDERS[self.kind]}: numbers of rows that no job has")

    @property
    def shard_count(self) -> int:
        return -(-self.taken // self.shard_size)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _INPUT} | {"columns": dict(self.columns)}


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that decides an output. Can be pickled: workers get a copy."""

    bundle: str  # its path, for people and for `search`; a moved bundle is still the same
    space_id: str
    files: Mapping[str, str]  # the bundle's files that are used -> sha256
    runtime: str
    precision: str
    width: int  # of an embedding
    dtype: Dtype
    format: Format
    inputs: tuple[Input, ...]
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version
    earlier: tuple[Mapping[str, str], ...] = ()  # the same of runs whose rows an update kept

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
            "earlier": list(self.earlier),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """Parse the content of job.json.

        Raises:
            ValueError: something is missing, or is what no job has.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema version {data.get('schema')!r}, this version reads {SCHEMA}")
        named = value_from_json(dict[Folder, dict[str, Any]], data.get("inputs"), "inputs")
        inputs = [
            {**entry, "kind": KINDS[folder], "columns": _pairs(entry, f"inputs.{folder}")}
            for folder, entry in named.items()
        ]
        fields = {**data, "files": data.get("bundle_files"), "inputs": inputs}
        return value_from_json(cls, fields, "job")


def shards(entry: Input, duplicates: NDArray[np.int64] | Sequence[int] = ()) -> Iterator[Shard]:
    """All shards of an input, in order. ``duplicates``: as in `Scan`, ascending."""
    doubled = np.asarray(duplicates, np.int64)
    for number in range(entry.shard_count):
        start = number * entry.shard_size
        stop = min(start + entry.shard_size, entry.taken)
        first, last = np.searchsorted(doubled, (start, stop))
        yield Shard(entry.kind, number, start, stop, tuple(doubled[first:last].tolist()))


def differences(old: Job, new: Job, *, allowed: str = "") -> list[str]:
    """Differences from an earlier job in words; empty if the output is the same.

    ``allowed``: a pattern of the names of fields that may differ.
    """
    before, after = _flat(_unchanged(old).to_json()), _flat(_unchanged(new).to_json())
    names = dict.fromkeys([*before, *after])
    ignored = re.compile(rf"bundle|inputs\.\w+\.source|{allowed}")
    return [
        f"{name}: was {_short(before.get(name))}, is {_short(after.get(name))}"
        for name in names
        if not ignored.fullmatch(name) and before.get(name) != after.get(name)
    ]


def _unchanged(job: Job) -> Job:
    """The job without what an update made of it."""
    inputs = tuple(
        replace(e, rows=e.rows - e.kept, taken=e.taken - e.kept, kept=0) for e in job.inputs
    )
    return replace(job, inputs=inputs, earlier=())


def _pairs(entry: Mapping[str, Any], where: str) -> list[list[str]]:
    columns = value_from_json(dict[str, str], entry.get("columns"), f"{where}.columns")
    return [list(pair) for pair in columns.items()]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
