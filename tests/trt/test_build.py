"""Builds for 8.6, 10 and 11: the settings passed to TensorRT, and the handling of its errors."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trt_fake import GIB, VERSIONS, FakeTensorRT, ParserError

from mwa_export.bundle.engine import EnginePrecision, ShapeRange
from mwa_export.errors import EngineError, MissingPackageError, ProfileError, UsageError
from mwa_export.trt.build import BuildOptions, engine_from_onnx
from mwa_export.trt.device import Device

H200 = Device(0, "NVIDIA H200", (9, 0), 140 * GIB, 100 * GIB, 13000)
PROFILE = (ShapeRange("image", (1, 3, 4, 4), (8, 3, 4, 4), (32, 3, 4, 4)),)
STRONGLY, EXPLICIT = {10: 2, 11: 1}, {8: 1}


class Steps:
    """Progress that remembers; it can be interrupted."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.interrupt = False

    def __call__(self, text: str, total: int | None = None) -> None:
        self.seen.append((text, total))

    def advance(self, rows: int) -> None:
        if self.interrupt:
            raise KeyboardInterrupt
        self.seen.append(rows)


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return FakeTensorRT(request.param).install(monkeypatch)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return FakeTensorRT(11).install(monkeypatch)


def build(folder: Path, precision: EnginePrecision = "float16", **more: Any) -> Path:
    graph, out = folder / "vision.onnx", folder / "out" / "vision.engine"
    folder.mkdir(exist_ok=True)
    graph.write_bytes(b"")
    device = more.pop("device", H200)
    progress = more.pop("progress", None)
    profiles = more.pop("profiles", [PROFILE])
    options = BuildOptions(**more)
    engine_from_onnx(
        graph,
        profiles,
        out,
        precision=precision,
        device=device,
        options=options,
        progress=progress,
    )
    return out


def flags(trt: FakeTensorRT) -> list[str]:
    return [flag.name for (flag,) in trt.called("config.set_flag")]


def refused(folder: Path, error: type[Exception], **more: Any) -> str:
    """The message of a build that fails and leaves nothing."""
    with pytest.raises(error) as caught:
        build(folder, **more)
    assert [path.name for path in folder.iterdir()] == ["vision.onnx"]
    return str(caught.value)


@pytest.mark.parametrize(
    ("precision", "eight"), [("float16", ["FP16"]), ("int8", ["FP16", "INT8"])]
)
def test_precision_comes_from_flags_in_8_and_from_the_graph_since_10(
    precision: EnginePrecision, eight: list[str], trt: FakeTensorRT, tmp_path: Path
) -> None:
    out = build(tmp_path, precision)
    assert out.read_bytes() == b"an engine"
    major = int(trt.__version__.split(".")[0])
    assert flags(trt) == (eight if major == 8 else [])
    assert trt.called("create_network") == [((STRONGLY | EXPLICIT)[major],)]
    assert trt.called("parse") == [(str(tmp_path / "vision.onnx"),)]


@pytest.mark.parametrize(("precision", "capability"), [("bfloat16", (8, 0)), ("float8", (8, 9))])
def test_precisions_of_typed_graphs_are_built_where_they_exist(
    precision: EnginePrecision,
    capability: tuple[int, int],
    trt: FakeTensorRT,
    tmp_path: Path,
) -> None:
    first = replace(H200, capability=capability)
    older = replace(H200, name="NVIDIA T4", capability=(7, 5))
    if trt.__version__.startswith("8"):
        message = refused(tmp_path, UsageError, precision=precision, device=first)
        assert f"{precision} engines need 10 or later" in message
        return
    message = refused(tmp_path, UsageError, precision=precision, device=older)
    assert f"NVIDIA T4 has compute capability 7.5, but {precision} needs 8." in message
    assert build(tmp_path, precision, device=first).read_bytes() == b"an engine"
    assert flags(trt) == []


def test_no_build_uses_cublas_or_cudnn(trt: FakeTensorRT, tmp_path: Path) -> None:
    build(tmp_path)
    ((mask,),) = trt.called("config.set_tactic_sources")
    assert [s.name for s in trt.TacticSource if mask >> s & 1] == [
        "EDGE_MASK_CONVOLUTIONS",
        "JIT_CONVOLUTIONS",
    ]
    features = [feature.name for feature, on in trt.called("config.set_preview_feature") if on]
    eight = trt.__version__.startswith("8")
    assert features == (["DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"] if eight else [])


@pytest.mark.parametrize("flag", ["version_compatible", "refit"])
def test_every_option_reaches_the_builder(
    flag: str, trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_lean", trt)
    cache = tmp_path / "times"
    cache.write_bytes(b"old times")
    options: dict[str, Any] = {flag: True}
    build(
        tmp_path,
        workspace=2 * GIB,
        timing_cache=cache,
        level=4,
        hardware_compatible=True,
        **options,
    )
    assert trt.called("config.set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 2 * GIB)]
    assert trt.called("config.builder_optimization_level") == [(4,)]
    assert flag.upper() in flags(trt)
    assert trt.called("config.hardware_compatibility_level") == [
        (trt.HardwareCompatibilityLevel.AMPERE_PLUS,)
    ]
    assert trt.called("create_timing_cache") == [(b"old times",)]
    assert trt.called("set_timing_cache") == [(False,)]
    assert cache.read_bytes() == b"new times"


def test_options_that_are_not_given_are_left_to_tensorrt(
    newest: FakeTensorRT, tmp_path: Path
) -> None:
    build(tmp_path)
    assert {call[0] for call in newest.calls if call[0].startswith("config.")} == {
        "config.set_tactic_sources",
        "config.profiling_verbosity",
        "config.progress_monitor",
    }


def test_flags_are_what_a_loader_must_know() -> None:
    assert BuildOptions(level=3).flags == ()
    found = BuildOptions(version_compatible=True, hardware_compatible=True).flags
    assert found == ("version_compatible", "hardware_compatible")


def test_engines_of_later_versions_cannot_be_refitted() -> None:
    with pytest.raises(UsageError, match="lean runtime"):
        BuildOptions(version_compatible=True, refit=True)


def test_version_compatible_engines_need_the_lean_runtime_before_anything_is_built(
    trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(MissingPackageError, match=r"libnvinfer_lean\.so\.\d+"):
        build(tmp_path, version_compatible=True)
    assert not trt.calls


def test_every_profile_is_added(newest: FakeTensorRT, tmp_path: Path) -> None:
    other = (ShapeRange("image", (33, 3, 4, 4), (64, 3, 4, 4), (64, 3, 4, 4)),)
    build(tmp_path, profiles=[PROFILE, other])
    assert newest.called("profile.set_shape") == [
        ("image", (1, 3, 4, 4), (8, 3, 4, 4), (32, 3, 4, 4)),
        ("image", (33, 3, 4, 4), (64, 3, 4, 4), (64, 3, 4, 4)),
    ]


def test_profile_of_other_inputs_is_refused(newest: FakeTensorRT, tmp_path: Path) -> None:
    newest.inputs = ("token_ids", "padding_mask")
    message = refused(tmp_path, ProfileError)
    assert "has the inputs token_ids, padding_mask, but the profile is for image" in message


def test_profile_that_tensorrt_refuses_is_named(newest: FakeTensorRT, tmp_path: Path) -> None:
    newest.profile_index = -1
    assert "rejects the shapes image up to 32x3x4x4" in refused(tmp_path, ProfileError)


def test_parser_errors_name_node_and_operator(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.parser_errors = [
        ParserError(f"blocks.{i}.fc1.MatMul", "MatMul", "Assertion failed: type\n[C++ stack]")
        for i in range(5)
    ]
    message = refused(tmp_path, EngineError)
    if trt.__version__.startswith("8"):
        assert "node number 12: Assertion failed: type;" in message
    else:
        assert "node blocks.2.fc1.MatMul (MatMul): Assertion failed: type; and 2 more" in message
    assert "blocks.3" not in message
    assert "stack" not in message
    assert f"TensorRT {trt.__version__}" in message


def test_a_failed_build_says_the_first_reason(newest: FakeTensorRT, tmp_path: Path) -> None:
    newest.blob = None
    newest.messages = [
        (2, "a warning"),
        (1, "[optimizer.cpp::computeCosts::4048] Error Code 10: no implementation for node x."),
        (1, "what follows from it"),
    ]
    message = refused(tmp_path, EngineError)
    assert message.endswith("built on NVIDIA H200: no implementation for node x.")


def test_out_of_memory_says_how_much_was_needed_and_what_to_lower(
    newest: FakeTensorRT, tmp_path: Path
) -> None:
    newest.blob = None
    newest.messages = [
        (2, "Requested amount of GPU memory (1073741824 bytes) could not be allocated."),
        (2, "Skipping tactic 3 due to insufficient memory on requested size of 4294967296 ..."),
        (1, "[virtualMemoryBuffer.cpp::resizePhysical::160] Error Code 2: OutOfMemory"),
    ]
    message = refused(tmp_path, EngineError, workspace=8 * GIB)
    assert "requested 4.0 GiB at once, and 100.0 of 140.0 GiB were free" in message
    assert "(image up to 32x3x4x4) with `batch` or `lengths`" in message
    assert "`workspace` (now 8.0 GiB)" in message


def test_memory_that_only_cost_a_tactic_is_no_reason(newest: FakeTensorRT, tmp_path: Path) -> None:
    newest.blob = None
    newest.messages = [(2, "insufficient memory on requested size of 5"), (1, "bad graph")]
    assert refused(tmp_path, EngineError).endswith("bad graph.")


def test_a_builder_that_does_not_start_is_explained(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.starts = False
    trt.messages = [(1, "CUDA initialization failure with error: 35")]
    message = refused(tmp_path, EngineError)
    assert "cannot start on NVIDIA H200 (CUDA initialization failure with error: 35)" in message


def test_timing_cache_of_another_gpu_is_refused(newest: FakeTensorRT, tmp_path: Path) -> None:
    newest.accepts_cache = False
    message = refused(tmp_path, UsageError, timing_cache=tmp_path / "times")
    assert "times`: is not a timing cache, or was made on another GPU" in message


def test_hardware_compatible_engines_need_ampere(newest: FakeTensorRT, tmp_path: Path) -> None:
    old = Device(0, "Tesla T4", (7, 5), GIB, GIB, 13000)
    assert "Tesla T4 is older than Ampere" in refused(
        tmp_path, UsageError, hardware_compatible=True, device=old
    )


@pytest.mark.parametrize("options", [{"level": 6}, {"level": -1}, {"workspace": 1000}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        BuildOptions(**options)  # type: ignore[arg-type]  # one of them


def phases(monitor: Any) -> None:
    monitor.phase_start("Building", None, 2)
    monitor.phase_start("Tactics", "Building", 3)
    monitor.phase_start("inner", "Tactics", 9)
    for phase in ("inner", "Tactics", "Tactics", "Building"):
        if not monitor.step_complete(phase, 0):
            return
    monitor.phase_finish("Building")


def test_progress_shows_outer_phases_only(newest: FakeTensorRT, tmp_path: Path) -> None:
    newest.during_build, steps = phases, Steps()
    build(tmp_path, progress=steps)
    assert steps.seen == [("vision: Building", 2), ("vision: Tactics", 3), 1, 1]


def test_an_interrupt_ends_the_build_and_leaves_nothing(
    newest: FakeTensorRT, tmp_path: Path
) -> None:
    newest.during_build, newest.blob, steps = phases, None, Steps()
    steps.interrupt = True
    refused(tmp_path, KeyboardInterrupt, progress=steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_build_ends_it_at_the_next_step(
    kind: signal.Signals, newest: FakeTensorRT, tmp_path: Path
) -> None:
    """Python would raise in one of TensorRT's callbacks, and the bindings swallow that."""
    answers: list[bool] = []

    def during(monitor: Any) -> None:
        signal.raise_signal(kind)
        answers.append(monitor.step_complete("a phase", 0))

    newest.during_build = during
    before = signal.signal(kind, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path)
        signal.signal(kind, signal.SIG_IGN)  # a job in the background
        build(tmp_path / "background")
    finally:
        signal.signal(kind, before)
    assert answers == [False, True]
    assert [path.parts[-3] for path in tmp_path.rglob("*.engine")] == ["background"]
