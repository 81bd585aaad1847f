"""Random pixels and token ids of valid shapes, for verification and timing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mwa_export.inputs.tokenizer import BOS, EOS, PAD


def random_pixels(rng: np.random.Generator, batch: int, size: int) -> NDArray[np.uint8]:
    """Return uint8 noise of shape (batch, size, size, 3)."""
    return rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def random_texts(
    rng: np.random.Generator, batch: int, length: int, vocab_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return random token ids and padding mask, (batch, length) int64, mask 1 = padding.

    The first row has ``length`` tokens, the others random lengths.
    """
    ids = rng.integers(min(4, vocab_size - 1), vocab_size, (batch, length), dtype=np.int64)
    mask = np.zeros((batch, length), np.int64)
    for row in range(batch):
        end = length if row == 0 else int(rng.integers(min(3, length), length + 1))
        ids[row, end:], mask[row, end:] = PAD, 1
        ids[row, end - 1] = EOS
    ids[:, 0] = BOS
    return ids, mask
