"""Check from its files alone that an output of `embed` is complete and accounts for every row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError
from mwa_export.files import sha256_of
from mwa_export.inputs.content import Kind
from mwa_export.progress import ignore
from mwa_export.typed_json import read_object
from mwa_export.vectors.entries import FileEntry, Part
from mwa_export.vectors.install import pending_update
from mwa_export.vectors.job import KINDS, Job
from mwa_export.vectors.manifest import (
    JOB,
    MANIFEST,
    Counts,
    checksum,
    contents,
    read_manifest,
)
from mwa_export.vectors.output import Output
from mwa_export.vectors.shards import UNIT_TOLERANCE, Stored, read_errors, restored

_INT8_TOLERANCE = 0.05  # allowed error of a restored vector's length
_SHOWN = 5  # rows named in a finding


@dataclass(frozen=True, slots=True)
class Proof:
    """Result of `verify`: what was checked, and everything that is wrong with it."""

    counts: dict[Kind, Counts]
    files: int
    findings: tuple[str, ...]  # empty if the output is intact

    @property
    def whole(self) -> bool:
        return not self.findings


def verify(out: Path, *, on_rows: Callable[[int], None] = ignore) -> Proof:
    """Read every byte of an output, and check its hashes, rows, ids and vectors.

    ``on_rows`` is called with the number of rows of each shard.

    Raises:
        DataError: the manifest is missing or invalid, so there is nothing to check against.
    """
    out = pending_update(Path(out)) or Path(out)
    manifest = read_manifest(out)
    output, named = Output(out, Job.from_json(manifest)), contents(manifest)
    findings = list(_manifest_findings(output, manifest))
    findings += _foreign_files(out, {file.file for file in named.files})
    findings += [text for file in named.files for text in _file_findings(out, file)]
    failed, texts = _failed_rows(out / named.errors.file)
    findings += texts
    totals: dict[Kind, Counts] = {}
    for folder, parts in named.shards.items():
        kind = KINDS[folder]
        rows, totals[kind] = _Rows(output, folder, failed.get(kind, [])), named.counts[folder]
        for part in parts:
            findings += rows.shard(part)
            on_rows(part.embedded)
        findings += rows.end(totals[kind])
    return Proof(totals, len(named.files), tuple(findings))


def _manifest_findings(output: Output, manifest: dict[str, Any]) -> Iterator[str]:
    if manifest.get("checksum") != checksum(manifest):
        yield f"{MANIFEST}: was edited (its checksum does not match its content)"
    try:
        recorded = read_object(output.folder / JOB)
        if recorded != output.job.to_json():
            yield f"{JOB}: describes a different job than {MANIFEST}"
    except (OSError, ValueError) as error:
        yield f"{JOB}: cannot be read ({error})"


def _foreign_files(out: Path, known: set[str]) -> Iterator[str]:
    """Report files and folders that are not part of the output.

    Hidden ones at the top level are ignored: locks, files of file managers and network disks, and
    unfinished updates.
    """
    top = (path for path in out.glob("*") if not path.name.startswith("."))
    for path in sorted([*top, *(path for folder in KINDS for path in (out / folder).glob("*"))]):
        name = path.relative_to(out).as_posix()
        if name not in known | {JOB, MANIFEST} and not (name in KINDS and path.is_dir()):
            yield f"{name}: is not listed in {MANIFEST}"


def _file_findings(out: Path, file: FileEntry) -> Iterator[str]:
    path, name = out / file.file, file.file
    if not path.is_file():
        yield f"{name}: is missing"
    elif path.stat().st_size != file.bytes:
        yield f"{name}: expected {file.bytes:,} bytes, found {path.stat().st_size:,}"
    elif sha256_of(path) != file.sha256:
        yield f"{name}: its content does not match the sha256 in {MANIFEST}"


def _failed_rows(path: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Return the numbers of the failed rows by kind, and findings about their file."""
    found: dict[str, list[int]] = {}
    silent = 0
    try:
        for row, kind, reason in read_errors(path, ["row", "kind", "reason"]):
            found.setdefault(kind, []).append(row)
            silent += not reason
        found = {kind: [int(row) for row in rows] for kind, rows in found.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, [f"{path.name}: cannot be read ({error})"]
    return found, [f"{path.name}: {silent:,} rows have no reason"] if silent else []


class _Rows:
    """Checks the shards of one kind in order; its methods yield findings."""

    def __init__(self, output: Output, folder: str, failed: list[int]) -> None:
        self._output, self._folder = output, folder
        self._failed = np.sort(np.array(failed, np.int64))
        self._next = 0  # the row that must come next
        self._embedded = 0
        self._ids: list[NDArray[np.uint64]] = []

    def shard(self, part: Part) -> Iterator[str]:
        """Check one shard's rows and vectors."""
        name, start, stop = part.stem, part.start, part.stop
        if start != self._next:
            yield f"{name}: expected to start at row {self._next:,}, starts at {start:,}"
        self._next = stop
        try:
            stored = self._output.read(name)
        except DataError as error:
            yield str(error)
            return
        rows = len(stored.rows)
        self._embedded += rows
        self._ids.append(_hashes(stored.ids))
        if rows != part.embedded:
            yield f"{name}: contains {rows:,} rows, but {MANIFEST} says {part.embedded:,}"
        first, last = np.searchsorted(self._failed, (start, stop))
        yield from _rows(name, start, stop, stored, self._failed[first:last])
        yield from _vectors(name, stored)

    def end(self, total: Counts) -> Iterator[str]:
        """Check the totals."""
        folder, entry = self._folder, self._output.job.input(KINDS[self._folder])
        if not total.exact:
            yield (
                f"{folder}: {total.embedded:,} embedded + {total.failed:,} failed + "
                f"{total.skipped:,} skipped do not add up to {total.rows:,} rows"
            )
        if (total.rows, total.skipped) != (entry.rows, entry.rows - entry.taken):
            yield (
                f"{folder}: {MANIFEST} counts {total.rows:,} rows, {total.skipped:,} of them "
                f"skipped, but the job embeds {entry.taken:,} of {entry.rows:,} rows"
            )
        if self._next != entry.taken:
            yield f"{folder}: expected shards up to row {entry.taken:,}, they end at {self._next:,}"
        if (self._embedded, len(self._failed)) != (total.embedded, total.failed):
            yield (
                f"{folder}: found {self._embedded:,} embedded and {len(self._failed):,} failed "
                f"rows, but {MANIFEST} says {total.embedded:,} and {total.failed:,}"
            )
        ids = np.concatenate([np.empty(0, np.uint64), *self._ids])
        if twice := len(ids) - len(np.unique(ids)):
            yield f"{folder}: {twice:,} ids occur more than once"


def _rows(
    name: str, start: int, stop: int, stored: Stored, failed: NDArray[np.int64]
) -> Iterator[str]:
    """Check that every row of the shard occurs once, embedded or failed."""
    present = np.concatenate([stored.rows, failed])
    numbers, times = np.unique(present, return_counts=True)
    within = numbers[(numbers >= start) & (numbers < stop)]
    if lost := stop - start - len(within):  # a damaged manifest may claim any number
        first = np.setdiff1d(np.arange(start, min(stop, start + len(within) + _SHOWN + 1)), within)
        yield f"{name}: {lost:,} rows are neither embedded nor failed: {_some(first)}"
    for what, rows in (
        ("occur more than once", numbers[times > 1]),
        ("belong to another shard", numbers[(numbers < start) | (numbers >= stop)]),
    ):
        if len(rows):
            yield f"{name}: {len(rows):,} rows {what}: {_some(rows)}"
    if not (np.diff(stored.rows) > 0).all():
        yield f"{name}: its rows are not in order"
    if not all(stored.ids):
        yield f"{name}: some rows have no id"


def _vectors(name: str, stored: Stored) -> Iterator[str]:
    vectors = restored(stored.vectors, stored.scales)
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    tolerance = _INT8_TOLERANCE if stored.scales is not None else UNIT_TOLERANCE
    bad = stored.rows[~(np.abs(lengths - 1) < tolerance)]  # includes NaN
    if len(bad):
        yield f"{name}: {len(bad):,} vectors are not finite or not of unit length: {_some(bad)}"


def _hashes(ids: list[str]) -> NDArray[np.uint64]:
    """Hash each id to 64 bits: a million ids take 8 MB."""
    joined = b"".join(hashlib.blake2b((id or "").encode(), digest_size=8).digest() for id in ids)
    return np.frombuffer(joined, np.uint64)


def _some(rows: NDArray[np.int64]) -> str:
    text = ", ".join(str(row) for row in rows[:_SHOWN].tolist())
    return text + (", ..." if len(rows) > _SHOWN else "")
