"""manifest.json of a finished output: its job, row counts, shards and files."""

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
from mwa_export.typed_json import json_from_value, read_object, value_from_json
from mwa_export.vectors.entries import Entry, FileEntry, Part
from mwa_export.vectors.job import ERRORS, FOLDERS, Folder, Job

JOB, MANIFEST = "job.json", "manifest.json"


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of rows of one source that were embedded, failed or were skipped."""

    rows: int  # of the input
    embedded: int
    failed: int
    skipped: int  # beyond `limit`

    def __post_init__(self) -> None:
        if min(self.rows, self.embedded, self.failed, self.skipped) < 0:
            raise ValueError("expected counts of at least 0")

    @property
    def exact(self) -> bool:
        """Whether every row is accounted for."""
        return self.embedded + self.failed + self.skipped == self.rows


@dataclass(frozen=True, slots=True)
class Contents:
    """Fields of manifest.json other than the job."""

    counts: Mapping[Folder, Counts]
    shards: Mapping[Folder, tuple[Part, ...]]
    errors: FileEntry
    indexes: Mapping[Folder, FileEntry]

    def __post_init__(self) -> None:
        indexes = {(name, entry.file) for name, entry in self.indexes.items()}
        named = all(
            part.stem.startswith(f"{f}/part-") for f in self.shards for part in self.shards[f]
        )
        if not named or indexes - {(f, f"{f}.faiss") for f in self.shards}:
            raise ValueError("invalid file names")
        if self.counts.keys() != self.shards.keys() or self.errors.file not in ERRORS.values():
            raise ValueError("counts, shards and errors do not belong together")

    @property
    def files(self) -> list[FileEntry]:
        """All files except manifest.json and job.json."""
        parts = [part for parts in self.shards.values() for part in parts]
        return [
            *(file for part in parts for file in part.files),
            self.errors,
            *self.indexes.values(),
        ]


def counts(job: Job, entries: Sequence[Entry]) -> dict[Kind, Counts]:
    """Count the rows of each kind in the ledger entries of finished shards."""
    found = {}
    for entry in job.inputs:
        mine = [e for e in entries if e.shard.kind == entry.kind]
        embedded, failed = sum(e.embedded for e in mine), sum(len(e.errors) for e in mine)
        found[entry.kind] = Counts(entry.rows, embedded, failed, entry.rows - entry.taken)
    return found


def manifest_of(
    job: Job, entries: Sequence[Entry], totals: Mapping[Kind, Counts], errors: FileEntry
) -> dict[str, Any]:
    """Return the content of manifest.json, without the checksum."""
    parts: dict[Folder, tuple[Part, ...]] = {
        FOLDERS[entry.kind]: tuple(e.part for e in entries if e.shard.kind == entry.kind)
        for entry in job.inputs
    }
    counts = {FOLDERS[kind]: total for kind, total in totals.items()}
    return {**job.to_json(), **json_from_value(Contents(counts, parts, errors, {}))}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with a checksum of its content.

    Raises:
        BundleError: writing failed.
    """
    write_json(folder / MANIFEST, {**manifest, "checksum": checksum(manifest)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished output.

    Raises:
        DataError: manifest.json does not exist or is invalid.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder}: has no {MANIFEST}. Expected a finished output of `mwa-export embed`. To "
            "finish an unfinished one, run the same command again."
        )
    try:
        manifest = read_object(path)
        job, found = Job.from_json(manifest), contents(manifest)
        if {FOLDERS[entry.kind] for entry in job.inputs} != set(found.shards):
            raise ValueError("the shards do not match the job's inputs")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: is not a manifest that `embed` wrote ({error}). Restore the file, or embed "
            "into a new folder."
        ) from error
    return manifest


def contents(manifest: Mapping[str, Any]) -> Contents:
    """Parse the fields of a manifest other than the job.

    Raises:
        ValueError: a field is missing or invalid.
    """
    return value_from_json(Contents, manifest, "manifest")


def checksum(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of a manifest's content without the checksum."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically, in ASCII: lone surrogates survive as escapes.

    Raises:
        BundleError: writing failed.
    """
    text = json.dumps(data, indent=1)
    with new_file(path) as partial:
        partial.write_text(text + "\n", encoding="ascii")
