"""The one small interface behind which every runtime sits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle import Bundle, Conformance
from mwa_export.config import Tower
from mwa_export.errors import VerificationError

Embeddings = NDArray[np.float32]  # (B, D), unit L2 norm

# Largest difference of a component between a float32 runtime and the reference. The export allows
# 2e-5; other instruction sets round differently, and a wrong graph misses by far more than this.
CONFORMANCE_TOLERANCE = 1e-4


class Backend(Protocol):
    """Something that turns batches into embeddings: a runtime with a bundle, or the reference."""

    @property
    def name(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """pixels: (B, H, W, 3) uint8 RGB at the model's size. Returns (B, D)."""
        ...

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        """Both (B, T) int64, mask 1 = padding. Returns (B, D)."""
        ...


def check_conformance(
    backend: Backend, bundle: Bundle, *, towers: Collection[Tower] = ("vision", "text")
) -> None:
    """Raise VerificationError if a runtime does not reproduce the bundle's conformance vectors."""
    vectors: Conformance = bundle.conformance()
    for tower in towers:
        if tower == "vision":
            embeddings = backend.embed_images(vectors.pixels)
        else:
            embeddings = backend.embed_texts(vectors.token_ids, vectors.padding_mask)
        difference = float(np.abs(embeddings - getattr(vectors, tower)).max())
        if not difference <= CONFORMANCE_TOLERANCE:
            raise VerificationError(
                f"{bundle.path}: {backend.name} does not reproduce the conformance vectors of the "
                f"{tower} tower. Largest difference {difference:.1e}, allowed "
                f"{CONFORMANCE_TOLERANCE:.0e}. Update the runtime."
            )
