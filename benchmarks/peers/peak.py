"""GEMMs of the installed libraries; the fastest per precision is the machine's peak.

The peak is measured, because data sheets give neither the clock rate under wide instructions nor
the number of cores that a virtual machine really has.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mwa_export.bench.contenders import Kernel
from mwa_export.cpu import cores, fast_bfloat16, instruction_sets
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import Port

Shape = tuple[int, int, int]  # rows, inner, columns
# The FFN of BEiT-3 base for a batch of 8 images, and a large square.
SHAPES: tuple[Shape, ...] = ((1576, 768, 3072), (2048, 2048, 2048))


def kernels(threads: int, shapes: Sequence[Shape] = ()) -> list[Kernel]:
    """Return every GEMM of every installed library, after running each once.

    Args:
        threads: number of threads for each GEMM.
        shapes: shapes to run; default: SHAPES.
    """
    found = []
    for shape in shapes or SHAPES:
        # numpy is the last resort: its idle threads spin for a while and disturb the next GEMM.
        found += [
            *_openvino(shape, threads),
            *_torch(shape, threads),
            *_onnxruntime(shape, threads),
        ] or _numpy(shape, threads)
    for kernel in found:
        kernel.run()
    return found


def _openvino(shape: Shape, threads: int) -> list[Kernel]:
    ov = _installed("openvino")
    if ov is None:
        return []
    core = ov.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = {"float32": "f32", "int8": "f32"} | (
        {"bfloat16": "bf16"} if "BF16" in able else {}
    )
    found = []
    for precision, hint in precisions.items():
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        model = _openvino_gemm(ov, shape, quantized=precision == "int8")
        x = ov.Tensor(np.random.default_rng(0).standard_normal(shape[:2], dtype=np.float32))
        # All threads on one GEMM, and one GEMM per thread: on shared cores, threads that do not
        # wait for each other are faster.
        for copies, tool in {1: "OpenVINO", threads: "OpenVINO, a GEMM per thread"}.items():
            compiled = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": copies})
            requests = [compiled.create_infer_request() for _ in range(copies)]
            for request in requests:
                request.set_input_tensor(x)
            found.append(Kernel(precision, tool, shape, _side_by_side(requests), copies))
    return found


def _side_by_side(requests: Sequence[Any]) -> Callable[[], None]:
    def run() -> None:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()

    return run


def _openvino_gemm(ov: Any, shape: Shape, *, quantized: bool) -> Any:
    """Make a graph of one GEMM with constant weights; its input is float32 in every precision."""
    ops = ov.opset13
    rows, inner, columns = shape
    rng = np.random.default_rng(1)
    x = ops.parameter([rows, inner], np.float32)
    if quantized:
        low, high = np.float32(-4), np.float32(4 * 127 / 128)
        left = ops.fake_quantize(x, low, high, low, high, 256)
        weights = rng.integers(-127, 128, (inner, columns), dtype=np.int8)
        scale = ops.constant(np.full((1, columns), 1 / 127, np.float32))
        right = ops.multiply(ops.convert(ops.constant(weights), "f32"), scale)
    else:
        left = x
        right = ops.constant(rng.standard_normal((inner, columns), dtype=np.float32))
    return ov.Model([ops.result(ops.matmul(left, right, False, False))], [x], "gemm")


def _torch(shape: Shape, threads: int) -> list[Kernel]:
    torch = _installed("torch")
    if torch is None or torch.get_num_threads() != threads:
        return []
    rows, inner, columns = shape
    x, w = torch.randn(rows, inner), torch.randn(inner, columns)
    found = [Kernel("float32", "PyTorch", shape, lambda: torch.mm(x, w))]
    # Without bfloat16 instructions, some shapes use a loop that is 100 times slower: not a peak.
    if fast_bfloat16(instruction_sets()) is not False:
        half, narrow = x.bfloat16(), w.bfloat16()
        found.append(Kernel("bfloat16", "PyTorch", shape, lambda: torch.mm(half, narrow)))
    return found


def _onnxruntime(shape: Shape, threads: int) -> list[Kernel]:
    if _installed("onnx") is None:
        return []
    found = []
    x = np.random.default_rng(0).standard_normal(shape[:2], dtype=np.float32)
    for precision in ("float32", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gemm.onnx"
            _write_onnx_gemm(path, shape, quantized=precision == "int8")
            runner = session(path, threads=threads)  # with the settings of our graphs
        found.append(Kernel(precision, "ONNX Runtime", shape, partial(runner.run, None, {"x": x})))
    return found


def _write_onnx_gemm(path: Path, shape: Shape, *, quantized: bool) -> None:
    """Write the graph of `_openvino_gemm` in the dialect of ONNX Runtime."""
    from mwa_export.graphs.build import GraphBuilder

    graph = GraphBuilder()
    rows, inner, columns = shape
    rng = np.random.default_rng(1)
    left = "x"
    if quantized:
        grid = [graph.weight("x.scale", np.asarray(4 / 128, np.float32))]
        grid += [graph.weight("x.zero_point", np.asarray(128, np.uint8))]
        stored = graph.weight("w", rng.integers(-127, 128, (inner, columns), dtype=np.int8))
        scale = graph.weight("w.scale", np.full(columns, 1 / 127, np.float32))
        left = graph.node("QuantizeLinear", [left, *grid], "x")
        left = graph.node("DequantizeLinear", [left, *grid], "x")
        right = graph.node("DequantizeLinear", [stored, scale], "w", axis=1)
    else:
        right = graph.weight("w", rng.standard_normal((inner, columns), dtype=np.float32))
    result = graph.node("MatMul", [left, right], "gemm")
    ports = Port("x", (rows, inner), "float32"), Port("y", (rows, columns), "float32")
    graph.write(path, ports[:1], ports[1], result, {})


def _numpy(shape: Shape, threads: int) -> list[Kernel]:
    if threads != cores():  # numpy's number of threads cannot be set
        return []
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape[:2], dtype=np.float32)
    w = rng.standard_normal(shape[1:], dtype=np.float32)
    return [Kernel("float32", "numpy", shape, lambda: x @ w)]


def _installed(module: str) -> Any:
    try:
        found = importlib.import_module(module)
        if module == "openvino":
            importlib.import_module("openvino.opset13")
        return found
    except ImportError:
        return None
