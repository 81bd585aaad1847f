"""The interface that every runtime implements."""

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


def graph_bytes(backend: Backend) -> int | None:
    """Size of the files that a backend runs, with those of their weights; None: it runs none."""
    graphs: Mapping[Tower, tuple[Path, Graph]] = getattr(backend, "graphs", {})
    files = [
        file.stat().st_size
        for path, _ in graphs.values()
        for file in path.parent.iterdir()
        if f"{file.name}.".startswith(f"{path.name}.")
    ]
    return sum(files) or None


class OneAtATime:
    """Lets one thread at a time into a runtime that keeps its results in shared buffers.

    Encoders may be used by any number of threads. They do not survive a fork: the runtimes' own
    threads are not there in the child, where a call would wait for them forever.
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
    """The process that opened a runtime."""

    def __init__(self) -> None:
        self._opened_in = os.getpid()

    def check(self) -> None:
        """Raise RuntimeUnavailableError in a child that was forked after the runtime was opened."""
        if os.getpid() != self._opened_in:
            raise RuntimeUnavailableError(
                "the encoder was opened before this process was forked, and its threads are not "
                "here. Open it in the process that uses it, or start processes with `spawn`."
            )


def embed(backend: Backend, tower: Tower, inputs: tuple[NDArray[Any], ...]) -> Embeddings:
    """Embed a tower's inputs: (pixels,), or (token_ids, padding_mask). Returns (B, D)."""
    call: Callable[..., Embeddings] = (
        backend.embed_images if tower == "vision" else backend.embed_texts
    )
    return call(*inputs)


def inputs_of(vectors: Conformance, tower: Tower) -> tuple[NDArray[Any], ...]:
    """What a tower's conformance vectors were made from."""
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

    Towers of reduced precision must reach the cosine in ``least``; the others must agree to
    CONFORMANCE_TOLERANCE. Texts of more than ``longest`` tokens are left out.
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
            details = f"Least cosine {cosine:.5f}, expected {expected:.5f} or more"
            advice = "Update the runtime, or use float32."
        else:
            difference = float(np.abs(found - wanted).max())
            fits = difference <= CONFORMANCE_TOLERANCE
            details = f"Largest difference {difference:.1e}, allowed {CONFORMANCE_TOLERANCE:.0e}"
            advice = "Update the runtime."
        if not fits:  # NaN never does
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
    """What a tower gives for its conformance vectors' inputs.

    Raises:
        BundleError: its graph is one that does not take these, or gives something else.
    """
    try:
        found = embed(backend, tower, inputs)
    except (MwaExportError, MemoryError):
        raise
    except Exception as error:  # the runtimes' own types, none of which they export
        raise BundleError(
            f"{bundle.path}: {backend.name} cannot run the {tower} tower's graph on its "
            f"conformance vectors ({error}). {REMEDY}"
        ) from error
    if found.shape != shape:
        raise BundleError(
            f"{bundle.path}: the {tower} tower's graph gives embeddings of shape {found.shape} on "
            f"{backend.name}. Expected {shape}. {REMEDY}"
        )
    return found


def _check_pictures(bundle: Bundle, vectors: Conformance) -> None:
    """Raise VerificationError if the bundle's pictures get other pixels than where it was made."""
    for file, expected in zip(vectors.files(), vectors.pixels, strict=True):
        found = pixels_of(file, "a conformance picture", len(expected))
        if not np.array_equal(found, expected):
            made = (bundle.manifest.export.versions or {}).get("pillow", "another version")
            raise VerificationError(
                f"{bundle.path}: Pillow {PIL.__version__} gives its conformance pictures other "
                f"pixels than Pillow {made}, with which it was exported. Use that version."
            )


def check_graphs(backend: GraphBackend, bundle: Bundle, *, bfloat16: bool = False) -> None:
    """`check_conformance` of the towers that run a graph of the bundle, as its precision needs."""
    graphs = {
        t: graph for t, (_, graph) in backend.graphs.items() if graph in bundle.manifest.graphs
    }
    least = {tower: expected_cosine(graph, bfloat16=bfloat16) for tower, graph in graphs.items()}
    check_conformance(backend, bundle, towers=graphs, least=least)


def conformance_cosine(backend: Backend, bundle: Bundle, tower: Tower) -> float:
    """The least cosine of a tower's embeddings with the bundle's conformance vectors."""
    vectors = bundle.conformance()
    return least_cosine(embed(backend, tower, inputs_of(vectors, tower)), getattr(vectors, tower))


def measured_cosine(bundle: Bundle, tower: Tower, precision: str) -> float | None:
    """The least that the bundle's graphs of a precision must reach; None: none was measured."""
    graphs = [
        g for g in bundle.manifest.graphs if (g.spec.tower, g.precision) == (tower, precision)
    ]
    found = [expected_cosine(graph) for graph in graphs if graph.conformance]
    return min((cosine for cosine in found if cosine is not None), default=None)


def expected_cosine(graph: Graph, *, bfloat16: bool = False) -> float | None:
    """Cosine that a graph of reduced precision must reach; None: float32, compared exactly.

    Other processors round differently, so half of the loss that was measured where the graph was
    made is allowed on top, and never less than what bfloat16 alone may cost.
    """
    if graph.conformance is not None:
        return graph.conformance - max(0.002, 0.5 * (1 - graph.conformance))
    return BFLOAT16_COSINE if bfloat16 or graph.precision != "float32" else None


def least_cosine(one: Embeddings, other: Embeddings) -> float:
    """The least cosine of two sets of unit vectors, (B, D) each; NaN if anything is not finite."""
    return float((one.astype(np.float64) * other).sum(axis=1).min())
