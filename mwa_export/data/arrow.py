"""Read Parquet as Python values in slices. A value that cannot be converted fails only its row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from mwa_export.data.files import open_file, readable
from mwa_export.errors import DataError
from mwa_export.inputs.content import Problem
from mwa_export.optional import require

SLICE = 64  # rows decoded at a time: images may be large
_BUFFER = 1 << 20  # bytes read at a time; without a limit Arrow reads a whole row group


@contextmanager
def opened(name: str) -> Iterator[Any]:
    """Open a `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: the file cannot be read or is not a complete Parquet file.
    """
    arrow = require("pyarrow")
    parquet = require("pyarrow.parquet")
    with open_file(name) as file:
        try:
            yield parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(
                f"{readable(name)}: is not a complete Parquet file ({error}). Copy it again."
            ) from error


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a record batch. A value that Python cannot represent becomes a Problem."""
    try:
        rows = batch.to_pylist()
    except Exception:  # of many types: a text that is not UTF-8, a date beyond the year 9999
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for row in range(batch.num_rows):
            yield {name: _value(column, row, name) for name, column in columns.items()}
    else:
        yield from rows


def _value(column: Any, row: int, name: str) -> Any:
    try:
        return column[row].as_py()
    except UnicodeDecodeError:
        return Problem("not-text", f'"{name}" is not UTF-8.')
    except Exception as error:  # raised by Arrow, see `rows_of`
        reason, zone = str(error), getattr(column.type, "tz", None)
        if zone and ("zoneinfo" in reason or zone in reason):  # pytz names only the zone
            reason = f"this system does not know the time zone {zone}"
        return Problem("malformed", f'"{name}" cannot be read ({reason}).')


@lru_cache(maxsize=16)
def partition(name: str) -> dict[str, str | None]:
    """Return the columns in the names of a file's folders, Hive style: `.../lang=en/...`."""
    pairs = [folder.split("=", 1) for folder in name.split("/")[:-1] if "=" in folder]
    default = "__HIVE_DEFAULT_PARTITION__"
    return {key: None if value == default else unquote(value) for key, value in pairs if key}


class Column:
    """One column of a row group, read in slices. Reading an earlier row starts again."""

    def __init__(self, file: str, group: int, name: str) -> None:
        self._where = file, group, name
        self._lock = threading.Lock()
        self._slices = self._read()
        # The last two slices and their first rows: threads may ask out of order.
        self._kept: list[tuple[int, Any]] = []
        self._next = 0

    def value(self, row: int) -> Any:
        """Return the value in a row of the group.

        Raises:
            DataError, LookupError: the file is damaged or no longer has this row.
        """
        with self._lock:
            if self._kept and row < self._kept[0][0]:
                self._slices, self._kept, self._next = self._read(), [], 0
            while row >= self._next:
                values = next(self._slices, None)
                if values is None:
                    raise IndexError(f"no row {row}")
                self._kept = [*self._kept[-1:], (self._next, values)]
                self._next += len(values)
            start, values = next(kept for kept in reversed(self._kept) if kept[0] <= row)
            return _value(values, row - start, self._where[2])

    def _read(self) -> Iterator[Any]:
        file, group, name = self._where
        with opened(file) as parquet:
            for batch in parquet.iter_batches(SLICE, row_groups=[group], columns=[name]):
                yield batch.column(0)
