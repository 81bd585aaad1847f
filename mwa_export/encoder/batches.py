"""Batches of token ids: sorted by length, padded to the longest, back in the order they came in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

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
    """Embed token ids, sorted by length so that batches carry little padding, which is exact.

    Returns (len(sequences), D) float32, in the order of ``sequences``.
    """
    parts: list[tuple[list[int], Embeddings]] = []
    for rows in batches_by_length(sequences, batch):
        parts.append((rows, backend.embed_texts(*pad([sequences[row] for row in rows]))))
        on_rows(len(rows))
    return scatter(parts, len(sequences))


def batches_by_length(sequences: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Rows in batches, shortest sequences first; equal lengths keep their order."""
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def scatter(parts: Sequence[tuple[list[int], Embeddings]], rows: int) -> Embeddings:
    """Put each part at its rows; rows of no part are NaN. Returns (rows, D) float32."""
    width = parts[0][1].shape[1] if parts else 0
    embeddings = np.full((rows, width), np.nan, np.float32)
    for where, part in parts:
        embeddings[where] = part
    return embeddings
