"""Parquet files of an output: rows with vectors, and errors. Requires pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.files import new_file
from mwa_export.optional import require
from mwa_export.vectors.columns import arrow_type
from mwa_export.vectors.entries import FileEntry

ERROR_NAMES = ("row", "id", "kind", "code", "reason", "source", "fingerprint")


def write_rows(
    out: Path,
    name: str,
    fixed: tuple[NDArray[np.int64], Sequence[str], Sequence[bytes]],
    columns: Sequence[tuple[str, str, Sequence[Any]]],
    scales: NDArray[np.float32] | None,
    vectors: NDArray[Any],
) -> FileEntry:
    """Write rows with their vectors.

    Args:
        fixed: row numbers, ids and fingerprints, n each.
        columns: name, Arrow type and values of each carried column.
        scales: (n,) for int8, otherwise None.
        vectors: (n, D), in the dtype to store.

    Raises:
        MissingPackageError: pyarrow is not installed.
        BundleError: writing failed.
    """
    pa = require("pyarrow")
    rows, ids, prints = fixed
    arrays = [
        pa.array(rows, pa.int64()),
        pa.array(ids, pa.string()),
        pa.array([print_ or None for print_ in prints], pa.binary(16)),
    ]
    names = ["row", "id", "fingerprint"]
    for column, kind, values in columns:
        arrays.append(pa.array(values, arrow_type(kind)))
        names.append(column)
    if scales is not None:
        arrays.append(pa.array(scales, pa.float32()))
        names.append("scale")
    arrays.append(
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    )
    return _write(out, name, pa.Table.from_arrays(arrays, names=[*names, "embedding"]))


def write_errors(out: Path, name: str, rows: Iterable[dict[str, Any]]) -> FileEntry:
    """Write the failed rows, dicts whose keys are ERROR_NAMES; raises like `write_rows`."""
    pa = require("pyarrow")
    types = {name: pa.string() for name in ERROR_NAMES}
    types |= {"row": pa.int64(), "fingerprint": pa.binary(16)}
    found = [
        {**row, "fingerprint": row["fingerprint"] and bytes.fromhex(row["fingerprint"])}
        for row in rows
    ]
    return _write(out, name, pa.Table.from_pylist(found, pa.schema(list(types.items()))))


def _write(out: Path, name: str, table: Any) -> FileEntry:
    parquet = require("pyarrow.parquet")
    # Vectors do not compress, and dictionaries and statistics of them only cost time.
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


def read_table(path: Path, names: Sequence[str] | None = None) -> Any:
    """Read a Parquet file, or some of its columns, as an Arrow table.

    Raises:
        OSError, ValueError, KeyError: it cannot be read, or has no such column.
    """
    return require("pyarrow.parquet").read_table(path, columns=names, partitioning=None)


def read_lists(path: Path, names: Sequence[str]) -> list[list[Any]]:
    """Read some columns as lists; raises like `read_table`."""
    table = read_table(path, list(names))
    return [table.column(name).to_pylist() for name in names]


def vectors_in(table: Any, width: int, dtype: Any) -> NDArray[Any]:
    """Return the column `embedding` as (n, D); an empty table gives (0, width) of ``dtype``."""
    column = table.column("embedding").combine_chunks()
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    if not table.num_rows:
        return np.empty((0, width), dtype)
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])
    found: NDArray[Any] = flat.reshape(table.num_rows, -1)
    return found
