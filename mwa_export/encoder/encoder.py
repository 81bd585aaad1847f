"""The encoder: embeds images and texts with a backend, its preprocessing and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mwa_export.encoder.batches import IMAGE_BATCH, TEXT_BATCH, embed_token_ids, scatter
from mwa_export.errors import DataError, ImageError, UsageError
from mwa_export.inputs.content import Caption, Content, Readable
from mwa_export.inputs.decode import decode_picture
from mwa_export.inputs.pictures import Picture
from mwa_export.inputs.tokenizer import OnCut, Tokenizer, encode_captions
from mwa_export.progress import ignore
from mwa_export.runtimes.backend import Backend, graph_bytes
from mwa_export.spec import TOWERS, Embeddings, ModelConfig, Tower

ImageLike = str | os.PathLike[str] | bytes | Image.Image
"""A file's path, encoded bytes (JPEG, PNG and so on), or a Pillow image."""
Prepare = Callable[[Image.Image], NDArray[np.uint8]]
"""A decoded image -> (S, S, 3) uint8 pixels."""
_ONE_IMAGE = (str, os.PathLike, bytes, Image.Image)


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """Description of an encoder, for reports."""

    name: str  # for display: "checkpoint-29.pth on PyTorch, float32"
    source: str  # the file or folder; "arrays" if vectors were given
    runtime: str  # "PyTorch 2.13.0"; "" for arrays
    precision: str  # "float32", "vision int8, text float32"; "" for arrays
    space_id: str | None  # of the embedding space, if known


@dataclass(frozen=True)
class Encoder:
    """Embeds images and texts with a bundle on a runtime, or with a checkpoint on PyTorch.

    Open one with `mwa_export.load`. Vectors of two encoders can be compared if their `space_id`
    is equal.
    """

    info: EncoderInfo
    config: ModelConfig
    backend: Backend
    image: Mapping[str, Any]  # image preprocessing, as in the manifest
    prepare: Prepare  # image preprocessing as a function
    tokenizer: Tokenizer | None
    tokenizer_sha256: str | None
    carries_tokenizer: bool  # False: a bundle without one; a lent one is not part of its space id
    identity: Mapping[str, Any]  # everything that determines its embeddings, for caches
    open_float32: Callable[[], Backend] | None = None  # None: it runs in float32 already
    made_with: Mapping[str, str] = field(default_factory=dict)  # package versions of the export
    warnings: tuple[str, ...] = ()
    towers: tuple[Tower, ...] = TOWERS  # both, or the only one of a bundle or checkpoint
    model_bytes: int | None = None  # size of the graph files, or of a checkpoint's weights

    def require(self, *towers: Tower) -> None:
        """Raise UsageError unless the model has these towers."""
        for tower in towers:
            if tower not in self.towers:
                raise UsageError(
                    f"{self.info.source}: contains only the {self.towers[0]} tower. This needs the "
                    f"{tower} tower: export the whole checkpoint, with `towers=both`."
                )

    @property
    def space_id(self) -> str | None:
        """Hash of everything that determines the embedding space; see docs/bundle.md."""
        return self.info.space_id

    @property
    def dim(self) -> int:
        """D, the width of the vectors."""
        return self.config.backbone.embed_dim

    @property
    def image_size(self) -> int:
        """Side of the square that images are resized to, in pixels."""
        return self.config.backbone.image_size

    @property
    def max_length(self) -> int:
        """Number of token ids of the longest text, including BOS and EOS."""
        return self.config.backbone.max_text_length

    @cached_property
    def float32(self) -> Encoder | None:
        """Encoder of this model in float32; None if this one already runs in float32."""
        if self.open_float32 is None:
            return None
        name = f"{Path(self.info.source).resolve().name} on {self.info.runtime}, float32"
        info = replace(self.info, name=name, precision="float32")
        backend = self.open_float32()
        size = graph_bytes(backend)
        return replace(self, info=info, backend=backend, open_float32=None, model_bytes=size)

    def embed_images(self, images: Iterable[ImageLike], *, batch: int = IMAGE_BATCH) -> Embeddings:
        """Embed images, given as paths, encoded bytes or Pillow images, also mixed.

        Holds one batch of decoded images at a time.

        Returns:
            (n, D) float32 in input order, each row of unit length; (0, D) for no images.

        Raises:
            UsageError: the model has no vision tower.
            ImageError: an image cannot be read; nothing is returned. To skip bad images, use
                `mwa_export.embed`.
        """
        if isinstance(images, _ONE_IMAGE):
            raise ImageError(
                f"embed_images expects a list of images, got one {type(images).__name__}. Use "
                "embed_images([image])"
            )
        self.require("vision")
        rows = enumerate(images)
        parts = []
        while items := list(islice(rows, batch)):
            pixels = [self._pixels_of_image(row, image) for row, image in items]
            parts.append(self.backend.embed_images(np.stack(pixels)))
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def embed_texts(self, texts: Iterable[str], *, batch: int = TEXT_BATCH) -> Embeddings:
        """Embed texts.

        Returns:
            (n, D) float32 in input order, each row of unit length; (0, D) for no texts.

        Raises:
            UsageError: the model has no text tower.
            TokenizerError: the model was opened without a tokenizer.
            DataError: ``texts`` is a single str, whose letters would be embedded one by one, or
                contains something that is not a str.
        """
        if isinstance(texts, str | bytes):
            raise DataError(
                f"embed_texts expects a list of texts, got one {type(texts).__name__}. Use "
                "embed_texts([text])"
            )
        self.require("text")
        captions = list(texts)
        for row, text in enumerate(captions):
            if not isinstance(text, str):
                raise DataError(f"text {row}: expected a str, got {type(text).__name__}.")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"text {row}: is not valid Unicode ({error.reason}).") from error
        if not captions:
            return np.empty((0, self.dim), np.float32)
        return self.embed_captions(captions, batch=batch)

    def embed_pictures(
        self,
        pictures: Sequence[Readable],
        *,
        batch: int = IMAGE_BATCH,
        on_rows: Callable[[int], None] = ignore,
    ) -> tuple[Embeddings, dict[int, str]]:
        """Embed images; an unreadable image does not stop the others.

        Args:
            pictures: the images, at least one.
            batch: images at a time.
            on_rows: called with the number of images after each batch.

        Returns:
            (len(pictures), D) float32, and the reason for each row that failed; failed rows are
            NaN.
        """
        failures: dict[int, str] = {}
        parts: list[tuple[list[int], Embeddings]] = []
        for start in range(0, len(pictures), batch):
            end = min(start + batch, len(pictures))
            rows, pixels = [], []
            for row in range(start, end):
                try:
                    pixels.append(self.pixels(pictures[row], str(pictures[row])))
                    rows.append(row)
                except ImageError as error:
                    failures[row] = str(error)
            if rows:
                parts.append((rows, self.backend.embed_images(np.stack(pixels))))
            on_rows(end - start)
        return scatter(parts, len(pictures)), failures

    def embed_captions(
        self,
        captions: Sequence[Caption],
        *,
        batch: int = TEXT_BATCH,
        on_rows: Callable[[int], None] = ignore,
    ) -> Embeddings:
        """Embed texts or stored token ids. Returns (len(captions), D) float32, in input order.

        Raises:
            TokenizerError, DataError: see `encode`.
        """
        return embed_token_ids(self.backend, self.encode(captions), batch=batch, on_rows=on_rows)

    def pixels(self, content: Content | Image.Image, name: str) -> NDArray[np.uint8]:
        """Decode and resize an image. Returns (S, S, 3) uint8; ``name`` is for messages.

        Raises:
            ImageError: the image cannot be read or decoded.
        """
        return self.prepare(decode_picture(content, name))

    def encode(self, captions: Sequence[Caption], on_cut: OnCut | None = None) -> list[list[int]]:
        """Convert captions to token ids with BOS and EOS, truncated to ``max_length``.

        ``on_cut`` is called with each caption that is longer.

        Raises:
            TokenizerError: a caption is a text and there is no tokenizer.
            DataError: a stored id is not in the vocabulary.
        """
        backbone, source = self.config.backbone, self.info.source
        if on_cut is None:
            return encode_captions(captions, self.tokenizer, backbone, source)
        return encode_captions(captions, self.tokenizer, backbone, source, on_cut)

    def count_cut(self, captions: Sequence[Caption]) -> int:
        """Count captions longer than ``max_length``. Raises the errors of `encode`."""
        cut: list[Caption] = []
        self.encode(captions, cut.append)
        return len(cut)

    def _pixels_of_image(self, row: int, image: ImageLike) -> NDArray[np.uint8]:
        """Read one image at the model's size, (S, S, 3) uint8. ``row`` is for messages."""
        if isinstance(image, str | os.PathLike):
            return self.pixels(Picture(Path(image)), f"image {row} ({image})")
        if isinstance(image, bytes | Image.Image):
            return self.pixels(image, f"image {row} ({type(image).__name__})")
        raise ImageError(
            f"image {row}: expected a path, bytes or a Pillow image, got {type(image).__name__}."
        )
