"""The stage of benchmarks/gpu.py that builds and times engines. Needs numpy and tensorrt only."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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

RUNS, WARM_UP = 10, 3  # of a turn; turns that do not count
TOWERS: tuple[Tower, ...] = ("vision", "text")


def measure(
    work: Path, name: str, *, rounds: int, level: int | None, progress: Progress, device: int = 0
) -> dict[str, Any]:
    """Build the prepared graphs of a model, time them in turns, and embed the prepared inputs.

    Writes WORK/NAME/trt.json and WORK/NAME/embeddings.PRECISION.npz. Engines that are there and
    belong to the graphs, the GPU and this TensorRT are not built again.

    Args:
        work: where `prepare` wrote.
        name: of the model.
        rounds: in each of which every precision has its turn.
        level: of the builder's effort; None: TensorRT's own.
        progress: told about each step.
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
    bundle = Bundle.open(folder / "bundle")
    inputs = dict(np.load(folder / "inputs.npz"))
    result: dict[str, Any] = {
        "tensorrt": tensorrt.version,
        "gpu": gpu.name,
        "capability": list(gpu.capability),
        "driver": gpu.driver,
        "towers": {},
        "left_out": {},
    }
    embedded: dict[str, dict[str, Any]] = {}
    for tower in TOWERS:
        engines = {}
        for precision, graph in meta["graphs"][tower].items():
            try:
                engines[precision] = _built(
                    folder, bundle, tower, precision, graph, gpu, level, progress
                )
            except Exception as error:  # one that cannot be built must not cost the others
                result["left_out"][f"{tower} {precision}"] = f"{type(error).__name__}: {error}"
        if not engines:
            continue
        held = {precision: (bundle, engine) for precision, engine in engines.items()}
        with open_runners(tensorrt, gpu, held) as runners:
            progress(f"{name}, {tower} tower: time {', '.join(engines)}")
            found: dict[str, Any] = {p: {"shapes": {}} for p in engines}
            for shape in meta["macs"][tower]:
                timings = time_interleaved(
                    runners,
                    _batches(bundle, tower, shape),
                    rounds=rounds,
                    runs=RUNS,
                    warm_up=WARM_UP,
                )
                for precision, timing in timings.items():
                    found[precision]["shapes"][shape] = {
                        "milliseconds": list(timing.milliseconds),
                        "called": list(timing.called),
                        "rows_per_second": timing.rows_per_second,
                    }
            for precision, runner in runners.items():
                found[precision] |= {
                    "build_seconds": engines[precision].seconds,
                    "scratch_bytes": runner.scratch,
                    "cuda_graphs": runner.graphs,
                    "inspection": read_inspection(runner.loaded.inspect()).to_json(),
                }
                embedded.setdefault(precision, {})[tower] = _embed(runner, bundle, tower, inputs)
            result["towers"][tower] = found
    for precision, vectors in embedded.items():
        np.savez(folder / f"embeddings.{precision}.npz", **vectors)
    (folder / "trt.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _built(
    folder: Path,
    bundle: Bundle,
    tower: Tower,
    precision: Any,
    graph: dict[str, Any],
    gpu: Device,
    level: int | None,
    progress: Progress,
) -> Engine:
    version = load_tensorrt().version
    file = folder / "engines" / f"{tower}.{precision}.{gpu.sm}.trt{version}.engine"
    note = file.with_suffix(".json")
    if file.exists() and note.exists():
        known = value_from_json(Engine, json.loads(note.read_text()), str(note))
        if (known.graph, known.gpu) == (graph["sha256"], gpu.name):
            return known
    start = time.perf_counter()
    profiles = _profiles(bundle, tower)
    engine_from_onnx(
        folder / graph["file"],
        profiles,
        file,
        precision=precision,
        device=gpu,
        options=BuildOptions(level=level, timing_cache=folder / "engines" / f"{gpu.sm}.times"),
        progress=progress,
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


def _embed(runner: EngineRunner, bundle: Bundle, tower: Tower, inputs: dict[str, Any]) -> Any:
    from mwa_export.inputs.preprocess import arrays_of

    if tower == "vision":
        return runner.run(arrays_of(bundle.describe(tower).spec, (inputs["pixels"],)))
    return runner.run((inputs["token_ids"], inputs["padding_mask"]))
