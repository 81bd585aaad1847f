"""Draw weights from seeds, so that graphs of large models are transferred without them.

    python benchmarks/gpu_seeds.py FOLDER...     # fill the holes that gpu_pack.py left

Needs only numpy, not ONNX: a hole is a range of bytes in a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RECIPE, VECTORS = "recipe.json", "recipe.npz"
_SPREAD = math.sqrt(4 * (2**16 - 1) / 12)  # standard deviation of the sum of four random bytes


@dataclass(frozen=True)
class Seed:
    """A float32 tensor generated from its name, and scaled by steps of its rows and columns."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Hole:
    """A range of bytes in a file that is generated from a seed."""

    seed: Seed
    dtype: str
    vectors: str | None = None  # for int8 weights: prefix of the names of their arrays
    columns: tuple[int, int] | None = None  # columns of the seed's tensor; None: all
    rows: tuple[int, int] | None = None  # rows of the seed's tensor; None: all
    at: int = 0  # offset in the file

    @property
    def size(self) -> int:
        """Size in bytes."""
        columns = self.columns or (0, self.seed.shape[-1])
        rows = self.rows or (0, math.prod(self.seed.shape[:-1]))
        itemsize: int = np.dtype(self.dtype).itemsize
        return (rows[1] - rows[0]) * (columns[1] - columns[0]) * itemsize

    def of(self, values: Any) -> Any:
        """Select the hole's part of the seed's tensor."""
        part = values if self.rows is None else values[slice(*self.rows)]
        return part if self.columns is None else part[:, slice(*self.columns)]


def drawn(seed: Seed, vectors: Mapping[str, Any]) -> Any:
    """Draw nearly normal values that are identical for every numpy version and processor.

    They are sums of four raw bytes: numpy guarantees only a generator's bits, not its normal
    numbers. The steps preserve the scales that merging gave to rows (norms) and columns (smaller
    queries).
    """
    count = math.prod(seed.shape)
    raw = np.random.PCG64(zlib.crc32(seed.name.encode())).random_raw(-(-count // 2))
    parts = raw.view(np.int8)[: 4 * count].reshape(-1, 4)
    total = parts[:, 0].astype(np.int16)
    for column in (1, 2, 3):
        total += parts[:, column]
    total += 2  # the mean of a byte is -1/2
    rows, columns = (vectors[f"{seed.name}.{kind}"] for kind in ("row_steps", "column_steps"))
    values = total.astype(np.float32).reshape(-1, len(columns))
    values *= rows[: len(values), None]
    values *= columns
    return values.reshape(seed.shape)


def steps_of(array: Any) -> tuple[Any, Any]:
    """Compute steps of rows and columns, so that `drawn` has the spread of an array."""
    flat = array.reshape(-1, array.shape[-1])
    whole = max(float(np.sqrt(np.mean(flat * flat))), np.finfo(np.float32).tiny)
    rows, columns = (np.sqrt(np.mean(flat * flat, axis=axis)) for axis in (1, 0))
    return (rows / _SPREAD).astype(np.float32), (columns / whole).astype(np.float32)


def filled(hole: Hole, vectors: Mapping[str, Any]) -> bytes:
    """Generate the bytes of a hole."""
    values = hole.of(drawn(hole.seed, vectors))
    if hole.vectors is None:
        return np.ascontiguousarray(values, hole.dtype).tobytes()
    rows, columns, where, patches = (
        vectors[f"{hole.vectors}.{part}"] for part in ("rows", "columns", "where", "patches")
    )
    found = levels(values, rows, columns)
    found.reshape(-1)[where] = patches
    return bytes(found.tobytes())


def levels(weight: Any, rows: Any, columns: Any) -> Any:
    """Quantize a weight to int8: rows are smoothed, columns divided by their scales."""
    exact = weight.astype(np.float64) * rows[:, None] * columns
    return np.ascontiguousarray(np.clip(np.rint(exact), -127, 127), np.int8)


def with_holes(
    content: bytes, holes: Iterable[Hole], vectors: Mapping[str, Any]
) -> tuple[bytes, list[Hole]]:
    """Remove the bytes that seeds can generate. Returns the rest and the holes."""
    found = [replace(h, at=at) for h in holes if (at := _find(content, h, vectors)) >= 0]
    found.sort(key=lambda hole: hole.at)
    rest, end = [], 0
    for hole in found:
        rest.append(content[end : hole.at])
        end = hole.at + hole.size
    return b"".join([*rest, content[end:]]), found


def without_holes(
    rest: bytes, holes: Iterable[Hole], vectors: Mapping[str, Any]
) -> Iterator[bytes]:
    """Yield the original file in pieces."""
    taken = end = 0  # offsets in the rest and in the file
    for hole in holes:
        yield rest[taken : taken + hole.at - end]
        taken += hole.at - end
        yield filled(hole, vectors)
        end = hole.at + hole.size
    yield rest[taken:]


def grow(folder: Path) -> None:
    """Fill the holes in a folder's files, unless that is done already."""
    path = folder / RECIPE
    if not path.exists():
        return
    recipe = json.loads(path.read_text(encoding="utf-8"))
    with np.load(folder / VECTORS) as arrays:
        vectors = dict(arrays)
    for name, entry in recipe.items():
        holes = [Hole(**{**hole, "seed": Seed(**hole["seed"])}) for hole in entry["holes"]]
        digest = hashlib.sha256()
        with (folder / f"{name}.whole").open("wb") as file:
            for piece in without_holes((folder / name).read_bytes(), holes, vectors):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != entry["sha256"]:
            sys.exit(f"{folder / name}: does not become the file that was packed. Carry it again.")
    for name in recipe:
        (folder / f"{name}.whole").replace(folder / name)
    path.unlink()
    print(f"  {folder.name}: {len(recipe)} files have their weights", flush=True)


def _find(content: bytes, hole: Hole, vectors: Mapping[str, Any]) -> int:
    """Return the offset of a hole's bytes; -1 if not found."""
    if hole.vectors is None:  # most are absent: the first row is enough to tell
        first = hole.rows or (0, 0)
        row = replace(hole.seed, shape=(first[0] + 1, *hole.seed.shape[-1:]))
        head = filled(replace(hole, seed=row, rows=(first[0], first[0] + 1)), vectors)
        if content.find(head) < 0:
            return -1
    return content.find(filled(hole, vectors))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        grow(Path(argument))
