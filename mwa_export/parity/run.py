"""A parity run over files: embed a test set with both sides, then measure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mwa_export.bundle.manifest import MANIFEST
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import DataOptions, TestSet, read_data
from mwa_export.encoder.cache import Cache
from mwa_export.encoder.encoder import Encoder
from mwa_export.encoder.open import (
    ON_ONNX_RUNTIME,
    CheckpointOptions,
    check_same_space,
    open_bundle,
    open_checkpoint,
)
from mwa_export.errors import BundleError, DataError
from mwa_export.optional import check_installed
from mwa_export.parity.layers import check_layers, layer_drift
from mwa_export.parity.measure import CompareOptions, Context, measure
from mwa_export.parity.result import Parity, Vectors
from mwa_export.parity.stages import Embedder, drift_by_stage
from mwa_export.progress import Progress, Silent
from mwa_export.report.numbers import counted
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.spec import TOWERS, Embeddings


class Finished(NamedTuple):
    """A run's result, and the test set without the images that were left out."""

    result: Parity
    data: RetrievalData


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of `compare_models` on how to open and embed; see also `CompareOptions`."""

    graphs: tuple[str, ...] = ()  # of the candidate; float32 for a tower that has none
    runtime: RuntimeOptions = ON_ONNX_RUNTIME  # of the candidate; its threads are for both sides
    tokenizer: Path | None = None  # of the reference, and of a bundle without one
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    cache: Path | None = None  # folder for the reference's embeddings; None: no cache
    max_excluded: int = 0  # images that may be missing or unreadable
    layers: bool = False  # also compare block by block
    any_space: bool = False  # allow different embedding spaces


def compare_models(
    reference: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    data: TestSet,
    *,
    run: RunOptions | None = None,
    options: CompareOptions | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Compare a bundle with the checkpoint it came from, or with another bundle.

    Args:
        reference: a checkpoint, or a bundle.
        candidate: a bundle.
        data: a test set, or the path of one.
        run: see RunOptions.
        options: see CompareOptions.
        progress: called for each step.

    Raises:
        BundleError: a bundle is damaged or does not fit the options.
        CheckpointError: the reference cannot be read as a checkpoint.
        DataError: the test set cannot be read, or too many images are missing or unreadable.
        RuntimeUnavailableError: this machine cannot run the candidate.
        UsageError: the sides have different embedding spaces, unless ``run.any_space`` is set.
    """
    run, progress = run or RunOptions(), progress or Silent()
    check_packages(Path(reference), [run.runtime], layers=run.layers)
    if not isinstance(data, RetrievalData):
        progress("read the test set")
        data = read_data(data, DataOptions(max_excluded=run.max_excluded))
    progress("open the bundle and check its conformance vectors")
    checked = open_bundle(
        candidate, graphs=run.graphs, runtime=run.runtime, lent_tokenizer=run.tokenizer
    )
    progress("open the reference")
    decides = open_reference(Path(reference), checked, run)
    return compare_sides(decides, checked, data, run=run, options=options, progress=progress)


def check_packages(
    reference: Path, runtimes: Iterable[RuntimeOptions], *, layers: bool = False
) -> None:
    """Raise MissingPackageError if a package that a comparison needs is not installed.

    A reference that is a bundle needs none.
    """
    if any(options.runtime == "openvino" for options in runtimes):
        check_installed("openvino")
    if not (reference / MANIFEST).is_file():
        check_installed("torch", "torchscale")
    if layers:
        check_installed("onnx", why="compare layers")


def open_reference(path: Path, candidate: Encoder, run: RunOptions) -> Encoder:
    """Open the reference: a bundle if the path contains a manifest, otherwise a checkpoint.

    Raises:
        BundleError: the path is a bundle, and options for reading checkpoints were given.
    """
    if not (path / MANIFEST).is_file():
        return open_checkpoint(path, candidate, run.checkpoint, tokenizer=run.tokenizer)
    if run.checkpoint != CheckpointOptions():
        raise BundleError(
            f"{path}: is a bundle, but options for reading a checkpoint were given. Omit them."
        )
    runtime = replace(ON_ONNX_RUNTIME, threads=run.runtime.threads)
    return open_bundle(path, runtime=runtime, tokenizer=run.tokenizer)


def compare_sides(
    reference: Encoder,
    candidate: Encoder,
    data: RetrievalData,
    *,
    run: RunOptions | None = None,
    options: CompareOptions | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Embed a test set with both opened sides, measure the drift by stage, and compare.

    Raises:
        UsageError: the sides have different embedding spaces, unless ``run.any_space`` is set.
        DataError: more than ``run.max_excluded`` images are missing or unreadable.
    """
    run, progress = run or RunOptions(), progress or Silent()
    # Check everything before embedding, which may take hours.
    for side in (reference, candidate):
        side.require(*TOWERS)
    if not run.any_space:
        check_same_space(reference, candidate)
    cut = reference.count_cut(data.captions), candidate.count_cut(data.captions)
    if run.layers:
        check_layers(reference, candidate)
    progress("open the candidate in float32")
    _ = candidate.float32  # opened here so that errors come before embedding
    embed = Embedder(
        reference, Cache(run.cache, reference.identity) if run.cache else None, progress
    )
    data, images = _embed_pictures(embed, reference, candidate, data, run.max_excluded)
    first = Vectors(images[0], embed.texts(reference, data))
    last = Vectors(images[1], embed.texts(candidate, data))
    progress("measure the drift by stage")
    stages, exact = drift_by_stage(reference, candidate, data, first, last, embed)
    layers = layer_drift(reference, candidate, data, progress=progress) if run.layers else ()
    warnings = *reference.warnings, *candidate.warnings, *_cut_warnings(reference, candidate, cut)
    context = Context(
        reference=reference.info,
        candidate=candidate.info,
        stages=stages,
        float32=exact,
        cut_captions=cut,
        layers=layers,
        costs=embed.costs(reference, candidate),
        warnings=tuple(dict.fromkeys(warnings)),
    )
    return Finished(measure(first, last, data, context, options, progress), data)


def _cut_warnings(reference: Encoder, candidate: Encoder, cut: tuple[int, int]) -> Iterator[str]:
    """Yield a sentence for each side that truncates captions, or one for both if they agree."""
    sides = {"the reference": reference, "the candidate": candidate}
    said = [(name, n, side.max_length) for (name, side), n in zip(sides.items(), cut, strict=True)]
    if cut[0] == cut[1] and reference.max_length == candidate.max_length:
        said = [("both sides", cut[0], reference.max_length)]
    for name, count, length in said:
        if count:
            yield f"{counted(count, 'caption')} of more than {length} tokens truncated on {name}"


def _embed_pictures(
    embed: Embedder, reference: Encoder, candidate: Encoder, data: RetrievalData, max_excluded: int
) -> tuple[RetrievalData, tuple[Embeddings, Embeddings]]:
    """Embed images with both sides. Returns the data and vectors of all readable images."""
    ours, failed = embed.pictures(reference, data)
    theirs, failed_too = embed.pictures(candidate, data)
    failed = failed | failed_too
    excluded = len(data.excluded) + len(failed)
    if failed and excluded > max_excluded:
        raise DataError(
            f"{data.name}: {len(failed)} of {len(data.pictures)} images cannot be read. First "
            f"error: {failed[min(failed)]} Repair them, or leave them out with their captions: "
            f"`max_excluded={excluded}`"
        )
    keep = np.ones(len(data.pictures), bool)
    keep[list(failed)] = False
    return data.without(failed), (ours[keep], theirs[keep])
