"""Read tables: CSV, TSV and JSON lines, including the index files of BEiT-3."""

from __future__ import annotations

import csv
import io
import json
import reprlib
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, cast

from mwa_export.data.addresses import suffix_of
from mwa_export.data.fields import Columns, Fields, Record
from mwa_export.data.files import readable
from mwa_export.data.index import index_fields
from mwa_export.data.lines import MAX_LINE, TOO_LONG, text_lines
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind, Problem

CSV_SUFFIXES = {".csv", ".tsv"}
JSONL_SUFFIXES = {".jsonl", ".ndjson"}
_SAMPLE = 100  # JSON lines that are read to find the fields
_HEADER_LINES = 100  # max lines of a header, whose quoted names may contain line ends
_HAS_NUL = sys.version_info >= (3, 11)  # the csv module of Python 3.10 refuses lines with NUL
_NUL = "\ud800"  # stands for NUL there; decoding never produces it


@dataclass(frozen=True, slots=True)
class TableReader:
    """Reads a CSV, TSV or JSON lines file.

    A line that cannot be parsed becomes a problem with the key `line N`. If a quote joins lines
    that are not a row, the first line is the problem and the others are read again. If a cell is
    too long, the lines up to its closing quote are skipped. A column that is missing in the CSV
    header, or in the first 100 JSON objects, is an error of the whole table. In a later JSON
    object, a missing field is null.
    """

    name: str
    root: str
    columns: Columns
    kinds: tuple[Kind, ...]  # what the records need

    def records(self) -> Iterator[Record]:
        """Yield every row."""
        suffix = suffix_of(self.name)
        return self._json() if suffix in JSONL_SUFFIXES else self._csv(suffix)

    def _bad(self, line: int, problem: Problem) -> Record:
        return Record(f"{readable(self.name)}:{line}", key=f"line {line}", problem=problem)

    def _json(self) -> Iterator[Record]:
        name, fields = readable(self.name), cast("Fields | None", None)
        lines = self._objects()
        while some := list(islice(lines, _SAMPLE)):
            objects = [values for _, values in some if not isinstance(values, Problem)]
            if fields is None and objects:
                fields = self._json_fields(objects, f"{name}:{some[0][0]}")
            for number, values in some:
                if fields is None or isinstance(values, Problem):
                    yield self._bad(number, cast("Problem", values))
                else:
                    yield fields.record(values, f"{name}:{number}")

    def _objects(self) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
        for number, line in enumerate(text_lines(self.name), 1):
            if line is None:
                yield number, TOO_LONG
            elif line.strip():
                yield number, json_object(line)

    def _json_fields(self, objects: list[dict[str, Any]], where: str) -> Fields:
        """Find the fields of a table from its first objects, not all of which have every field."""
        there = list(dict.fromkeys(chain.from_iterable(objects)))
        index = index_fields(objects[0], there, self.columns, self.kinds, where)
        return index or self.columns.find(there, self.kinds, where)

    def _csv(self, suffix: str) -> Iterator[Record]:
        lines, first = text_lines(self.name), ""
        if not _HAS_NUL:
            lines = (line and line.replace("\0", _NUL) for line in lines)
        for line in islice(lines, _HEADER_LINES):
            first += line or ""
            if first.count('"') % 2 == 0:
                break
        if not first.strip():
            raise DataError(
                f"{readable(self.name)}:1: is blank. Expected a header with the names of the "
                "columns. Add one."
            )
        delimiter = _delimiter(first, "\t" if suffix == ".tsv" else ",", self.columns.known)
        source = _Lines(chain(io.StringIO(first, newline=""), lines))
        rows = _rows(source, delimiter)
        (header, fields), name = self._header(next(rows)[1]), readable(self.name)
        for number, cells in rows:
            if isinstance(cells, Problem):
                yield self._bad(number, cells)
            elif len(cells) == len(header):
                yield fields.record(dict(zip(header, cells, strict=True)), f"{name}:{number}")
            elif cells:  # otherwise a blank line
                found = (
                    f"has {len(cells)} fields, delimited by {delimiter!r}. Expected {len(header)}, "
                    "as in the header. Put quotes around captions that contain the delimiter."
                )
                yield self._bad(number, Problem("malformed", found))

    def _header(self, cells: list[str] | Problem) -> tuple[list[str], Fields]:
        if isinstance(cells, Problem):
            raise DataError(f"{readable(self.name)}:1: {cells.reason}")
        header = [name.strip() for name in cells]
        fields = self.columns.find(header, self.kinds, readable(self.name))
        fields.check_unique(header, readable(self.name))
        return header, fields


class _Lines:
    """Lines for `csv.reader`; counts them, and tracks the lines and quotes of the current row."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines, self._again = lines, deque[str | None]()
        self._row: list[str | None] = []
        self.number = 0
        self.quotes = 0

    def start_row(self) -> int:
        """Start a new row. Returns the number of its first line."""
        self._row, self.quotes = [], 0
        return self.number + 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._next()
        self._row.append(line)
        if line is None:
            raise csv.Error(f"a line exceeds the limit of {MAX_LINE:,} characters")
        return line

    def _next(self) -> str | None:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self.quotes += 0 if line is None else line.count('"')
        return line

    def skip_cell(self) -> None:
        """Skip the lines up to the quote that ends the current cell, or to the end of the file."""
        with suppress(StopIteration):
            while self.quotes % 2:
                self._next()

    def go_back(self) -> None:
        """Read the lines after the first line of the row again."""
        self._again.extendleft(reversed(self._row[1:]))
        self.number -= len(self._row) - 1


def _rows(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """Yield the rows of a CSV file, each with the number of its first line."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    # Strict: otherwise, an unpaired quote would swallow all rows up to the next quote.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = lines.start_row()
        try:
            cells = next(reader)
            yield start, cells if _HAS_NUL else [cell.replace(_NUL, "\0") for cell in cells]
        except StopIteration:
            return
        except csv.Error as error:
            found = str(error)
            if "limit" in found:
                lines.skip_cell()
            if lines.number > start and ("limit" not in found or lines.quotes % 2):
                found += f"; a quote in lines {start} to {lines.number} is not closed"
            if "limit" not in found:
                lines.go_back()
            reason = (
                f"is not valid CSV ({found}). Expected fields delimited by {delimiter!r}. Put "
                'fields with delimiters, quotes or newlines in "quotes", and double inner quotes.'
            )
            yield start, Problem("malformed", reason)


def _delimiter(header: str, usual: str, known: set[str]) -> str:
    """Guess the delimiter: it gives the most known column names, then the most columns.

    Only the header is used, because captions are full of commas.
    """

    def fitness(delimiter: str) -> tuple[int, int, bool]:
        try:
            lines = io.StringIO(header, newline="")
            cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
        except csv.Error:
            return 0, 0, delimiter == usual
        named = sum(cell.strip().casefold() in known for cell in cells)
        return named, len(cells), delimiter == usual

    return max((",", ";", "\t"), key=fitness)


def json_object(source: str | bytes) -> dict[str, Any] | Problem:
    """Parse one JSON object."""
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        return Problem("malformed", f"is not JSON ({error}). Expected one JSON object.")
    if not isinstance(value, dict):
        return Problem("malformed", f"is {reprlib.repr(value)}. Expected a JSON object.")
    return value
