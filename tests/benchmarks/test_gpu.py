"""benchmarks/gpu.py without a GPU: every stage that can run, and the report on them."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import MWA
from paths import ROOT
from trt_fake_gpu import LateDriver, LateTensorRT

from mwa_export.model.reference import reference_from_tensors
from mwa_export.model.synthetic import random_tensors
from mwa_export.progress import Silent
from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig

pytestmark = pytest.mark.slow

FOLDER = ROOT / "benchmarks"
TINY = ModelConfig(
    BackboneConfig(
        embed_dim=64, ffn_dim=64, layers=2, vocab_size=90, image_size=32, patch_size=16,
        text_positions=64,
    ),
    AdapterConfig("both", 8, "in", 0.6, "parallel"),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def modules() -> Any:
    """The benchmark's own folder, as its scripts have it."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def module(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def prepared(modules: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that `prepare` leaves, small ones."""
    work = tmp_path_factory.mktemp("gpu-benchmark")
    models = module("gpu_models")
    sizes = models.Sizes(samples=16, rows=6, recall=12)
    for name, config in (("base", TINY), ("demo", None)):
        precisions = ("float16", "bfloat16", "int8")
        models.prepare(work, name, 11, precisions, sizes, Silent(), config=config)
    return work


@pytest.fixture(autouse=True)
def few_runs(modules: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's clock needs no repetitions."""
    monkeypatch.setattr(module("gpu_trt"), "RUNS", 1)
    monkeypatch.setattr(module("gpu_trt"), "WARM_UP", 0)


def only_shapes(folder: Path, vision: tuple[str, ...], text: tuple[str, ...]) -> None:
    """Fewer shapes to time."""
    meta = json.loads((folder / "meta.json").read_text())
    for tower, names in (("vision", vision), ("text", text)):
        meta["macs"][tower] = {name: meta["macs"][tower][name] for name in names}
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "work"))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> LateDriver:
    driver = LateDriver()
    driver.install(monkeypatch)
    return driver


def kind(graph: Any) -> str:
    ops = {node.op_type for node in graph.graph.node}
    types = {tensor.data_type for tensor in graph.graph.initializer}
    return "int8" if "QuantizeLinear" in ops else "bfloat16" if 16 in types else "float16"


@pytest.fixture
def trt(driver: LateDriver, monkeypatch: pytest.MonkeyPatch) -> LateTensorRT:
    fake = LateTensorRT(11, driver)
    fake.install(monkeypatch)
    fake.milliseconds = lambda graph: {"float16": 2.0, "bfloat16": 3.0, "int8": 1.0}[kind(graph)]
    return fake


def test_prepared_models_hold_all_that_the_other_stages_need(prepared: Path) -> None:
    for name, rows in (("base", 6), ("demo", 12)):
        folder = prepared / name
        meta = json.loads((folder / "meta.json").read_text())
        for tower in ("vision", "text"):
            assert set(meta["graphs"][tower]) == {"float16", "bfloat16", "int8"}
            for graph in meta["graphs"][tower].values():
                assert (folder / graph["file"]).is_file()
                assert graph["cosine"] > 0.9
        assert set(meta["macs"]["vision"]) == {"1", "8", "32", "128"}
        assert meta["macs"]["vision"]["8"] == 8 * meta["macs"]["vision"]["1"]
        inputs, reference = np.load(folder / "inputs.npz"), np.load(folder / "reference.npz")
        assert len(inputs["pixels"]) == len(reference["vision"]) == rows
        assert len(inputs["token_ids"]) == len(reference["text"]) == rows * (5 if rows == 12 else 1)


def test_8_6_gets_the_precisions_that_it_has_and_the_plain_export(
    tmp_path: Path, driver: LateDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = module("gpu_models")
    sizes = models.Sizes(samples=16, rows=2)
    precisions = ("float16", "bfloat16", "float8")
    models.prepare(tmp_path, "base", 8, precisions, sizes, Silent(), config=TINY)
    meta = json.loads((tmp_path / "base" / "meta.json").read_text())
    assert set(meta["graphs"]["vision"]) == {"float16", "plain-float16"}
    assert set(meta["graphs"]["text"]) == {"float16"}
    reference = np.load(tmp_path / "base" / "reference.npz")
    assert (reference["vision.plain-float16"] * reference["vision"]).sum(axis=1).max() < 0.9, (
        "the plain export has weights of its own"
    )
    LateTensorRT(8, driver).install(monkeypatch)
    only_shapes(tmp_path / "base", ("1", "8"), ("1x16",))
    found = module("gpu_trt").measure(tmp_path, "base", rounds=1, level=None, progress=Silent())
    assert found["left_out"] == {}
    assert set(found["towers"]["vision"]["plain-float16"]["shapes"]) == {"1", "8"}
    parity = module("gpu_report").collect(tmp_path, ["base"])["base"]["parity"]
    assert parity["plain-float16"]["cosine"]["vision"] > 0.999, "compared with itself"


def test_engines_are_built_timed_and_compared(
    work: Path, trt: LateTensorRT, driver: LateDriver
) -> None:
    found = module("gpu_trt").measure(work, "base", rounds=2, level=None, progress=Silent())
    assert found["left_out"] == {}
    shapes = found["towers"]["vision"]["int8"]["shapes"]
    assert shapes["32"]["milliseconds"] == pytest.approx([1.0, 1.0])
    assert shapes["32"]["rows_per_second"] == pytest.approx(32000)
    assert found["towers"]["text"]["float16"]["shapes"]["128x16"]["milliseconds"] == [2.0, 2.0]
    ours = np.load(work / "base" / "embeddings.float16.npz")
    reference = np.load(work / "base" / "reference.npz")
    for tower in ("vision", "text"):
        assert (ours[tower] * reference[tower]).sum(axis=1).min() > 0.999
    assert driver.allocated == 0
    trt.graphs.clear()
    module("gpu_trt").measure(work, "base", rounds=1, level=None, progress=Silent())
    assert not trt.graphs, "what was built is not built again"


def test_a_precision_that_cannot_be_built_is_left_out_with_its_reason(
    work: Path, trt: LateTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = trt.Builder.build_serialized_network

    def build(self: Any, network: object, config: Any) -> bytes | None:
        if "int8" in list(trt.graphs)[-1]:
            self.logger.log(1, "no kernel")
            return None
        found: bytes = works(self, network, config)
        return found

    monkeypatch.setattr(trt.Builder, "build_serialized_network", build)
    found = module("gpu_trt").measure(work, "base", rounds=1, level=None, progress=Silent())
    assert set(found["towers"]["vision"]) == {"float16", "bfloat16"}
    assert "no kernel" in found["left_out"]["vision int8"]


def test_a_call_that_ends_leaves_what_it_measured_and_the_next_goes_on(
    work: Path, trt: LateTensorRT
) -> None:
    machine, stage = module("machine"), module("gpu_trt")
    written: list[Any] = []

    def saved() -> None:
        written.append(json.loads((work / "base" / "trt.json").read_text()))

    short = machine.Call(0, saved)
    found = stage.measure(work, "base", rounds=1, level=None, progress=Silent(), call=short)
    assert found["towers"] == {}
    assert "call again" in found["left_out"]["vision float16"]
    whole = machine.Call(saved=saved)
    stage.measure(work, "base", rounds=1, level=None, progress=Silent(), call=whole)
    first = written[6]["towers"]
    assert set(first) == {"vision"}, "each precision is written when it is there"
    assert set(first["vision"]) == {"float16"}
    assert written[-1]["left_out"] == {}


def test_an_engine_that_does_not_run_costs_no_other(
    work: Path, trt: LateTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = module("gpu_trt")
    works = stage.time_interleaved

    def time(runners: Any, batches: Any, **options: Any) -> Any:
        if "int8" in runners and batches[0][0].ndim == 2:
            raise RuntimeError("cannot run")
        return works(runners, batches, **options)

    monkeypatch.setattr(stage, "time_interleaved", time)
    found = stage.measure(work, "base", rounds=1, level=None, progress=Silent())
    assert "cannot run" in found["left_out"]["text int8"]
    assert set(found["towers"]["text"]) == {"float16", "bfloat16"}
    entry = module("gpu_report").collect(work, ["base"])["base"]["parity"]
    assert set(entry["int8"]["cosine"]) == {"vision"}, "of the tower that ran"
    assert set(entry["bfloat16"]["cosine"]) == {"vision", "text"}
    (work / "base" / "embeddings.int8.npz").rename(work / "base" / "embeddings.gone.npz")
    stage.measure(work, "base", rounds=1, level=None, progress=Silent())
    assert not (work / "base" / "embeddings.gone.npz").exists(), "none of an earlier run"


def test_a_packed_model_becomes_the_prepared_one(prepared: Path, tmp_path: Path) -> None:
    module("gpu_pack").pack(prepared / "base", tmp_path)
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.onnx")]
    assert len(names) == 2 + 6 + 2  # of the bundle, to compile, for ONNX Runtime
    carried = {name: (tmp_path / name).stat().st_size for name in names}
    module("gpu_seeds").grow(tmp_path)
    for name in names:
        assert (tmp_path / name).read_bytes() == (prepared / "base" / name).read_bytes()
        if "bfloat16" not in name.name:
            assert carried[name] < 0.25 * (tmp_path / name).stat().st_size
    assert not list(tmp_path.rglob("checkpoint*")), "the weights are drawn there"


def test_graphs_for_another_version_are_refused(
    work: Path, driver: LateDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    LateTensorRT(8, driver).install(monkeypatch)
    with pytest.raises(SystemExit, match=r"prepared for TensorRT 11.*--tensorrt 8"):
        module("gpu_trt").measure(work, "base", rounds=1, level=None, progress=Silent())


BLOCKED = ("torch", "onnx", "onnxruntime", "openvino", "PIL", "sentencepiece", "click", "jinja2")
IMPORT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
import gpu, gpu_report, gpu_seeds, gpu_trt
"""


def test_the_trt_stage_needs_numpy_and_tensorrt_only() -> None:
    command = [sys.executable, "-c", IMPORT, str(FOLDER), *BLOCKED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_torch_stage_times_every_form_at_every_shape(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = module("gpu_torch")
    monkeypatch.setattr(stage, "RUNS", 1)
    monkeypatch.setattr(stage, "WARM_UP", 0)
    monkeypatch.setattr(stage, "gemm_peak", lambda device, rounds: {})
    meta = json.loads((work / "base" / "meta.json").read_text())
    meta["macs"] = {"vision": {"1": 1, "8": 8}, "text": {"1x16": 1}}
    (work / "base" / "meta.json").write_text(json.dumps(meta))
    forms = stage.FORMS[:3]
    found = stage.measure(work, "base", rounds=2, progress=Silent(), device="cpu", forms=forms)
    for form in forms:
        assert set(found["towers"]["vision"][form]["shapes"]) == {"1", "8"}
        assert len(found["towers"]["text"][form]["shapes"]["1x16"]["milliseconds"]) == 2
    assert json.loads((work / "base" / "torch.json").read_text()) == found


def test_onnx_runtime_is_timed_where_it_has_cuda_and_left_out_elsewhere(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = module("gpu_ort")
    monkeypatch.setattr(stage, "RUNS", 2)
    found = stage.measure(work, "base", rounds=1, progress=Silent())
    assert "onnxruntime-gpu" in found["left_out"]["vision ONNX Runtime CUDA float16"]
    only_shapes(work / "base", ("1", "8"), ("1x16",))
    found = stage.measure(work, "base", rounds=2, progress=Silent(), device=None)
    assert found["left_out"] == {}
    for precision in ("float16", "float32"):
        form = found["towers"]["vision"][stage.FORM.format(precision)]
        assert len(form["shapes"]["8"]["milliseconds"]) == 2
    assert json.loads((work / "base" / "ort.json").read_text()) == found


def test_fused_attention_computes_what_torchscale_computes() -> None:
    stage = module("gpu_torch")
    tensors = random_tensors(MWA)
    plain = reference_from_tensors(MWA.__class__(MWA.backbone, MWA.adapter, MWA.enhancer), tensors)
    fused = reference_from_tensors(MWA, tensors)
    stage.use_sdpa(fused)
    image = torch.rand(2, 3, MWA.backbone.image_size, MWA.backbone.image_size)
    ids = torch.randint(4, 90, (3, 9))
    mask = torch.zeros_like(ids)
    mask[1, 5:] = 1
    with torch.inference_mode():
        assert (plain.encode_image(image) - fused.encode_image(image)).abs().max() < 1e-5
        assert (plain.encode_text(ids, mask) - fused.encode_text(ids, mask)).abs().max() < 1e-5


def test_gemm_rates_are_measured_for_every_type_that_multiplies() -> None:
    found = module("gpu_torch").gemm_peak("cpu", rounds=1, squares=())
    assert found == {}
    stage = module("gpu_torch")
    rates = {p: stage._timed(run, 1, "cpu") for p, run in stage._gemms((32, 32, 32), "cpu").items()}
    assert set(rates) == {"float16", "bfloat16", "int8"}
    assert all(rate > 0 for rate in rates.values())


def test_the_report_is_written_from_what_the_stages_left(
    work: Path, trt: LateTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = module("gpu")
    only_shapes(work / "demo", ("1",), ("1x16",))
    for name in ("base", "demo"):
        module("gpu_trt").measure(work, name, rounds=1, level=None, progress=Silent())
    arguments = ["gpu.py", "--stages", "report", "--work", str(work)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out-folder", str(tmp_path / "results")])
    gpu.main()
    written = json.loads((tmp_path / "results" / "h200.json").read_text())
    assert set(written["models"]) == {"base", "demo"}
    assert set(written["models"]["demo"]["parity"]["int8"]["recall_change"]) >= {"TR@1", "IR@10"}
    table = (tmp_path / "results" / "h200.md").read_text()
    assert "| INT8 / FP16, base, batch >= 32 | >= 1.4 x | 2.00 x, 2.00 x | yes |" in table
    assert "torch.compile float16, base, batch 128 | >= 1.3 x |  | not measured |" in table


def test_a_package_that_a_stage_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = module("gpu")
    monkeypatch.setattr(gpu, "select_device", lambda: None)
    monkeypatch.delitem(sys.modules, "gpu_torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--stages", "torch", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^torch is not installed here"):
        gpu.main()


def test_stages_in_the_wrong_order_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = module("gpu")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--stages", "report", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="no stage has left anything here"):
        gpu.main()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--stages", "prepare", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="say which one will build"):
        gpu.main()
