"""Pictures and captions to embeddings, in batches, in the order they came in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mwa_export.backend import Backend, Embeddings
from mwa_export.preprocess import load_image, pixels_from_image
from mwa_export.tokenizer import Tokenizer, pad


def ignore(_rows: int) -> None:
    """The progress callback of those who do not watch."""


def embed_image_files(
    backend: Backend,
    paths: Sequence[Path],
    *,
    batch: int = 32,
    on_rows: Callable[[int], None] = ignore,
) -> Embeddings:
    """Embed picture files. Returns (len(paths), D) float32.

    Raises:
        ImageError: a file is missing or cannot be decoded.
    """
    parts = []
    for start in range(0, len(paths), batch):
        files = paths[start : start + batch]
        images = [pixels_from_image(load_image(file), backend.image_size) for file in files]
        parts.append(backend.embed_images(np.stack(images)))
        on_rows(len(files))
    return np.concatenate(parts)


def embed_captions(
    backend: Backend,
    tokenizer: Tokenizer,
    captions: Sequence[str],
    *,
    batch: int = 64,
    on_rows: Callable[[int], None] = ignore,
) -> Embeddings:
    """Embed texts, sorted by length so that batches carry little padding, which is exact.

    Returns (len(captions), D) float32, in the order of ``captions``.
    """
    encoded = [tokenizer.encode(caption) for caption in captions]
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
    parts = []
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        parts.append(backend.embed_texts(*pad([encoded[row] for row in rows])))
        on_rows(len(rows))
    embeddings = np.concatenate(parts)
    return embeddings[np.argsort(order)]
