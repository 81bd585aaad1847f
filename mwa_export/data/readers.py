"""Choose the reader of a table, JSON document, Parquet files or tars by extension."""

from __future__ import annotations

from mwa_export.data.addresses import folder_of, packing_of, split_glob, suffix_of
from mwa_export.data.fields import Columns, Reader, holds_pictures
from mwa_export.data.files import readable
from mwa_export.data.karpathy import KarpathyReader
from mwa_export.data.parquet import ParquetReader
from mwa_export.data.tables import CSV_SUFFIXES, JSONL_SUFFIXES, TableReader
from mwa_export.data.tars import TarReader
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind
from mwa_export.optional import check_installed

TABLES = CSV_SUFFIXES | JSONL_SUFFIXES


def reader_of(
    spec: str, files: list[str], columns: Columns, kinds: tuple[Kind, ...], images: str | None
) -> Reader | None:
    """Return the reader of a table, JSON document, Parquet files or tars; None for other formats.

    Args:
        spec: the file, folder, glob or URL that the user gave.
        files: what ``spec`` expands to, see `files.expanded`.
        columns: the user's names of columns.
        kinds: what the records need.
        images: folder of the images; None: that of the data.

    Raises:
        DataError: columns or a folder of images are given, but the format does not have them.
    """
    suffix = suffix_of(files[0]) if files else ""
    if suffix == ".parquet":
        check_installed("pyarrow")
    if any(packing_of(name) == ".zst" for name in files):
        check_installed("pyarrow", why="read .zst files")
    root = folder_of(spec) if images is None else images
    if suffix == ".parquet":
        return ParquetReader(tuple(files), columns, kinds, images)
    if suffix == ".tar":
        if images is not None:
            raise DataError(f"{readable(spec)}: {holds_pictures(kinds)}")
        return TarReader(tuple(files), columns, kinds)
    if suffix in {*TABLES, ".json"} and (files != [spec] or split_glob(spec)[1]):
        raise DataError(
            f"{readable(spec)}: matches several tables. Expected one table. Globs are supported "
            "for images, .txt files, tars and Parquet files."
        )
    if suffix in TABLES:
        return TableReader(spec, root, columns, kinds)
    if suffix == ".json":
        columns.refuse(readable(spec), kinds)
        return KarpathyReader(spec, root)
    return None
