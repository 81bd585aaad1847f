"""The job behind `mwa-export trt`: from a bundle to TensorRT engines in it, for the GPU here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mwa_export.backend import TOWERS
from mwa_export.bundle import Bundle, write_manifest
from mwa_export.bundle_update import changed_bundle
from mwa_export.calib.engine_graphs import (
    CALIBRATED,
    EngineGraph,
    engine_graph,
    needs_calibration,
)
from mwa_export.calib.samples import take_samples
from mwa_export.config import Tower
from mwa_export.files import sha256_of
from mwa_export.progress import Progress, Silent
from mwa_export.retrieval_data import RetrievalData
from mwa_export.sides import side_from_bundle
from mwa_export.trt_build import BuildOptions, engine_from_onnx
from mwa_export.trt_device import Device, select_device
from mwa_export.trt_engine import Engine, engine_name, engines_of, obstacle, with_engines
from mwa_export.trt_install import check_driver, load_tensorrt
from mwa_export.trt_profile import Profile, Span, profiles_of, text_lengths
from mwa_export.trt_versions import EnginePrecision, check_precision, major_of

BATCH = Span(1, 32, 128)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to build for a bundle."""

    precision: EnginePrecision = "float16"
    batches: tuple[Span, ...] = (BATCH,)  # a profile each
    lengths: Span | None = None  # of texts; None: all that the model has
    device: int = 0
    build: BuildOptions = field(default_factory=BuildOptions)
    rebuild: bool = False  # also where an engine for all this is there
    samples: int = 64  # pictures and captions to measure on
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EnginesBuilt:
    """What became of it."""

    bundle: Bundle
    device: Device
    engines: tuple[Engine, ...]  # of both towers, for this machine
    built: frozenset[str]  # the files of those that are new
    graphs: tuple[EngineGraph, ...]  # what the new ones were compiled from


def build_engines(
    path: Path,
    data: RetrievalData | None = None,
    *,
    options: EngineOptions | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> EnginesBuilt:
    """Build an engine for each tower and add them to the bundle.

    Args:
        path: the bundle.
        data: pictures and captions like those that will be embedded. How large values become on
            them decides, beside the conformance vectors, what stays in float32.
        options: see EngineOptions.
        out: where the bundle with the engines goes; None: in the place of the old one.
        force: replace ``out`` if it exists.
        progress: told about each step.

    Raises:
        MissingPackageError: TensorRT is not installed.
        RuntimeUnavailableError: no GPU, or its driver is too old.
        OptionsError: a precision that this TensorRT or this GPU does not have.
        CalibrationError: int8 or float8 without a calibration in the bundle.
        VerificationError: a graph does not compute what the float32 graph computes.
        EngineError, ProfileError, OptionsError: see `trt_build.engine_from_onnx`.
    """
    options, progress = options or EngineOptions(), progress or Silent()
    progress("look for TensorRT and a GPU")
    version = load_tensorrt().__version__
    device = select_device(options.device)
    check_driver(version, device)
    check_precision(options.precision, version, device)
    progress("open the bundle")
    bundle = Bundle.open(path)
    if options.precision in CALIBRATED:
        needs_calibration(bundle)
    profiles = {tower: _profiles(bundle, tower, options) for tower in TOWERS}
    present = {
        tower: None
        if options.rebuild
        else _present(bundle, tower, profiles[tower], version, device, options)
        for tower in TOWERS
    }
    missing = [tower for tower in TOWERS if present[tower] is None]
    kept = tuple(engine for engine in present.values() if engine is not None)
    if not missing and out is None:
        return EnginesBuilt(bundle, device, kept, frozenset(), ())
    samples = None
    if data is not None and missing and options.precision != "bfloat16":  # nothing to measure
        samples = take_samples(side_from_bundle(path), data, options.samples, options.seed)
    with changed_bundle(bundle, out, force=force) as folder:
        new, graphs = [], []
        for tower in missing:
            batches = () if samples is None else samples.batches(tower)
            graph, engine = _build(
                bundle, tower, profiles[tower], version, device, options, folder, progress, batches
            )
            new.append(engine)
            graphs.append(graph)
        progress("write the manifest")
        engines = with_engines(bundle.manifest.engines, new)
        manifest = replace(bundle.manifest, engines=engines, files={})
        write_manifest(folder, manifest)
    return EnginesBuilt(
        Bundle(Path(out or path), manifest),
        device,
        (*kept, *new),
        frozenset(engine.file for engine in new),
        tuple(graphs),
    )


def _profiles(bundle: Bundle, tower: Tower, options: EngineOptions) -> tuple[Profile, ...]:
    lengths = None
    if tower == "text":
        longest = int(bundle.manifest.preprocessing["text"]["max_length"])
        lengths = text_lengths(options.lengths, longest)
    return profiles_of(bundle.graph(tower)[1].spec, options.batches, lengths)


def _present(
    bundle: Bundle,
    tower: Tower,
    profiles: tuple[Profile, ...],
    version: str,
    device: Device,
    options: EngineOptions,
) -> Engine | None:
    """An engine of the bundle that is what was asked for, and can be used here."""
    for engine in engines_of(bundle):
        wanted = (tower, options.precision, version, profiles, options.build.flags)
        has = (engine.tower, engine.precision, engine.tensorrt, engine.profiles, engine.flags)
        if has == wanted and obstacle(engine, bundle.manifest, version, device) is None:
            return engine
    return None


def _build(
    bundle: Bundle,
    tower: Tower,
    profiles: tuple[Profile, ...],
    version: str,
    device: Device,
    options: EngineOptions,
    folder: Path,
    progress: Progress,
    batches: Iterable[tuple[Any, ...]],
) -> tuple[EngineGraph, Engine]:
    """Build one engine into the bundle's new folder."""
    name = engine_name(tower, options.precision, version, device)
    with TemporaryDirectory(prefix="mwa-export-") as scratch:
        graph = engine_graph(
            bundle,
            tower,
            options.precision,
            major_of(version),
            Path(scratch),
            progress,
            batches=batches,
        )
        compiled = sha256_of(graph.path)
        seconds = engine_from_onnx(
            graph.path,
            profiles,
            folder / name,
            precision=options.precision,
            device=device,
            options=options.build,
            progress=progress,
        )
    return graph, Engine(
        file=name,
        sha256=sha256_of(folder / name),
        tower=tower,
        precision=options.precision,
        tensorrt=version,
        gpu=device.name,
        capability=device.capability,
        profiles=profiles,
        sources=graph.sources,
        graph=compiled,
        flags=options.build.flags,
        seconds=round(seconds, 1),
    )
