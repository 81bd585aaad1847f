"""Batches of token ids, sorted by length and padded; results come back in the input order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mwa_export.inputs.tokenizer import pad
from mwa_export.progress import ignore
from mwa_export.runtimes.backend import Backend
from mwa_export.spec import Embeddings

IMAGE_BATCH = 32
TEXT_BATCH = 64


def embed_token_ids(
    backend: Backend,
    sequences: Sequence[Sequence[int]],
    *,
    batch: int = TEXT_BATCH,
    on_rows: Callable[[int], None] = ignore,
) -> Embeddings:
    """Embed token ids in batches of similar length. Padding does not change the result.

    Equal sequences are embedded once. In different batches, their vectors would differ in the last
    bits, and ranks that should be tied would be noise.

    Returns (len(sequences), D) float32, in the order of ``sequences``.
    """
    different, which = distinct(sequences)
    parts: list[tuple[list[int], Embeddings]] = []
    for rows in batches_by_length(different, batch):
        parts.append((rows, backend.embed_texts(*pad([different[row] for row in rows]))))
        on_rows(len(rows))
    on_rows(len(sequences) - len(different))
    return scatter(parts, len(different))[which]


def distinct(sequences: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], NDArray[np.int64]]:
    """Return the distinct sequences in order of appearance, and each row's index among them."""
    places: dict[tuple[int, ...], int] = {}
    which = [places.setdefault(tuple(sequence), len(places)) for sequence in sequences]
    return list(places), np.array(which, np.int64)


def batches_by_length(sequences: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, shortest sequences first; equal lengths keep their order."""
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def scatter(parts: Sequence[tuple[list[int], Embeddings]], rows: int) -> Embeddings:
    """Put each part into its rows; all other rows are NaN. Returns (rows, D) float32."""
    width = parts[0][1].shape[1] if parts else 0
    embeddings = np.full((rows, width), np.nan, np.float32)
    for where, part in parts:
        embeddings[where] = part
    return embeddings
