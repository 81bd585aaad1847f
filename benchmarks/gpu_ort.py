"""Stage "ort" of benchmarks/gpu.py: float32 and float16 graphs on ONNX Runtime's CUDA provider."""

from __future__ import annotations

import importlib
import json
import statistics
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from machine import WHOLE, Call

from mwa_export.bundle.bundle import Bundle
from mwa_export.errors import RuntimeUnavailableError
from mwa_export.optional import require
from mwa_export.progress import Progress
from mwa_export.runtimes.ort_session import cuda_available, session
from mwa_export.spec import Tower
from mwa_export.trt.timing import batches_of

TOWERS: tuple[Tower, ...] = ("vision", "text")
FORM = "ONNX Runtime CUDA {}"
RUNS, WARM_UP = 10, 3
_NO_CUDA = "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)"


def measure(
    work: Path,
    name: str,
    *,
    rounds: int,
    progress: Progress,
    call: Call = WHOLE,
    device: int | None = 0,
) -> dict[str, Any]:
    """Time the float32 and float16 graphs with inputs and outputs on the GPU. Writes ort.json.

    Args:
        work: the folder that `prepare` wrote.
        name: name of the model.
        rounds: number of rounds, of RUNS runs each.
        progress: reports each step.
        call: time limit.
        device: number of the GPU; None: the CPU, for tests.
    """
    folder = work / name
    meta = json.loads((folder / "meta.json").read_text())
    result: dict[str, Any] = {"towers": {tower: {} for tower in TOWERS}, "left_out": {}}
    if device is not None:
        _load_libraries()
    bundle = Bundle.open(folder / "bundle")
    for tower in TOWERS:
        files = {"float16": folder / meta["typed"][tower], "float32": bundle.graph(tower)[0]}
        for precision, file in files.items():
            form = FORM.format(precision)
            progress(f"{name}, {tower} tower: {form}")
            try:
                call.demand(0)
                if device is not None and not cuda_available():
                    raise RuntimeUnavailableError(_NO_CUDA)
                runner = session(file, cuda=device)
                shapes = _shapes(runner, bundle, tower, meta["macs"][tower], rounds, device)
                result["towers"][tower][form] = {"shapes": shapes}
            except Exception as error:  # one failure must not stop the others
                result["left_out"][f"{tower} {form}"] = f"{type(error).__name__}: {error}"
            text = json.dumps(result, indent=1) + "\n"
            (folder / "ort.json").write_text(text, encoding="utf-8")
            call.saved()
    return result


def _load_libraries() -> None:
    """Load cuBLAS and cuDNN from PyTorch's installation; onnxruntime-gpu does not include them."""
    if find_spec("torch") is not None:
        importlib.import_module("torch")
    runtime = require("onnxruntime")
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


def _shapes(
    runner: Any,
    bundle: Bundle,
    tower: Tower,
    shapes: Iterable[str],
    rounds: int,
    device: int | None,
) -> dict[str, Any]:
    spec, found = bundle.describe(tower).spec, {}
    names = [port.name for port in spec.inputs]
    for shape in shapes:
        rows, _, length = shape.partition("x")
        batches = batches_of(bundle, tower, int(rows), int(length) if length else None)
        fed = [dict(zip(names, arrays, strict=True)) for arrays in batches]
        milliseconds = _timed(runner, fed, spec.output.name, rounds, device)
        found[shape] = {
            "milliseconds": milliseconds,
            "rows_per_second": 1000 * int(rows) / statistics.median(milliseconds),
        }
    return found


def _timed(
    runner: Any, fed: list[dict[str, Any]], output: str, rounds: int, device: int | None
) -> list[float]:
    """Time a run in each round, in milliseconds, without copies. Calls wait for the GPU."""
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
