"""Make a bundle for another adapter by exchanging the weights in existing engines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import REFIT, Engine
from mwa_export.bundle.update import changed_bundle, check_target
from mwa_export.engines.graphs import CALIBRATED, EngineGraph, engine_graph
from mwa_export.errors import EngineError
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.files import scratch_folder, sha256_of
from mwa_export.graphs.edit import FloatGraph
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.options import ModelOptions
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.trt import TensorRtBackend
from mwa_export.towers.steps import STEPS
from mwa_export.trt.device import Device
from mwa_export.trt.engine import obstacle, refitted
from mwa_export.trt.install import EngineHost, find_tensorrt
from mwa_export.trt.versions import is_typed, major_of


@dataclass(frozen=True, slots=True)
class Refitted:
    """Result of `refit_bundle`."""

    bundle: Bundle
    device: Device
    engines: tuple[Engine, ...]  # with the new weights
    left_out: tuple[str, ...]  # the old bundle's other engines, each with the reason
    seconds: float  # duration of the exchange itself


def refit_bundle(
    path: Path,
    source: ModelSource,
    out: Path,
    *,
    model_options: ModelOptions | None = None,
    device: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Refitted:
    """Make a bundle of another model from the engines of this one, with the new weights.

    The new model is merged with the same steps, and verified as by `mwa-export onnx`. The engines
    must reproduce its conformance vectors before the bundle is written.

    Args:
        path: the bundle whose engines were built for refitting.
        source: the other model, of the same architecture.
        out: folder of the new bundle.
        model_options: adapter options that the files do not contain.
        device: number of the GPU.
        force: replace ``out`` if it already exists.
        progress: called for each step.

    Raises:
        MissingPackageError: TensorRT is not installed.
        RuntimeUnavailableError: there is no GPU, or its driver is too old.
        EngineError: the weights of the engines cannot be exchanged here, or the new graph has a
            different structure. The message says what differs and what to do.
        VerificationError: the new bundle, or an engine in it, gives wrong results.
        CheckpointError, AdapterError, ...: see `load_model`.
    """
    progress = progress or Silent()
    check_target(None, out, force=force)
    progress("look for TensorRT and a GPU")
    tensorrt, gpu = find_tensorrt(device)
    progress("open the bundle")
    old = Bundle.open(path)
    host = EngineHost({tensorrt.compiler: tensorrt.version}, gpu)
    engines, left_out = _exchangeable(old, host)
    progress("read the checkpoint")
    backbone = old.manifest.model.backbone
    options = replace(
        model_options or ModelOptions(),
        image_size=backbone.image_size,
        max_length=backbone.max_text_length,
        heads=backbone.heads,
    )
    model = load_model(source, options)
    with scratch_folder(out) as scratch:
        new = bundle_from_model(model, scratch / "bundle", _same_export(old), on_step=progress)
        with changed_bundle(new, out, force=force) as change:
            start = time.perf_counter()
            made = tuple(
                _exchange(old, new, engine, gpu, change.folder, progress) for engine in engines
            )
            seconds = time.perf_counter() - start
            progress("write the manifest")
            manifest = change.write(replace(new.manifest, engines=made))
            _verify(Bundle(change.folder, manifest), made, device, progress)
    return Refitted(Bundle(Path(out), manifest), gpu, made, left_out, seconds)


def _exchangeable(bundle: Bundle, host: EngineHost) -> tuple[list[Engine], tuple[str, ...]]:
    """Return the engines that can be refitted here, and the reasons for the others."""
    fit, reasons = [], []
    for engine in bundle.manifest.engines:
        reason = _fixed(engine) or obstacle(engine, bundle.manifest, host)
        if reason is None:
            fit.append(engine)
        else:
            reasons.append(f"{engine.file}: {reason}")
    if {engine.tower for engine in fit} != set(bundle.manifest.towers):
        found = "; ".join(reasons) or "it has no engines"
        raise EngineError(
            f"{bundle.path}: not every tower has an engine whose weights can be exchanged here: "
            f"{found}. Build such engines: `mwa-export trt {bundle.path}` with "
            "`engine_precision=float16` `refit`"
        )
    return fit, tuple(reasons)


def _fixed(engine: Engine) -> str | None:
    """Why the weights of an engine can never be exchanged; None if they can."""
    if engine.capabilities is not None:
        return "engines of TensorRT-RTX cannot be refitted; build them again, which needs no GPU"
    if engine.precision in CALIBRATED:
        return (
            f"{engine.precision} scales only fit the weights that they were calibrated with; "
            f"quantize the new bundle and build `engine_precision={engine.precision}`"
        )
    if REFIT not in engine.flags:
        return "it was built without `refit`"
    if engine.float32 is None:
        return "it was built by an earlier version of mwa-export; build it again"
    return None


def _same_export(old: Bundle) -> ExportOptions:
    """Export options of the old bundle, as far as its manifest records them."""
    manifest = old.manifest
    merged = manifest.export.merges
    return ExportOptions(
        image_input="uint8"
        if old.describe("vision").spec.inputs[0].dtype == "uint8"
        else "float32",
        no_merge=tuple(step for step in STEPS if step not in merged),
        tokenizer=None if manifest.tokenizer is None else old.file(manifest.tokenizer),
    )


def _exchange(
    old: Bundle, new: Bundle, engine: Engine, device: Device, folder: Path, progress: Progress
) -> Engine:
    """Write one engine with the new weights. Returns its description."""
    with scratch_folder() as scratch:
        before = _compiled(old, engine, scratch / "old", progress)
        if sha256_of(before.path) != engine.graph:
            raise EngineError(
                f"{old.path / engine.file}: was compiled from a graph of a different version of "
                "mwa-export, so the weights may not fit. Build it again: "
                f"`mwa-export trt {old.path}` with `engine_precision={engine.precision}` `refit` "
                "`rebuild`"
            )
        after = _compiled(new, engine, scratch / "new", progress)
        more = sorted(set(after.float32) - set(before.float32))
        if more:
            raise EngineError(
                f"{old.path / engine.file}: computes {more[0]} in float16, but the new model's "
                "values do not fit float16. Build new engines: mwa-export onnx, then "
                "`mwa-export trt` with `engine_precision=float16` or `engine_precision=bfloat16`"
            )
        difference = structural_difference(before.path, after.path)
        if difference is not None:
            raise EngineError(
                f"{old.path / engine.file}: cannot take the new model's weights, because its graph "
                f"differs: {difference}. Expected a checkpoint with the same architecture and "
                "adapters. Build new engines: mwa-export onnx, then mwa-export trt"
            )
        progress(f"{engine.tower} tower: exchange the weights of the {engine.precision} engine")
        start = time.perf_counter()
        weights = FloatGraph.load(after.path).tensors
        blob = refitted(old, engine, after.path, weights, device)
        target = folder / engine.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(blob)
        return replace(
            engine,
            sha256=sha256_of(target),
            sources=after.sources,
            graph=sha256_of(after.path),
            seconds=round(time.perf_counter() - start, 1),
            measured=None,
        )


def _compiled(bundle: Bundle, engine: Engine, folder: Path, progress: Progress) -> EngineGraph:
    """Make the graph of a bundle in the form that the engine was compiled from."""
    folder.mkdir()
    return engine_graph(
        bundle,
        engine.tower,
        engine.precision,
        is_typed(major_of(engine.tensorrt)),
        folder,
        progress,
        keep=engine.float32 or (),
    )


def structural_difference(one: Path, other: Path) -> str | None:
    """Find the first difference between two graphs, except for values of weights; None: none."""
    first, second = (onnx.load(path).graph for path in (one, other))
    if [port.name for port in first.input] != [port.name for port in second.input]:
        return "the names of the inputs differ"
    for a, b in zip(first.input, second.input, strict=True):
        if a != b:
            return f"type or shape of the input {a.name} differ"
    shapes = [
        {t.name: (t.data_type, tuple(t.dims)) for t in g.initializer} for g in (first, second)
    ]
    for name in dict.fromkeys((*shapes[0], *shapes[1])):
        kinds = [shape.get(name) for shape in shapes]
        if kinds[0] != kinds[1]:
            return f"the weight {name} {_kind(kinds[0])} in one and {_kind(kinds[1])} in the other"
    for node, twin in zip(first.node, second.node, strict=False):
        if node != twin:
            ops = f"{node.name} ({node.op_type}) and the node {twin.name} ({twin.op_type})"
            return f"the node {ops} differ"
    if len(first.node) != len(second.node):
        return f"one has {len(first.node)} nodes and the other {len(second.node)}"
    return None


def _kind(found: tuple[int, tuple[int, ...]] | None) -> str:
    if found is None:
        return "does not exist"
    shape = " x ".join(map(str, found[1])) or "scalar"
    return f"is {onnx.TensorProto.DataType.Name(found[0]).lower()} {shape}"


def _verify(bundle: Bundle, engines: Sequence[Engine], device: int, progress: Progress) -> None:
    """Check that the engines of each precision reproduce the new bundle's conformance vectors."""
    for precision in dict.fromkeys(engine.precision for engine in engines):
        pair = [engine for engine in engines if engine.precision == precision]
        if {engine.tower for engine in pair} != set(bundle.manifest.towers):
            continue  # a backend needs all towers
        progress(f"check the {precision} engines against the reference")
        with TensorRtBackend(bundle, engines=pair, device=device):
            pass
