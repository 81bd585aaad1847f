"""From what follows --images or --texts to the source that reads it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mwa_export.data.files import file_system, is_remote, readable
from mwa_export.data.folders import folder_reader, is_glob
from mwa_export.data.lines import STANDARD_INPUT, LineReader
from mwa_export.data.parquet import ParquetSource
from mwa_export.data.records import Fields, KarpathyReader, TableReader
from mwa_export.data.rows import Source
from mwa_export.data.spool import Reader, SpooledSource
from mwa_export.data.tables import CSV_SUFFIXES, JSONL_SUFFIXES
from mwa_export.data.tars import TarReader
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind

_BRACE = re.compile(r"\{([^{}]*)\}")
_IMAGE_COLUMNS = ("image", "image_path", "path", "file_name", "filename")
_TEXT_COLUMNS = ("text", "caption")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is read. A column that is not named is looked for under its usual names."""

    id_column: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    columns: tuple[str, ...] = ()  # carried along
    split: str | None = None  # of a Karpathy JSON; None: all
    image_root: str | None = None  # folder of the paths in a table or list; None: its own

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SourceOptions:
        """From the command line's values; names it does not know are passed over."""
        given = {name: values[name] for name in cls.__slots__ if values.get(name) is not None}
        if isinstance(columns := given.get("columns"), str):
            given["columns"] = tuple(name.strip() for name in columns.split(",") if name.strip())
        return cls(**given)


def open_source(kind: Kind, spec: str, options: SourceOptions | Mapping[str, Any]) -> Source:
    """The source of a folder, glob, list, table, JSON, Parquet, tars, or `-` for texts.

    A `.txt` is a list, with a text or a path in each line; in a folder or glob of texts each
    `.txt` is one text.

    Which one is told by the extension: `.txt`, `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json`,
    `.parquet`, `.tar`; the last two also as a folder of such files, a glob or `{000..123}`.

    Raises:
        DataError: nothing is there, or this kind cannot be read from it, or columns are asked
            of a source that has none.
    """
    if not isinstance(options, SourceOptions):
        options = SourceOptions.from_values(options)
    if spec == STANDARD_INPUT:
        if kind == "image":
            raise DataError("-: pictures are not read from standard input. Name a folder or file.")
        return _spooled(kind, "standard input", options, LineReader(kind, spec, ""))
    names = _expanded(spec)
    suffix = os.path.splitext(names[0])[1].lower() if names else ""
    root = os.path.dirname(spec) if options.image_root is None else options.image_root
    named = options.image_column if kind == "image" else options.text_column
    usual = _IMAGE_COLUMNS if kind == "image" else _TEXT_COLUMNS
    fields = Fields(kind, usual if named is None else (named,), options.id_column, options.columns)
    if suffix == ".parquet":
        return ParquetSource(kind, readable(spec), tuple(names), fields)
    if suffix == ".tar":
        tars = TarReader(kind, "", tuple(names), options.columns)
        return SpooledSource(kind, readable(spec), options.columns, tars)
    if suffix in CSV_SUFFIXES | JSONL_SUFFIXES:
        table = TableReader(spec, root, fields)
        return SpooledSource(kind, readable(spec), options.columns, table)
    if suffix == ".json":
        return _spooled(kind, spec, options, KarpathyReader(spec, root, kind, options.split))
    if suffix == ".txt" and not is_glob(spec):
        return _spooled(kind, spec, options, LineReader(kind, spec, root))
    found = is_glob(spec) or is_remote(spec) or os.path.isdir(spec)
    if kind == "text" and not found:
        raise DataError(
            f"{readable(spec)}: no texts can be read from this. Expected a .txt, .csv, .tsv, "
            ".jsonl, .json, .parquet or .tar, a folder or glob of .txt files, or - for standard "
            "input."
        )
    return _spooled(kind, spec, options, folder_reader(spec, kind))


def _spooled(kind: Kind, spec: str, options: SourceOptions, reader: Reader) -> Source:
    if options.columns or options.id_column is not None:
        raise DataError(
            f"{readable(spec)}: has no columns. Expected a table where columns are named."
        )
    return SpooledSource(kind, readable(spec), (), reader)


def _expanded(spec: str) -> list[str]:
    """Files of tars or Parquet that are meant, sorted; else the spec itself."""
    if (brace := _BRACE.search(spec)) and not os.path.lexists(spec):
        start, end = spec[: brace.start()], spec[brace.end() :]
        return [n for part in _alternatives(brace[1]) for n in _expanded(start + part + end)]
    for suffix in (".tar", ".parquet"):
        if spec.lower().endswith(suffix) and any(c in spec for c in "*?["):
            return _globbed(spec)
        folder = not is_remote(spec) and os.path.isdir(spec)
        if folder and (found := _globbed(os.path.join(glob.escape(spec), "*" + suffix))):
            return found
    return [spec]


def _globbed(pattern: str) -> list[str]:
    if is_remote(pattern):
        system, path = file_system(pattern)
        found = [str(system.unstrip_protocol(name)) for name in system.glob(path)]
    else:
        found = glob.glob(pattern, recursive=True)
    if not found and not pattern.endswith(("/*.tar", "/*.parquet")):
        raise DataError(f"{readable(pattern)}: matches no file. Expected one at least.")
    return sorted(found)


def _alternatives(text: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        width = len(span[1]) if span[1].startswith("0") else 0
        return [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    return text.split(",")
