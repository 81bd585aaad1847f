"""Compare exported graphs with the PyTorch reference on inputs they have not seen."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.manifest import Conformance, Graph
from mwa_export.errors import VerificationError
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.ort_session import run_graph, session
from mwa_export.spec import TOWERS, BackboneConfig, Tower

TOLERANCE = 2e-5  # largest allowed difference of any embedding component
LENGTH_TOLERANCE = 1e-3  # of an embedding, which is normalized
_IMAGE_BATCHES = (1, 3)
_TEXT_SHAPES = ((1, 3), (2, 16), (3, 1 << 20))  # batch, length; cut to the model's longest text


def verify_graph(
    path: Path,
    graph: Graph,
    reference: Backend,
    backbone: BackboneConfig,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> float:
    """Run a graph on ONNX Runtime over several shapes of random input, against the reference.

    Args:
        path: the graph's file.
        graph: its description.
        reference: the backend that decides.
        backbone: sizes of the model, for the inputs.
        tolerance: largest allowed difference of any embedding component.
        seed: of the inputs.

    Returns:
        The largest difference found.

    Raises:
        VerificationError: it is above the tolerance; the message names the tower.
    """
    rng = np.random.default_rng(seed)
    runner = session(path)
    differences: list[float] = []
    if graph.spec.tower == "vision":
        for batch in _IMAGE_BATCHES:
            pixels = random_pixels(rng, batch, backbone.image_size)
            found = run_graph(runner, graph, (pixels,))
            expected = reference.embed_images(pixels)
            differences.append(_difference(found, expected, graph.spec.tower))
    else:
        for batch, length in _TEXT_SHAPES:
            length = min(length, backbone.max_text_length)
            ids, mask = random_texts(rng, batch, length, backbone.vocab_size)
            found = run_graph(runner, graph, (ids, mask))
            expected = reference.embed_texts(ids, mask)
            differences.append(_difference(found, expected, graph.spec.tower))
    worst = float(np.max(differences))  # unlike max(), keeps NaN
    if not worst <= tolerance:
        raise VerificationError(
            f"the exported {graph.spec.tower} tower differs from the PyTorch reference: largest "
            f"difference of an embedding component {worst:.1e}, allowed {tolerance:.0e}. Nothing "
            "was written. Try `no_merge` with one step at a time to find the cause, and report it."
        )
    return worst


def conformance_vectors(
    reference: Backend, backbone: BackboneConfig, towers: Collection[Tower] = TOWERS
) -> Conformance:
    """Two small pictures and four short texts with the reference's embeddings.

    There are none, in arrays of no rows, for a tower that is not among ``towers``.
    """
    rng = np.random.default_rng(20230)
    pixels = np.empty((0, 0, 0, 3), np.uint8)
    ids = mask = np.empty((0, 0), np.int64)
    vision = text = np.empty((0, backbone.embed_dim), np.float32)
    if "vision" in towers:
        pixels = _smooth_pixels(rng, 2, backbone.image_size)
        vision = reference.embed_images(pixels)
    if "text" in towers:
        ids, mask = random_texts(rng, 4, min(12, backbone.max_text_length), backbone.vocab_size)
        text = reference.embed_texts(ids, mask)
    return Conformance(pixels, ids, mask, vision, text)


def _smooth_pixels(rng: np.random.Generator, batch: int, size: int) -> NDArray[np.uint8]:
    """Colour waves: unlike noise they compress, so that conformance files stay small."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = rng.uniform(1, 9, (batch, 3, 2)) * 2 * np.pi
    phase = np.einsum("bcd,dhw->bhwc", waves, np.stack([y, x]))
    return np.asarray(np.round(127.5 + 127.5 * np.sin(phase)), np.uint8)


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32], tower: Tower) -> float:
    """The largest difference; NaN if an embedding of the graph is not finite."""
    # Weights that overflow in float32 may leave zeros as well: x / inf.
    lengths = np.linalg.norm(expected.astype(np.float64), axis=1)
    if not (np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():
        raise VerificationError(
            f"the PyTorch reference computes embeddings of the {tower} tower that are not finite "
            "or not of unit length. Its weights are too large or too small for float32: export an "
            "earlier checkpoint."
        )
    if found.shape != expected.shape:
        raise VerificationError(f"shape {found.shape} came out, expected {expected.shape}.")
    return float(np.abs(found - expected).max())
