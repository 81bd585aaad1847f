"""Read test sets to measure recall on. A malformed record is an error."""

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
    "Expected one of: a Karpathy or COCO JSON (.json); a BEiT-3 index (.jsonl); a table of "
    "captions (.csv, .tsv or .jsonl) or a folder with one; each also as .gz or .zst; Parquet or "
    "WebDataset files (.parquet, .tar) or a folder of them."
)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How a test set is read. A column without a given name is found by its usual names."""

    image_column: str | None = None
    caption_column: str | None = None
    image_id_column: str | None = None  # None: the path identifies an image
    split: str | None = None  # None: "test" in a Karpathy JSON, otherwise the only one
    images: str | Path | None = None  # folder of the images; None: that of the data
    max_excluded: int = 0  # how many images may be missing; the set's ``excluded`` lists them

    @property
    def columns(self) -> Columns:
        """The names of columns."""
        return Columns(self.image_column, self.caption_column, self.image_id_column)


TestSet = RetrievalData | str | os.PathLike[str]
"""A test set or its path."""


def as_test_set(data: TestSet | None) -> RetrievalData | None:
    """Read a test set, unless it is already read or None."""
    return data if data is None or isinstance(data, RetrievalData) else read_data(data)


def read_data(path: str | os.PathLike[str], options: DataOptions | None = None) -> RetrievalData:
    """Read a retrieval test set in any supported format: a file, a folder, or a URL for fsspec.

    Raises:
        DataError: the format is not supported, the data is malformed or incomplete, an option does
            not apply to the format, or more images are missing than allowed.
    """
    options = options or DataOptions()
    data = parse_data(path, options)
    missing = [
        row
        for row, picture in enumerate(data.pictures)
        # Remote images are not checked, which would take a request each.
        # os.path, because Path.is_file raises if a name is too long.
        if isinstance(picture, Picture)
        and picture.member is None
        and not os.path.isfile(picture.path)
    ]
    if len(missing) > options.max_excluded:
        first = names((data.pictures[row] for row in missing[:3]), 3)
        raise DataError(
            f"{data.name}: {len(missing)} of {len(data.pictures)} images are missing, such as "
            f"{first}. Pass their folder with `images`, or pass `max_excluded={len(missing)}` to "
            "leave them and their captions out."
        )
    return data.without(dict.fromkeys(missing, "no such file"))


def parse_data(path: str | os.PathLike[str], options: DataOptions | None = None) -> RetrievalData:
    """Parse a test set like `read_data`, without checking that the images exist."""
    options, spec = options or DataOptions(), local_name(str(path))
    name = readable(spec)
    images = confined(spec, None if options.images is None else str(options.images))
    if images is not None and not is_folder(images):
        raise DataError(f"{images}: no such folder. Pass the folder of the images with `images`.")
    files = _find(spec)
    reader = reader_of(files[0], files, options.columns, ("image", "text"), images)
    assert reader is not None  # `_find` knows the forms
    return _grouped(reader, readable(files[0]) if len(files) == 1 else name, options)


def _grouped(reader: Reader, path: str, options: DataOptions) -> RetrievalData:
    """Group captions by image. The first problem is raised as an error."""
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
                f"{record.where}: {picture} has the id {id}, but {owners[picture]} in an earlier "
                "record. Expected one id per image. Correct one of the two."
            )
        numbered |= id is None
        groups.add(id or str(picture), picture, captions, record.where, once=once)
    name = path if split is None else f"{path}, split {split}"
    return groups.data(name, numbered=numbered)


def _one_split(records: Iterable[Record], path: str) -> Iterator[Record]:
    """Yield all records. Raise DataError if they belong to several splits."""
    splits: set[str] = set()
    for record in records:
        yield record
        if record.split is not None:
            splits.add(record.split)
    if len(splits) > 1:
        raise DataError(
            f"{path}: has the splits {names(sorted(splits))}. Pass one of them as `split`."
        )


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
    """Return the id of a record's image; None if its path identifies it."""
    value = record.image_id
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return public(str(value))
    if column is None:
        return None
    found = "missing" if value is None else reprlib.repr(value)
    raise DataError(
        f'{record.where}: "{column}" is {found}. Expected an image id, a text or an integer.'
    )


def _find(spec: str) -> list[str]:
    """Return the file to read, or several tars or Parquet files."""
    if is_folder(spec):
        if (files := expanded(spec)) != [spec] and "=" in files[0]:
            return files  # folders named in Hive style
        return [joined(spec, name) for name in _find_in_folder(spec, files_in(spec))]
    suffix = suffix_of(spec)
    files = expanded(spec)
    if files == [spec] and not exists(spec):
        raise DataError(f"{readable(spec)}: no such file or folder. {_FORMS}")
    if suffix not in {*TABLES, *_SHARDS, ".json"}:
        found = f"is a {suffix} file" if suffix else "has no extension"
        raise DataError(f"{readable(spec)}: {found}. {_FORMS}")
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
                f"{where}: has {len(shards)} {suffix} files and other files: {others}. {_FORMS}"
            )
    tables = [name for name in files if suffix_of(name) in TABLES]
    if len(tables) > 1:
        found = names(tables)
        raise DataError(f"{where}: has {len(tables)} tables: {found}. Pass one of these files.")
    if not tables:
        found = names(files, 5)
        raise DataError(f"{where}: is a folder without a table or tars (files: {found}). {_FORMS}")
    return tables
