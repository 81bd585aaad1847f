"""Records with named fields, from CSV, JSON lines or one JSON document, as rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mwa_export.data.fields import names
from mwa_export.data.files import open_file, place_of, readable
from mwa_export.data.lines import byte_lines
from mwa_export.data.spool import Entry, text_entry
from mwa_export.data.tables import JSONL_SUFFIXES
from mwa_export.errors import DataError
from mwa_export.inputs.content import Code, Kind, Problem


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record are used."""

    kind: Kind
    content: tuple[str, ...]  # the first of these that there is
    id: str | None = None
    columns: tuple[str, ...] = ()

    def content_of(self, found: Mapping[str, Any] | list[str], where: str) -> str:
        """The field with the content, once all that are named are found.

        Raises:
            DataError: one is missing.
        """
        content = next((name for name in self.content if name in found), None)
        wanted = [*self.columns, *([] if self.id is None else [self.id])]
        missing = [name for name in wanted if name not in found]
        if content is None:
            missing.insert(0, " or ".join(self.content))
        if content is None or missing:
            raise DataError(
                f"{where}: has no column {names(missing)}. It has: {names(found)}. "
                "Name columns that it has."
            )
        return content

    def entry(self, record: Mapping[str, Any], content: str, number: int, root: str) -> Entry:
        """A record's row. Its id is the named field, a picture's path, or the row number."""
        given = None if self.id is None else record.get(self.id)
        columns = tuple(record.get(name) for name in self.columns)
        value = record.get(content)
        if self.kind == "text":
            return text_entry(str(number) if given is None else str(given), value, columns)
        is_path = isinstance(value, str) and bool(value.strip())
        id = str(given) if given is not None else str(value) if is_path else str(number)
        if not is_path:
            reason = f"`{content}` is {type(value).__name__}, or blank. No path."
            code: Code = "null" if value is None else "not-a-picture"
            return id, None, columns, Problem(code, reason)
        place, problem = place_of(root, str(value))
        return readable_id(id), place, columns, problem


def readable_id(id: str) -> str:
    """An id that can be stored: lone surrogates are escaped."""
    return id.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class TableReader:
    """A CSV, TSV or JSON lines file.

    A line that cannot be parsed is one failed row, named `line N`; an unpaired quote takes the
    lines up to the next quote with it, as CSV has no other end for it. A named column that a CSV
    header, or the first object of JSON lines, does not have is an error of the whole source;
    where a later object lacks it, the cell is null.
    """

    name: str
    root: str
    fields: Fields

    def entries(self) -> Iterator[Entry]:
        """Every record."""
        suffix = os.path.splitext(self.name)[1].lower()
        records = self._json() if suffix in JSONL_SUFFIXES else self._csv(suffix)
        content: str | None = None
        for number, (line, record, problem) in enumerate(records):
            if record is None:
                nothing = tuple(None for _ in self.fields.columns)
                malformed = Problem("malformed", f"line {line}: {problem}")
                yield f"line {line}", None, nothing, malformed
                continue
            if content is None:
                content = self.fields.content_of(record, f"{readable(self.name)}:{line}")
            yield self.fields.entry(record, content, number, self.root)

    def _json(self) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
        for line, data in enumerate(byte_lines(self.name), 1):
            if data is None:
                yield line, None, "too long."
            elif data.strip():
                try:
                    record = json.loads(data)
                except (ValueError, RecursionError) as error:
                    yield line, None, f"is not JSON ({error})."
                    continue
                good = isinstance(record, dict)
                yield line, record if good else None, "is no JSON object."

    def _csv(self, suffix: str) -> Iterator[tuple[int, dict[str, str] | None, str]]:
        lines = ("\0" if b is None else os.fsdecode(b) + "\n" for b in byte_lines(self.name))
        header_line = next(lines, "")
        delimiter = "\t" if suffix == ".tsv" or "\t" in header_line else ","
        if delimiter not in header_line and ";" in header_line:
            delimiter = ";"
        header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
        self.fields.content_of(header, readable(self.name))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 2
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, None, f"is not CSV ({error})."
                continue
            if len(cells) == len(header):
                yield line, dict(zip(header, cells, strict=True)), ""
            elif cells:
                yield line, None, f"has {len(cells)} fields. Expected {len(header)}."


@dataclass(frozen=True, slots=True)
class KarpathyReader:
    """Karpathy's or COCO's JSON of pictures and captions. The document is parsed in memory.

    A picture's id is its file name, a caption's is that name, `#` and its number from 0.
    """

    name: str
    root: str
    kind: Kind
    split: str | None = None  # of Karpathy's; None: all

    def entries(self) -> Iterator[Entry]:
        """Every picture or caption."""
        try:
            with open_file(self.name) as file:
                document = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{readable(self.name)}: is not JSON ({error}).") from error
        pictures = document.get("images") if isinstance(document, dict) else None
        if not isinstance(pictures, list) or not all(isinstance(p, dict) for p in pictures):
            raise DataError(
                f"{readable(self.name)}: has no list `images` of objects. Expected the JSON of "
                "COCO, or Karpathy's."
            )
        captions: dict[Any, list[Any]] = {}
        for item in document.get("annotations") or ():
            if isinstance(item, dict):
                captions.setdefault(str(item.get("image_id")), []).append(item.get("caption"))
        for number, picture in enumerate(pictures):
            if self.split is None or picture.get("split") == self.split:
                yield from self._rows(picture, number, captions)

    def _rows(
        self, picture: dict[str, Any], number: int, captions: dict[Any, list[Any]]
    ) -> Iterator[Entry]:
        file_name = picture.get("filename") or picture.get("file_name")
        named = isinstance(file_name, str)
        id = readable_id(str(file_name)) if named else f"images[{number}]"
        if self.kind == "image":
            if not named:
                nameless = "has no `filename` and no `file_name`."
                yield id, None, (), Problem("malformed", nameless)
                return
            path = os.path.join(str(picture.get("filepath") or ""), str(file_name))
            place, problem = place_of(self.root, path)
            yield id, place, (), problem
            return
        sentences = picture.get("sentences")
        found = captions.get(str(picture.get("id")), [])
        if isinstance(sentences, list):
            found = [s.get("raw") if isinstance(s, dict) else None for s in sentences]
        for n, text in enumerate(found):
            yield text_entry(f"{id}#{n}", text)
