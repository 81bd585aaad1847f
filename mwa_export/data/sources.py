"""Open the sources of `embed`. A malformed record becomes a failed row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mwa_export.data.addresses import (
    confined,
    folder_of,
    is_remote,
    local_name,
    path_of,
    suffix_of,
)
from mwa_export.data.fields import Columns, Reader, holds_pictures
from mwa_export.data.files import expanded, is_folder, mixed, readable
from mwa_export.data.folders import FileReader, folder_reader, is_glob, is_picture
from mwa_export.data.lines import STANDARD_INPUT, LineReader
from mwa_export.data.parquet import ParquetReader, ParquetSource
from mwa_export.data.readers import reader_of
from mwa_export.data.remote.access import Access, using
from mwa_export.data.rows import Row, Scan, Source, SourceAround
from mwa_export.data.spool import SpooledSource
from mwa_export.errors import DataError, UsageError, check_option
from mwa_export.inputs.content import Kind
from mwa_export.inputs.formats import extension_of, shown


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is read. A column without a given name is found by its usual names."""

    id_column: str | None = None
    image_column: str | None = None  # in tars, the extension of the image
    text_column: str | None = None
    columns: tuple[str, ...] = ()  # copied to the output
    split: str | None = None  # None: all
    image_root: str | None = None  # folder that paths in a table or list are relative to
    timeout: float = 30.0  # seconds without a byte from a remote server
    retries: int = 4  # of remote reads after temporary failures

    @property
    def access(self) -> Access:
        """How remote files are read."""
        return Access(self.timeout, self.retries)

    def __post_init__(self) -> None:
        _ = self.access  # raises for invalid values
        once = len(set(self.columns)) == len(self.columns)
        check_option("columns", ",".join(self.columns), once, "each name once")


_ONLY_OF: dict[str, Kind] = {"image_column": "image", "image_root": "image", "text_column": "text"}


def open_sources(
    images: str | os.PathLike[str] | None,
    texts: str | os.PathLike[str] | None,
    options: SourceOptions,
) -> tuple[Source, ...]:
    """Open the sources of images and texts that are given.

    Raises:
        UsageError: an option is given without the source that it applies to.
        DataError: see `open_source`.
    """
    sources: dict[Kind, str | os.PathLike[str] | None] = {"image": images, "text": texts}
    for name, kind in _ONLY_OF.items():
        if (value := getattr(options, name)) is not None and sources[kind] is None:
            raise UsageError(f"`{name}={value}`: applies only to {kind}s. Pass `{kind}s=SOURCE`.")
    return tuple(open_source(k, os.fspath(s), options) for k, s in sources.items() if s is not None)


def open_source(kind: Kind, spec: str, options: SourceOptions) -> Source:
    """Open a source: a folder, glob, list, table, JSON, Parquet, tars, or `-` (texts on stdin).

    The format follows from the extension: `.txt`, `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json`,
    `.parquet`, `.tar`; the last two also as a folder of such files, a glob or `{000..123}`.
    A `.txt` file is a list with one text or path per line, but in a folder or glob of texts each
    `.txt` file is one text.

    Raises:
        DataError: the source does not exist, does not contain this kind, or does not support a
            given option.
    """
    with using(options.access):
        spec = local_name(spec)
        files = [spec] if spec == STANDARD_INPUT else expanded(spec)
        passed = Counter[str]() if files == [spec] else _passed_over(kind, spec, files)
        return PatientSource(_opened(kind, spec, files, options), options.access, passed)


@dataclass(frozen=True)
class PatientSource(SourceAround):
    """A source with its own time-out and retries for remote files."""

    access: Access
    passed: Counter[str] = field(default_factory=Counter)  # skipped files in its folder -> count

    def scan(self, work: Path) -> Scan:
        """Scan the source."""
        with using(self.access):
            scan = super().scan(work)
        return replace(scan, skipped=self.passed + Counter(scan.skipped))

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the rows. The thread's own settings apply again between them."""
        rows = self.source.rows(start, stop)
        while True:
            with using(self.access):
                row = next(rows, None)
            if row is None:
                return
            yield row


def _passed_over(kind: Kind, spec: str, shards: list[str]) -> Counter[str]:
    """Count the other files in a folder of tars or Parquet files by kind.

    Raises:
        DataError: the folder also contains images or texts.
    """
    if not is_folder(spec):
        return Counter()
    beside = folder_reader(spec, kind)
    if other := next((r for r in beside.records() if r.problem is None), None):
        suffix = suffix_of(shards[0])
        raise DataError(mixed(spec, f"{suffix} files", f"{kind}s ({other.key})"))
    names = (extension_of(path_of(name)) for name in shards)
    return beside.skipped - Counter(map(shown, names))


def _opened(kind: Kind, spec: str, files: list[str], options: SourceOptions) -> Source:
    image, text = (options.image_column, None) if kind == "image" else (None, options.text_column)
    columns = Columns(image, text, options.id_column, options.columns)
    root = confined(spec, options.image_root) if kind == "image" else None
    reader = reader_of(spec, files, columns, (kind,), root)
    if isinstance(reader, ParquetReader):
        if options.split is not None:
            raise DataError(
                f"{readable(spec)}: splits are not supported for Parquet. Leave `split` out."
            )
        return ParquetSource(kind, readable(spec), reader)
    if reader is None:
        columns.refuse(readable(spec), (kind,))
        reader = _plain_reader(kind, spec, root)
    name = "standard input" if spec == STANDARD_INPUT else readable(spec)
    return SpooledSource(kind, name, options.columns, reader, options.split)


def _plain_reader(kind: Kind, spec: str, image_root: str | None) -> Reader:
    """Return the reader of a source without fields: standard input, a list, a folder or a glob."""
    if spec == STANDARD_INPUT:
        if kind == "image":
            raise DataError("-: images cannot be read from standard input. Pass a folder or file.")
        return LineReader(kind, spec)
    if suffix_of(spec) == ".txt" and not is_glob(spec):
        return LineReader(kind, spec, image_root)
    if kind == "text" and not (is_glob(spec) or is_remote(spec) or is_folder(spec)):
        if not os.path.lexists(spec):
            raise DataError(f"{readable(spec)}: no such file or folder. Expected texts.")
        raise DataError(
            f"{readable(spec)}: cannot be read as texts. Expected a .txt, .csv, .tsv, "
            ".jsonl, .json, .parquet or .tar, a folder or glob of .txt files, or - for standard "
            "input."
        )
    if image_root is not None:
        raise DataError(f"{readable(spec)}: {holds_pictures((kind,))}")
    if kind == "image" and not is_glob(spec) and is_picture(spec):
        name = spec if is_remote(spec) else os.path.basename(spec)
        return FileReader(folder_of(spec), name)
    return folder_reader(spec, kind)
