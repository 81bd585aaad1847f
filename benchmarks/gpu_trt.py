"""Stage "trt" of benchmarks/gpu.py: build and time engines. Needs only numpy and tensorrt."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import WHOLE, Call

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import Engine, Profile
from mwa_export.files import sha256_of
from mwa_export.progress import Progress
from mwa_export.spec import Tower
from mwa_export.trt.build import BuildOptions, engine_from_onnx
from mwa_export.trt.device import Device
from mwa_export.trt.install import find_tensorrt, load_tensorrt
from mwa_export.trt.layers import read_inspection
from mwa_export.trt.profiles import Span, profiles_of
from mwa_export.trt.run import EngineRunner, open_runners
from mwa_export.trt.timing import time_interleaved
from mwa_export.trt.versions import major_of
from mwa_export.typed_json import json_from_value, value_from_json

RUNS, WARM_UP = 10, 3  # runs per turn; turns that are not counted
TOWERS: tuple[Tower, ...] = ("vision", "text")


def measure(
    work: Path,
    name: str,
    *,
    rounds: int,
    level: int | None,
    progress: Progress,
    call: Call = WHOLE,
    device: int = 0,
) -> dict[str, Any]:
    """Build the prepared graphs of a model, time them in turns, and embed the prepared inputs.

    Writes WORK/NAME/trt.json and WORK/NAME/embeddings.FORM.npz after each engine. Existing engines
    are reused if they match the graphs, the GPU and this TensorRT.

    Args:
        work: the folder that `prepare` wrote.
        name: name of the model.
        rounds: number of rounds; each precision runs once per round.
        level: optimization level of the builder; None: TensorRT's default.
        progress: reports each step.
        call: time limit. Engines that do not fit are left out; another call continues.
        device: number of the GPU.
    """
    folder = work / name
    meta = json.loads((folder / "meta.json").read_text())
    tensorrt, gpu = find_tensorrt(device)
    major = major_of(tensorrt.version)
    if major != meta["major"]:
        raise SystemExit(
            f"{folder}: was prepared for TensorRT {meta['major']}, and {tensorrt.version} is "
            f"installed. Prepare again with --tensorrt {major}"
        )
    for old in folder.glob("embeddings.*.npz"):
        old.unlink()
    model = _Model(folder, meta, Bundle.open(folder / "bundle"), gpu, level, rounds, progress)
    result: dict[str, Any] = {
        "tensorrt": tensorrt.version,
        "gpu": gpu.name,
        "capability": list(gpu.capability),
        "driver": gpu.driver,
        "towers": {},
        "left_out": {},
    }
    slowest = 0.0
    for tower in TOWERS:
        engines: dict[str, Engine] = {}
        for form, graph in meta["graphs"][tower].items():
            try:
                call.demand(slowest)
                start = time.perf_counter()
                engine = _built(model, tower, form, graph)
                result["towers"][tower] = _timed(model, tower, {**engines, form: engine})
                engines[form] = engine
                slowest = max(slowest, time.perf_counter() - start)
            except Exception as error:  # one failure must not stop the others
                result["left_out"][f"{tower} {form}"] = f"{type(error).__name__}: {error}"
            text = json.dumps(result, indent=1) + "\n"
            (folder / "trt.json").write_text(text, encoding="utf-8")
            call.saved()
    return result


@dataclass(frozen=True)
class _Model:
    """A prepared model, and how to measure it."""

    folder: Path
    meta: dict[str, Any]
    bundle: Bundle
    gpu: Device
    level: int | None
    rounds: int
    progress: Progress


def _timed(model: _Model, tower: Tower, engines: dict[str, Engine]) -> dict[str, Any]:
    """Time engines in turns, and save their embeddings of the prepared inputs."""
    model.progress(f"{model.folder.name}, {tower} tower: time {', '.join(engines)}")
    held = {form: (model.bundle, engine) for form, engine in engines.items()}
    found: dict[str, Any] = {form: {"shapes": {}} for form in engines}
    with open_runners(load_tensorrt(), model.gpu, held) as runners:
        for shape in model.meta["macs"][tower]:
            batches = _batches(model.bundle, tower, shape)
            timings = time_interleaved(
                runners, batches, rounds=model.rounds, runs=RUNS, warm_up=WARM_UP
            )
            for form, timing in timings.items():
                found[form]["shapes"][shape] = {
                    "milliseconds": list(timing.milliseconds),
                    "called": list(timing.called),
                    "rows_per_second": timing.rows_per_second,
                }
        for form, runner in runners.items():
            found[form] |= {
                "build_seconds": engines[form].seconds,
                "scratch_bytes": runner.scratch,
                "cuda_graphs": runner.graphs,
                "inspection": read_inspection(runner.loaded.inspect()).to_json(),
            }
        for form, runner in runners.items():
            _keep_embeddings(model, runner, tower, form)
    return found


def _keep_embeddings(model: _Model, runner: EngineRunner, tower: Tower, form: str) -> None:
    """Add a tower's embeddings to the file of a precision."""
    path, known = model.folder / f"embeddings.{form}.npz", dict[str, Any]()
    if path.exists():
        with np.load(path) as arrays:
            known = dict(arrays)
    with np.load(model.folder / "inputs.npz") as arrays:
        known[tower] = _embed(runner, model.bundle, tower, arrays)
    np.savez(path, **known)


def _built(model: _Model, tower: Tower, form: str, graph: dict[str, Any]) -> Engine:
    folder, gpu = model.folder, model.gpu
    version = load_tensorrt().version
    file = folder / "engines" / f"{tower}.{form}.{gpu.sm}.trt{version}.engine"
    note = file.with_suffix(".json")
    if file.exists() and note.exists():
        known = value_from_json(Engine, json.loads(note.read_text()), str(note))
        if (known.graph, known.gpu) == (graph["sha256"], gpu.name):
            return known
    start = time.perf_counter()
    profiles = _profiles(model.bundle, tower)
    precision = graph.get("precision", form)
    options = BuildOptions(level=model.level, timing_cache=folder / "engines" / f"{gpu.sm}.times")
    engine_from_onnx(
        folder / graph["file"],
        profiles,
        file,
        precision=precision,
        device=gpu,
        options=options,
        progress=model.progress,
    )
    engine = Engine(
        file=f"../engines/{file.name}",
        sha256=sha256_of(file),
        tower=tower,
        precision=precision,
        tensorrt=version,
        gpu=gpu.name,
        capability=gpu.capability,
        profiles=profiles,
        sources=tuple(graph["sources"]),
        graph=graph["sha256"],
        flags=(),
        seconds=round(time.perf_counter() - start, 1),
    )
    note.write_text(json.dumps(json_from_value(engine), indent=1), encoding="utf-8")
    return engine


def _profiles(bundle: Bundle, tower: Tower) -> tuple[Profile, ...]:
    lengths = None if tower == "vision" else Span(2, 16, bundle.manifest.max_length)
    return profiles_of(bundle.describe(tower).spec, (Span(1, 32, 128),), lengths)


def _batches(bundle: Bundle, tower: Tower, shape: str) -> Sequence[Any]:
    from mwa_export.trt.timing import batches_of

    rows, _, length = shape.partition("x")
    return batches_of(bundle, tower, int(rows), int(length) if length else None)


def _embed(runner: EngineRunner, bundle: Bundle, tower: Tower, inputs: Any) -> Any:
    from mwa_export.inputs.preprocess import arrays_of

    if tower == "vision":
        return runner.run(arrays_of(bundle.describe(tower).spec, (inputs["pixels"],)))
    return runner.run((inputs["token_ids"], inputs["padding_mask"]))
