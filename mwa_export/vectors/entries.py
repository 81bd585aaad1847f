"""Entries for finished shards and their files in the ledger and the manifest."""

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
    """Name, size and hash of an output file."""

    file: str  # path relative to the output folder
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, rows: int, path: Path) -> FileEntry:
        """Make the entry for ``name`` from the temporary file at ``path``."""
        return cls(name, rows, path.stat().st_size, sha256_of(path))

    def is_in(self, folder: Path) -> bool:
        """Whether the file exists with the recorded size. Does not read it."""
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
            raise ValueError(f"{self.stem}: invalid row numbers or file names")


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished shard in the ledger."""

    shard: Shard
    embedded: int
    files: tuple[FileEntry, ...]
    errors: tuple[RowError, ...]
    kept: int = 0  # rows that an update reused

    @property
    def part(self) -> Part:
        """The shard's entry in the manifest."""
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
        """Parse a ledger entry.

        Raises:
            ValueError: a field is missing or invalid.
        """
        parsed = value_from_json(_Entry, data, "entry")
        shard = Shard(parsed.kind, parsed.shard, parsed.start, parsed.stop)
        errors = tuple(RowError(*error) for error in parsed.errors)
        entry = cls(shard, parsed.embedded, parsed.files, errors, parsed.kept)
        if entry.part.embedded + entry.part.failed != shard.stop - shard.start:
            raise ValueError(f"{FOLDERS[shard.kind]}: embedded and failed rows do not add up")
        return entry


@dataclass(frozen=True, slots=True)
class _Entry:
    """JSON fields of a ledger entry."""

    kind: Kind
    shard: int
    start: int
    stop: int
    embedded: int
    files: tuple[FileEntry, ...]
    errors: tuple[tuple[int, str, str, str, str], ...]
    kept: int
