"""Build TensorRT engines for the GPU of this machine and add them to a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import (
    FLOAT8_ATTENTION,
    Engine,
    Profile,
    with_engines,
)
from mwa_export.bundle.update import changed_bundle, check_target
from mwa_export.data.test_sets import TestSet, as_test_set
from mwa_export.engines.graphs import CALIBRATED, EngineGraph, engine_graph
from mwa_export.engines.options import EngineOptions
from mwa_export.engines.speed import Speed, too_slow
from mwa_export.errors import EngineError, MwaExportError
from mwa_export.files import scratch_folder, sha256_of
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.trt import TensorRtBackend
from mwa_export.spec import Tower
from mwa_export.trt.build import engine_from_onnx
from mwa_export.trt.device import Device
from mwa_export.trt.engine import engine_name, is_stale, obstacle, rtx_engine_name
from mwa_export.trt.install import EngineHost, find_tensorrt, load_rtx
from mwa_export.trt.profiles import profiles_of, text_lengths
from mwa_export.trt.rtx import check_capabilities
from mwa_export.trt.timing import compare_engines
from mwa_export.trt.versions import TensorRt


@dataclass(frozen=True, slots=True)
class EnginesBuilt:
    """Result of `build_engines`."""

    bundle: Bundle
    device: Device | None  # None: the engines were built for other machines
    engines: tuple[Engine, ...]  # one per tower, new or already present
    built: frozenset[str]  # files of the new engines
    graphs: tuple[EngineGraph, ...]  # from which the new engines were compiled
    warnings: tuple[str, ...] = ()
    speeds: tuple[Speed, ...] = ()  # of new engines that were compared with float16


def build_engines(
    path: str | os.PathLike[str],
    data: TestSet | None = None,
    *,
    options: EngineOptions | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> EnginesBuilt:
    """Build an engine for each tower and add them to the bundle, each as soon as it is built.

    Engines for this GPU are run on it and must reproduce the conformance vectors. Engines that
    TensorRT-RTX builds for other machines are checked when they are loaded there.

    Args:
        path: the bundle.
        data: a test set similar to what will be embedded, or its path. Its value ranges, together
            with those of the conformance vectors, decide which layers stay in float32.
        options: see EngineOptions.
        out: folder of the bundle with the engines; None: the bundle is updated in place.
        force: replace ``out`` if it already exists.
        progress: called for each step.

    Raises:
        MissingPackageError: TensorRT is not installed.
        RuntimeUnavailableError: there is no GPU, or its driver is too old.
        UsageError: this TensorRT or this GPU does not support the precision.
        CalibrationError: int8 or float8, and the bundle has no calibration.
        VerificationError: a graph, or an engine on this GPU, does not agree with the float32 graph.
        EngineError, ProfileError, UsageError: see `engine_from_onnx`. EngineError also if an 8-bit
            engine is slower than float16.
    """
    options, progress = options or EngineOptions(), progress or Silent()
    data = as_test_set(data)
    tensorrt, device = _compiler(options, progress)
    progress("open the bundle")
    bundle = Bundle.open(path)
    check_target(bundle, out, force=force)
    options.check_bundle(bundle, data)
    lengths = {"text": text_lengths(options.lengths, bundle.manifest.max_length)}
    jobs = []
    for tower in bundle.manifest.towers:
        spec = bundle.describe(tower).spec
        profiles = profiles_of(spec, options.batches, lengths.get(tower))
        jobs.append(_Job(tower, profiles, tensorrt, device, options, progress))
    present = {job.tower: None if options.rebuild else job.present(bundle) for job in jobs}
    missing = [job for job in jobs if present[job.tower] is None]
    kept = tuple(engine for engine in present.values() if engine is not None)
    if not missing and out is None:
        return EnginesBuilt(bundle, device, kept, frozenset(), ())
    samples = options.draw(path, data) if missing else None
    done: list[_Added] = []
    for job in missing:
        if samples is not None:
            job = replace(job, batches=tuple(samples.batches(job.tower)))
        try:
            added = _add(bundle, job, None if done else out, force=force)
        except MwaExportError as error:
            if done:  # keep the first engine, which took minutes
                error.args = (
                    f"{error} {done[0].engine.file} was built and is kept. To build the rest, run "
                    f"`mwa-export trt {bundle.path}` with {options.words}",
                )
            raise
        done.append(added)
        bundle = added.bundle
    if not missing and out is not None:  # a copy
        with changed_bundle(bundle, out, force=force) as change:
            bundle = Bundle(out, change.write(bundle.manifest))
    return EnginesBuilt(
        bundle,
        device,
        (*kept, *(added.engine for added in done)),
        frozenset(added.engine.file for added in done),
        tuple(added.graph for added in done),
        tuple(warning for added in done for warning in added.warnings),
        tuple(added.speed for added in done if added.speed is not None),
    )


def _compiler(options: EngineOptions, progress: Progress) -> tuple[TensorRt, Device | None]:
    """Return the TensorRT that builds, and the GPU for which it builds."""
    if options.capabilities:
        progress("look for TensorRT-RTX")
        rtx = load_rtx()
        check_capabilities(rtx, options.capabilities)
        for capability in options.capabilities:
            options.check_gpu(rtx, capability, "an RTX card")
        return rtx, None
    progress("look for TensorRT and a GPU")
    tensorrt, device = find_tensorrt(options.device)
    options.check_gpu(tensorrt, device.capability, device.name)
    return tensorrt, device


@dataclass(frozen=True, slots=True)
class _Job:
    """One engine to build."""

    tower: Tower
    profiles: tuple[Profile, ...]
    tensorrt: TensorRt
    device: Device | None  # None: TensorRT-RTX builds for the options' capabilities
    options: EngineOptions
    progress: Progress
    batches: Iterable[tuple[Any, ...]] = ()  # to measure, in addition to the conformance vectors

    def present(self, bundle: Bundle) -> Engine | None:
        """Find an engine in the bundle that this job would build."""
        options, host = self.options, {self.tensorrt.compiler: self.tensorrt.version}
        wanted = (self.tower, options.precision, self.tensorrt.version, self.profiles)
        kind = (options.flags, options.capabilities or None)
        for engine in bundle.manifest.engines:
            has = (engine.tower, engine.precision, engine.tensorrt, engine.profiles)
            if (has, engine.flags, engine.capabilities) != (wanted, *kind):
                continue
            if self.device is None:
                useless = is_stale(engine, bundle.manifest)
            else:
                found = obstacle(engine, bundle.manifest, EngineHost(host, self.device))
                useless = found is not None
            if not useless:
                return engine
        return None


@dataclass(frozen=True, slots=True)
class _Added:
    """A new engine, and the bundle with it."""

    bundle: Bundle
    graph: EngineGraph
    engine: Engine
    warnings: tuple[str, ...]
    speed: Speed | None


def _add(bundle: Bundle, job: _Job, out: Path | None, *, force: bool) -> _Added:
    """Build one engine and add it to the bundle."""
    with changed_bundle(bundle, out, force=force) as change:
        graph, engine, warnings = _build(bundle, job, change.folder)
        _check(bundle, job, change.folder, engine)
        speed = _speed(bundle, job, change.folder, engine, graph)
        if speed is not None and speed.ratio < 1:
            if not job.options.allow_slow:
                raise EngineError(too_slow(speed))
            warnings += (f"{speed.sentence}. {speed.reasons}".rstrip(". "),)
        job.progress("write the manifest")
        engines = with_engines(bundle.manifest.engines, [engine])
        manifest = change.write(replace(bundle.manifest, engines=engines))
    return _Added(Bundle(Path(out or bundle.path), manifest), graph, engine, warnings, speed)


def _check(bundle: Bundle, job: _Job, folder: Path, engine: Engine) -> None:
    """Check that a new engine reproduces the conformance vectors on the GPU it was built for."""
    if job.device is None:
        return
    job.progress(f"{job.tower} tower: check the {engine.precision} engine on the GPU")
    new, device = Bundle(folder, bundle.manifest), job.device.index
    with TensorRtBackend(new, engines=(engine,), device=device, check=False) as backend:
        backend.check(bundle)


def _speed(
    bundle: Bundle, job: _Job, folder: Path, engine: Engine, graph: EngineGraph
) -> Speed | None:
    """Compare the speed of a new 8-bit engine with float16; None: no comparison was requested."""
    if engine.precision not in CALIBRATED or not job.options.speed_gate or job.device is None:
        return None
    with scratch_folder() as scratch:
        float16 = _float16_engine(bundle, job, scratch)
        job.progress(f"{job.tower} tower: compare the speed of {engine.precision} and float16")
        ours = (Bundle(folder, bundle.manifest), engine)
        found = compare_engines({"ours": ours, "float16": float16}, job.device)
        return Speed(engine, found["ours"], found["float16"], graph.products)


def _float16_engine(bundle: Bundle, job: _Job, scratch: Path) -> tuple[Bundle, Engine]:
    """Return the bundle's float16 engine for these shapes, or build one for the comparison."""
    options = replace(job.options, precision="float16", float8_attention=False)
    job = replace(job, options=options)
    found = job.present(bundle)
    if found is not None:
        return bundle, found
    job.progress(f"{job.tower} tower: build a float16 engine for comparison")
    _graph, engine, _warnings = _build(bundle, job, scratch)
    return Bundle(scratch, bundle.manifest), engine


def _build(bundle: Bundle, job: _Job, folder: Path) -> tuple[EngineGraph, Engine, tuple[str, ...]]:
    """Build one engine into the bundle's new folder. Returns graph, engine and warnings."""
    options, version, device = job.options, job.tensorrt.version, job.device
    label = "-".join(
        (options.precision, *((FLOAT8_ATTENTION,) if options.float8_attention else ()))
    )
    if device is None:
        name = rtx_engine_name(job.tower, label, version, options.capabilities)
    else:
        name = engine_name(job.tower, label, version, device)
    with scratch_folder() as scratch:
        graph = engine_graph(
            bundle,
            job.tower,
            options.precision,
            job.tensorrt.typed,
            scratch,
            job.progress,
            batches=job.batches,
            attention8=options.float8_attention,
        )
        compiled = sha256_of(graph.path)
        built = engine_from_onnx(
            graph.path,
            job.profiles,
            folder / name,
            precision=options.precision,
            device=device,
            capabilities=options.capabilities,
            options=options.build,
            progress=job.progress,
        )
    engine = Engine(
        file=name,
        sha256=sha256_of(folder / name),
        tower=job.tower,
        precision=options.precision,
        tensorrt=version,
        gpu="" if device is None else device.name,
        capability=min(options.capabilities) if device is None else device.capability,
        profiles=job.profiles,
        sources=graph.sources,
        graph=compiled,
        flags=options.flags,
        seconds=round(built.seconds, 1),
        float32=graph.float32,
        capabilities=options.capabilities or None,
    )
    return graph, engine, (*built.warnings, *graph.doubts(built.layers, options.precision))
