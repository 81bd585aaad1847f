"""Read Parquet files of texts, or of images as bytes or paths, by row group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any

from mwa_export.data.addresses import folder_of, located
from mwa_export.data.arrow import SLICE, Column, opened, partition, rows_of
from mwa_export.data.fields import Columns, Fields, Record, holds_pictures, image_field
from mwa_export.data.files import open_file, readable
from mwa_export.data.places import check_state, picture_at, state_of
from mwa_export.data.rows import Row, Scan
from mwa_export.data.spool import duplicate_rows, entries_of, id_hash
from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.content import Kind, Problem


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads Parquet files, one after another.

    A value that is not an image or a text becomes a problem of its row. A missing column or a file
    that is not Parquet is an error. The key is the id column, or the row number. Paths are
    relative to ``images``, or to the folder of their file. Folders like `lang=en` count as
    columns.
    """

    files: tuple[str, ...]
    columns: Columns
    kinds: tuple[Kind, ...]  # what the records need
    images: str | None = None
    root: str = ""  # paths in records are complete

    def records(self) -> Iterator[Record]:
        """Yield every row. Images in the files are read later."""
        for name in self.files:
            with opened(name) as parquet:
                fields, number = self.fields(parquet, name), count()
                for group in range(parquet.num_row_groups):
                    row = count()
                    for batch in batches(parquet, group, fields):
                        for values in rows_of(batch):
                            record = self.record(values, fields, name, next(number))
                            cell = ParquetPicture(name, fields.image or "", group, next(row))
                            in_file = isinstance(record.image, bytes)
                            yield record._replace(image=cell) if in_file else record

    def fields(self, parquet: Any, name: str) -> Fields:
        """Find the columns of one open file."""
        schema = parquet.schema_arrow
        there = list(dict.fromkeys([*schema.names, *partition(name)]))
        fields = self.columns.find(there, self.kinds, readable(name))
        fields.check_unique(schema.names, readable(name))
        in_file = fields.image in schema.names and "binary" in str(schema.field(fields.image).type)
        if self.images is not None and in_file:
            raise DataError(f"{readable(name)}: {holds_pictures(self.kinds)}")
        return fields

    def record(self, values: dict[str, Any], fields: Fields, name: str, number: int) -> Record:
        """Make the ``number``-th record of a file from its values."""
        values = partition(name) | values
        record = fields.record(values, f"{readable(name)}: row {number}")
        bad = [v for v in (record.image_id, *record.columns) if isinstance(v, Problem)]
        if bad:
            record = record._replace(
                image=record.image and bad[0],
                captions=(bad[0],) * len(record.captions),
                key=None if isinstance(record.image_id, Problem) else record.key,
                columns=(),
            )
        image, key = record.image, record.key
        if isinstance(image, str):
            image = located(self.folder_of(name), image)
        return record._replace(image=image, key=str(number) if key is None else key)

    def folder_of(self, name: str) -> str:
        """Return the folder that paths in a file are relative to."""
        return folder_of(name) if self.images is None else self.images


@dataclass(frozen=True, slots=True)
class ParquetPicture:
    """An image in a Parquet file, not yet read."""

    file: str
    column: str
    group: int
    row: int  # within the row group

    def __str__(self) -> str:
        return f"{readable(self.file)}:{self.name}"

    @property
    def name(self) -> str:
        """Row group and row, for messages."""
        return f"{self.group}/{self.row}"

    def read(self) -> bytes:
        """Read the encoded image.

        Raises:
            ImageError: the file has changed or can no longer be read.
        """
        try:
            value = _column(self.file, self.group, self.column).value(self.row)
        except (DataError, LookupError) as error:
            code = getattr(error, "code", "unreadable")
            raise ImageError(f"{self}: cannot be read ({error}).", code) from error
        found = image_field({self.column: value}, self.column)
        if not isinstance(found, bytes):
            raise ImageError(f"{self}: no longer contains an image, because the file has changed.")
        return found


@lru_cache(maxsize=2)
def _column(name: str, group: int, column: str) -> Column:
    """Return a column of a row group, cached: images are mostly read in order."""
    return Column(name, group, column)


class ParquetSource:
    """Rows of Parquet files, one after another. `rows` decodes at most one extra row group."""

    def __init__(self, kind: Kind, name: str, reader: ParquetReader) -> None:
        self.kind: Kind = kind
        self.name = name
        self.columns = reader.columns.carried
        self._reader = reader
        self._fields = Fields()
        self._states: list[tuple[int, int] | None] = []
        # File, row group, its first record and first row over all files: a list is several rows.
        self._groups: list[tuple[int, int, int, int]] = []
        self._rows = 0

    def scan(self, work: Path) -> Scan:
        """Read all bytes once for the fingerprint; decode only ids and lists of captions."""
        reader = self._reader
        digest, ids = hashlib.sha256(repr((self.kind, reader.columns)).encode()), bytearray()
        self._groups, self._states, self._rows = [], [], 0
        records = 0
        for position, name in enumerate(reader.files):
            with open_file(name) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            digest.update(repr(hive).encode() if (hive := partition(name)) else b"")
            self._states.append(state_of(name))
            with opened(name) as parquet:
                fields = reader.fields(parquet, name)
                if position and fields != self._fields:
                    raise DataError(
                        f"{readable(name)}: has other columns than the file before it. Expected "
                        "the same columns in all files."
                    )
                self._fields = fields
                for group in range(parquet.num_row_groups):
                    self._groups.append((position, group, records, self._rows))
                    self._scan_group(parquet, name, group, records, ids)
                    records += parquet.metadata.row_group(group).num_rows
        return Scan(self._rows, digest.hexdigest(), duplicate_rows(ids))

    def _scan_group(self, parquet: Any, name: str, group: int, record: int, ids: bytearray) -> None:
        """Count the rows of a row group, and hash their ids if they are in a column."""
        if self._has_lists(parquet) or self._fields.id is not None:
            for id in self._ids(parquet, name, group, record):
                ids += id_hash(id)
                self._rows += 1
        else:
            self._rows += parquet.metadata.row_group(group).num_rows

    def _has_lists(self, parquet: Any) -> bool:
        """Whether a caption column contains lists, so that a record may have several captions."""
        schema = parquet.schema_arrow
        return any(_is_list(schema, column) for column in self._fields.captions)

    def _ids(self, parquet: Any, name: str, group: int, record: int) -> Iterator[str]:
        """Yield the ids of a row group's rows; its first record has the number ``record``."""
        captions = self._fields.captions if self._has_lists(parquet) else ()
        light = Fields(captions=captions, id=self._fields.id)
        if light == Fields():
            last = record + parquet.metadata.row_group(group).num_rows
            yield from map(str, range(record, last))
            return
        for batch in batches(parquet, group, light, 4096):
            for number, values in enumerate(rows_of(batch), record):
                found = self._reader.record(values, light, name, number)
                several = len(found.captions) > 1
                for n in range(max(1, len(found.captions))):
                    yield f"{found.key}#{n}" if several else str(found.key)
            record += batch.num_rows

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the rows from ``start`` up to ``stop`` (exclusive)."""
        start, stop = max(start, 0), min(stop, self._rows)
        ends = [first for *_, first in self._groups[1:]] + [self._rows]
        for (position, group, record, row), end in zip(self._groups, ends, strict=True):
            if row < stop and end > start:
                name = self._reader.files[position]
                check_state(name, self._states[position])
                yield from self._group(name, group, record, max(start - row, 0), stop - row)

    def _group(self, name: str, group: int, record: int, start: int, stop: int) -> Iterator[Row]:
        """Yield some rows of a row group; its first record has the number ``record``.

        All rows after damaged data fail.
        """
        try:
            for row in self._undamaged(name, group, record, start, stop):
                yield row
                start += 1
        except DataError as error:
            damage = Problem("unreadable", str(error))
            with opened(name) as parquet:
                for id in islice(self._ids(parquet, name, group, record), start, stop):
                    yield Row(id, None, problem=damage)

    def _undamaged(
        self, name: str, group: int, record: int, start: int, stop: int
    ) -> Iterator[Row]:
        row = 0
        with opened(name) as parquet:
            lists = self._has_lists(parquet)
            for batch in batches(parquet, group, self._fields):
                if row >= stop:
                    return
                if not lists and row + batch.num_rows <= start:
                    row += batch.num_rows
                else:
                    found = list(self._batch(batch, name, record))
                    yield from found[max(start - row, 0) : stop - row]
                    row += len(found)
                record += batch.num_rows

    def _batch(self, batch: Any, name: str, number: int) -> Iterator[Row]:
        for n, values in enumerate(rows_of(batch), number):
            record = self._reader.record(values, self._fields, name, n)
            for id, content, columns, problem in entries_of(record, n, self.kind, ""):
                place = None
                if isinstance(content, list):
                    place = [content[0].removeprefix(self._reader.folder_of(name)), *content[1:]]
                    content = picture_at("", content, {})
                yield Row(id, content, columns, problem, place)


def batches(parquet: Any, group: int, fields: Fields, size: int = SLICE) -> Iterator[Any]:
    """Yield the needed columns of a row group in batches of ``size`` rows."""
    wanted = (fields.image, *fields.captions, fields.id, fields.split, *fields.carried)
    columns = [name for name in dict.fromkeys(wanted) if name in parquet.schema_arrow.names]
    yield from parquet.iter_batches(size, row_groups=[group], columns=columns)


def _is_list(schema: Any, column: str) -> bool:
    return column in schema.names and "list" in str(schema.field(column).type).split("<")[0]
