"""Pictures and captions to embeddings, in batches, in the order they came in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mwa_export.errors import ImageError
from mwa_export.inputs.pictures import Picture, decode_picture
from mwa_export.inputs.preprocess import pixels_from_image
from mwa_export.inputs.tokenizer import Tokenizer, pad
from mwa_export.runtimes.backend import Backend
from mwa_export.spec import Embeddings

Prepare = Callable[[Image.Image], NDArray[np.uint8]]
"""A decoded picture -> (size, size, 3) uint8 pixels."""

IMAGE_BATCH = 32
TEXT_BATCH = 64


def ignore(_rows: int) -> None:
    """The progress callback of those who do not watch."""


def embed_image_files(
    backend: Backend,
    paths: Sequence[Path],
    *,
    batch: int = IMAGE_BATCH,
    on_rows: Callable[[int], None] = ignore,
) -> Embeddings:
    """Embed picture files. Returns (len(paths), D) float32.

    Raises:
        ImageError: a file is missing or cannot be decoded.
    """
    pictures = [Picture(Path(path)) for path in paths]
    embeddings, failures = embed_pictures(backend, pictures, batch=batch, on_rows=on_rows)
    if failures:
        raise ImageError(failures[min(failures)])
    return embeddings


def embed_pictures(
    backend: Backend,
    pictures: Sequence[Picture],
    *,
    prepare: Prepare | None = None,
    batch: int = IMAGE_BATCH,
    on_rows: Callable[[int], None] = ignore,
) -> tuple[Embeddings, dict[int, str]]:
    """Embed pictures; one that cannot be read costs its own row only.

    Args:
        backend: the model.
        pictures: at least one.
        prepare: resizes a picture; the reference's bicubic square if not given.
        batch: pictures at a time.
        on_rows: called with the number of pictures after each batch.

    Returns:
        (len(pictures), D) float32, and for each row that failed the reason; those rows are NaN.
    """
    resize = prepare or (lambda image: pixels_from_image(image, backend.image_size))
    failures: dict[int, str] = {}
    parts: list[tuple[list[int], Embeddings]] = []
    for start in range(0, len(pictures), batch):
        end = min(start + batch, len(pictures))
        rows, pixels = [], []
        for row in range(start, end):
            picture = pictures[row]
            try:
                pixels.append(resize(decode_picture(picture.read(), str(picture))))
                rows.append(row)
            except ImageError as error:
                failures[row] = str(error)
        if rows:
            parts.append((rows, backend.embed_images(np.stack(pixels))))
        on_rows(end - start)
    return _scatter(parts, len(pictures)), failures


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
    return _scatter(parts, len(sequences))


def embed_captions(
    backend: Backend,
    tokenizer: Tokenizer,
    captions: Sequence[str],
    *,
    batch: int = TEXT_BATCH,
    on_rows: Callable[[int], None] = ignore,
) -> Embeddings:
    """Embed texts. Returns (len(captions), D) float32, in the order of ``captions``."""
    encoded = [tokenizer.encode(caption) for caption in captions]
    return embed_token_ids(backend, encoded, batch=batch, on_rows=on_rows)


def batches_by_length(sequences: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Rows in batches, shortest sequences first; equal lengths keep their order."""
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def _scatter(parts: Sequence[tuple[list[int], Embeddings]], rows: int) -> Embeddings:
    """Put the parts at their rows; rows of none of them are NaN. (rows, D) float32."""
    width = parts[0][1].shape[1] if parts else 0
    embeddings = np.full((rows, width), np.nan, np.float32)
    for where, part in parts:
        embeddings[where] = part
    return embeddings
