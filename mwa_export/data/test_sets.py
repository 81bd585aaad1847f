"""Which reader a test set needs, and what to do about pictures that are not on disk."""

from __future__ import annotations

import os
from pathlib import Path

from mwa_export.data.fields import json_rows, names, unreadable
from mwa_export.data.index import read_index
from mwa_export.data.karpathy import read_karpathy
from mwa_export.data.tables import (
    CSV_SUFFIXES,
    DEFAULT_COLUMNS,
    JSONL_SUFFIXES,
    Columns,
    read_table,
)
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.webdataset import read_webdataset
from mwa_export.errors import DataError

__all__ = ["Columns", "read_data"]

_TABLES = CSV_SUFFIXES | JSONL_SUFFIXES
_COMPRESSED = {".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip"}
_FORMS = (
    "Expected one of: a Karpathy JSON (.json); an index of BEiT-3 (.jsonl); a table of captions "
    "(.csv, .tsv or .jsonl), or a folder with one; a WebDataset (.tar), or a folder of such tars."
)


def read_data(
    path: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    columns: Columns = DEFAULT_COLUMNS,
    max_excluded: int = 0,
) -> RetrievalData:
    """Read a retrieval test set of any form we know.

    Args:
        path: the file or folder.
        split: for a Karpathy JSON ("test" if not given) or the column `split` of a table.
        images: folder of the pictures; the file's own folder if not given.
        columns: names of a table's columns.
        max_excluded: how many pictures may be missing on disk. The set's ``excluded`` lists them.

    Raises:
        DataError: none of the forms, malformed, incomplete, an option that the form does not
            have, or more pictures missing than allowed.
    """
    path = Path(path)
    if images is not None and not Path(images).is_dir():
        raise DataError(f"{images}: no such folder. Expected the pictures' folder (--images).")
    data = _read(path, split, images, columns)
    # os.path: Path.is_file raises where a name is too long.
    missing = [
        row
        for row, picture in enumerate(data.pictures)
        if picture.member is None and not os.path.isfile(picture.path)
    ]
    if len(missing) > max_excluded:
        first = names((data.pictures[row] for row in missing[:3]), 3)
        raise DataError(
            f"{data.name}: {len(missing)} of {len(data.pictures)} pictures are missing, the first: "
            f"{first}. Give the right picture folder (--images), or leave them and their captions "
            f"out (--max-excluded {len(missing)})."
        )
    return data.without(dict.fromkeys(missing, "no such file"))


def _read(path: Path, split: str | None, images: Path | None, columns: Columns) -> RetrievalData:
    file = _find(path)
    suffix = file.suffix.lower()
    if suffix in CSV_SUFFIXES or (suffix in JSONL_SUFFIXES and not _is_index(file, columns)):
        return read_table(file, split=split, images=images, columns=columns)
    if columns != DEFAULT_COLUMNS:
        raise DataError(
            f"{file}: has no columns. Only tables have (.csv, .tsv, .jsonl). Leave out "
            "--image-column, --caption-column and --image-id-column."
        )
    if suffix == ".json":
        return read_karpathy(file, split=split, images=images)
    is_index = suffix in JSONL_SUFFIXES
    form = "an index of BEiT-3" if is_index else "a WebDataset"
    if split is not None:
        raise DataError(
            f"{file}: is {form}, which has no splits: the file is one. Leave out --split {split}, "
            "and name the file of that split."
        )
    if is_index:
        return read_index(file, images=images)
    if images is not None:
        raise DataError(f"{file}: is {form}, which holds its pictures. Leave out --images.")
    return read_webdataset(file)


def _is_index(path: Path, columns: Columns) -> bool:
    if columns != DEFAULT_COLUMNS:  # who names columns means a table
        return False
    for _, keys in json_rows(path):
        # An index may lack the text, for which the index's reader has the better message.
        return "text_segment" in keys or ("image_path" in keys and columns.image not in keys)
    raise DataError(f"{path}: is empty. {_FORMS}")


def _find(path: Path) -> Path:
    """The file to read; for tars, maybe their folder."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. {_FORMS}")
    if path.is_dir():
        return _find_in_folder(path)
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        raise DataError(f"{path}: is compressed. Expected plain files. Decompress it. {_FORMS}")
    if suffix not in _TABLES | {".json", ".tar"}:
        raise DataError(f"{path}: is a {suffix or 'nameless'} file. {_FORMS}")
    return path


def _find_in_folder(folder: Path) -> Path:
    try:
        files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from error
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    tables = [file for file in files if file.suffix.lower() in _TABLES]
    if tars and len(tars) == len(files):
        return folder
    if tars:
        others = names((file.name for file in files if file not in tars), 3)
        raise DataError(f"{folder}: has {len(tars)} tars and other files: {others}. {_FORMS}")
    if len(tables) > 1:
        found = names(file.name for file in tables)
        raise DataError(f"{folder}: has {len(tables)} tables: {found}. Name the file itself.")
    if not tables:
        found = names((file.name for file in files), 5)
        raise DataError(f"{folder}: is a folder without a table or tars (files: {found}). {_FORMS}")
    return tables[0]
