"""Shards on disk: rows with their vectors to Parquet or .npy files, and back.

The bytes depend on the rows alone: no timestamps, one row group, one writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError
from mwa_export.files import new_file
from mwa_export.optional import require
from mwa_export.vectors.columns import arrow_type, valid_text
from mwa_export.vectors.entries import FileEntry
from mwa_export.vectors.job import RESERVED, Dtype, Job, RowError, Shard

UNIT_TOLERANCE = 1e-2  # of a vector's length: wide, bfloat16 and int8 graphs round

_NUMPY: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of a shard that an update takes over as they were stored."""

    at: NDArray[np.int64]  # (k,), their places in the shard
    vectors: NDArray[Any]  # (k, D)
    scales: NDArray[np.float32]  # (k,), or (0,)
    failed: int = 0  # rows more, among the errors


@dataclass(frozen=True, slots=True)
class Embedded:
    """A shard in memory: every row of it is in ``rows`` or in ``errors``, and in one only."""

    shard: Shard
    rows: NDArray[np.int64]  # (n,) ascending
    ids: Sequence[str]  # (n,)
    columns: Sequence[tuple[Any, ...]]  # (n,), each as long as Input.columns
    vectors: NDArray[np.float32]  # (n, D), unit length, but for those kept
    errors: Sequence[RowError]  # ascending
    fingerprints: Sequence[bytes] = ()  # (n,), of their contents, empty where unknown; (): all are
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A shard as it is read back."""

    rows: NDArray[np.int64]  # (n,)
    ids: list[str]
    columns: dict[str, list[Any]]
    vectors: NDArray[Any]  # (n, D) float32, float16 or int8
    scales: NDArray[np.float32] | None  # (n,): what int8 rows are multiplied by
    fingerprints: list[bytes | None]  # of their contents; an earlier version stored none


def write_shard(out: Path, job: Job, embedded: Embedded) -> list[FileEntry]:
    """Write a shard's files; each appears whole. The same rows give the same bytes.

    Raises:
        BundleError: the disk refuses.
    """
    pa, shard = _arrow(), embedded.shard
    stored, scales = quantized(embedded.vectors, job.dtype)
    if embedded.kept is not None and len(embedded.kept.at):
        stored[embedded.kept.at] = embedded.kept.vectors
        if scales is not None:
            scales[embedded.kept.at] = embedded.kept.scales
    prints = embedded.fingerprints or [b""] * len(embedded.ids)
    arrays = [
        pa.array(embedded.rows, pa.int64()),
        pa.array([valid_text(id) for id in embedded.ids], pa.string()),
        pa.array([print_ or None for print_ in prints], pa.binary(16)),
    ]
    names = ["row", "id", "fingerprint"]
    for index, (name, type_) in enumerate(job.input(shard.kind).columns):
        arrays.append(pa.array([row[index] for row in embedded.columns], arrow_type(type_)))
        names.append(name)
    if scales is not None:
        arrays.append(pa.array(scales, pa.float32()))
        names.append("scale")
    written = []
    if job.format == "npy":
        name = f"{shard.stem}.npy"
        with new_file(out / name) as partial, partial.open("wb") as file:
            np.save(file, stored)
            file.flush()
            written.append(FileEntry.of(name, len(stored), partial))
    else:
        values = pa.array(stored.reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(values, job.width))
        names.append("embedding")
    table = pa.Table.from_arrays(arrays, names=names)
    written.append(write_table(out, f"{shard.stem}.parquet", table))
    return written


def write_table(out: Path, name: str, table: Any) -> FileEntry:
    """Write an Arrow table as ``out / name``."""
    parquet = require("pyarrow.parquet", extra="embed", why="write embeddings")
    # Vectors do not compress; dictionaries and statistics of them only cost time.
    dictionary = [field.name for field in table.schema if str(field.type) == "string"]
    with new_file(out / name) as partial:
        parquet.write_table(
            table,
            partial,
            compression="zstd" if "embedding" not in table.column_names else "none",
            use_dictionary=dictionary,
            write_statistics=["row"] if "row" in table.column_names else False,
            store_schema=True,
            row_group_size=max(1, table.num_rows),
        )
        return FileEntry.of(name, table.num_rows, partial)


def read_shard(out: Path, job: Job, stem: str) -> Stored:
    """Read a shard of either format back.

    Raises:
        DataError: a file is missing or damaged.
    """
    parquet = require("pyarrow.parquet", extra="embed", why="read embeddings")
    path = out / f"{stem}.parquet"
    try:
        table = parquet.read_table(path, partitioning=None)
        if job.format == "npy":
            path = out / f"{stem}.npy"
            vectors = np.load(path)
        else:
            vectors = _vectors(table, job)
        rows = table.column("row").to_numpy().astype(np.int64)
        ids = table.column("id").to_pylist()
        scales = table.column("scale").to_numpy() if job.dtype == "int8" else None
    except (OSError, ValueError, KeyError, EOFError) as error:  # ArrowInvalid is a ValueError
        raise DataError(
            f"{path}: cannot be read ({error}). Expected a shard that `embed` wrote."
        ) from error
    if vectors.shape != (table.num_rows, job.width) or vectors.dtype != _NUMPY[job.dtype]:
        raise DataError(
            f"{path}: holds {vectors.dtype} of shape {vectors.shape}. Expected {job.dtype} of "
            f"shape {(table.num_rows, job.width)}."
        )
    wanted = [name for name in table.column_names if name not in RESERVED or name == "fingerprint"]
    columns = {name: table.column(name).to_pylist() for name in wanted}
    prints = columns.pop("fingerprint", [None] * len(ids))
    return Stored(rows, ids, columns, vectors, scales, prints)


def read_column(out: Path, stem: str, name: str) -> list[Any]:
    """One column of a shard's Parquet file.

    Raises:
        DataError: the file is missing or damaged, or an earlier version wrote it without.
    """
    parquet = require("pyarrow.parquet", extra="embed", why="read embeddings")
    path = out / f"{stem}.parquet"
    try:
        found: list[Any] = parquet.read_table(path, columns=[name], partitioning=None)[
            name
        ].to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: its column {name} cannot be read ({error}). An output that an earlier "
            "version made without it cannot be updated: embed into a new folder."
        ) from error
    return found


def read_errors(path: Path) -> Iterator[tuple[str, RowError]]:
    """Kind and error of each row of errors.parquet.

    Raises:
        OSError, ValueError, KeyError: it cannot be read.
    """
    parquet = require("pyarrow.parquet", extra="embed", why="read embeddings")
    names = ["row", "id", "code", "reason", "fingerprint", "kind"]
    columns = (column.to_pylist() for column in parquet.read_table(path, columns=names).columns)
    for row, id, code, reason, print_, kind in zip(*columns, strict=True):
        yield kind, RowError(row, id, code, reason, (print_ or b"").hex())


def _vectors(table: Any, job: Job) -> NDArray[Any]:
    """The column `embedding`. (n, D)."""
    column = table.column("embedding").combine_chunks()
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    if not table.num_rows:
        return np.empty((0, job.width), _NUMPY[job.dtype])
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])
    found: NDArray[Any] = flat.reshape(table.num_rows, -1)
    return found


def quantized(
    vectors: NDArray[np.float32], dtype: Dtype
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Vectors as they are stored, and for int8 what each row is multiplied by to get it back.

    int8: round(x / scale), scale = largest absolute value / 127, per row.
    """
    if dtype != "int8":
        return np.ascontiguousarray(vectors, _NUMPY[dtype]), None
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def restored(stored: NDArray[Any], scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The vectors of stored ones. (n, D) float32."""
    vectors = stored.astype(np.float32)
    return vectors if scales is None else vectors * scales[:, None]


def error_table(rows: Iterator[tuple[str, str, RowError]]) -> Any:
    """errors.parquet as an Arrow table, of (kind, source, error)."""
    pa = _arrow()
    types = [("row", pa.int64())]
    types += [(name, pa.string()) for name in ("id", "kind", "code", "reason", "source")]
    types.append(("fingerprint", pa.binary(16)))
    found = [
        (
            *(e.row, *map(valid_text, (e.id, kind, e.code, e.reason, source))),
            bytes.fromhex(e.fingerprint) or None,
        )
        for kind, source, e in rows
    ]
    names = [name for name, _type in types]
    return pa.Table.from_pylist([dict(zip(names, r, strict=True)) for r in found], pa.schema(types))


def _arrow() -> Any:
    return require("pyarrow", extra="embed", why="write embeddings")
