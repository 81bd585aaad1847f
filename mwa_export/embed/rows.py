"""The rows of a shard, each ending as a vector or as an error: what both pipelines share."""

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
"""Called with the rows that were just finished and how many failed; may raise to stop the run."""

_TIMED = 64  # rows whose reading is entered into the clock at a time


def ignore(_rows: int, _failed: int) -> None:
    """For those who do not watch."""


Known = tuple[NDArray[Any], Any] | RowError
"""What is known of a row: its vector as it was stored, with its scale or None; or its failure."""


@dataclass(frozen=True, slots=True)
class KnownRow(Row):
    """A row that need not be computed."""

    known: Known = field(kw_only=True)
    fingerprint: bytes = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Notes:
    """Fingerprints of a shard's rows by number, and the rows whose outcome is known."""

    fingerprints: dict[int, bytes] = field(default_factory=dict)
    kept: list[tuple[int, KnownRow]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Setup:
    """What the shards of one source are embedded with."""

    backend: Backend
    batch: int  # rows at a time, at most
    columns: Sequence[tuple[str, str]]  # carried along: names and Arrow types
    workers: int  # threads that read and decode, or tokenize
    clock: Clock  # takes the times of the stages; tokenizing counts as decoding
    on_rows: OnRows  # called after each batch
    notes: dict[str, Notes] = field(default_factory=dict)  # of shards that are under way


def checked_rows(
    setup: Setup, source: Source, shard: Shard
) -> Iterator[tuple[int, Row, RowError | None]]:
    """Number, row and obstacle of each row of a shard. Columns have the types of their columns.

    Rows that are known are left out, and stand in the notes.

    Raises:
        DataError: the source gives more or fewer rows than it was asked for.
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
        f"{source.name}: gave {found} rows for {shard}. It changed since it was scanned; run the "
        "command again."
    )


def fingerprint_of(row: Row) -> bytes:
    """16 bytes that stand for a row's content: of a file its name, size and time; else all of it.

    Empty where the content is in no file and not read yet.
    """
    if isinstance(row, KnownRow):
        return row.fingerprint
    data = row.content if row.place is None else row.place
    if isinstance(data, str | tuple | list):
        data = json.dumps(data).encode()
    return hashlib.blake2b(data, digest_size=16).digest() if isinstance(data, bytes) else b""


class Collected:
    """Vectors and errors of a shard so far."""

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
        """Rows, ascending, with their vectors (n, D). Those that are no unit vectors fail."""
        good = unit_rows(vectors)
        if not good.all():
            kept = np.flatnonzero(good).tolist()
            lost = np.flatnonzero(~good).tolist()
            reason = "the model gave no unit vector (a value that is not finite, or another length)"
            self.errors += [RowError(numbers[i], ids[i], "not-finite", reason) for i in lost]
            numbers, ids = [numbers[i] for i in kept], [ids[i] for i in kept]
            columns, vectors = [columns[i] for i in kept], vectors[good]
        self._rows += numbers
        self._ids += ids
        self._columns += columns
        self._vectors.append(vectors)

    def finish(self, shard: Shard) -> Embedded:
        """The shard. A shard in which every row failed has vectors of shape (0, 0)."""
        vectors = np.concatenate(self._vectors) if self._vectors else np.empty((0, 0), np.float32)
        self.errors.sort(key=lambda error: error.row)
        rows = np.array(self._rows, np.int64)
        return Embedded(shard, rows, self._ids, self._columns, vectors, self.errors)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mask of the rows that are finite and of unit length. (n,)"""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors)
        good: NDArray[np.bool_] = np.abs(np.sqrt(squares) - 1) < UNIT_TOLERANCE  # NaN: False
        return good


def stable(reason: str) -> str:
    """A reason without secrets, and without the addresses in memory that Pillow prints."""
    return re.sub(r"<?[\w.]+ object at 0x[0-9a-fA-F]+>?", "its bytes", public(reason))
