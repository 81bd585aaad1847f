"""Pictures and texts in memory to vectors: what `Bundle.embed_images` and `embed_texts` do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.batches import IMAGE_BATCH, TEXT_BATCH, Prepare, embed_captions
from mwa_export.errors import DataError, ImageError, TokenizerError
from mwa_export.inputs.content import Caption
from mwa_export.inputs.decode import pixels_of
from mwa_export.inputs.pictures import Picture
from mwa_export.inputs.preprocess import pixels_from_image
from mwa_export.inputs.tokenizer import BOS, EOS, Tokenizer
from mwa_export.runtimes.backend import Backend
from mwa_export.spec import Embeddings, ModelConfig

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


@dataclass(frozen=True, slots=True)
class SideInfo:
    """One of the two that are compared."""

    name: str  # for people: "checkpoint-29.pth on PyTorch float32"
    source: str  # the file or folder; "arrays" if vectors were handed over
    runtime: str  # "PyTorch 2.13.0"; "" for arrays
    precision: str  # "float32", "vision int8, text float32"; "" for arrays
    space_id: str | None  # of the embedding space, if known


@dataclass(frozen=True, slots=True)
class Side:
    """A model that is ready to embed, with its own preprocessing and tokenizer."""

    info: SideInfo
    config: ModelConfig
    backend: Backend
    float32: Backend | None  # the same graphs before they were reduced; None: they were not
    image: Mapping[str, Any]  # the preprocessing of pictures, as the manifest has it
    prepare: Prepare  # and as a function
    tokenizer: Tokenizer | None
    tokenizer_sha256: str | None
    carries_tokenizer: bool  # a bundle without one may be lent one, which its space id ignores
    identity: Mapping[str, Any]  # all that decides its embeddings, for the cache
    warnings: tuple[str, ...] = ()

    @property
    def max_length(self) -> int:
        """Token ids of the longest text, BOS and EOS included."""
        return self.config.backbone.max_text_length

    def encode(self, captions: Sequence[Caption]) -> list[list[int]]:
        """Captions -> token ids with BOS and EOS, cut to ``max_length``.

        Raises:
            TokenizerError: a caption is a text and this side has no tokenizer.
            DataError: a stored id is not in the vocabulary.
        """
        return [
            self._encode_text(caption) if isinstance(caption, str) else self._frame(caption)
            for caption in captions
        ]

    def _encode_text(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise TokenizerError(
                f"{self.info.source}: has no tokenizer, and the captions are texts. "
                "Give one: --tokenizer FILE.spm"
            )
        return self.tokenizer.encode(text)

    def _frame(self, ids: tuple[int, ...]) -> list[int]:
        vocabulary = self.config.backbone.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise DataError(
                f"token id {min(ids) if min(ids) < 0 else max(ids)} in the captions. Expected 0 to "
                f"{vocabulary - 1}, the vocabulary of {self.info.source}. The ids were made with "
                "another tokenizer."
            )
        return [BOS, *ids[: self.max_length - 2], EOS]
