"""A scanned source: one line per row in a file of the work folder, found by its offset."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.files import picture_at
from mwa_export.data.rows import Row, Scan
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind, Problem, RowRefusedError
from mwa_export.inputs.decode import text_of

Entry = tuple[str, Any, "tuple[object, ...]", "Problem | None"]
"""Id, place, columns and problem of a row. The place is a text itself, or a picture's place as
`source_files` makes it, or None beside a problem. All of it can be written as JSON."""


class Reader(Protocol):
    """Walks through a source once. Can be pickled."""

    @property
    def root(self) -> str:
        """Folder or URL that places of pictures are relative to."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Every row, in order."""
        ...


def text_entry(id: str, value: object, columns: tuple[object, ...] = ()) -> Entry:
    """The entry of a text, or of the reason why it is none."""
    try:
        return id, text_of(value), columns, None
    except RowRefusedError as error:
        return id, None, columns, error.problem


class SpooledSource:
    """What a reader finds, kept in the work folder. 24 bytes a row in memory during the scan.

    Texts are read from the copy, so a change of the source cannot mix two of its states. Of
    pictures the copy has the place, size and time of change, which `rows` compares.
    """

    def __init__(self, kind: Kind, name: str, columns: tuple[str, ...], reader: Reader) -> None:
        self.kind: Kind = kind
        self.name = name
        self.columns = columns
        self._reader = reader
        self._index: Path | None = None
        self._rows = 0

    def scan(self, work: Path) -> Scan:
        """As `Source.scan`. The fingerprint covers ids, texts, columns, files' sizes and times."""
        digest, offsets, ids = hashlib.sha256(self.kind.encode()), array("q", [0]), bytearray()
        digest.update(json.dumps(self.columns).encode())
        work.mkdir(parents=True, exist_ok=True)
        draft = work / f".{self.kind}-rows.{os.getpid()}"
        position = 0
        try:
            with draft.open("wb") as file:
                for entry in self._reader.entries():
                    line = json.dumps(entry).encode() + b"\n"
                    digest.update(line)
                    file.write(line)
                    position += len(line)
                    offsets.append(position)
                    ids += id_hash(entry[0])
            fingerprint = digest.hexdigest()
            index = work / f"{self.kind}-{fingerprint[:16]}.rows"
            numbers = work / f".{self.kind}-offsets.{os.getpid()}.npy"
            np.save(numbers, np.frombuffer(offsets, np.int64))
            os.replace(numbers, index.with_suffix(".npy"))
            os.replace(draft, index)
        finally:
            draft.unlink(missing_ok=True)
        self._index, self._rows = index, len(offsets) - 1
        return Scan(self._rows, fingerprint, duplicate_rows(ids))

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """As `Source.rows`."""
        if self._index is None:
            raise DataError(f"{self.name}: is not scanned yet.")
        start, stop = max(start, 0), min(stop, self._rows)
        if start >= stop:
            return
        try:
            offset = int(np.load(self._index.with_suffix(".npy"), mmap_mode="r")[start])
            file = self._index.open("rb")
        except OSError as error:
            raise DataError(
                f"{self._index}: cannot be read ({error.strerror}). It is the index of "
                f"{self.name}; run the command again."
            ) from error
        with file:
            file.seek(offset)
            checked: dict[str, None] = {}
            for _ in range(start, stop):
                id, place, columns, problem = json.loads(file.readline())
                content = place
                if isinstance(place, list):
                    content = picture_at(self._reader.root, place, checked)
                yield Row(id, content, tuple(columns), problem and Problem(*problem))


def id_hash(id: str) -> bytes:
    """16 bytes that stand for an id."""
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def duplicate_rows(hashes: bytes | bytearray) -> NDArray[np.int64]:
    """Rows whose hash (16 bytes each) an earlier row has, ascending."""
    if not hashes:
        return np.empty(0, np.int64)
    pairs = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: of equal ones the first comes first
    same = (pairs[order[1:]] == pairs[order[:-1]]).all(axis=1)
    return np.sort(order[1:][same]).astype(np.int64)
