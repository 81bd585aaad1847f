"""Finished shards and their files, as the ledger and the manifest list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mwa_export.files import sha256_of
from mwa_export.inputs.content import Kind
from mwa_export.typed_json import json_from_value, value_from_json
from mwa_export.vectors.job import FOLDERS, RowError, Shard


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the output."""

    file: str  # below the output folder
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, rows: int, path: Path) -> FileEntry:
        """The entry of a file that is written under another name still."""
        return cls(name, rows, path.stat().st_size, sha256_of(path))

    def is_in(self, folder: Path) -> bool:
        """Whether the file is there, as far as its size tells."""
        path = folder / self.file
        return path.is_file() and path.stat().st_size == self.bytes


@dataclass(frozen=True, slots=True)
class Part:
    """A finished shard in the manifest."""

    stem: str
    start: int
    stop: int
    embedded: int
    failed: int
    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        rows = 0 <= self.start <= self.stop < 1 << 63 and min(self.embedded, self.failed) >= 0
        names = {f"{self.stem}{suffix}" for suffix in (".parquet", ".npy", ".jsonl")}
        if not rows or not names.issuperset(file.file for file in self.files):
            raise ValueError(f"{self.stem}: invalid rows or files of a shard")


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished shard in the ledger."""

    shard: Shard
    embedded: int
    files: tuple[FileEntry, ...]
    errors: tuple[RowError, ...]
    kept: int = 0  # of its rows: those that an update took over

    @property
    def part(self) -> Part:
        """What the manifest says of it."""
        shard, failed = self.shard, len(self.errors)
        return Part(shard.stem, shard.start, shard.stop, self.embedded, failed, self.files)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.shard.kind,
            "shard": self.shard.number,
            "start": self.shard.start,
            "stop": self.shard.stop,
            "embedded": self.embedded,
            "files": json_from_value(self.files),
            "errors": [[e.row, e.id, e.code, e.reason, e.fingerprint] for e in self.errors],
            "kept": self.kept,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Parse a ledger's entry.

        Raises:
            ValueError: something is missing, or is what no shard has.
        """
        parsed = value_from_json(_Entry, data, "entry")
        shard = Shard(parsed.kind, parsed.shard, parsed.start, parsed.stop)
        errors = tuple(RowError(*error) for error in parsed.errors)
        entry = cls(shard, parsed.embedded, parsed.files, errors, parsed.kept)
        if entry.part.embedded + entry.part.failed != shard.stop - shard.start:
            raise ValueError(f"{FOLDERS[shard.kind]}: its rows are not accounted for")
        return entry


@dataclass(frozen=True, slots=True)
class _Entry:
    """The JSON of an entry."""

    kind: Kind
    shard: int
    start: int
    stop: int
    embedded: int
    files: tuple[FileEntry, ...]
    errors: tuple[tuple[int, str, str, str, str], ...]
    kept: int
