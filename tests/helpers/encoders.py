"""Encoders with backends defined by tests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.encoder.encoder import Encoder, EncoderInfo
from mwa_export.inputs.preprocess import pixels_from_image
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.runtimes.backend import Backend
from mwa_export.spec import BackboneConfig, Embeddings, ModelConfig, Tower


class Telling:
    """A backend whose embeddings tell what it was given."""

    name = "telling"
    image_size = 8

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return np.asarray(pixels.reshape(len(pixels), -1).mean(1, keepdims=True), np.float32)

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        real = token_ids * (padding_mask == 0)
        return np.stack([real.sum(1), (padding_mask == 0).sum(1)], 1).astype(np.float32)

    def probe(self, tower: Tower) -> None:
        """Nothing to see."""


def encoder_on(
    backend: Backend, tokenizer: Tokenizer | None = None, image: Mapping[str, Any] | None = None
) -> Encoder:
    """An encoder of pictures of 8 x 8 pixels and texts of 64 tokens on a backend."""
    backbone = BackboneConfig(64, 128, 2, 64_000, 8, 4, 64)
    return Encoder(
        info=EncoderInfo("test", "test", "", "float32", None),
        config=ModelConfig(backbone),
        backend=backend,
        image=image or {"size": 8},
        prepare=partial(pixels_from_image, size=8),
        tokenizer=tokenizer,
        tokenizer_sha256=None,
        carries_tokenizer=False,
        identity={},
    )
