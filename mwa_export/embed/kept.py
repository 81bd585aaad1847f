"""Reuse rows of earlier shards in an update, instead of computing them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mwa_export.embed.rows import Known, KnownRow, Notes
from mwa_export.inputs.content import Kind
from mwa_export.vectors.columns import valid_text
from mwa_export.vectors.entries import Part
from mwa_export.vectors.job import RowError
from mwa_export.vectors.output import Output
from mwa_export.vectors.shards import Embedded, Kept, Stored, read_column

_SHARDS = 4  # shards held in memory


@dataclass
class Earlier:
    """Finds rows of one kind in the finished shards of some outputs by fingerprint.

    Can be pickled: each worker builds its own index, of 24 bytes per row, on first use.
    """

    kind: Kind
    outputs: Sequence[Output]  # of one model; for equal rows the first output wins
    failures: bool  # reuse failures too, instead of trying those rows again
    _index: _Index | None = field(default=None, repr=False)
    _stored: dict[int, Stored] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_index": None, "_stored": {}}

    def find(self, ids: Sequence[str], fingerprints: Sequence[bytes]) -> list[Known | None]:
        """Look up the outcome of rows by fingerprint; None if unknown.

        A failure must also match the id, because its reason names the id.
        """
        failed, places = self._indexed().failed, self._indexed().places(fingerprints)
        return [
            failed.get((valid_text(id), found.hex())) if place is None else self._known(*place)
            for id, found, place in zip(ids, fingerprints, places, strict=True)
        ]

    def row(self, number: int, place: int, columns: Sequence[str]) -> KnownRow:
        """Return the row at ``place`` in shard ``number`` of the first output."""
        stored = self._shard(number)
        values = tuple(stored.columns[n][place] if n in stored.columns else None for n in columns)
        print_ = stored.fingerprints[place] or b""
        known = self._known(number, place)
        return KnownRow(stored.ids[place], "", values, known=known, fingerprint=print_)

    def _known(self, number: int, place: int) -> Known:
        stored = self._shard(number)
        vector = stored.vectors[place].copy()  # a view would keep the whole shard in memory
        return vector, None if stored.scales is None else stored.scales[place]

    def _indexed(self) -> _Index:
        if self._index is None:
            self._index = _Index.of(self)
        return self._index

    def _shard(self, number: int) -> Stored:
        if number not in self._stored:
            if len(self._stored) == _SHARDS:
                del self._stored[next(iter(self._stored))]
            output, part = self._indexed().parts[number]
            self._stored[number] = output.read(part.stem)
        return self._stored[number]


@dataclass(frozen=True, slots=True)
class _Index:
    """Sorted fingerprints, and the locations of their rows."""

    prints: NDArray[np.bytes_]  # (n,), 16 bytes each, ascending
    shards: NDArray[np.int32]  # (n,), indexes into `parts`
    rows: NDArray[np.int32]  # (n,), positions in the shard
    parts: Sequence[tuple[Output, Part]]
    failed: dict[tuple[str, str], RowError]  # id and fingerprint (hex) -> failure

    @classmethod
    def of(cls, earlier: Earlier) -> _Index:
        """Build the index from the fingerprints of all shards."""
        parts = [(output, p) for output in earlier.outputs for p in output.parts(earlier.kind)]
        columns = [_fingerprints(output, part) for output, part in parts]
        prints = np.concatenate([np.empty(0, "S16"), *columns])
        sizes = [len(column) for column in columns]
        shards = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
        rows = np.concatenate(
            [np.empty(0, np.int32), *(np.arange(n, dtype=np.int32) for n in sizes)]
        )
        order = np.argsort(prints, kind="stable")
        order = order[prints[order] != b""]
        outputs = earlier.outputs if earlier.failures else ()
        errors = (error for output in outputs for error in output.failures(earlier.kind))
        failed = {(valid_text(e.id), e.fingerprint): e for e in errors if e.fingerprint}
        return cls(prints[order], shards[order], rows[order], parts, failed)

    def places(self, fingerprints: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """Return the shard and position for each fingerprint; None if not found."""
        wanted = np.array(fingerprints, "S16")
        at = np.searchsorted(self.prints, wanted)
        found = np.append(self.prints, b"")[at] == wanted
        return [
            (int(self.shards[i]), int(self.rows[i])) if hit and print_ else None
            for i, hit, print_ in zip(at, found, fingerprints, strict=True)
        ]


def _fingerprints(output: Output, part: Part) -> NDArray[np.bytes_]:
    """Read the fingerprints of a shard's rows (n,); b"" for rows without one."""
    found = read_column(output.folder, output.job, part.stem, "fingerprint")
    return np.array([print_ or b"" for print_ in found], "S16")


def completed(embedded: Embedded, notes: Notes) -> Embedded:
    """Merge the reused rows, and the fingerprints of all rows, into a computed shard."""
    good = [(n, row, row.known) for n, row in notes.kept if not isinstance(row.known, RowError)]
    bad = [replace(row.known, row=n) for n, row in notes.kept if isinstance(row.known, RowError)]
    numbers = np.concatenate([embedded.rows, np.array([n for n, _, _ in good], np.int64)])
    order = np.argsort(numbers)
    ids = [*embedded.ids, *(row.id for _, row, _ in good)]
    columns = [*embedded.columns, *(row.columns for _, row, _ in good)]
    blank = np.zeros((len(good), embedded.vectors.shape[1]), np.float32)
    prints = notes.fingerprints
    errors = [replace(e, fingerprint=prints.get(e.row, b"").hex()) for e in embedded.errors]
    return Embedded(
        embedded.shard,
        numbers[order],
        [ids[i] for i in order],
        [columns[i] for i in order],
        np.concatenate([embedded.vectors, blank])[order],
        sorted([*errors, *bad], key=lambda error: error.row),
        [prints.get(n, b"") for n in numbers[order].tolist()],
        _kept(order >= len(embedded.rows), [known for _, _, known in good], len(bad)),
    )


def _kept(
    where: NDArray[np.bool_],
    known: Sequence[tuple[NDArray[np.generic], np.float32 | None]],
    bad: int,
) -> Kept:
    vectors = np.array([vector for vector, _scale in known])
    scales = np.array([scale for _vector, scale in known if scale is not None], np.float32)
    return Kept(np.flatnonzero(where), vectors, scales, bad)
