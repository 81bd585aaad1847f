"""Row-by-row agreement of two sets of embeddings of the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import RecallError
from mwa_export.spec import Tower

LENGTH_TOLERANCE = 2e-3  # float16 rounds a unit vector by less; a missing normalization is far off
_EDGES = (0.0, *np.logspace(-8, 0, 33).tolist(), 2.0 + 1e-9)  # of 1 - cosine, 4 bins per decade
_BLOCK = 4096  # rows

Floats = NDArray[np.float32]


def check_embeddings(name: str, embeddings: Floats, rows: int) -> Floats:
    """Check embeddings of shape (rows, D) and return them as float32.

    ``name``: for messages, such as "candidate image embeddings".

    Raises:
        RecallError: wrong shape or dtype, not finite, or not of unit length within 2e-3.
    """
    values = _array(name, embeddings)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise RecallError(
            f"{name}: found {values.dtype} of shape {values.shape}. Expected floats of shape "
            "(rows, D)."
        )
    if len(values) != rows:
        raise RecallError(f"{name}: found {len(values)} rows, expected {rows}, one per input.")
    values = values.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise RecallError(
            f"{name}: {len(bad)} of {rows} rows are not finite, the first is row {bad[0]}. "
            "Either the model overflowed on that input, or its weights are damaged."
        )
    lengths = np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64))
    off = np.flatnonzero(np.abs(lengths - 1) > LENGTH_TOLERANCE)
    if len(off):
        raise RecallError(
            f"{name}: {len(off)} of {rows} rows are not of unit length, the first is row {off[0]} "
            f"with length {lengths[off[0]]:.4g}. Normalize them: x / |x|."
        )
    return values


def _array(name: str, embeddings: Any) -> NDArray[Any]:
    """Convert to an array; a torch tensor may be on any device, need a gradient, be bfloat16."""
    try:
        if hasattr(embeddings, "detach"):
            tensor = embeddings.detach().cpu()
            embeddings = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        values = np.asarray(embeddings)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise RecallError(
            f"{name}: {type(embeddings).__name__} is not an array ({error}). Expected "
            "floats of shape (rows, D)."
        ) from error
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def cosine_distances(reference: Floats, candidate: Floats) -> NDArray[np.float64]:
    """1 - cosine of each pair of rows; exactly 0.0 for equal rows. (n, D), (n, D) -> (n,) float64.

    Computed as half the squared distance of the normalized rows; 1 - dot loses all digits near 0.
    """
    distances = np.empty(len(reference))
    for start in range(0, len(reference), _BLOCK):
        rows = slice(start, start + _BLOCK)
        difference = _unit(reference[rows]) - _unit(candidate[rows])
        distances[rows] = 0.5 * np.einsum("nd,nd->n", difference, difference)
    return distances


def cosine_summary(tower: Tower, reference: Floats, candidate: Floats) -> CosineSummary:
    """Cosines between the two sides' embeddings of the same inputs. Both (n, D), n >= 1."""
    distances = cosine_distances(reference, candidate)
    counts, _ = np.histogram(distances, bins=np.asarray(_EDGES))
    worst = int(distances.argmax())
    return CosineSummary(
        tower=tower,
        rows=len(distances),
        identical=int((reference == candidate).all(axis=1).sum()),
        mean=float(1 - distances.mean()),
        percentile_1=float(1 - np.quantile(distances, 0.99)),
        minimum=float(1 - distances[worst]),
        minimum_row=worst,
        edges=_EDGES,
        counts=tuple(int(count) for count in counts),
    )


def overlap(reference: NDArray[np.int64], candidate: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each row's items that are also in the other side's row. Both (n, k) -> (n,)."""
    shared = np.zeros(len(reference))
    for column in range(reference.shape[1]):  # (n, k) at a time instead of (n, k, k)
        shared += (candidate == reference[:, column : column + 1]).any(axis=1)
    return np.asarray(shared / reference.shape[1])


def _unit(rows: Floats) -> NDArray[np.float64]:
    values = rows.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class CosineSummary:
    """Cosines between the two sides' embeddings of the same inputs, for one tower.

    The histogram counts 1 - cosine in logarithmic bins, because useful cosines crowd near 1.
    """

    tower: Tower
    rows: int
    identical: int  # bit-identical rows
    mean: float
    percentile_1: float
    minimum: float
    minimum_row: int
    edges: tuple[float, ...]  # of 1 - cosine: edges[i] <= x < edges[i + 1]; the first is 0.0
    counts: tuple[int, ...]  # len(edges) - 1
