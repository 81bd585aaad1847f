"""manifest.json of a finished output: the job, and the counts of every row's outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mwa_export.errors import DataError
from mwa_export.files import new_file
from mwa_export.inputs.content import Kind
from mwa_export.vectors.job import FOLDERS, SCHEMA, Job
from mwa_export.vectors.shards import Entry, FileEntry

MANIFEST, ERRORS = "manifest.json", "errors.parquet"


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of one source that were embedded, failed or were skipped."""

    rows: int  # of the input
    embedded: int
    failed: int
    skipped: int  # beyond the limit

    @property
    def exact(self) -> bool:
        """Whether every row is accounted for."""
        return self.embedded + self.failed + self.skipped == self.rows

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


def counts(job: Job, entries: Sequence[Entry]) -> dict[Kind, Counts]:
    """Count the rows of each kind in finished shards."""
    found = {}
    for entry in job.inputs:
        mine = [e for e in entries if e.shard.kind == entry.kind]
        embedded, failed = sum(e.embedded for e in mine), sum(len(e.errors) for e in mine)
        found[entry.kind] = Counts(entry.rows, embedded, failed, entry.rows - entry.taken)
    return found


def manifest_of(
    job: Job, entries: Sequence[Entry], totals: Mapping[Kind, Counts], errors: FileEntry
) -> dict[str, Any]:
    """The content of manifest.json, but for the checksum."""
    return {
        **job.to_json(),
        "counts": {FOLDERS[kind]: total.to_json() for kind, total in totals.items()},
        "shards": {
            FOLDERS[entry.kind]: [_shard(e) for e in entries if e.shard.kind == entry.kind]
            for entry in job.inputs
        },
        "errors": errors.to_json(),
        "indexes": {},
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the checksum of its own content."""
    write_json(folder / MANIFEST, {**manifest, "checksum": checksum(manifest)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished output.

    Raises:
        DataError: there is none, or it is not what `embed` wrote.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder}: has no {MANIFEST}. Expected a finished output of `mwa-export embed`; an "
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


def checksum(manifest: Mapping[str, Any]) -> str:
    """Hex sha256 of a manifest's content but for the checksum itself."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write JSON as a whole file. Text that is not UTF-8 survives, as an escape."""
    text = json.dumps(data, indent=1)
    with new_file(path) as partial:
        partial.write_text(text + "\n", encoding="ascii")


def _shard(entry: Entry) -> dict[str, Any]:
    return {
        "stem": entry.shard.stem,
        "start": entry.shard.start,
        "stop": entry.shard.stop,
        "embedded": entry.embedded,
        "failed": len(entry.errors),
        "files": [file.to_json() for file in entry.files],
    }
