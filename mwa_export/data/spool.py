"""Copy a source to the work folder during the scan: one line per row, found by its offset."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.addresses import public
from mwa_export.data.fields import Reader, Record, escaped, of_split
from mwa_export.data.places import picture_at, place_of
from mwa_export.data.rows import Row, Scan
from mwa_export.errors import DataError
from mwa_export.files import disk_errors
from mwa_export.inputs.content import Kind, Problem

Entry = tuple[str, Any, "tuple[object, ...]", "Problem | None"]
"""Id, content, columns and problem of a row. The content is a text, token ids, an image's bytes or
its place, or None if there is a problem."""


def entries_of(record: Record, number: int, kind: Kind, root: str) -> Iterator[Entry]:
    """Yield the rows of one kind in a record: its image, or each of its captions.

    Args:
        record: a record of the source.
        number: its number from 0, which is the id if it has no key.
        kind: "image" or "text".
        root: folder or URL that the image's path is relative to.
    """
    image, columns = record.image, record.columns
    id = str(number) if record.key is None else record.key
    if record.problem is not None:
        yield id, None, columns, record.problem
    elif kind == "text":
        several = record.numbered or len(record.captions) > 1
        for n, caption in enumerate(record.captions):
            name = f"{id}#{n}" if several else id
            if isinstance(caption, Problem):
                yield name, None, columns, caption
            else:
                yield name, caption, columns, None
    elif isinstance(image, str):
        place, problem = place_of(root, image)
        yield escaped(public(image)) if record.key is None else id, place, columns, problem
    elif isinstance(image, Problem):
        yield id, None, columns, image
    elif image is not None:
        yield id, image, columns, None


@dataclass(eq=False)
class SpooledSource:
    """Records of a reader, copied to the work folder. The scan takes 24 bytes of memory per row.

    Texts are read from the copy, so a later change of the source does not affect them. For images
    the copy has place, size and modification time, which `rows` compares with the file.
    """

    kind: Kind
    name: str
    columns: tuple[str, ...]
    reader: Reader
    split: str | None
    _index: Path | None = None
    _rows: int = 0

    def scan(self, work: Path) -> Scan:
        """Copy every row. The fingerprint covers ids, texts, columns, files' sizes and times."""
        digest, offsets, ids = hashlib.sha256(self.kind.encode()), array("q", [0]), bytearray()
        digest.update(json.dumps(self.columns).encode())
        work.mkdir(parents=True, exist_ok=True)
        draft = work / f".{self.kind}-rows.{os.getpid()}"
        numbers = work / f".{self.kind}-offsets.{os.getpid()}.npy"
        position = 0
        try:
            with disk_errors(work), draft.open("wb") as file:
                for id, content, columns, problem in self._entries():
                    columns = columns or (None,) * len(self.columns)
                    content = {"ids": content} if isinstance(content, tuple) else content
                    line = json.dumps((id, content, columns, problem)).encode() + b"\n"
                    url = isinstance(content, list) and "://" in content[0]
                    if url:  # a new signature does not change the fingerprint
                        content = [public(content[0]), *content[1:]]
                    # Leave out the reason: it may contain the path of a folder that can be moved.
                    marked = (id, content, columns, problem and problem.code)
                    digest.update(json.dumps(marked).encode() if url or problem else line)
                    file.write(line)
                    position += len(line)
                    offsets.append(position)
                    ids += id_hash(id)
            fingerprint = digest.hexdigest()
            index = work / f"{self.kind}-{fingerprint[:16]}.rows"
            with disk_errors(work):
                np.save(numbers, np.frombuffer(offsets, np.int64))
                os.replace(numbers, index.with_suffix(".npy"))
                os.replace(draft, index)
        finally:
            for left in (draft, numbers):
                left.unlink(missing_ok=True)
        self._index, self._rows = index, len(offsets) - 1
        skipped = dict(getattr(self.reader, "skipped", ()))  # only some readers count
        return Scan(self._rows, fingerprint, duplicate_rows(ids), skipped)

    def _entries(self) -> Iterator[Entry]:
        records = self.reader.records()
        if self.split is not None:
            records = of_split(records, self.split, self.name)
        for number, record in enumerate(records):
            yield from entries_of(record, number, self.kind, self.reader.root)

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield rows from the copy."""
        if self._index is None:
            raise DataError(f"{self.name}: has not been scanned. Call `scan` first.")
        start, stop = max(start, 0), min(stop, self._rows)
        if start >= stop:
            return
        try:
            offset = int(np.load(self._index.with_suffix(".npy"), mmap_mode="r")[start])
            file = self._index.open("rb")
        except OSError as error:
            raise DataError(
                f"{self._index}: cannot be read ({error.strerror}). It is the index of "
                f"{self.name}. Run the command again to rebuild it."
            ) from error
        with file:
            file.seek(offset)
            checked: dict[str, None] = {}
            for _ in range(start, stop):
                id, content, columns, problem = json.loads(file.readline())
                place = content if isinstance(content, list) else None
                if place is not None:
                    content = picture_at(self.reader.root, place, checked)
                elif isinstance(content, dict):
                    content = tuple(content["ids"])
                yield Row(id, content, tuple(columns), problem and Problem(*problem), place)


def id_hash(id: str) -> bytes:
    """Hash an id to 16 bytes."""
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def duplicate_rows(hashes: bytes | bytearray) -> NDArray[np.int64]:
    """Return the rows with the hash (16 bytes each) of an earlier row, ascending."""
    if not hashes:
        return np.empty(0, np.int64)
    pairs = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: equal hashes keep their order
    same = (pairs[order[1:]] == pairs[order[:-1]]).all(axis=1)
    return np.sort(order[1:][same]).astype(np.int64)
