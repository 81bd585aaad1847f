"""Tables: CSV, TSV and JSON lines, among them the indexes of BEiT-3."""

from __future__ import annotations

import csv
import io
import json
import reprlib
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
_SAMPLE = 100  # JSON lines that show the fields
_HEADER_LINES = 100  # that a header may have, because of line ends in quotes


@dataclass(frozen=True, slots=True)
class TableReader:
    """A CSV, TSV or JSON lines file.

    A line that cannot be parsed is a problem of its own, named `line N`. Where the lines of a row
    are no row because of a quote, the first is the problem, and the others are read again; a cell
    above the limit takes the lines up to the next quote with it. A column that a CSV header, or
    the first 100 objects of JSON lines, do not have is an error of the whole table; where another
    object lacks it, the value is null.
    """

    name: str
    root: str
    columns: Columns
    kinds: tuple[Kind, ...]  # what the records need

    def records(self) -> Iterator[Record]:
        """Every row."""
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
        """The fields of a table whose first objects these are. Not every object has each."""
        there = list(dict.fromkeys(chain.from_iterable(objects)))
        index = index_fields(objects[0], there, self.columns, self.kinds, where)
        return index or self.columns.find(there, self.kinds, where)

    def _csv(self, suffix: str) -> Iterator[Record]:
        lines, first = text_lines(self.name), ""
        for line in islice(lines, _HEADER_LINES):
            first += line or ""
            if first.count('"') % 2 == 0:
                break
        if not first.strip():
            raise DataError(
                f"{readable(self.name)}:1: is blank. Expected a header with the names of the "
                "columns."
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
            elif cells:  # else a blank line
                found = (
                    f"has {len(cells)} fields, delimited by {delimiter!r}. Expected {len(header)}, "
                    "as the header has. Put quotes around captions that hold it."
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
    """Lines for `csv.reader`, counted, with the quotes and lines of the current row."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines, self._again = lines, deque[str | None]()
        self._row: list[str | None] = []
        self.number = 0
        self.quotes = 0

    def start_row(self) -> int:
        """Number of the line that comes next."""
        self._row, self.quotes = [], 0
        return self.number + 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._next()
        self._row.append(line)
        if line is None:
            raise csv.Error(f"a line above the limit of {MAX_LINE:,} characters")
        return line

    def _next(self) -> str | None:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self.quotes += 0 if line is None else line.count('"')
        return line

    def skip_cell(self) -> None:
        """Pass over the lines up to the quote that ends the current cell, or to the end."""
        with suppress(StopIteration):
            while self.quotes % 2:
                self._next()

    def go_back(self) -> None:
        """Read again the lines after the first of the row."""
        self._again.extendleft(reversed(self._row[1:]))
        self.number -= len(self._row) - 1


def _rows(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """Rows of CSV, each with the number of its first line."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    # Strict, as an unpaired quote would otherwise swallow rows up to the next one.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = lines.start_row()
        try:
            yield start, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = str(error)
            if "limit" in found:
                lines.skip_cell()
            if lines.number > start and ("limit" not in found or lines.quotes % 2):
                found += f"; in lines {start} to {lines.number} a quote is not closed"
            if "limit" not in found:
                lines.go_back()
            reason = (
                f"is not CSV ({found}). Expected fields delimited by {delimiter!r}; those that "
                'hold it, quotes or newlines in "quotes", with inner ones doubled.'
            )
            yield start, Problem("malformed", reason)


def _delimiter(header: str, usual: str, known: set[str]) -> str:
    """The delimiter with which a header has the most known names, then the most names at all.

    Only the header is looked at: captions are full of commas.
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
