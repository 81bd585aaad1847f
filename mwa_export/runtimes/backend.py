"""The interface that every runtime implements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Conformance, Graph
from mwa_export.errors import VerificationError
from mwa_export.spec import TOWERS, Embeddings, Tower

# Largest difference of a component between a float32 runtime and the reference. The export allows
# 2e-5; other instruction sets round differently, and a wrong graph misses by far more than this.
CONFORMANCE_TOLERANCE = 1e-4
BFLOAT16_COSINE = 0.998  # least cosine of 16 bit; 0.9999 is usual at base size


Probe = Callable[[tuple[NDArray[Any], ...]], list[NDArray[np.float32]]]
"""Inputs of a tower (pixels; or token ids and padding mask) -> what each block passes on, (B, T, D)
or, where a graph computes only that, its first token (B, 1, D); the embedding (B, D) comes last."""


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

    def probe(self, tower: Tower) -> Probe | None:
        """Observe a tower's blocks; None: this runtime cannot.

        Raises:
            BundleError: the graph does not name its blocks: another tool made it.
        """
        ...


class GraphBackend(Backend, Protocol):
    """A runtime that runs graph files."""

    @property
    def graphs(self) -> Mapping[Tower, tuple[Path, Graph]]: ...

    @property
    def precision(self) -> str:
        """ "float32" unless something was reduced."""
        ...


def check_conformance(
    backend: Backend,
    bundle: Bundle,
    *,
    towers: Collection[Tower] = TOWERS,
    least: Mapping[Tower, float] | None = None,
) -> None:
    """Raise VerificationError if a runtime does not reproduce the bundle's conformance vectors.

    Args:
        least: for towers of reduced precision, the least cosine that is expected; the others must
            agree to CONFORMANCE_TOLERANCE.
    """
    vectors = bundle.conformance()
    for tower in towers:
        embeddings = _conformance_embeddings(backend, vectors, tower)
        if least is not None and tower in least:
            found = _least_cosine(embeddings, getattr(vectors, tower))
            if not found >= least[tower]:
                raise VerificationError(
                    f"{bundle.path}: {backend.name} does not reproduce the conformance vectors of "
                    f"the {tower} tower. Least cosine {found:.5f}, expected {least[tower]:.5f} or "
                    "more. Update the runtime, or use float32."
                )
            continue
        difference = float(np.abs(embeddings - getattr(vectors, tower)).max())
        if not difference <= CONFORMANCE_TOLERANCE:
            raise VerificationError(
                f"{bundle.path}: {backend.name} does not reproduce the conformance vectors of the "
                f"{tower} tower. Largest difference {difference:.1e}, allowed "
                f"{CONFORMANCE_TOLERANCE:.0e}. Update the runtime."
            )


def conformance_cosine(backend: Backend, bundle: Bundle, tower: Tower) -> float:
    """The least cosine of a tower's embeddings with the bundle's conformance vectors."""
    vectors = bundle.conformance()
    found = _conformance_embeddings(backend, vectors, tower)
    return _least_cosine(found, getattr(vectors, tower))


def expected_cosine(graph: Graph, *, bfloat16: bool = False) -> float | None:
    """Cosine that a graph of reduced precision must reach; None: float32, compared exactly.

    Other processors round differently, so half of the loss that was measured where the graph was
    made is allowed on top, and never less than what bfloat16 alone may cost.
    """
    if graph.conformance is not None:
        return graph.conformance - max(0.002, 0.5 * (1 - graph.conformance))
    return BFLOAT16_COSINE if bfloat16 or graph.precision != "float32" else None


def _conformance_embeddings(backend: Backend, vectors: Conformance, tower: Tower) -> Embeddings:
    if tower == "vision":
        return backend.embed_images(vectors.pixels)
    return backend.embed_texts(vectors.token_ids, vectors.padding_mask)


def _least_cosine(one: Embeddings, other: Embeddings) -> float:
    return float((one.astype(np.float64) * other).sum(axis=1).min())
