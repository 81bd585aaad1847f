"""Peers that `benchmarks/cpu.py` adds to `mwa-export bench`: quantizers and the GEMM peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from peers import peak
from peers.peak import kernels
from peers.quantizers import QUANTIZERS

from mwa_export.bench.ours import our_name
from mwa_export.bench.peers import PEERS, chosen_peers
from mwa_export.bench.run import BenchOptions, run_bench
from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.model.load import ModelSource, load_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_quantizers_and_peak_are_measured_in_the_same_rounds_as_the_bundle(
    files: Path, data: RetrievalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mwa_export.bench.timing.time.sleep", lambda _seconds: None)
    every = PEERS | QUANTIZERS
    result = run_bench(
        Bundle.open(files / "bundle"),
        BenchOptions(("text",), (4,), 3, ("onnxruntime",), threads=1),
        model=load_model(ModelSource(files / "checkpoint.pth")),
        data=data,
        peers=chosen_peers(["eager", "onnx", "ort-dynamic", "ort-static-int8", "nncf"], every),
        peak=lambda threads: kernels(threads, [(32, 64, 32)]),
    )
    (section,) = result.sections
    figures = {figure.name: figure for figure in section.figures}
    ours = figures[our_name("onnxruntime", "float32")]
    assert (ours.peak_share or 0) > 0
    assert {peak.precision for peak in section.peaks} >= {"float32", "int8"}
    for name in ("ort-dynamic", "ort-static-int8"):
        if name == "ort-dynamic" and sys.version_info < (3, 11):
            # ONNX Runtime 1.23, the last for Python 3.10, cannot quantize the plain export.
            assert every[name].name in {item.name for item in section.skipped}
            continue
        assert (figures[every[name].name].cosine or 0) > 0.9
        assert (figures[every[name].name].peak_share or 0) > 0
    assert {*figures, *(item.name for item in section.skipped)} >= {every["nncf"].name}


def test_quantizer_that_is_not_installed_says_how_to_get_it(files: Path) -> None:
    missing = [n for n in ("optimum", "nncf") if n not in sys.modules and not installed(n)]
    if not missing:
        pytest.skip("Optimum and NNCF are both installed")
    result = run_bench(
        Bundle.open(files / "bundle"),
        BenchOptions(("text",), (1,), 3, ("onnxruntime",)),
        model=load_model(ModelSource(files / "checkpoint.pth")),
        peers=[QUANTIZERS[name] for name in missing],
    )
    reasons = {item.name: item.reason for item in result.sections[0].skipped}
    for name in missing:
        assert "To measure it: pip install" in reasons[QUANTIZERS[name].name]


def installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_cpu_benchmark_offers_every_peer() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "cpu.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not set(PEERS) & set(QUANTIZERS)


def test_kernels_run_in_every_precision_that_is_installed() -> None:
    threads = pytest.importorskip("torch").get_num_threads()
    pytest.importorskip("onnx")
    found = kernels(threads, [(32, 64, 96)])
    ran = {(kernel.tool, kernel.precision) for kernel in found}
    assert ran >= {("PyTorch", "float32"), ("ONNX Runtime", "float32"), ("ONNX Runtime", "int8")}
    assert len({kernel.name for kernel in found}) == len(found)
    for kernel in found:
        assert kernel.operations == kernel.copies * 2 * 32 * 64 * 96
        assert kernel.copies == (threads if "per thread" in kernel.tool else 1)


def test_int8_kernel_really_runs_in_int8() -> None:
    ov = pytest.importorskip("openvino")
    pytest.importorskip("openvino.opset13")
    compiled = ov.Core().compile_model(
        peak._openvino_gemm(ov, (64, 128, 64), quantized=True), "CPU"
    )
    info = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    gemms = [i for i in info if i["layerType"].value in ("FullyConnected", "MatMul")]
    assert [i["runtimePrecision"].value for i in gemms] in (["i8"], ["u8"])


def test_onnxruntime_int8_kernel_really_runs_in_int8(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    peak._write_onnx_gemm(tmp_path / "gemm.onnx", (64, 128, 64), quantized=True)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    ort.InferenceSession(tmp_path / "gemm.onnx", options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert "MatMul" not in run
    assert any("MatMulInteger" in op for op in run)


@pytest.mark.parametrize("has", [True, False])
def test_no_peak_of_bfloat16_without_instructions_for_it(
    has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    sets = frozenset({"avx512_bf16"} if has else {"avx2"})
    monkeypatch.setattr(peak, "instruction_sets", lambda: sets)
    found = peak._torch((32, 64, 96), torch.get_num_threads())
    assert ("bfloat16" in {kernel.precision for kernel in found}) is has
