"""Tables of captions: CSV, TSV or JSON lines, one row per caption."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mwa_export.data.fields import (
    MAX_ID,
    Groups,
    caption_fields,
    json_rows,
    names,
    split_is_empty,
    text_field,
    text_lines,
)
from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import DataError
from mwa_export.inputs.pictures import Picture

CSV_SUFFIXES = {".csv", ".tsv"}
JSONL_SUFFIXES = {".jsonl", ".ndjson"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a table's columns."""

    image: str = "image"
    caption: str = "caption"
    image_id: str | None = None  # None: each picture file is one picture


DEFAULT_COLUMNS = Columns()


def read_table(
    path: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    columns: Columns = DEFAULT_COLUMNS,
) -> RetrievalData:
    """Read a table. Whether the pictures exist is not looked at.

    Args:
        path: a `.csv`, `.tsv` or `.jsonl` file. A row of JSON may hold a list `captions`.
        split: only rows with this value in the column `split`. May be left out if the table has
            no such column, or one value in it.
        images: folder of the pictures; the file's own folder if not given.
        columns: names of the columns.

    Raises:
        DataError: not such a file, a missing column, a blank field, a picture with two ids.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    is_json = path.suffix.lower() in JSONL_SUFFIXES
    groups = Groups(path)
    owners: dict[Picture, str] = {}
    splits: set[str] = set()
    for where, record in json_rows(path) if is_json else _csv_rows(path, columns):
        if split is not None:
            splits.add(found := _split(record, where))
            if found != split:
                continue
        elif record.get("split"):
            splits.add(str(record["split"]))
        picture = Picture(root / _field(record, columns.image, "image", where))
        row = _picture_row(groups, owners, picture, record, columns.image_id, where)
        if is_json:
            captions = caption_fields(record, columns.caption, where)
        else:
            captions = [_field(record, columns.caption, "caption", where)]
        groups.add_captions(row, captions)
    if split is not None and splits and split not in splits:
        raise split_is_empty(path, split, splits)
    if split is None and len(splits) > 1:
        raise DataError(
            f"{path}: has the splits {names(sorted(splits))}. Expected to be told which: --split"
        )
    name = str(path) if split is None else f"{path}, split {split}"
    return groups.data(name, None if columns.image_id is None else _numbers(groups.keys))


def _picture_row(
    groups: Groups,
    owners: dict[Picture, str],
    picture: Picture,
    record: dict[str, Any],
    column: str | None,
    where: str,
) -> int:
    if column is None:
        return groups.find_or_add(picture, picture, where)
    key = _id(record, column, where)
    if owners.setdefault(picture, key) != key:
        raise DataError(
            f"{where}: {picture} has `{column}` {key}, and {owners[picture]} before. "
            "Expected one id for each picture. Correct one of the two."
        )
    return groups.find_or_add(key, picture, where, what=f"`{column}`")


def _field(record: dict[str, Any], column: str, option: str, where: str) -> str:
    if column not in record:
        raise DataError(
            f"{where}: has no `{column}`. It has: {names(record)}. "
            f"Name another with --{option}-column."
        )
    return text_field(record[column], f"`{column}`", where)


def _id(record: dict[str, Any], column: str, where: str) -> str:
    value = record.get(column)
    return str(value) if type(value) is int else _field(record, column, "image-id", where)


def _split(record: dict[str, Any], where: str) -> str:
    if "split" not in record:
        raise DataError(
            f"{where}: has no `split`. It has: {names(record)}. "
            "Expected it because --split was given. Leave that out to read all rows."
        )
    return text_field(record["split"], "`split`", where)


def _numbers(keys: list[Any]) -> list[int] | None:
    """Ids that are all integers, as they are; else None, to number them by first occurrence."""
    if not all(key.isascii() and key.isdecimal() and len(key) < 20 for key in keys):
        return None
    ids = [int(key) for key in keys]
    plain = all(str(number) == key for number, key in zip(ids, keys, strict=True))  # not "007"
    return ids if plain and max(ids, default=0) <= MAX_ID else None


def _csv_rows(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with their places "file:line"; a row of several lines is named by its first."""
    lines = (line for _, line in text_lines(path))
    first = next(lines, "")
    if not first.strip():
        raise DataError(f"{path}:1: is blank. Expected a header with the names of the columns.")
    delimiter = _delimiter(first, path)
    # Strict, as an unpaired quote would otherwise swallow rows up to the next one.
    reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = [name.strip() for name in next(reader)]
        _check_header(header, columns, path)
        start = reader.line_num + 1
        for fields in reader:
            where = f"{path}:{start}"
            start = reader.line_num + 1
            if not fields:  # a blank line
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{where}: has {len(fields)} fields, delimited by {delimiter!r}. Expected "
                    f"{len(header)}, as the header has. Put quotes around captions that hold it."
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}:{start}: is not CSV ({error}). Expected fields delimited by {delimiter!r}; "
            'those that hold it, quotes or newlines in "quotes", with inner ones doubled.'
        ) from error


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _check_header(header: list[str], columns: Columns, path: Path) -> None:
    wanted = {"--image-column": columns.image, "--caption-column": columns.caption}
    if columns.image_id is not None:
        wanted["--image-id-column"] = columns.image_id
    missing = {option: column for option, column in wanted.items() if column not in header}
    if missing:
        raise DataError(
            f"{path}: has no column {names(missing.values())}. It has: {names(header)}. "
            f"Name another with {names(missing)}."
        )
    if repeated := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{path}: has columns of the same name: {names(repeated)}. Rename them.")


def _delimiter(header: str, path: Path) -> str:
    """Only the header is looked at: captions are full of commas."""
    try:
        return csv.Sniffer().sniff(header, delimiters=",;\t").delimiter
    except csv.Error:
        return "\t" if path.suffix.lower() == ".tsv" else ","
