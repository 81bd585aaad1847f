"""`trt --best` and the speed gate, on a fake GPU with a simulated clock."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import files_below, refused, run
from onnx import TensorProto
from recall_changes import trial
from trt_fake_gpu import LateDriver, LateTensorRT
from trt_files import calibrated_bundle

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import RunTime
from mwa_export.calib.evaluate import HeldBack
from mwa_export.calib.precision_search import Trial
from mwa_export.data.test_set import RetrievalData
from mwa_export.engines import best as best_module
from mwa_export.engines.best import Candidate, fastest
from mwa_export.engines.build import build_engines
from mwa_export.engines.options import EngineOptions
from mwa_export.runtimes import machine
from mwa_export.runtimes.open import open_backend
from mwa_export.trt.layers import Inspection
from mwa_export.trt.profiles import Span
from mwa_export.trt.timing import Compared, Timing

pytestmark = pytest.mark.slow

Cost = Callable[[onnx.ModelProto], float]


def precision_of(graph: onnx.ModelProto) -> str:
    """Of the graph that an engine of the stand-in is."""
    kinds = {tensor.data_type for tensor in graph.graph.initializer}
    attention = (
        "+attention" if any("float8_zero" in t.name for t in graph.graph.initializer) else ""
    )
    matrices = {t.data_type for t in graph.graph.initializer if len(t.dims) == 2}
    if TensorProto.FLOAT8E4M3FN in matrices:
        return f"float8{attention}"
    if TensorProto.INT8 in matrices:
        return f"int8{attention}"
    return "bfloat16" if TensorProto.BFLOAT16 in kinds else "float16"


def costs(**milliseconds: float) -> Cost:
    return lambda graph: milliseconds[precision_of(graph)]


USUAL = costs(float16=2.0, bfloat16=2.5, int8=1.0, float8=1.5)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> LateDriver:
    driver = LateDriver()
    driver.install(monkeypatch)
    monkeypatch.setattr(machine, "driver_here", lambda: True)
    return driver


@pytest.fixture(autouse=True)
def fewer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float8 attention is tried where a test is about it: it takes half of the time."""
    if "attention" not in request.node.name:
        plain = tuple(kind for kind in best_module.CANDIDATES if not kind[1])
        monkeypatch.setattr(best_module, "CANDIDATES", plain)


@pytest.fixture
def trt(driver: LateDriver, monkeypatch: pytest.MonkeyPatch) -> LateTensorRT:
    fake = LateTensorRT(11, driver)
    fake.install(monkeypatch)
    fake.milliseconds = USUAL
    return fake


@pytest.fixture(scope="session")
def calibrated(files: Path, data: RetrievalData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trt-best") / "bundle"
    return calibrated_bundle(files / "bundle", data, folder).path


@pytest.fixture
def bundle(calibrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(calibrated, tmp_path / "bundle"))


def precisions(bundle: Path) -> dict[str, str]:
    return {engine.tower: engine.precision for engine in Bundle.open(bundle).manifest.engines}


def best(bundle: Path, files: Path, *more: Any) -> str:
    options = (
        "--data",
        files / "data",
        "--held-back",
        files / "data",
        "--samples",
        16,
        "--batch",
        "1,2,4",
    )
    outcome = run("trt", bundle, "--best", *options, *more)
    assert outcome.status == 0, outcome
    return outcome.stdout + outcome.stderr


def test_the_fastest_precision_inside_the_budget_is_kept(
    trt: LateTensorRT, driver: LateDriver, bundle: Path, files: Path
) -> None:
    before = set(files_below(bundle.parent))
    said = best(bundle, files, "--undecided", "pass")
    assert precisions(bundle) == {"vision": "int8", "text": "int8"}
    rows = {line.split()[0]: line.split() for line in said.splitlines() if "x " in line}
    assert rows["int8"][1:4] == ["1.00", "1.00", "2.00x"]
    assert rows["int8"][-1] == "kept"
    assert rows["bfloat16"][1:4] == ["2.50", "2.50", "0.80x"]
    assert rows["float16"][-1] == "slower"
    new = set(files_below(bundle.parent)) - before
    names = {
        f"bundle/engines/{tower}.int8.sm90.trt11.4.0.106.engine" for tower in precisions(bundle)
    }
    assert new == {"bundle/engines", *names}, "the others are not kept, and nothing is left"
    assert driver.allocated == 0


def test_what_drops_too_much_recall_is_not_taken_and_says_so(
    trt: LateTensorRT, bundle: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = HeldBack.measure

    def worse(self: Any, int8: Any, backend: Any, label: str) -> Trial:
        found = measure(self, int8, backend, label)
        drop = 1.5 if "8" in label.removesuffix("16") else 0.0
        return replace(trial(found.int8, drop), cosine=found.cosine, detail=found.detail)

    monkeypatch.setattr(HeldBack, "measure", worse)
    said = best(bundle, files)
    assert precisions(bundle) == {"vision": "float16", "text": "float16"}
    assert "int8: recall drops too much: TR@1 -1.50 points" in said


def test_without_data_8_bits_are_not_tried(trt: LateTensorRT, bundle: Path) -> None:
    outcome = run("trt", bundle, "--best", "--batch", 2)
    assert outcome.status == 0, outcome
    assert precisions(bundle) == {"vision": "float16", "text": "float16"}
    assert "int8: there are no data to measure its recall on. Pass --data" in outcome.stderr
    assert "recall was not measured" in outcome.stderr
    assert all(engine.measured is None for engine in Bundle.open(bundle).manifest.engines)


def test_a_bundle_without_calibration_gets_the_best_of_16_bits(
    trt: LateTensorRT, files: Path, tmp_path: Path
) -> None:
    plain = Path(shutil.copytree(files / "bundle", tmp_path / "plain"))
    trt.milliseconds = costs(float16=2.0, bfloat16=1.0)
    said = best(plain, files, "--undecided", "pass")
    assert precisions(plain) == {"vision": "bfloat16", "text": "bfloat16"}
    assert "int8: the bundle has no calibration" in said


def test_what_was_measured_is_recorded_and_lets_auto_take_it(
    trt: LateTensorRT, bundle: Path, files: Path
) -> None:
    best(bundle, files, "--undecided", "pass")
    one, other = (engine.measured for engine in Bundle.open(bundle).manifest.engines)
    assert one == other
    assert one is not None
    assert one.decision.accepted
    assert one.held_back is not None
    assert one.held_back.pictures > 16
    assert one.milliseconds["vision"] == RunTime(2, None, 1.0)
    choice = open_backend(Bundle.open(bundle)).choice
    assert (choice.runtime, choice.precision) == ("tensorrt", "int8")
    assert "accepted by the user" in choice.reason


def test_a_budget_that_nothing_meets_changes_nothing(
    trt: LateTensorRT, bundle: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(self: Any, int8: Any, backend: Any, label: str) -> Trial:
        return trial(int8, 7.0)

    monkeypatch.setattr(HeldBack, "measure", bad)
    before = files_below(bundle.parent)
    options = (
        "--data",
        files / "data",
        "--held-back",
        files / "data",
        "--samples",
        16,
        "--batch",
        2,
    )
    message = refused("trt", bundle, "--best", *options, status=1)
    assert "no engine stays within 0.2 points" in message
    assert "int8: recall drops too much: TR@1 -7.00 points" in message
    assert files_below(bundle.parent) == before


def test_a_precision_that_cannot_be_built_does_not_stop_the_others(
    trt: LateTensorRT, bundle: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = trt.Builder.build_serialized_network

    def build(self: Any, network: object, config: Any) -> bytes | None:
        if "int8" in list(trt.graphs)[-1]:
            self.logger.log(1, "no kernel")
            return None
        found: bytes = works(self, network, config)
        return found

    monkeypatch.setattr(trt.Builder, "build_serialized_network", build)
    said = best(bundle, files, "--undecided", "pass")
    assert precisions(bundle) == {"vision": "float8", "text": "float8"}
    assert "no kernel" in said


def candidate(precision: Any, milliseconds: float, problem: str | None = None) -> Candidate:
    timing = Timing(2, None, (milliseconds,), (1.0,))
    speed: Any = {"vision": Compared(timing, Inspection(()))}
    return Candidate(precision, speed=speed, problem=problem)


def test_only_candidates_without_a_problem_win_and_ties_go_to_the_first() -> None:
    half, small = candidate("float16", 2.0), candidate("int8", 1.0)
    assert fastest([half, small]) is small
    assert fastest([half, candidate("int8", 1.0, "drops")]) is half
    assert fastest([half, candidate("bfloat16", 2.0)]) is half
    assert fastest([candidate("float16", 2.0, "no")]) is None


# --- the speed gate --------------------------------------------------------------------------


def slow_layers(graph: onnx.ModelProto) -> list[Any]:
    port = {"Name": "x", "Format/Datatype": "Half"}
    gemm = {"Name": "blocks.0.fc1.MatMul", "LayerType": "gemm", "Inputs": [port]}
    return [gemm, {"Name": "copy", "LayerType": "Reformat", "Inputs": [port]}]


def test_int8_that_is_slower_than_float16_is_not_shipped_silently(
    trt: LateTensorRT, driver: LateDriver, bundle: Path
) -> None:
    trt.milliseconds, trt.layers = costs(float16=1.0, int8=1.25), slow_layers
    before = files_below(bundle.parent)
    message = refused("trt", bundle, "--int8", "--batch", 2)
    assert (
        "vision tower: int8 runs 0.80x as fast as float16 (1.25 and 1.00 ms for 2 rows" in message
    )
    assert "1 GEMMs compute in float16 (blocks.0.fc1.MatMul)" in message
    assert "1 layers only copy" in message
    assert "use --int8 with --allow-slow" in message
    assert files_below(bundle.parent) == before
    assert driver.allocated == 0


def test_a_slow_engine_is_added_with_a_warning_where_that_is_asked_for(
    trt: LateTensorRT, bundle: Path
) -> None:
    trt.milliseconds, trt.layers = costs(float16=1.0, int8=1.25), slow_layers
    outcome = run("trt", bundle, "--int8", "--batch", 2, "--allow-slow")
    assert outcome.status == 0, outcome
    assert "int8 runs 0.80x as fast" in outcome.stderr
    assert "GEMMs compute in float16" in outcome.stderr
    assert precisions(bundle) == {"vision": "int8", "text": "int8"}


def test_the_gate_measures_nothing_where_it_is_off(
    trt: LateTensorRT, driver: LateDriver, bundle: Path
) -> None:
    trt.milliseconds = costs(float16=1.0, int8=1.25)
    outcome = run("trt", bundle, "--int8", "--batch", 2, "--no-speed-gate")
    assert outcome.status == 0, outcome
    assert "as fast as" not in outcome.stderr
    assert set(trt.graphs) == {"vision.int8.onnx", "text.int8.onnx"}


def test_float16_of_the_bundle_is_compared_with_if_it_is_there(
    trt: LateTensorRT, bundle: Path
) -> None:
    assert run("trt", bundle, "--fp16", "--batch", 2).status == 0
    trt.graphs.clear()
    done = build_engines(
        bundle,
        options=EngineOptions("int8", batches=(Span(2, 2, 2),)),
    )
    assert set(trt.graphs) == {"vision.int8.onnx", "text.int8.onnx"}
    assert [round(speed.ratio, 6) for speed in done.speeds] == [2.0, 2.0]
    assert len(Bundle.open(bundle).manifest.engines) == 4


def test_float8_attention_is_tried_and_recorded_where_it_is_fastest(
    trt: LateTensorRT, bundle: Path, files: Path
) -> None:
    trt.milliseconds = costs(
        **{"float16": 2.0, "bfloat16": 2.5, "int8": 1.0, "float8": 1.5},
        **{"int8+attention": 0.5, "float8+attention": 0.6},
    )
    best(bundle, files, "--undecided", "pass", "--max-recall-drop", 100)
    for engine in Bundle.open(bundle).manifest.engines:
        assert (engine.precision, engine.flags) == ("int8", ("float8_attention",))


def test_16_bits_are_not_held_against_themselves(trt: LateTensorRT, bundle: Path) -> None:
    assert run("trt", bundle, "--bf16").status == 0
    assert set(trt.graphs) == {"vision.bfloat16.onnx", "text.bfloat16.onnx"}
