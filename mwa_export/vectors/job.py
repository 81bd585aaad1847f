"""A job of `embed`: everything that determines its output, and how it is split into shards.

Uses no models or files. Settings that do not affect the output (threads, display) are elsewhere.
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
"""Default rows per shard. A killed run loses at most this many."""
BATCH_ROWS: dict[Kind, int] = {"image": 32, "text": 128}
RESERVED = ("row", "id", "fingerprint", "embedding", "scale")
"""Column names of the output, which carried columns cannot use."""

_MOST_SHARDS = 1 << 24  # upper limit on the shards of a source
# Fields that job.json stores unchanged.
_INPUT = ("source", "fingerprint", "rows", "taken", "shard_size", "batch", "kept")
_JOB = ("bundle", "space_id", "runtime", "precision", "width", "dtype", "format")


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """Options that determine the output of `embed`. None: the default for images or for texts."""

    dtype: Dtype = "float32"
    format: Format = "parquet"
    shard_size: int | None = None  # rows per shard
    batch: int | None = None  # rows per batch
    limit: int | None = None  # embed only the first rows of each source; None: all

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch", "limit"):
            value = getattr(self, name)
            check_option(name, value, value is None or value >= 1, "at least 1")


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that was not embedded, and why."""

    row: int
    id: str
    code: str  # machine-readable, such as "duplicate-id"
    reason: str  # human-readable
    fingerprint: str = ""  # hash of the row's content in hex; "": unknown


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows ``start`` up to, not including, ``stop`` of one source. Batches never span shards."""

    kind: Kind
    number: int
    start: int
    stop: int
    duplicates: tuple[int, ...] = ()  # rows whose id occurs earlier in the source

    @property
    def stem(self) -> str:
        """Path of the shard's files in the output, without a suffix: `images/part-00000`."""
        return f"{FOLDERS[self.kind]}/part-{self.number:05d}"

    @property
    def key(self) -> str:
        """Name of the shard in the ledger: `images-00000`."""
        return f"{FOLDERS[self.kind]}-{self.number:05d}"

    def __str__(self) -> str:
        return f"{self.stem} (rows {self.start:,} to {self.stop - 1:,})"


@dataclass(frozen=True, slots=True)
class Input:
    """A scanned source, and how its rows are split into shards and batches."""

    kind: Kind
    source: str  # for display
    fingerprint: str
    rows: int  # rows of the source plus `kept`
    taken: int  # leading rows that are embedded; the rest are skipped
    shard_size: int
    batch: int
    columns: tuple[tuple[str, str], ...] = ()  # carried columns: name, type
    kept: int = 0  # trailing rows that the source no longer has

    def __post_init__(self) -> None:
        sizes = min(self.shard_size, self.batch) >= 1 and 0 <= self.kept <= self.taken <= self.rows
        if not sizes or self.shard_count > _MOST_SHARDS or self.rows >= 1 << 63:
            raise ValueError(f"{FOLDERS[self.kind]}: invalid numbers of rows")

    @property
    def shard_count(self) -> int:
        return -(-self.taken // self.shard_size)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _INPUT} | {"columns": dict(self.columns)}


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that determines an output. Can be pickled: workers get a copy."""

    bundle: str  # path, for display and `search`; the bundle may move
    space_id: str
    files: Mapping[str, str]  # bundle files in use -> sha256
    runtime: str
    precision: str
    width: int  # D, values per embedding
    dtype: Dtype
    format: Format
    inputs: tuple[Input, ...]
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version
    earlier: tuple[Mapping[str, str], ...] = ()  # `versions` of runs whose rows an update kept

    def input(self, kind: Kind) -> Input:
        """Return the input of that kind. Raises StopIteration if there is none."""
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
            ValueError: a field is missing or invalid, or the schema version is unsupported.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"expected schema version {SCHEMA}, found {data.get('schema')!r}")
        named = value_from_json(dict[Folder, dict[str, Any]], data.get("inputs"), "inputs")
        inputs = [
            {**entry, "kind": KINDS[folder], "columns": _pairs(entry, f"inputs.{folder}")}
            for folder, entry in named.items()
        ]
        fields = {**data, "files": data.get("bundle_files"), "inputs": inputs}
        return value_from_json(cls, fields, "job")


def shards(entry: Input, duplicates: NDArray[np.int64] | Sequence[int] = ()) -> Iterator[Shard]:
    """Yield all shards of an input, in order. ``duplicates``: ascending rows, as in `Scan`."""
    doubled = np.asarray(duplicates, np.int64)
    for number in range(entry.shard_count):
        start = number * entry.shard_size
        stop = min(start + entry.shard_size, entry.taken)
        first, last = np.searchsorted(doubled, (start, stop))
        yield Shard(entry.kind, number, start, stop, tuple(doubled[first:last].tolist()))


def differences(old: Job, new: Job, *, allowed: str = "") -> list[str]:
    """Describe how two jobs differ; empty if they produce the same output.

    ``allowed``: regular expression for the names of fields that may differ.
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
    """Return the job without the rows and versions that an update added."""
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
