"""The end of a run: errors.parquet, manifest.json, and the indexes that were asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mwa_export.errors import DataError, OutputDamagedError
from mwa_export.files import new_file, sha256_of
from mwa_export.inputs.content import Kind
from mwa_export.optional import require
from mwa_export.vectors.job import FOLDERS, SCHEMA, Job, RowError
from mwa_export.vectors.output import ERRORS, MANIFEST, Entry, write_json
from mwa_export.vectors.shards import FileEntry, error_table, read_shard, restored, write_table


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the rows of one source."""

    rows: int  # of the input
    embedded: int
    failed: int
    skipped: int  # beyond --limit

    @property
    def exact(self) -> bool:
        """Whether every row is accounted for."""
        return self.embedded + self.failed + self.skipped == self.rows

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


def counts(job: Job, entries: Sequence[Entry]) -> dict[Kind, Counts]:
    """Rows by what became of them, of each kind."""
    found = {}
    for entry in job.inputs:
        mine = [e for e in entries if e.shard.kind == entry.kind]
        embedded, failed = sum(e.embedded for e in mine), sum(len(e.errors) for e in mine)
        found[entry.kind] = Counts(entry.rows, embedded, failed, entry.rows - entry.taken)
    return found


def finish(out: Path, job: Job, entries: Sequence[Entry]) -> dict[str, Any]:
    """Check that every row is accounted for, and write errors.parquet and manifest.json.

    Returns the manifest.

    Raises:
        OutputDamagedError: rows are missing.
        BundleError: the disk refuses.
    """
    totals = counts(job, entries)
    for kind, total in totals.items():
        if not total.exact:
            raise OutputDamagedError(
                f"{out}: of {total.rows:,} {FOLDERS[kind]}, {total.embedded:,} are embedded, "
                f"{total.failed:,} failed and {total.skipped:,} were skipped, which leaves some "
                "unaccounted for. This is a fault of ours: please report it."
            )
    errors = write_table(out, ERRORS, error_table(_errors(job, entries)))
    manifest = {
        **job.to_json(),
        "counts": {FOLDERS[kind]: total.to_json() for kind, total in totals.items()},
        "shards": {
            FOLDERS[entry.kind]: [_shard(e) for e in entries if e.shard.kind == entry.kind]
            for entry in job.inputs
        },
        "errors": errors.to_json(),
        "indexes": {},
    }
    write_manifest(out, manifest)
    return manifest


def write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the checksum of its own content."""
    manifest["checksum"] = checksum(manifest)
    write_json(out / MANIFEST, manifest)


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a finished output.

    Raises:
        DataError: there is none, or it is not what `embed` wrote.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{out}: has no {MANIFEST}. Expected a finished output of `mwa-export embed`; an "
            "unfinished one goes on when the same command is run again."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise DataError(
                f"{path}: has schema version {manifest['schema']!r}, and this version reads "
                f"{SCHEMA}. Use the mwa-export that made it."
            )
        Job.from_json(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not what `embed` wrote ({error!r}).") from error
    found: dict[str, Any] = manifest
    return found


def checksum(manifest: dict[str, Any]) -> str:
    """Hex sha256 of a manifest's content but for the checksum itself."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def add_indexes(out: Path, manifest: dict[str, Any]) -> None:
    """Write a FAISS index of inner products per kind, exact, and enter it into the manifest.

    Position i of the index is the i-th embedded row. Holds all vectors of a kind in memory.

    Raises:
        MissingPackageError: faiss is not installed.
    """
    job = Job.from_json(manifest)
    for entry in job.inputs:
        folder = FOLDERS[entry.kind]
        if folder not in manifest["indexes"]:
            written = _write_index(out, job, folder, manifest["shards"][folder])
            manifest["indexes"][folder] = written.to_json()
    write_manifest(out, manifest)


def _write_index(out: Path, job: Job, folder: str, shards: Sequence[dict[str, Any]]) -> FileEntry:
    faiss = require("faiss", extra="faiss", why="write an index")
    index = faiss.IndexFlatIP(job.width)
    for shard in shards:
        stored = read_shard(out, job, shard["stem"])
        index.add(np.ascontiguousarray(restored(stored.vectors, stored.scales)))
    name = f"{folder}.faiss"
    with new_file(out / name) as partial:
        faiss.write_index(index, str(partial))
        return FileEntry(name, index.ntotal, partial.stat().st_size, sha256_of(partial))


def _errors(job: Job, entries: Sequence[Entry]) -> Iterator[tuple[str, str, RowError]]:
    for entry in entries:
        source = job.input(entry.shard.kind).source
        for error in entry.errors:
            yield entry.shard.kind, source, error


def _shard(entry: Entry) -> dict[str, Any]:
    return {
        "stem": entry.shard.stem,
        "start": entry.shard.start,
        "stop": entry.shard.stop,
        "embedded": entry.embedded,
        "failed": len(entry.errors),
        "files": [file.to_json() for file in entry.files],
    }
