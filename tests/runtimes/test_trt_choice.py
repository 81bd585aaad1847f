"""Engines as a runtime: when they are chosen, and how commands use them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from manifests import measured_engines
from trt_fake_gpu import LateDriver, LateTensorRT

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import TENSORRT, with_engines
from mwa_export.bundle.manifest import Manifest
from mwa_export.encoder.open import load
from mwa_export.errors import RuntimeUnavailableError
from mwa_export.runtimes import machine
from mwa_export.runtimes.choose import choose
from mwa_export.runtimes.machine import Machine, this_machine
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.trt.device import Device
from mwa_export.trt.install import EngineHost

pytestmark = pytest.mark.slow

CPUS = frozenset({"onnxruntime", "openvino"})
VNNI = frozenset({"avx2", "avx512_vnni"})
H200 = Device(0, "NVIDIA H200", (9, 0), 1 << 37, 1 << 36, 13000)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> LateDriver:
    driver = LateDriver()
    driver.install(monkeypatch)
    monkeypatch.setattr(machine, "driver_here", lambda: True)
    return driver


@pytest.fixture
def trt(driver: LateDriver, monkeypatch: pytest.MonkeyPatch) -> LateTensorRT:
    fake = LateTensorRT(11, driver)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def bundle(trt: LateTensorRT, files: Path, tmp_path: Path) -> Path:
    """A bundle with float16 engines for the H200."""
    folder = Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))
    assert run("trt", folder, "--fp16", "--batch", "1,4,8").status == 0
    return folder


@pytest.fixture
def here(trt: LateTensorRT) -> Machine:
    return Machine(VNNI, CPUS, True, EngineHost({TENSORRT: trt.__version__}, H200))


def as_precision(manifest: Manifest, precision: Any, drop: float | None = None) -> Manifest:
    """The manifest with its engines once more, in another precision."""
    measured = None if drop is None else measured_engines(drop)
    found = [
        replace(e, file=f"engines/{e.tower}.{precision}", precision=precision, measured=measured)
        for e in manifest.engines
    ]
    return replace(manifest, engines=with_engines(manifest.engines, found))


def test_auto_takes_engines_that_can_be_used(bundle: Path, driver: LateDriver) -> None:
    opened = open_backend(Bundle.open(bundle))
    assert (opened.choice.runtime, opened.choice.precision) == ("tensorrt", "float16")
    assert opened.choice.reason.startswith(
        "TensorRT with float16: the fastest option that runs here"
    )
    assert opened.backend.name == "TensorRT float16 on NVIDIA H200"
    assert [engine.tower for engine in opened.choice.engines] == ["vision", "text"]


@pytest.mark.parametrize("precision", ["int8", "float8", "bfloat16"])
def test_auto_takes_other_precisions_only_if_they_were_measured_and_passed(
    precision: str, bundle: Path, here: Machine
) -> None:
    manifest = Bundle.open(bundle).manifest
    unmeasured = choose(as_precision(manifest, precision), RuntimeOptions(), here)
    assert unmeasured.precision == "float16"
    told = choose(as_precision(manifest, precision), RuntimeOptions("tensorrt", precision), here)
    assert "its recall was not measured" in told.reason
    failed = choose(as_precision(manifest, precision, 0.9), RuntimeOptions(), here)
    assert failed.precision == "float16"
    if precision == "bfloat16":  # after float16 in any case
        only = replace(
            as_precision(manifest, precision, 0.1),
            engines=as_precision(manifest, precision, 0.1).engines[2:],
        )
        assert choose(only, RuntimeOptions(), here).precision == "bfloat16"
        return
    assert any("-0.90 points" in reason for reason in failed.rejected)
    passed = choose(as_precision(manifest, precision, 0.1), RuntimeOptions(), here)
    assert (passed.runtime, passed.precision) == ("tensorrt", precision)
    assert "-0.10 points" in passed.reason
    assert "within this bundle's budget" in passed.reason


def test_engines_for_another_gpu_are_passed_by_with_a_reason(bundle: Path, here: Machine) -> None:
    manifest = Bundle.open(bundle).manifest
    other = replace(H200, name="NVIDIA L4", capability=(8, 9))
    elsewhere = replace(here, engines=EngineHost({TENSORRT: "11.4.0.106"}, other))
    choice = choose(manifest, RuntimeOptions(), elsewhere)
    assert choice.runtime == "openvino"
    assert any("it needs NVIDIA H200" in reason for reason in choice.rejected)
    with pytest.raises(RuntimeUnavailableError, match=r"needs NVIDIA H200.*`rebuild`"):
        choose(manifest, RuntimeOptions("tensorrt"), elsewhere)


def test_nvidia_is_spoken_of_only_where_there_is_a_driver(files: Path, here: Machine) -> None:
    manifest = Bundle.open(files / "bundle").manifest
    said = choose(manifest, RuntimeOptions(), here).rejected
    assert sum("`mwa-export trt`" in reason for reason in said) == 1
    assert any("onnxruntime-gpu" in reason for reason in said)
    silent = choose(manifest, RuntimeOptions(), replace(here, nvidia=False, engines=None)).rejected
    assert not any("TensorRT" in reason or "CUDA" in reason for reason in silent)
    with pytest.raises(RuntimeUnavailableError, match="the bundle has no engines"):
        choose(manifest, RuntimeOptions("tensorrt"), replace(here, nvidia=False, engines=None))


def test_without_tensorrt_a_bundle_with_engines_runs_on_the_cpu(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    opened = open_backend(Bundle.open(bundle))
    assert opened.choice.runtime in CPUS
    assert any('pip install "mwa-export[tensorrt]"' in r for r in opened.choice.rejected)
    with pytest.raises(
        RuntimeUnavailableError, match=r"tensorrt`: tensorrt .*mwa-export\[tensorrt\]"
    ):
        open_backend(Bundle.open(bundle), RuntimeOptions("tensorrt"))


def test_tensorrt_is_not_looked_for_without_need(
    files: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "engine_host", lambda device: pytest.fail("looked"))
    assert this_machine(Bundle.open(files / "bundle").manifest).engines is None
    monkeypatch.setattr(machine, "driver_here", lambda: False)
    assert this_machine(Bundle.open(bundle).manifest).engines is None


def test_named_graphs_do_not_go_with_engines(files: Path, bundle: Path, tmp_path: Path) -> None:
    arguments = ("--reference", files / "bundle", "--data", files / "data", "-o", tmp_path / "r")
    options = ("--runtime", "tensorrt", "--precision", "auto")
    message = refused("parity", bundle, *arguments, *options, "--graph", "vision.onnx")
    assert "cannot be used with" in message


def test_parity_checks_engines(files: Path, bundle: Path, tmp_path: Path) -> None:
    arguments = ("--reference", files / "bundle", "--data", files / "data", "-o", tmp_path / "r")
    options = ("--runtime", "tensorrt", "--precision", "float16", "--undecided", "pass")
    outcome = run("parity", bundle, *arguments, *options, "--no-cache")
    assert outcome.status == 0, outcome
    assert "on TensorRT, float16" in outcome.stdout
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert "TensorRT 11.4.0.106" in json.dumps(report)
    message = refused("parity", bundle, *arguments, *options, "--layers", "--force")
    assert "TensorRT fuses blocks and cannot return their outputs" in message


def test_embed_runs_engines_and_goes_on_with_the_same_ones_only(
    files: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("embed", bundle, "--images", files / "data", "-o", out, "--runtime", "tensorrt")
    outcome = run(*command)
    assert outcome.status == 0, outcome
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["runtime"], manifest["precision"]) == ("tensorrt", "float16")
    (engine,) = (name for name in manifest["bundle_files"] if name.startswith("engines/vision"))
    assert manifest["inputs"]["images"]["batch"] == 32
    assert manifest["bundle_files"][engine] == next(
        e.sha256 for e in Bundle.open(bundle).manifest.engines if e.file == engine
    )
    shutil.rmtree(out / "images")
    (out / "manifest.json").unlink()
    path = bundle / engine
    content = path.read_bytes()
    assert run("trt", bundle, "--fp16", "--batch", "1,2,100", "--rebuild").status == 0
    assert path.read_bytes() == content, "the fake's engines are its graphs"
    assert "batch" in refused(*command), "larger engines take larger batches"
    assert run(*command, "--batch", 32).status == 0


def test_search_asks_engines(files: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("embed", bundle, "--images", files / "data", "-o", out).status == 0
    outcome = run("search", out, "abc de", "--runtime", "tensorrt", "--json")
    assert outcome.status == 0, outcome
    assert "with float16" in outcome.stdout


def test_bench_times_engines_that_are_there(bundle: Path, tmp_path: Path) -> None:
    options = ("--peers", "none", "--rounds", 3, "--batch", 2, "--lengths", 8)
    outcome = run("bench", bundle, *options, "-o", tmp_path / "bench")
    assert outcome.status == 0, outcome
    table = (tmp_path / "bench" / "bench.md").read_text()
    assert "mwa-export, TensorRT float16" in table
    assert "TensorRT int8" not in table


def test_embeddings_of_the_api_come_from_engines(files: Path, bundle: Path) -> None:
    opened, exact = load(bundle), load(bundle, RuntimeOptions("onnxruntime"))
    pictures = sorted((files / "data").glob("*.png"))[:3]
    cosines = (opened.embed_images(pictures) * exact.embed_images(pictures)).sum(axis=1)
    assert np.all(cosines > 0.999)
    assert opened.info.runtime.startswith("TensorRT")
