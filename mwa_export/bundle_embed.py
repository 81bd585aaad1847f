"""Pictures and texts in memory to vectors: what `Bundle.embed_images` and `embed_texts` do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mwa_export.bundle.bundle import Bundle
from mwa_export.decode_row import pixels_of
from mwa_export.embedding import IMAGE_BATCH, TEXT_BATCH, embed_captions
from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.pictures import Picture
from mwa_export.inputs.preprocess import pixels_from_image
from mwa_export.spec import Embeddings

PictureLike = str | os.PathLike[str] | bytes | Image.Image
"""A file's path, the encoded bytes, or a picture that Pillow has opened."""

_ONE_PICTURE = (str, os.PathLike, bytes, Image.Image)

T = TypeVar("T")


def embed_images(
    bundle: Bundle, pictures: Iterable[PictureLike], *, batch: int = IMAGE_BATCH
) -> Embeddings:
    """See `Bundle.embed_images`. Holds one batch of decoded pictures at a time."""
    if isinstance(pictures, _ONE_PICTURE):
        raise ImageError(
            f"embed_images was given one {type(pictures).__name__}. Expected a list of pictures: "
            "embed_images([picture])"
        )
    backend = bundle.runtime().backend
    parts = [
        backend.embed_images(np.stack([_pixels(*item, backend.image_size) for item in items]))
        for items in _batches(enumerate(pictures), batch)
    ]
    return _joined(parts, bundle)


def embed_texts(bundle: Bundle, texts: Iterable[str], *, batch: int = TEXT_BATCH) -> Embeddings:
    """See `Bundle.embed_texts`."""
    if isinstance(texts, str | bytes):
        raise DataError(
            f"embed_texts was given one {type(texts).__name__}. Expected a list of texts: "
            "embed_texts([text])"
        )
    captions = list(texts)
    for row, text in enumerate(captions):
        if not isinstance(text, str):
            raise DataError(f"text {row}: is of type {type(text).__name__}. Expected a str.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"text {row}: is no valid Unicode ({error.reason}).") from error
    if not captions:
        return _joined([], bundle)
    return embed_captions(bundle.runtime().backend, bundle.tokenizer(), captions, batch=batch)


def _pixels(row: int, picture: PictureLike, size: int) -> NDArray[np.uint8]:
    """One picture at the model's size, (size, size, 3). ``row`` is for messages."""
    if isinstance(picture, Image.Image):
        try:
            return pixels_from_image(picture, size)
        except (OSError, SyntaxError, ValueError) as error:  # opened, and not yet decoded
            raise ImageError(f"picture {row}: cannot be decoded ({error}).") from error
    if isinstance(picture, bytes):
        return pixels_of(picture, f"picture {row} (bytes)", size)
    if isinstance(picture, str | os.PathLike):
        return pixels_of(Picture(Path(picture)), f"picture {row} ({picture})", size)
    raise ImageError(
        f"picture {row}: is of type {type(picture).__name__}. Expected a path, bytes, or a "
        "picture opened by Pillow."
    )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _joined(parts: list[Embeddings], bundle: Bundle) -> Embeddings:
    """The rows of all parts; (0, D) if there are none."""
    width = bundle.manifest.model.backbone.embed_dim
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)
