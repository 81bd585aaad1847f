"""The stage of benchmarks/gpu.py on ONNX Runtime's CUDA provider: the bundle's own graphs."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from mwa_export.bundle.bundle import Bundle
from mwa_export.progress import Progress
from mwa_export.runtimes.ort_session import CUDA, cuda_available, session
from mwa_export.spec import Tower
from mwa_export.trt.timing import batches_of

TOWERS: tuple[Tower, ...] = ("vision", "text")
FORM = "ONNX Runtime CUDA float32"
RUNS, WARM_UP = 10, 3


def measure(
    work: Path, name: str, *, rounds: int, progress: Progress, device: int | None = 0
) -> dict[str, Any]:
    """Time the float32 graphs with inputs and outputs on the GPU. Writes ort.json.

    Args:
        work: where `prepare` wrote.
        name: of the model.
        rounds: of RUNS runs each.
        progress: told about each step.
        device: number of the GPU; None: the CPU, for a test.
    """
    folder = work / name
    meta = json.loads((folder / "meta.json").read_text())
    result: dict[str, Any] = {"towers": {}, "left_out": {}}
    if device is not None and not cuda_available():
        result["left_out"][FORM] = "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)"
    else:
        bundle = Bundle.open(folder / "bundle")
        for tower in TOWERS:
            path, graph = bundle.graph(tower)
            runner = session(path, cuda=device)
            assert device is None or runner.get_providers()[0] == CUDA
            shapes = {}
            for shape in meta["macs"][tower]:
                progress(f"{name}, {tower} tower, {shape}: {FORM}")
                rows, _, length = shape.partition("x")
                batches = batches_of(bundle, tower, int(rows), int(length) if length else None)
                names = [port.name for port in graph.spec.inputs]
                fed = [dict(zip(names, arrays, strict=True)) for arrays in batches]
                milliseconds = _timed(runner, fed, graph.spec.output.name, rounds, device)
                shapes[shape] = {
                    "milliseconds": milliseconds,
                    "rows_per_second": 1000 * int(rows) / statistics.median(milliseconds),
                }
            result["towers"][tower] = {FORM: {"shapes": shapes}}
    (folder / "ort.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _timed(
    runner: Any, fed: list[dict[str, Any]], output: str, rounds: int, device: int | None
) -> list[float]:
    """Milliseconds of a run in each round. Copies are left out; the call waits for the GPU."""
    where = ("cpu", 0) if device is None else ("cuda", device)
    bound = []
    for feed in fed:
        binding = runner.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, _on_device(array, *where))
        binding.bind_output(output, *where)
        bound.append(binding)
    found = []
    for turn in range(WARM_UP + rounds):
        start = time.perf_counter()
        for index in range(RUNS):
            runner.run_with_iobinding(bound[index % len(bound)])
        if turn >= WARM_UP:
            found.append(1000 * (time.perf_counter() - start) / RUNS)
    return found


def _on_device(array: Any, kind: str, number: int) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array, kind, number)
