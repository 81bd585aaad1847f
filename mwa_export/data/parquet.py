"""Parquet files: texts, or pictures as bytes or paths. Row groups are the index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mwa_export.data.files import is_remote, joined, open_file, picture_at, place_of, readable
from mwa_export.data.records import Fields, readable_id
from mwa_export.data.rows import Row, Scan
from mwa_export.data.spool import duplicate_rows, id_hash
from mwa_export.errors import DataError
from mwa_export.inputs.content import Content, Kind, Problem, RowRefusedError
from mwa_export.inputs.decode import text_of
from mwa_export.optional import require

_BATCH = 64  # rows decoded at a time: pictures may be large


class ParquetSource:
    """Rows of Parquet files, one after another.

    A cell that holds no picture or no text, because of its type as well, is a failed row; a
    missing column and a file that is no Parquet are errors of the source. `rows` costs at most
    one row group more than its rows. The id is the named column, or the row number.
    """

    def __init__(self, kind: Kind, name: str, files: tuple[str, ...], fields: Fields) -> None:
        self.kind: Kind = kind
        self.name = name
        self.columns = fields.columns
        self._files = files
        self._fields = fields
        self._content = ""
        self._states: list[object] = []
        self._groups: list[tuple[int, int, int]] = []  # file, row group, first row
        self._rows = 0

    def scan(self, work: Path) -> Scan:
        """As `Source.scan`. Reads the bytes once for the fingerprint; decodes only the ids."""
        digest, ids = hashlib.sha256(repr((self.kind, self._fields)).encode()), bytearray()
        self._groups, self._states, self._rows = [], [], 0
        for position, name in enumerate(self._files):
            with open_file(name) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            self._states.append(_state(name))
            with _opened(name) as parquet:
                content = self._fields.content_of(parquet.schema_arrow.names, readable(name))
                if self._content not in ("", content):
                    raise DataError(f"{readable(name)}: has `{content}`, not `{self._content}`.")
                self._content = content
                for group in range(parquet.num_row_groups):
                    self._groups.append((position, group, self._rows))
                    ids += self._hashes(parquet, group)
                    self._rows += parquet.metadata.row_group(group).num_rows
        return Scan(self._rows, digest.hexdigest(), duplicate_rows(ids))

    def _hashes(self, parquet: Any, group: int) -> bytearray:
        found, column = bytearray(), self._fields.id
        if column is not None:
            number = self._rows
            for batch in parquet.iter_batches(4096, row_groups=[group], columns=[column]):
                for value in batch.column(0).to_pylist():
                    found += id_hash(_id(value, number))
                    number += 1
        return found

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """As `Source.rows`."""
        start, stop = max(start, 0), min(stop, self._rows)
        ends = [first for _, _, first in self._groups[1:]] + [self._rows]
        for (position, group, first), end in zip(self._groups, ends, strict=True):
            if first < stop and end > start:
                yield from self._group(self._files[position], position, group, first, start, stop)

    def _group(
        self, name: str, position: int, group: int, first: int, start: int, stop: int
    ) -> Iterator[Row]:
        if _state(name) != self._states[position]:
            raise DataError(
                f"{readable(name)}: changed since the source was scanned. Run the command again."
            )
        extra = [] if self._fields.id is None else [self._fields.id]
        wanted = list(dict.fromkeys([self._content, *extra, *self.columns]))
        with _opened(name) as parquet:
            number = first
            for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=wanted):
                if number >= stop:
                    return
                low, high = max(start - number, 0), min(stop - number, batch.num_rows)
                if low < high:
                    for n, record in enumerate(batch.slice(low, high - low).to_pylist()):
                        yield self._row(record, number + low + n, os.path.dirname(name))
                number += batch.num_rows

    def _row(self, record: dict[str, Any], number: int, root: str) -> Row:
        id = _id(None if self._fields.id is None else record[self._fields.id], number)
        columns = tuple(record[name] for name in self.columns)
        value = record[self._content]
        content: Content | None
        problem: Problem | None
        if self.kind == "text":
            try:
                content, problem = text_of(value), None
            except RowRefusedError as error:
                content, problem = None, error.problem
        else:
            content, problem = _picture(value, root)
        return Row(id, content, columns, problem)


def _picture(value: object, root: str) -> tuple[Content | None, Problem | None]:
    if isinstance(value, dict):  # the struct {bytes, path} that `datasets` writes
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return (value, None) if value else (None, Problem("empty", "the picture is empty."))
    if isinstance(value, str) and value.strip():
        place, problem = place_of(root, value)
        return (None, problem) if place is None else (picture_at(root, place, {}), None)
    if value is None:
        return None, Problem("null", "the picture is null. Expected bytes or a path.")
    found = f"of type {type(value).__name__}, or blank"
    return None, Problem("not-a-picture", f"the picture is {found}. Expected bytes or a path.")


def _id(value: object, number: int) -> str:
    return str(number) if value is None else readable_id(str(value))


def _state(name: str) -> object:
    if is_remote(joined("", name)):
        return None
    try:
        found = os.stat(name)
    except OSError as error:
        raise DataError(f"{readable(name)}: cannot be read ({error.strerror}).") from error
    return found.st_size, found.st_mtime_ns


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    arrow = require("pyarrow", extra="embed", why="read Parquet")
    parquet = require("pyarrow.parquet", extra="embed", why="read Parquet")
    with open_file(name) as file:
        try:
            yield parquet.ParquetFile(file)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{readable(name)}: is not a whole Parquet file ({error}).") from error
