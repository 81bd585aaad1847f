"""Export a model to a verified bundle."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import (
    CONFORMANCE,
    TOKENIZER,
    Export,
    Graph,
    Manifest,
    Source,
    preprocessing_of,
)
from mwa_export.bundle.update import changed_bundle
from mwa_export.export.verify import TOLERANCE, conformance_vectors, verify_graph
from mwa_export.files import sha256_of
from mwa_export.graphs.build import OPSET
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.memory import release
from mwa_export.model.load import Model, ModelSource, load_model
from mwa_export.model.options import ModelOptions
from mwa_export.model.space import space_id
from mwa_export.optional import check_installed, versions_of
from mwa_export.progress import ignore_step
from mwa_export.runtimes.pytorch import TorchBackend
from mwa_export.spec import ImageInput, Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS, steps_without
from mwa_export.version import __version__

log = logging.getLogger(__name__)
_PACKAGES = ("numpy", "onnx", "onnxruntime", "pillow", "sentencepiece", "torch", "torchscale")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of `export`."""

    image_input: ImageInput = "float32"  # "uint8": the graph normalizes the pixels
    no_merge: tuple[str, ...] = ()  # merge steps to turn off, names from towers.steps.STEPS
    tokenizer: Path | None = None  # the .spm file; None: the bundle takes only token ids
    force: bool = False  # replace an existing bundle
    tolerance: float = TOLERANCE  # largest allowed difference of any embedding component


def export(
    checkpoint: str | os.PathLike[str] | ModelSource,
    out: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    model_options: ModelOptions | None = None,
    on_step: Callable[[str], None] = ignore_step,
) -> Bundle:
    """Export a checkpoint to a verified bundle. Needs the extra `export`.

    Args:
        checkpoint: its file, or a `ModelSource` for a base with an adapter file.
        out: the bundle's folder. It appears complete or not at all.
        options: see ExportOptions.
        model_options: options that the checkpoint lacks, or that override the stored ones: adapter
            options, image size, text length, towers.
        on_step: called with a short description before each step.

    Returns:
        The new bundle.

    Raises:
        MissingPackageError: torchscale is not installed.
        CheckpointError, AdapterError, UsageError: the checkpoint cannot be used.
        VerificationError: a graph differs from the reference by more than the tolerance.
        BundleError: the folder already exists or cannot be written.
        TokenizerError: the tokenizer does not fit the vocabulary.
        MergeError: a merge step does not exist.
    """
    check_installed("torchscale")
    if not isinstance(checkpoint, ModelSource):
        checkpoint = ModelSource(Path(checkpoint))
    on_step("read the checkpoint")
    model = load_model(checkpoint, model_options)
    return bundle_from_model(model, Path(out), options, on_step=on_step)


def bundle_from_model(
    model: Model,
    out: Path,
    options: ExportOptions | None = None,
    *,
    on_step: Callable[[str], None] = ignore_step,
) -> Bundle:
    """Merge the towers, write them as ONNX, check them against the reference, write the bundle.

    Args:
        model: a loaded model.
        out: the bundle's folder. It appears complete or not at all.
        options: see ExportOptions.
        on_step: called with a short description before each step.

    Returns:
        The new bundle.

    Raises:
        VerificationError: a graph differs from the reference by more than the tolerance.
        BundleError: the folder already exists or cannot be written.
        TokenizerError: the tokenizer does not fit the vocabulary.
        MergeError: a merge step does not exist.
    """
    options = options or ExportOptions()
    steps = steps_without(options.no_merge)
    backbone = model.config.backbone
    if options.tokenizer is not None:
        Tokenizer.from_file(options.tokenizer).check_vocabulary(backbone.vocab_size)
    with changed_bundle(None, out, force=options.force) as change:
        folder = change.folder
        on_step("hash the weights")
        preprocessing = preprocessing_of(backbone)
        tokenizer = _copy_tokenizer(folder, options.tokenizer)
        space = space_id(model.config, model.tensors, preprocessing, tokenizer)
        graphs = []
        for tower in model.towers:
            on_step(f"merge and write the {tower} tower")
            graphs.append(_write_tower(model, tower, folder, steps, options, space))
            release()
        on_step("build the reference")
        reference = TorchBackend(model)
        differences = {}
        for graph in graphs:
            on_step(f"compare the {graph.spec.tower} tower with the reference")
            differences[graph.spec.tower] = verify_graph(
                folder / graph.file, graph, reference, backbone, tolerance=options.tolerance
            )
            release()
        conformance_vectors(reference, backbone, model.towers).save(folder / CONFORMANCE)
        del reference
        on_step("write the manifest")
        manifest = Manifest(
            space_id=space,
            model=model.config,
            preprocessing=preprocessing,
            graphs=tuple(graphs),
            tokenizer=None if tokenizer is None else TOKENIZER,
            export=Export(
                mwa_export=__version__,
                sources=tuple(
                    Source(path.name, sha256_of(path), file.layout)
                    for file in model.files
                    for path in file.files
                ),
                warnings=tuple(model.warnings),
                merges=tuple(step for step in STEPS if step in steps),
                largest_difference_from_reference=differences,
                versions=versions_of(*_PACKAGES),
            ),
        )
        manifest = change.write(manifest)
    return Bundle(Path(out), manifest)


def _write_tower(
    model: Model,
    tower: Tower,
    folder: Path,
    steps: frozenset[str],
    options: ExportOptions,
    space: str,
) -> Graph:
    plan, tensors = tower_from_model(
        model.config, model.tensors, tower, image_input=options.image_input
    )
    plan, tensors = merge_tower(plan, tensors, steps)
    path = folder / f"{tower}.onnx"
    onnx_from_tower(
        plan,
        tensors,
        path,
        metadata={
            "mwa_export.version": __version__,
            "mwa_export.tower": tower,
            "mwa_export.space_id": space,
            "mwa_export.merges": ",".join(step for step in STEPS if step in steps),
        },
    )
    return Graph(path.name, plan.spec, "float32", "onnx", OPSET)


def _copy_tokenizer(folder: Path, tokenizer: Path | None) -> str | None:
    """Copy the tokenizer into the bundle. Returns its sha256."""
    if tokenizer is None:
        return None
    target = folder / TOKENIZER
    target.parent.mkdir()
    shutil.copyfile(tokenizer, target)
    return sha256_of(target)
