"""Add float16 graphs to a bundle, for ONNX Runtime on CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Graph
from mwa_export.bundle.update import changed_bundle
from mwa_export.errors import VerificationError
from mwa_export.graphs.edit import FloatGraph, read_model
from mwa_export.graphs.lint.check import check
from mwa_export.graphs.typed import to_float16
from mwa_export.memory import release
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.backend import BFLOAT16_COSINE, inputs_of, least_cosine
from mwa_export.runtimes.magnitudes import Inputs, largest_magnitudes
from mwa_export.runtimes.ort_session import run_graph, session
from mwa_export.spec import Tower
from mwa_export.version import __version__


def add_float16(
    path: str | os.PathLike[str],
    batches: Mapping[Tower, Iterable[Inputs]] | None = None,
    *,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Add a float16 graph for each tower, checked against the conformance vectors.

    Nodes that produce or read values that may not fit float16 stay in float32, and so do the final
    normalization and all inputs and outputs. Recall is not measured.

    Args:
        path: the bundle, whose float32 graphs are converted. Its other graphs are kept.
        batches: typical inputs, on which values are measured in addition to the conformance
            vectors. "vision": (pixels,), (B, H, W, 3) uint8; "text": (token_ids, padding_mask),
            (B, T) int64.
        out: folder of the resulting bundle; None: change the bundle in place.
        force: replace ``out`` if it exists.
        progress: called with a description of each step.

    Returns:
        The bundle with the float16 graphs.

    Raises:
        BundleError: ``path`` is not a bundle, a weight does not fit float16, or ``out`` exists.
        VerificationError: a graph differs too much from the reference. The bundle is unchanged.
    """
    progress, batches = progress or Silent(), batches or {}
    progress("open the bundle")
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    with changed_bundle(bundle, out, force=force) as change:  # checks ``out`` before the work
        made = []
        for tower in manifest.towers:
            own = batches.get(tower, ())
            made.append(_write(bundle, tower, own, change.folder, progress))
            release()
        old = [graph for graph in manifest.graphs if graph.precision == "float16"]
        change.drop(*(name for graph in old for name in manifest.files_of(graph.file)))
        kept = [graph for graph in manifest.graphs if graph not in old]
        progress("write the manifest")
        written = change.write(replace(manifest, graphs=(*kept, *made)))
    return Bundle(Path(out or path), written)


def _write(
    bundle: Bundle, tower: Tower, batches: Iterable[Inputs], folder: Path, progress: Progress
) -> Graph:
    """Write a tower's float16 graph to `TOWER.float16.onnx` and check it on ONNX Runtime."""
    path, own = bundle.graph(tower)
    vectors = bundle.conformance()
    measured = [inputs_of(vectors, tower), *batches]
    ranges = largest_magnitudes((path, own), measured, progress)
    progress(f"{tower} tower: write the float16 graph and check it on ONNX Runtime")
    typed = to_float16(read_model(path, "Export the bundle again."), ranges=ranges)
    file = folder / f"{tower}.float16.onnx"
    metadata = {"mwa_export.version": __version__, "mwa_export.precision": "float16"}
    FloatGraph.of(typed.model).write(file, metadata)
    check(file, "onnx-float16")
    found = run_graph(session(file), own, inputs_of(vectors, tower))
    cosine = least_cosine(found, getattr(vectors, tower))
    if not cosine >= BFLOAT16_COSINE:  # NaN never is
        raise VerificationError(
            f"{bundle.path}: the float16 graph of the {tower} tower differs from the reference: "
            f"expected a cosine of at least {BFLOAT16_COSINE:.5f}, got {cosine:.5f}. The bundle "
            "is unchanged. Use its float32 graphs."
        )
    return replace(
        own,
        file=file.name,
        precision="float16",
        conformance=cosine,
        float32=typed.kept,
        measured=sum(len(inputs[0]) for inputs in measured),
    )
