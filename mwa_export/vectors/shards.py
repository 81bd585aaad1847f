"""Write and read shards: rows with their vectors. The bytes depend only on the rows.

    parquet   part-00000.parquet, errors.parquet
    npy       part-00000.npy with the vectors, part-00000.jsonl with the rest, errors.jsonl

The .parquet or .jsonl file of a shard is called its rows file. It is written last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError, MissingPackageError
from mwa_export.files import new_file
from mwa_export.inputs.content import Kind
from mwa_export.optional import PACKAGES, installed
from mwa_export.vectors import lines, tables
from mwa_export.vectors.columns import valid_text
from mwa_export.vectors.entries import FileEntry
from mwa_export.vectors.job import ERRORS, KINDS, RESERVED, Dtype, Format, Job, RowError, Shard

UNIT_TOLERANCE = 1e-2  # allowed error of a vector's length; wide, for bfloat16 and int8 graphs

_SUFFIXES: dict[Format, str] = {"parquet": ".parquet", "npy": ".jsonl"}  # of rows files
_FIXED = {"row": int, "id": str, "fingerprint": str}
_NUMPY: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of a shard that an update copies unchanged from an earlier output."""

    at: NDArray[np.int64]  # (k,), positions in the shard
    vectors: NDArray[Any]  # (k, D), in the dtype of the output
    scales: NDArray[np.float32]  # (k,) for int8, otherwise (0,)
    failed: int = 0  # copied rows that failed; they are among the shard's errors


@dataclass(frozen=True, slots=True)
class Embedded:
    """A shard in memory: each of its rows is in either ``rows`` or ``errors``."""

    shard: Shard
    rows: NDArray[np.int64]  # (n,) ascending
    ids: Sequence[str]  # (n,)
    columns: Sequence[tuple[Any, ...]]  # (n,), each as long as Input.columns
    vectors: NDArray[np.float32]  # (n, D), unit length; zeros where `kept` has the vector
    errors: Sequence[RowError]  # ascending rows
    fingerprints: Sequence[bytes] = ()  # (n,), of the contents, b"" if unknown; (): all unknown
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A shard read from disk."""

    rows: NDArray[np.int64]  # (n,)
    ids: list[str]
    columns: dict[str, list[Any]]
    vectors: NDArray[Any]  # (n, D) float32, float16 or int8
    scales: NDArray[np.float32] | None  # (n,): factors for int8 rows; None for floats
    fingerprints: list[bytes | None]  # of the contents; earlier versions stored none


def check_format(format: Format) -> None:
    """Raise MissingPackageError if Parquet cannot be written here. Imports nothing."""
    if format == "parquet" and not installed("pyarrow"):
        raise MissingPackageError(
            f"pyarrow is needed to write Parquet. Run: {PACKAGES['pyarrow'].command}; or pass "
            "`format=npy`, which needs no extra."
        )


def rows_file(out: Path, job: Job, stem: str) -> Path:
    """Path of a shard's rows file. Earlier versions wrote Parquet beside .npy files too."""
    path = out / f"{stem}{_SUFFIXES[job.format]}"
    earlier = out / f"{stem}.parquet"
    return earlier if earlier.is_file() and not path.is_file() else path


def write_shard(out: Path, job: Job, embedded: Embedded) -> list[FileEntry]:
    """Write a shard's files, each atomically. Equal rows give equal bytes.

    Raises:
        BundleError: writing failed.
    """
    shard = embedded.shard
    stored, scales = quantized(embedded.vectors, job.dtype)
    if embedded.kept is not None and len(embedded.kept.at):
        stored[embedded.kept.at] = embedded.kept.vectors
        if scales is not None:
            scales[embedded.kept.at] = embedded.kept.scales
    prints = embedded.fingerprints or [b""] * len(embedded.ids)
    fixed = embedded.rows, [valid_text(id) for id in embedded.ids], prints
    columns = [
        (name, kind, [row[index] for row in embedded.columns])
        for index, (name, kind) in enumerate(job.input(shard.kind).columns)
    ]
    name = f"{shard.stem}{_SUFFIXES[job.format]}"
    if job.format == "parquet":
        return [tables.write_rows(out, name, fixed, columns, scales, stored)]
    with new_file(out / f"{shard.stem}.npy") as partial, partial.open("wb") as file:
        np.save(file, stored)
        file.flush()
        vectors = FileEntry.of(f"{shard.stem}.npy", len(stored), partial)
    return [vectors, lines.write_lines(out, name, _objects(fixed, columns, scales))]


def _objects(
    fixed: tuple[NDArray[np.int64], Sequence[str], Sequence[bytes]],
    columns: Sequence[tuple[str, str, Sequence[Any]]],
    scales: NDArray[np.float32] | None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard as JSON objects."""
    for index, (row, id, print_) in enumerate(zip(*fixed, strict=True)):
        found: dict[str, Any] = {"row": int(row), "id": id, "fingerprint": print_.hex() or None}
        found |= {name: lines.encoded(values[index], kind) for name, kind, values in columns}
        if scales is not None:
            found["scale"] = float(scales[index])  # float32 to float64 and back is exact
        yield found


def read_shard(out: Path, job: Job, stem: str) -> Stored:
    """Read a shard in either format.

    Raises:
        DataError: a file is missing or damaged, or its vectors have another shape or dtype.
    """
    path = rows_file(out, job, stem)
    try:
        found = _table(path, job) if path.suffix == ".parquet" else _lines(path, job, stem)
        if job.format == "npy":
            path = out / f"{stem}.npy"
            found = replace(found, vectors=np.load(path))
    except (OSError, ValueError, KeyError, EOFError) as error:  # ArrowInvalid is a ValueError
        raise DataError(
            f"{path}: cannot be read ({error}). Expected a shard that `embed` wrote."
        ) from error
    shape = len(found.ids), job.width
    if found.vectors.shape != shape or found.vectors.dtype != _NUMPY[job.dtype]:
        raise DataError(
            f"{path}: expected {job.dtype} of shape {shape}, found {found.vectors.dtype} of shape "
            f"{found.vectors.shape}. Restore the file, or embed into a new folder."
        )
    return found


def _table(path: Path, job: Job) -> Stored:
    """Read a shard's Parquet file; without vectors if a .npy file has them."""
    table = tables.read_table(path)
    names = [name for name in table.column_names if name not in RESERVED]
    given = "fingerprint" in table.column_names
    return Stored(
        table.column("row").to_numpy().astype(np.int64),
        table.column("id").to_pylist(),
        {name: table.column(name).to_pylist() for name in names},
        np.empty(0)
        if job.format == "npy"
        else tables.vectors_in(table, job.width, _NUMPY[job.dtype]),
        table.column("scale").to_numpy() if job.dtype == "int8" else None,
        table.column("fingerprint").to_pylist() if given else [None] * table.num_rows,
    )


def _lines(path: Path, job: Job, stem: str) -> Stored:
    """Read the rows beside a .npy file, without vectors."""
    columns = job.input(KINDS[stem.partition("/")[0]]).columns
    types: dict[str, type] = {**_FIXED, **{name: object for name, _kind in columns}}
    if job.dtype == "int8":
        types["scale"] = float
    found = list(zip(*lines.read_lines(path, types), strict=True)) or [()] * len(types)
    fields = dict(zip(types, found, strict=True))
    if None in (*fields["row"], *fields["id"], *fields.get("scale", ())):
        raise ValueError("a row has no number, id or scale")
    return Stored(
        np.array(fields["row"], np.int64),
        list(fields["id"]),
        {name: lines.decoded(fields[name], kind) for name, kind in columns},
        np.empty(0),
        np.array(fields["scale"], np.float32) if job.dtype == "int8" else None,
        [print_ and bytes.fromhex(print_) for print_ in fields["fingerprint"]],
    )


def read_column(out: Path, job: Job, stem: str, name: Literal["id", "fingerprint"]) -> list[Any]:
    """Read the ids (str) or fingerprints (16 bytes or None) of a shard's rows.

    Raises:
        DataError: the file is missing or damaged, or an earlier version wrote no such column.
    """
    path = rows_file(out, job, stem)
    try:
        if path.suffix == ".parquet":
            return tables.read_lists(path, [name])[0]
        found = [value for (value,) in lines.read_lines(path, {name: str})]
        if name == "id":
            return found
        return [print_ and bytes.fromhex(print_) for print_ in found]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: column {name} cannot be read ({error}). An output without this column, made "
            "by an earlier version, cannot be updated. Embed into a new folder."
        ) from error


def write_errors(
    out: Path, format: Format, failed: Iterator[tuple[Kind, str, RowError]]
) -> FileEntry:
    """Write the file of failed rows, given as (kind, source, error)."""
    rows = (
        {
            "row": e.row,
            "id": valid_text(e.id),
            "kind": kind,
            "code": e.code,
            "reason": valid_text(e.reason),
            "source": valid_text(source),
            "fingerprint": e.fingerprint or None,
        }
        for kind, source, e in failed
    )
    write = tables.write_errors if format == "parquet" else lines.write_lines
    return write(out, ERRORS[format], rows)


def read_errors(path: Path, names: Sequence[str]) -> Iterator[list[Any]]:
    """Yield the named fields of each failed row; a fingerprint is bytes or None.

    Raises:
        OSError, ValueError, KeyError: the file cannot be read.
    """
    if path.suffix == ".parquet":
        yield from map(list, zip(*tables.read_lists(path, names), strict=True))
        return
    for values in lines.read_lines(path, {n: int if n == "row" else str for n in names}):
        yield [
            value and bytes.fromhex(value) if name == "fingerprint" else value
            for name, value in zip(names, values, strict=True)
        ]


def quantized(
    vectors: NDArray[np.float32], dtype: Dtype
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Convert vectors (n, D) to the stored dtype, with scales (n,) for int8, otherwise None.

    int8: round(x / scale), where scale = largest absolute value / 127, per row.
    """
    if dtype != "int8":
        return np.ascontiguousarray(vectors, _NUMPY[dtype]), None
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def restored(stored: NDArray[Any], scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Convert stored vectors (n, D) and int8 scales (n,) back to float32 (n, D)."""
    vectors = stored.astype(np.float32)
    return vectors if scales is None else vectors * scales[:, None]
