"""Test sets for everything that measures recall; a bad record is an error."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mwa_export.data.addresses import (
    confined,
    joined,
    local_name,
    located,
    public,
    suffix_of,
)
from mwa_export.data.fields import Columns, Reader, Record, escaped, names, of_split
from mwa_export.data.files import exists, expanded, files_in, is_folder, readable
from mwa_export.data.karpathy import KarpathyReader
from mwa_export.data.places import picture_of
from mwa_export.data.readers import TABLES, reader_of
from mwa_export.data.tars import TarReader
from mwa_export.data.test_set import Groups, RetrievalData
from mwa_export.errors import DataError
from mwa_export.inputs.content import Problem, Readable
from mwa_export.inputs.pictures import Picture

_SHARDS = (".tar", ".parquet")
_FORMS = (
    "Expected one of: a Karpathy or COCO JSON (.json); an index of BEiT-3 (.jsonl); a table of "
    "captions (.csv, .tsv or .jsonl), or a folder with one, each also as .gz or .zst; Parquet or "
    "a WebDataset (.parquet, .tar), or a folder of such files."
)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How a test set is read. A column that is not named is found by its usual names."""

    image_column: str | None = None
    caption_column: str | None = None
    image_id_column: str | None = None  # None: each picture file is one picture
    split: str | None = None  # None: "test" of a Karpathy JSON, else the only one
    images: str | Path | None = None  # folder of the pictures; None: the data's own
    max_excluded: int = 0  # pictures that may be missing; the set's ``excluded`` lists them

    @property
    def columns(self) -> Columns:
        """The names of columns."""
        return Columns(self.image_column, self.caption_column, self.image_id_column)


TestSet = RetrievalData | str | os.PathLike[str]
"""A test set, or the path of one."""


def as_test_set(data: TestSet | None) -> RetrievalData | None:
    """Read a test set unless it is read already."""
    return data if data is None or isinstance(data, RetrievalData) else read_data(data)


def read_data(path: str | os.PathLike[str], options: DataOptions | None = None) -> RetrievalData:
    """Read a retrieval test set of any form we know: a file, a folder, or what fsspec opens.

    Raises:
        DataError: none of the forms, malformed, incomplete, an option that the form does not
            have, or more pictures missing than allowed.
    """
    options = options or DataOptions()
    data = parse_data(path, options)
    missing = [
        row
        for row, picture in enumerate(data.pictures)
        # Remote pictures are not looked for: that would be a round trip for each.
        # os.path: Path.is_file raises where a name is too long.
        if isinstance(picture, Picture)
        and picture.member is None
        and not os.path.isfile(picture.path)
    ]
    if len(missing) > options.max_excluded:
        first = names((data.pictures[row] for row in missing[:3]), 3)
        raise DataError(
            f"{data.name}: {len(missing)} of {len(data.pictures)} pictures are missing, the first: "
            f"{first}. Give the folder that they are in (`images`), or leave them and their "
            f"captions out: `max_excluded={len(missing)}`"
        )
    return data.without(dict.fromkeys(missing, "no such file"))


def parse_data(path: str | os.PathLike[str], options: DataOptions | None = None) -> RetrievalData:
    """Parse a test set, as `read_data` does. Whether the pictures exist is not looked at."""
    options, spec = options or DataOptions(), local_name(str(path))
    name = readable(spec)
    images = confined(spec, None if options.images is None else str(options.images))
    if images is not None and not is_folder(images):
        raise DataError(f"{images}: no such folder. Expected the folder of the pictures: `images`")
    files = _find(spec)
    reader = reader_of(files[0], files, options.columns, ("image", "text"), images)
    assert reader is not None  # `_find` knows the forms
    return _grouped(reader, readable(files[0]) if len(files) == 1 else name, options)


def _grouped(reader: Reader, path: str, options: DataOptions) -> RetrievalData:
    """Captions by picture. The first problem is an error."""
    records, split = reader.records(), options.split
    if split is None and isinstance(reader, KarpathyReader):
        records = iter(entries := list(records))
        split = "test" if any(record.split for record in entries) else None
    records = _one_split(records, path) if split is None else of_split(records, split, path)
    groups, owners = Groups(path), dict[Readable, str]()
    once, numbered = isinstance(reader, KarpathyReader | TarReader), isinstance(reader, TarReader)
    for record in records:
        for part in (record.problem, record.image, *record.captions, record.image_id):
            if isinstance(part, Problem):
                raise DataError(f"{escaped(record.where)}: {part.reason}")
        captions = [part for part in record.captions if not isinstance(part, Problem)]
        picture = _picture(record, reader.root)
        id = record.key if isinstance(reader, TarReader) else _id(record, options.image_id_column)
        if id and options.image_id_column and owners.setdefault(picture, id) != id:
            raise DataError(
                f"{record.where}: {picture} has the id {id}, and {owners[picture]} before. "
                "Expected one id for each picture. Correct one of the two."
            )
        numbered |= id is None
        groups.add(id or str(picture), picture, captions, record.where, once=once)
    name = path if split is None else f"{path}, split {split}"
    return groups.data(name, numbered=numbered)


def _one_split(records: Iterable[Record], path: str) -> Iterator[Record]:
    """All records, which must not be of several splits."""
    splits: set[str] = set()
    for record in records:
        yield record
        if record.split is not None:
            splits.add(record.split)
    if len(splits) > 1:
        raise DataError(f"{path}: has the splits {names(sorted(splits))}. Name one of them.")


def _picture(record: Record, root: str) -> Readable:
    image = record.image
    if isinstance(image, str):
        full = located(root, image)
        if isinstance(full, Problem):
            raise DataError(f"{escaped(record.where)}: {full.reason}")
        return picture_of("", full)
    if isinstance(image, list):
        tar, _size, _changed, *member = image
        return picture_of(root, tar, *member)
    return cast("Readable", image)


def _id(record: Record, column: str | None) -> str | None:
    """The id of a record's picture; None: its path identifies it."""
    value = record.image_id
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return public(str(value))
    if column is None:
        return None
    found = "missing" if value is None else reprlib.repr(value)
    raise DataError(
        f'{record.where}: "{column}" is {found}. Expected a text or an integer as the image id.'
    )


def _find(spec: str) -> list[str]:
    """The file to read, or several tars or Parquet files."""
    if is_folder(spec):
        if (files := expanded(spec)) != [spec] and "=" in files[0]:
            return files  # folders as Hive names them
        return [joined(spec, name) for name in _find_in_folder(spec, files_in(spec))]
    suffix = suffix_of(spec)
    files = expanded(spec)
    if files == [spec] and not exists(spec):
        raise DataError(f"{readable(spec)}: no such file or folder. {_FORMS}")
    if suffix not in {*TABLES, *_SHARDS, ".json"}:
        raise DataError(f"{readable(spec)}: is a {suffix or 'nameless'} file. {_FORMS}")
    return files


def _find_in_folder(folder: str, files: list[str]) -> list[str]:
    where = readable(folder)
    for suffix in _SHARDS:
        shards = [name for name in files if suffix_of(name) == suffix]
        if shards and len(shards) == len(files):
            return shards
        if shards:
            others = names((name for name in files if name not in shards), 3)
            raise DataError(
                f"{where}: has {len(shards)} {suffix} and other files: {others}. {_FORMS}"
            )
    tables = [name for name in files if suffix_of(name) in TABLES]
    if len(tables) > 1:
        found = names(tables)
        raise DataError(f"{where}: has {len(tables)} tables: {found}. Name the file itself.")
    if not tables:
        found = names(files, 5)
        raise DataError(f"{where}: is a folder without a table or tars (files: {found}). {_FORMS}")
    return tables
