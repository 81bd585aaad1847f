"""Compare exported graphs with the PyTorch reference on random inputs."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mwa_export.bundle.manifest import Conformance, Graph
from mwa_export.errors import VerificationError
from mwa_export.inputs.decode import pixels_of
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.ort_session import run_graph, session
from mwa_export.spec import TOWERS, BackboneConfig, Tower

TOLERANCE = 2e-5  # largest allowed difference of any embedding component
LENGTH_TOLERANCE = 1e-3  # largest allowed deviation of an embedding's length from 1
_SIDES = ((97, 150), (240, 65))  # of the conformance images: portrait and landscape
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
    """Compare a graph on ONNX Runtime with the reference, for random inputs of several shapes.

    Args:
        path: the graph's file.
        graph: its description.
        reference: backend that computes the expected embeddings.
        backbone: sizes of the model, for the inputs.
        tolerance: largest allowed difference of any embedding component.
        seed: random seed of the inputs.

    Returns:
        The largest difference found.

    Raises:
        VerificationError: the difference exceeds the tolerance; the message names the tower.
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
            f"the exported {graph.spec.tower} tower differs from the PyTorch reference: the "
            f"largest difference of an embedding component is {worst:.1e}, expected at most "
            f"{tolerance:.0e}. Nothing was written. To find the cause, turn off one merge step at "
            "a time with `no_merge`, and report it."
        )
    return worst


def conformance_vectors(
    reference: Backend, backbone: BackboneConfig, towers: Collection[Tower] = TOWERS
) -> Conformance:
    """Make the conformance vectors: two small images and four short texts with their embeddings.

    The embeddings are those of the reference. Arrays of towers not in ``towers`` have no rows.
    """
    rng = np.random.default_rng(20230)
    pictures: NDArray[np.uint8] = np.empty(0, np.uint8)
    ends: NDArray[np.int64] = np.empty(0, np.int64)
    pixels: NDArray[np.uint8] = np.empty((0, 0, 0, 3), np.uint8)
    ids: NDArray[np.int64] = np.empty((0, 0), np.int64)
    mask = ids
    vision: NDArray[np.float32] = np.empty((0, backbone.embed_dim), np.float32)
    text = vision
    if "vision" in towers:
        files = [_picture(rng, *sides) for sides in _SIDES]
        pictures = np.frombuffer(b"".join(files), np.uint8)
        ends = np.cumsum([len(file) for file in files])
        pixels = np.stack([pixels_of(file, "image", backbone.image_size) for file in files])
        vision = reference.embed_images(pixels)
    if "text" in towers:
        ids, mask = random_texts(rng, 4, min(12, backbone.max_text_length), backbone.vocab_size)
        text = reference.embed_texts(ids, mask)
    return Conformance(pictures, ends, pixels, ids, mask, vision, text)


def _picture(rng: np.random.Generator, width: int, height: int) -> bytes:
    """Make a PNG of colour waves. Unlike noise they compress, which keeps the file small."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    phase = np.einsum("cd,dhw->hwc", rng.uniform(1, 9, (3, 2)) * 2 * np.pi, np.stack([y, x]))
    image = Image.fromarray(np.round(127.5 + 127.5 * np.sin(phase)).astype(np.uint8))
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32], tower: Tower) -> float:
    """Return the largest difference; NaN if an embedding of the graph is not finite."""
    # Weights that overflow in float32 may also result in zeros: x / inf.
    lengths = np.linalg.norm(expected.astype(np.float64), axis=1)
    if not (np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():
        raise VerificationError(
            f"in the PyTorch reference, embeddings of the {tower} tower are not finite or not of "
            "unit length. Its weights are too large or too small for float32. Export an earlier "
            "checkpoint."
        )
    if found.shape != expected.shape:
        raise VerificationError(
            f"the exported {tower} tower returns embeddings of shape {found.shape}. Expected "
            f"{expected.shape}. Report this as a bug."
        )
    return float(np.abs(found - expected).max())
