"""Read, check and collect the rows of a shard: code shared by the image and text pipelines.

Every row ends as a vector or as an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.addresses import public
from mwa_export.data.rows import Row, Source
from mwa_export.embed.pipeline import Clock
from mwa_export.errors import DataError
from mwa_export.inputs.content import Problem
from mwa_export.runtimes.backend import Backend
from mwa_export.vectors.columns import fit_columns
from mwa_export.vectors.job import RowError, Shard
from mwa_export.vectors.shards import UNIT_TOLERANCE, Embedded

OnRows = Callable[[int, int], None]
"""Called with the numbers of rows just finished and failed; may raise to stop the run."""

_TIMED = 64  # rows between updates of the clock for reading


def ignore(_rows: int, _failed: int) -> None:
    """Do nothing: the default `OnRows`."""


Known = tuple[NDArray[Any], Any] | RowError
"""Known outcome of a row: its stored vector (D,) with its scale or None, or its failure."""


@dataclass(frozen=True, slots=True)
class KnownRow(Row):
    """A row whose outcome is known, so that it is not computed."""

    known: Known = field(kw_only=True)
    fingerprint: bytes = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Notes:
    """Fingerprints of a shard's rows by row number, and the rows with known outcomes."""

    fingerprints: dict[int, bytes] = field(default_factory=dict)
    kept: list[tuple[int, KnownRow]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything needed to embed the shards of one source."""

    backend: Backend
    batch: int  # maximum rows per batch
    columns: Sequence[tuple[str, str]]  # names and types of carried columns
    workers: int  # threads that read and decode, or tokenize
    clock: Clock  # records the times of the stages; tokenizing counts as decoding
    on_rows: OnRows  # called after each batch
    notes: dict[str, Notes] = field(default_factory=dict)  # by key of shards in progress


def checked_rows(
    setup: Setup, source: Source, shard: Shard
) -> Iterator[tuple[int, Row, RowError | None]]:
    """Yield (number, row, error or None) for each row of a shard, with converted column values.

    Rows with known outcomes are omitted and added to the notes instead.

    Raises:
        DataError: the source yields more or fewer rows than requested.
    """
    duplicates, types, clock = frozenset(shard.duplicates), setup.columns, setup.clock
    notes = setup.notes[shard.key] = Notes()
    number, start, spent = shard.start, time.perf_counter(), 0.0
    for item in source.rows(shard.start, shard.stop):
        spent += time.perf_counter() - start
        if number % _TIMED == 0 or number >= shard.stop - 1:
            clock.add(clock.busy, "read", spent)
            spent = 0.0
        if number == shard.stop:
            break
        error: RowError | None = None
        if number in duplicates:
            reason = f"an earlier row of the source has the same id, {item.id!r}"
            error = RowError(number, item.id, "duplicate-id", reason)
        elif item.content is None:
            problem = item.problem or Problem("unreadable", "nothing to embed")
            error = RowError(number, item.id, problem.code, stable(problem.reason))
        elif types:
            try:
                columns = fit_columns(item.columns, types)
                if columns != item.columns:
                    item = replace(item, columns=columns)
            except DataError as refusal:
                error = RowError(number, item.id, "column-type", str(refusal))
        if error is None:
            notes.fingerprints[number] = fingerprint_of(item)
        if error is None and isinstance(item, KnownRow):
            notes.kept.append((number, item))
        else:
            yield number, item, error
        number += 1
        start = time.perf_counter()
    else:
        if number == shard.stop:
            return
    found = "more" if number == shard.stop else f"{number - shard.start:,}"
    raise DataError(
        f"{source.name}: read {found} rows for {shard}, so the source has changed since it was "
        "scanned. Run the same command again."
    )


def fingerprint_of(row: Row) -> bytes:
    """Hash a row's content to 16 bytes: for a file its name, size and time, otherwise all of it.

    Returns b"" if the content is not in a file and has not been read yet.
    """
    if isinstance(row, KnownRow):
        return row.fingerprint
    data = row.content if row.place is None else row.place
    if isinstance(data, str | tuple | list):
        data = json.dumps(data).encode()
    return hashlib.blake2b(data, digest_size=16).digest() if isinstance(data, bytes) else b""


class Collected:
    """Collects vectors and errors of a shard."""

    def __init__(self) -> None:
        self.errors: list[RowError] = []
        self._rows: list[int] = []
        self._ids: list[str] = []
        self._columns: list[tuple[Any, ...]] = []
        self._vectors: list[NDArray[np.float32]] = []

    def add(
        self,
        numbers: Sequence[int],
        ids: Sequence[str],
        columns: Sequence[tuple[Any, ...]],
        vectors: NDArray[np.float32],
    ) -> None:
        """Add ascending rows with vectors (n, D). Rows whose vector is not of unit length fail."""
        good = unit_rows(vectors)
        if not good.all():
            kept = np.flatnonzero(good).tolist()
            lost = np.flatnonzero(~good).tolist()
            reason = "the model returned a vector that is not finite or not of unit length"
            self.errors += [RowError(numbers[i], ids[i], "not-finite", reason) for i in lost]
            numbers, ids = [numbers[i] for i in kept], [ids[i] for i in kept]
            columns, vectors = [columns[i] for i in kept], vectors[good]
        self._rows += numbers
        self._ids += ids
        self._columns += columns
        self._vectors.append(vectors)

    def finish(self, shard: Shard) -> Embedded:
        """Return the shard. If every row failed, its vectors have shape (0, 0)."""
        vectors = np.concatenate(self._vectors) if self._vectors else np.empty((0, 0), np.float32)
        self.errors.sort(key=lambda error: error.row)
        rows = np.array(self._rows, np.int64)
        return Embedded(shard, rows, self._ids, self._columns, vectors, self.errors)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows (n, D) that are finite and of unit length."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors)
        good: NDArray[np.bool_] = np.abs(np.sqrt(squares) - 1) < UNIT_TOLERANCE  # NaN: False
        return good


def stable(reason: str) -> str:
    """Remove secrets, and the memory addresses that Pillow prints, from a reason."""
    return re.sub(r"<?[\w.]+ object at 0x[0-9a-fA-F]+>?", "its bytes", public(reason))
