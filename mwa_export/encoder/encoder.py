"""The encoder: a backend with its preprocessing and tokenizer, from images and texts to vectors."""

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
"""A file's path, the encoded bytes, or a picture that Pillow has opened."""
Prepare = Callable[[Image.Image], NDArray[np.uint8]]
"""A decoded picture -> (S, S, 3) uint8 pixels."""
_ONE_IMAGE = (str, os.PathLike, bytes, Image.Image)


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """Description of an encoder, for reports."""

    name: str  # for people: "checkpoint-29.pth on PyTorch, float32"
    source: str  # the file or folder; "arrays" if vectors were handed over
    runtime: str  # "PyTorch 2.13.0"; "" for arrays
    precision: str  # "float32", "vision int8, text float32"; "" for arrays
    space_id: str | None  # of the embedding space, if known


@dataclass(frozen=True)
class Encoder:
    """Embeds images and texts with a bundle on a runtime, or with a checkpoint on PyTorch.

    Open one with `mwa_export.load`. Vectors of two encoders may be compared if their `space_id` is
    the same.
    """

    info: EncoderInfo
    config: ModelConfig
    backend: Backend
    image: Mapping[str, Any]  # preprocessing of pictures, as the manifest has it
    prepare: Prepare  # and as a function
    tokenizer: Tokenizer | None
    tokenizer_sha256: str | None
    carries_tokenizer: bool  # a bundle without one may be lent one, which its space id ignores
    identity: Mapping[str, Any]  # all that decides its embeddings, for caches
    open_float32: Callable[[], Backend] | None = None  # None: its precision was not reduced
    made_with: Mapping[str, str] = field(default_factory=dict)  # versions, of a bundle's export
    warnings: tuple[str, ...] = ()
    towers: tuple[Tower, ...] = TOWERS  # that it has, of a bundle or checkpoint of one alone
    model_bytes: int | None = None  # size of the graph files; of a checkpoint, of its weights

    def require(self, *towers: Tower) -> None:
        """Raise UsageError unless it has these towers."""
        for tower in towers:
            if tower not in self.towers:
                raise UsageError(
                    f"{self.info.source}: holds the {self.towers[0]} tower alone. This needs the "
                    f"{tower} tower: export the whole checkpoint, with `towers=both`."
                )

    @property
    def space_id(self) -> str | None:
        """Hash of everything that decides the embedding space; see docs/bundle.md."""
        return self.info.space_id

    @property
    def dim(self) -> int:
        """D, the width of the vectors."""
        return self.config.backbone.embed_dim

    @property
    def image_size(self) -> int:
        """Encoder of the square that pictures are resized to, in pixels."""
        return self.config.backbone.image_size

    @property
    def max_length(self) -> int:
        """Token ids of the longest text, BOS and EOS included."""
        return self.config.backbone.max_text_length

    @cached_property
    def float32(self) -> Encoder | None:
        """The same model before its precision was reduced; None if it was not."""
        if self.open_float32 is None:
            return None
        name = f"{Path(self.info.source).resolve().name} on {self.info.runtime}, float32"
        info = replace(self.info, name=name, precision="float32")
        backend = self.open_float32()
        size = graph_bytes(backend)
        return replace(self, info=info, backend=backend, open_float32=None, model_bytes=size)

    def embed_images(self, images: Iterable[ImageLike], *, batch: int = IMAGE_BATCH) -> Embeddings:
        """Embed images: paths, encoded bytes, or pictures opened by Pillow, also mixed.

        Holds one batch of decoded images at a time.

        Returns:
            (n, D) float32 in their order, each row of unit length; (0, D) for none.

        Raises:
            UsageError: the model has no vision tower.
            ImageError: one cannot be read. The message names it, and nothing is returned; to
                leave bad images out, use `mwa_export.embed`.
        """
        if isinstance(images, _ONE_IMAGE):
            raise ImageError(
                f"embed_images was given one {type(images).__name__}. Expected a list of images: "
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
        """Embed texts. A single str is refused: its letters would be embedded one by one.

        Returns:
            (n, D) float32 in their order, each row of unit length; (0, D) for none.

        Raises:
            UsageError: the model has no text tower.
            TokenizerError: the model was opened without a tokenizer.
            DataError: a single text, or something that is not a text.
        """
        if isinstance(texts, str | bytes):
            raise DataError(
                f"embed_texts was given one {type(texts).__name__}. Expected a list of texts: "
                "embed_texts([text])"
            )
        self.require("text")
        captions = list(texts)
        for row, text in enumerate(captions):
            if not isinstance(text, str):
                raise DataError(f"text {row}: is of type {type(text).__name__}. Expected a str.")
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
        """Embed pictures; one that cannot be read costs its own row only.

        Args:
            pictures: at least one.
            batch: pictures at a time.
            on_rows: called with the number of pictures after each batch.

        Returns:
            (len(pictures), D) float32, and for each row that failed the reason; those rows are NaN.
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
        """Embed texts or stored token ids. Returns (len(captions), D) float32, in their order.

        Raises:
            TokenizerError, DataError: see `encode`.
        """
        return embed_token_ids(self.backend, self.encode(captions), batch=batch, on_rows=on_rows)

    def pixels(self, content: Content | Image.Image, name: str) -> NDArray[np.uint8]:
        """Decode and resize a picture. Returns (S, S, 3) uint8; ``name`` is for messages.

        Raises:
            ImageError: it cannot be read or decoded.
        """
        return self.prepare(decode_picture(content, name))

    def encode(self, captions: Sequence[Caption], on_cut: OnCut | None = None) -> list[list[int]]:
        """Captions -> token ids with BOS and EOS, cut to ``max_length``.

        ``on_cut`` is told each caption that is longer.

        Raises:
            TokenizerError: a caption is a text and there is no tokenizer.
            DataError: a stored id is not in the vocabulary.
        """
        backbone, source = self.config.backbone, self.info.source
        if on_cut is None:
            return encode_captions(captions, self.tokenizer, backbone, source)
        return encode_captions(captions, self.tokenizer, backbone, source, on_cut)

    def count_cut(self, captions: Sequence[Caption]) -> int:
        """How many captions are longer than the longest text. Errors are those of `encode`."""
        cut: list[Caption] = []
        self.encode(captions, cut.append)
        return len(cut)

    def _pixels_of_image(self, row: int, image: ImageLike) -> NDArray[np.uint8]:
        """One picture at the model's size, (S, S, 3). ``row`` is for messages."""
        if isinstance(image, str | os.PathLike):
            return self.pixels(Picture(Path(image)), f"image {row} ({image})")
        if isinstance(image, bytes | Image.Image):
            return self.pixels(image, f"image {row} ({type(image).__name__})")
        raise ImageError(
            f"image {row}: is of type {type(image).__name__}. Expected a path, bytes, or a "
            "picture opened by Pillow."
        )
