"""The reader of a collection that has records with fields, by the extension of its name."""

from __future__ import annotations

from mwa_export.data.addresses import folder_of, split_glob, suffix_of
from mwa_export.data.fields import Columns, Reader, holds_pictures
from mwa_export.data.files import readable
from mwa_export.data.karpathy import KarpathyReader
from mwa_export.data.parquet import ParquetReader
from mwa_export.data.tables import CSV_SUFFIXES, JSONL_SUFFIXES, TableReader
from mwa_export.data.tars import TarReader
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind

TABLES = CSV_SUFFIXES | JSONL_SUFFIXES


def reader_of(
    spec: str, files: list[str], columns: Columns, kinds: tuple[Kind, ...], images: str | None
) -> Reader | None:
    """The reader of a table, JSON document, Parquet files or tars; None for another form.

    ``files``: what ``spec`` stands for, see `files.expanded`. ``images``: folder of the pictures;
    None: the collection's own.

    Raises:
        DataError: columns or a folder of pictures are named, and the form has none.
    """
    suffix = suffix_of(files[0]) if files else ""
    root = folder_of(spec) if images is None else images
    if suffix == ".parquet":
        return ParquetReader(tuple(files), columns, kinds, images)
    if suffix == ".tar":
        if images is not None:
            raise DataError(f"{readable(spec)}: {holds_pictures(kinds)}")
        return TarReader(tuple(files), columns, kinds)
    if suffix in {*TABLES, ".json"} and (files != [spec] or split_glob(spec)[1]):
        raise DataError(
            f"{readable(spec)}: stands for several tables. A glob is for pictures, .txt files, "
            "tars and Parquet files. Name one table."
        )
    if suffix in TABLES:
        return TableReader(spec, root, columns, kinds)
    if suffix == ".json":
        columns.refuse(readable(spec), kinds)
        return KarpathyReader(spec, root)
    return None
