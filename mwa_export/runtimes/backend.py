"""Interface that every runtime implements, and checks of the conformance vectors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import REMEDY, Conformance, Graph
from mwa_export.errors import (
    BundleError,
    MwaExportError,
    RuntimeUnavailableError,
    VerificationError,
)
from mwa_export.inputs.decode import pixels_of
from mwa_export.spec import TOWERS, Embeddings, Tower

# Largest allowed difference of a component between a float32 runtime and the reference. The export
# allows 2e-5; other instruction sets round differently, and a wrong graph differs by far more.
CONFORMANCE_TOLERANCE = 1e-4
BFLOAT16_COSINE = 0.998  # least cosine with 16 bits; 0.9999 is usual at base size


Probe = Callable[[tuple[NDArray[Any], ...]], list[NDArray[np.float32]]]
"""Inputs of a tower (pixels; or token ids and padding mask) -> output of each block, (B, T, D), or
(B, 1, D) where a graph computes only the first token; the embedding (B, D) comes last."""


class Backend(Protocol):
    """Turns batches into embeddings: a runtime with a bundle, or the reference."""

    @property
    def name(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Embed pixels, (B, H, W, 3) uint8 RGB at the model's size. Returns (B, D) float32."""
        ...

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        """Embed texts. Both inputs are (B, T) int64, mask 1 = padding. Returns (B, D) float32."""
        ...

    def probe(self, tower: Tower) -> Probe | None:
        """Make a function that returns the outputs of a tower's blocks; None: not supported.

        Raises:
            BundleError: blocks are not named, because another tool made the graph.
        """
        ...


class GraphBackend(Backend, Protocol):
    """A runtime that runs graph files."""

    @property
    def graphs(self) -> Mapping[Tower, tuple[Path, Graph]]: ...

    @property
    def precision(self) -> str:
        """Precision of the graphs, "float32" or a reduced one."""
        ...


def graph_bytes(backend: Backend) -> int | None:
    """Size in bytes of a backend's graphs with their weights; None: it has no graphs."""
    graphs: Mapping[Tower, tuple[Path, Graph]] = getattr(backend, "graphs", {})
    files = [
        file.stat().st_size
        for path, _ in graphs.values()
        for file in path.parent.iterdir()
        if f"{file.name}.".startswith(f"{path.name}.")
    ]
    return sum(files) or None


class OneAtATime:
    """Lock for a runtime that keeps its results in shared buffers.

    With it, encoders may be used by any number of threads. They do not survive a fork: the child
    lacks the threads of the runtime, and a call would wait for them forever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = InThisProcess()

    def __enter__(self) -> None:
        self._process.check()  # before the lock, which a thread of the parent may have held
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


class InThisProcess:
    """Remembers the process that opened a runtime."""

    def __init__(self) -> None:
        self._opened_in = os.getpid()

    def check(self) -> None:
        """Raise RuntimeUnavailableError in a child that was forked after the runtime was opened."""
        if os.getpid() != self._opened_in:
            raise RuntimeUnavailableError(
                "the encoder was opened before this process was forked, and its threads do not "
                "exist here. Open it in the process that uses it, or start processes with `spawn`."
            )


def embed(backend: Backend, tower: Tower, inputs: tuple[NDArray[Any], ...]) -> Embeddings:
    """Embed a tower's inputs, (pixels,) or (token_ids, padding_mask). Returns (B, D) float32."""
    call: Callable[..., Embeddings] = (
        backend.embed_images if tower == "vision" else backend.embed_texts
    )
    return call(*inputs)


def inputs_of(vectors: Conformance, tower: Tower) -> tuple[NDArray[Any], ...]:
    """Inputs of a tower's conformance vectors: (pixels,), or (token_ids, padding_mask)."""
    if tower == "vision":
        return (vectors.pixels,)
    return vectors.token_ids, vectors.padding_mask


def check_conformance(
    backend: Backend,
    bundle: Bundle,
    *,
    towers: Collection[Tower] = TOWERS,
    least: Mapping[Tower, float | None] | None = None,
    longest: int | None = None,
) -> None:
    """Raise VerificationError if a runtime does not reproduce the bundle's conformance vectors.

    Args:
        backend: the runtime to check.
        bundle: has the conformance vectors.
        towers: which towers to check.
        least: least cosine of towers with reduced precision. Towers without one must agree within
            CONFORMANCE_TOLERANCE.
        longest: leave out texts of more tokens; None: check all texts.
    """
    vectors = bundle.conformance()
    if "vision" in towers:
        _check_pictures(bundle, vectors)
    for tower in towers:
        wanted: Embeddings = getattr(vectors, tower)
        inputs = inputs_of(vectors, tower)
        if tower == "text" and longest is not None:
            rows = (vectors.padding_mask == 0).sum(axis=1) <= longest
            wanted, inputs = wanted[rows], tuple(array[rows, :longest] for array in inputs)
        if not len(wanted):
            continue
        found = _reproduced(backend, bundle, tower, inputs, wanted.shape)
        expected = None if least is None else least.get(tower)
        if expected is not None:
            cosine = least_cosine(found, wanted)
            fits = cosine >= expected
            details = f"Least cosine {cosine:.5f}, expected at least {expected:.5f}"
            advice = "Update the runtime, or use float32."
        else:
            difference = float(np.abs(found - wanted).max())
            fits = difference <= CONFORMANCE_TOLERANCE
            details = f"Largest difference {difference:.1e}, allowed {CONFORMANCE_TOLERANCE:.0e}"
            advice = "Update the runtime."
        if not fits:  # NaN never fits
            raise VerificationError(
                f"{bundle.path}: {backend.name} does not reproduce the conformance vectors of the "
                f"{tower} tower. {details}. {advice}"
            )


def _reproduced(
    backend: Backend,
    bundle: Bundle,
    tower: Tower,
    inputs: tuple[NDArray[Any], ...],
    shape: tuple[int, ...],
) -> Embeddings:
    """Embed the inputs of a tower's conformance vectors.

    Raises:
        BundleError: the graph does not accept these inputs, or its output has a wrong shape.
    """
    try:
        found = embed(backend, tower, inputs)
    except (MwaExportError, MemoryError):
        raise
    except Exception as error:  # runtimes raise types of their own, which they do not export
        raise BundleError(
            f"{bundle.path}: {backend.name} cannot run the {tower} tower's graph on its "
            f"conformance vectors ({error}). {REMEDY}"
        ) from error
    if found.shape != shape:
        raise BundleError(
            f"{bundle.path}: the {tower} tower's graph returns embeddings of shape {found.shape} "
            f"on {backend.name}, expected {shape}. {REMEDY}"
        )
    return found


def _check_pictures(bundle: Bundle, vectors: Conformance) -> None:
    """Raise VerificationError if the conformance images are decoded to different pixels here."""
    for file, expected in zip(vectors.files(), vectors.pixels, strict=True):
        found = pixels_of(file, "a conformance image", len(expected))
        if not np.array_equal(found, expected):
            made = (bundle.manifest.export.versions or {}).get("pillow", "another version")
            raise VerificationError(
                f"{bundle.path}: Pillow {PIL.__version__} decodes its conformance images to other "
                f"pixels than Pillow {made}, with which it was exported. Use that version."
            )


def check_graphs(backend: GraphBackend, bundle: Bundle, *, bfloat16: bool = False) -> None:
    """Check conformance of the bundle's own graphs, each as its precision requires."""
    graphs = {
        t: graph for t, (_, graph) in backend.graphs.items() if graph in bundle.manifest.graphs
    }
    least = {tower: expected_cosine(graph, bfloat16=bfloat16) for tower, graph in graphs.items()}
    check_conformance(backend, bundle, towers=graphs, least=least)


def conformance_cosine(backend: Backend, bundle: Bundle, tower: Tower) -> float:
    """Least cosine of a tower's embeddings with the bundle's conformance vectors."""
    vectors = bundle.conformance()
    return least_cosine(embed(backend, tower, inputs_of(vectors, tower)), getattr(vectors, tower))


def measured_cosine(bundle: Bundle, tower: Tower, precision: str) -> float | None:
    """Least cosine that graphs of a precision must reach; None: none was measured."""
    graphs = [
        g for g in bundle.manifest.graphs if (g.spec.tower, g.precision) == (tower, precision)
    ]
    found = [expected_cosine(graph) for graph in graphs if graph.conformance]
    return min((cosine for cosine in found if cosine is not None), default=None)


def expected_cosine(graph: Graph, *, bfloat16: bool = False) -> float | None:
    """Least cosine that a graph of reduced precision must reach; None: float32, compared exactly.

    Other processors round differently, so the loss may be larger than the one that was measured
    when the graph was made: by half of it, or by what bfloat16 alone may cost if that is more.
    """
    if graph.conformance is not None:
        return graph.conformance - max(0.002, 0.5 * (1 - graph.conformance))
    return BFLOAT16_COSINE if bfloat16 or graph.precision != "float32" else None


def least_cosine(one: Embeddings, other: Embeddings) -> float:
    """Least cosine of two sets of unit vectors, (B, D) each; NaN if a value is not finite."""
    return float((one.astype(np.float64) * other).sum(axis=1).min())
