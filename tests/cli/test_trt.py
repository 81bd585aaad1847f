"""`mwa-export trt` with fakes of TensorRT and the driver adds engines or gives one error."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import files_below, refused, run
from onnx import TensorProto
from trt_fake import GIB, VERSIONS, FakeDriver, FakeTensorRT
from trt_files import calibrated_bundle

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.engines import build as engines_build
from mwa_export.engines import graphs
from mwa_export.trt import install

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def calibrated(files: Path, data: RetrievalData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trt-command") / "bundle"
    return calibrated_bundle(files / "bundle", data, folder).path


@pytest.fixture
def bundle(files: Path, tmp_path: Path) -> Path:
    """A bundle to change."""
    return Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver().install(monkeypatch)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines of this stand-in compute nothing; tests/engines/ has those that do."""
    monkeypatch.setattr(engines_build, "_check", lambda *_: None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", sys)  # the lean runtime is there


@pytest.fixture
def trt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """TensorRT 11 on an H200."""
    return FakeTensorRT(11).install(monkeypatch)


def trt_command(*arguments: Any) -> str:
    """The stderr of a run that works."""
    outcome = run("trt", *arguments)
    assert outcome.status == 0, outcome
    return outcome.stderr


def entries(bundle: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((bundle / "manifest.json").read_text())["engines"]
    return found


def test_engines_of_both_towers_join_the_bundle(trt: FakeTensorRT, bundle: Path) -> None:
    before = files_below(bundle)
    outcome = run("trt", bundle, "--fp16")
    assert outcome.status == 0, outcome
    assert outcome.stdout == f"{bundle}\n"
    assert "TensorRT 11.4.0.106 for NVIDIA H200" in outcome.stderr
    after = files_below(bundle)
    names = {f"engines/{t}.float16.sm90.trt11.4.0.106.engine" for t in ("vision", "text")}
    assert set(after) - set(before) == {"engines", *names}
    assert all(after[name] == b"an engine" for name in names)
    assert all(
        after[name] == content for name, content in before.items() if name != "manifest.json"
    )
    opened = Bundle.open(bundle)  # checks every hash
    assert {engine.file for engine in opened.manifest.engines} == names
    for engine in opened.manifest.engines:
        assert (engine.gpu, engine.capability) == ("NVIDIA H200", (9, 0))
        assert engine.sources == (opened.manifest.files[f"{engine.tower}.onnx"].sha256,)


def test_two_precisions_are_refused(trt: FakeTensorRT, bundle: Path) -> None:
    before = files_below(bundle)
    outcome = run("trt", bundle, "--fp16", "--bf16")
    assert outcome.status == 2
    assert "only one" in outcome.stderr
    assert not trt.calls
    assert files_below(bundle) == before


def test_profiles_come_from_the_options(trt: FakeTensorRT, bundle: Path) -> None:
    trt_command(bundle, "--fp16", "--batch", "1", "--batch", "2,8,16", "--lengths", "2,5,9")
    size = Bundle.open(bundle).manifest.model.backbone.image_size
    shapes = trt.called("profile.set_shape")
    assert ("image", *((n, 3, size, size) for n in (2, 8, 16))) in shapes
    assert ("padding_mask", (1, 2), (1, 5), (1, 9)) in shapes
    assert ("token_ids", (2, 2), (8, 5), (16, 9)) in shapes
    assert len(shapes) == 6
    recorded = {e["tower"]: e["profiles"] for e in entries(bundle)}
    assert recorded["text"][1][0]["opt"] == [8, 5]


def test_every_option_of_the_build_is_used(
    trt: FakeTensorRT, driver: FakeDriver, bundle: Path, tmp_path: Path
) -> None:
    driver.count = 2
    cache = tmp_path / "times"
    flags = ("--version-compatible", "--hardware-compatible")
    build = ("--workspace", 0.5, "--timing-cache", cache, "--builder-level", 5, "--device", 1)
    trt_command(bundle, "--fp16", *flags, *build)
    assert trt.called("config.set_memory_pool_limit")[0][1] == GIB // 2
    assert trt.called("config.builder_optimization_level") == [(5,), (5,)]
    assert trt.called("create_timing_cache") == [(b"",), (b"new times",)]
    assert driver.current == 1041
    assert [e["flags"] for e in entries(bundle)] == [
        ["version_compatible", "hardware_compatible"]
    ] * 2


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(
    trt: FakeTensorRT, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    said = trt_command(bundle, "--fp16", "--timing-cache", tmp_path / "file" / "times")
    assert said.count("the next build will measure again") == 2
    assert len(entries(bundle)) == 2


@pytest.mark.parametrize("major", VERSIONS)
def test_each_version_gets_its_graph(
    major: int, driver: FakeDriver, calibrated: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    trt = FakeTensorRT(major).install(monkeypatch)
    trt_command(calibrated, "--int8", "--no-speed-gate", "-o", tmp_path / "out")
    assert set(trt.graphs) == {"vision.int8.onnx", "text.int8.onnx"}
    for model in trt.graphs.values():
        assert model.opset_import[0].version == (17 if major == 8 else 19)
        assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    names = [flag.name for (flag,) in trt.called("config.set_flag")]
    assert names == (["FP16", "INT8"] * 2 if major == 8 else [])
    assert not entries(calibrated)
    assert {entry["precision"] for entry in entries(tmp_path / "out")} == {"int8"}


@pytest.mark.parametrize(
    ("flag", "precision"), [("--bf16", "bfloat16"), ("--fp8", "float8"), ("--fp16", "float16")]
)
@pytest.mark.parametrize("major", [10, 11])
def test_typed_precisions_come_from_the_graph_alone(
    flag: str,
    precision: str,
    major: int,
    driver: FakeDriver,
    calibrated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trt = FakeTensorRT(major).install(monkeypatch)
    said = trt_command(calibrated, flag, "--no-speed-gate", "-o", tmp_path / "out")
    assert "least cosine with the reference" in said
    assert set(trt.graphs) == {f"{tower}.{precision}.onnx" for tower in ("vision", "text")}
    kinds = {t.data_type for model in trt.graphs.values() for t in model.graph.initializer}
    small = {"bfloat16": TensorProto.BFLOAT16, "float8": TensorProto.FLOAT8E4M3FN}
    assert kinds & {*small.values()} == ({small[precision]} if precision in small else set())
    assert not trt.called("config.set_flag")
    assert {entry["precision"] for entry in entries(tmp_path / "out")} == {precision}
    engines = Bundle.open(tmp_path / "out").manifest.engines
    assert {engine.precision for engine in engines} == {precision}


@pytest.mark.parametrize("flag", ["--bf16", "--fp8"])
def test_8_has_no_such_precision(
    flag: str, driver: FakeDriver, calibrated: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    trt = FakeTensorRT(8).install(monkeypatch)
    message = refused("trt", calibrated, flag, "-o", tmp_path / "out")
    assert message.startswith(f"{flag}: TensorRT 8.6.1 is installed")
    assert "10 or later" in message
    assert not trt.calls
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("capability", "refuses"),
    [((7, 5), ["--bf16", "--fp8"]), ((8, 0), ["--fp8"]), ((8, 6), ["--fp8"]), ((8, 9), [])],
)
def test_gpu_decides_which_precisions_there_are(
    capability: tuple[int, int],
    refuses: list[str],
    trt: FakeTensorRT,
    driver: FakeDriver,
    calibrated: Path,
    tmp_path: Path,
) -> None:
    driver.capability = dict(zip((75, 76), capability, strict=True))
    found = []
    for flag in ("--bf16", "--fp8"):
        outcome = run("trt", calibrated, flag, "--no-speed-gate", "-o", tmp_path / f"out{flag}")
        if outcome.status:
            assert f"compute capability {capability[0]}.{capability[1]}" in outcome.stderr
            found.append(flag)
    assert found == refuses


def test_float8_for_every_gpu_since_ampere_is_refused(
    trt: FakeTensorRT, calibrated: Path, tmp_path: Path
) -> None:
    options = ("--hardware-compatible", "-o", tmp_path / "out")
    assert "float8 needs Ada" in refused("trt", calibrated, "--fp8", *options)
    assert not (tmp_path / "out").exists()
    trt_command(calibrated, "--bf16", *options)


def test_many_gemms_in_float32_are_shown(
    trt: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "of the GEMMs" not in trt_command(bundle, "--fp16")
    names = [f"blocks.0.{linear}.MatMul" for linear in ("qkv", "out", "fc1_down", "fc2_up")]
    monkeypatch.setattr(graphs, "largest_magnitudes", lambda *_: dict.fromkeys(names, 1e6))
    said = trt_command(bundle, "--fp16", "--rebuild")
    assert "of the GEMMs compute in float32" in said
    assert "--bf16" in said


def test_data_is_measured(
    trt: FakeTensorRT, bundle: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def count(file: Any, batches: Any, progress: Any) -> dict[str, float]:
        rows.append(sum(len(batch[0]) for batch in batches))
        return {}

    monkeypatch.setattr(graphs, "largest_magnitudes", count)
    vectors = Bundle.open(bundle).conformance()
    trt_command(bundle, "--fp16", "--data", files / "data", "--samples", 16)
    assert rows == [16 + len(vectors.pixels), 16 + len(vectors.token_ids)]
    assert len(entries(bundle)) == 2
    rows.clear()
    trt_command(bundle, "--bf16", "--data", files / "data", "--samples", 16)
    assert not rows, "bfloat16 has room for every value"
    message = refused("trt", bundle, "--fp16", "--data", files / "nowhere")
    assert "nowhere" in message


def test_what_is_there_is_not_built_again(trt: FakeTensorRT, bundle: Path) -> None:
    trt_command(bundle, "--fp16")
    trt.calls.clear()
    assert "already exists" in trt_command(bundle, "--fp16")
    assert not trt.calls
    for more in (("--rebuild",), ("--batch", "1"), ("--version-compatible",)):
        trt.calls.clear()
        assert "built in" in trt_command(bundle, "--fp16", *more)
        assert len(trt.called("parse")) == 2
        assert len(entries(bundle)) == 2


def test_engines_of_two_gpus_live_side_by_side(
    trt: FakeTensorRT, driver: FakeDriver, bundle: Path
) -> None:
    trt_command(bundle, "--fp16")
    driver.name, driver.capability = b"NVIDIA L4", {75: 8, 76: 9}
    trt_command(bundle, "--fp16")
    assert {(e["tower"], e["gpu"]) for e in entries(bundle)} == {
        (tower, gpu) for tower in ("vision", "text") for gpu in ("NVIDIA H200", "NVIDIA L4")
    }
    Bundle.open(bundle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fp16", "--batch", "4,2,8"), "min batch 4 is above opt batch 2"),
        (("--fp16", "--lengths", "2,9,9000"), "the longest text of this model"),
        (("--fp16", "--device", 3), "--device 3"),
        (("--int8",), "has no calibration.json"),
        (("--fp8",), "NVIDIA H200 has compute capability 7.5, but float8 needs 8.9 (Ada"),
        (("--bf16",), "NVIDIA H200 has compute capability 7.5, but bfloat16 needs 8.0 (Ampere)"),
        (("--fp16", "--hardware-compatible"), "older than Ampere"),
    ],
)
def test_what_cannot_be_built_is_refused_and_changes_nothing(
    arguments: tuple[Any, ...],
    message: str,
    trt: FakeTensorRT,
    driver: FakeDriver,
    bundle: Path,
) -> None:
    driver.capability = {75: 7, 76: 5}
    before = files_below(bundle.parent)
    assert message in refused("trt", bundle, *arguments)
    assert files_below(bundle.parent) == before


def test_a_build_that_fails_changes_nothing(trt: FakeTensorRT, bundle: Path) -> None:
    trt.blob, trt.messages = None, [(1, "no kernel")]
    before = files_below(bundle.parent)
    assert "no engine could be built on NVIDIA H200: no kernel" in refused("trt", bundle, "--fp16")
    assert files_below(bundle.parent) == before


def fail_for(trt: FakeTensorRT, tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of one tower's engine fail."""
    works = trt.Builder.build_serialized_network

    def build(self: Any, network: object, config: Any) -> bytes | None:
        if list(trt.graphs)[-1].startswith(tower):
            self.logger.log(1, "no kernel")
            return None
        found: bytes | None = works(self, network, config)
        return found

    monkeypatch.setattr(trt.Builder, "build_serialized_network", build)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_engine_is_kept_when_the_other_fails(
    elsewhere: bool, trt: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(bundle)
    out = bundle.parent / "out" if elsewhere else bundle
    with monkeypatch.context() as patch:
        fail_for(trt, "text", patch)
        outcome = run("trt", bundle, "--fp16", *(("-o", out) if elsewhere else ()))
    assert outcome.status == 2
    assert "no kernel. engines/vision.float16.sm90.trt11.4.0.106.engine was built and is kept" in (
        outcome.stderr
    )
    assert f"To build the rest, run `mwa-export trt {out}` with --fp16" in outcome.stderr
    assert [entry["tower"] for entry in entries(out)] == ["vision"]
    Bundle.open(out)
    assert elsewhere == (files_below(bundle) == before)
    trt.graphs.clear()
    trt_command(out, "--fp16")
    assert list(trt.graphs) == ["text.float16.onnx"]
    assert [entry["tower"] for entry in entries(out)] == ["vision", "text"]


def test_a_copy_with_the_engines_that_are_there_is_made(trt: FakeTensorRT, bundle: Path) -> None:
    trt_command(bundle, "--fp16")
    assert "already exists" in trt_command(bundle, "--fp16", "-o", bundle.parent / "out")
    assert files_below(bundle) == files_below(bundle.parent / "out")


def test_without_a_precision_it_says_which_there_are(bundle: Path) -> None:
    outcome = run("trt", bundle)
    assert outcome.status == 2
    assert "--fp16, --bf16, --int8, --fp8, or --best" in outcome.stderr


def test_without_tensorrt_it_says_how_to_install_it(
    driver: FakeDriver, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = refused("trt", bundle, "--fp16")
    assert message.startswith("tensorrt is needed to build and run engines")
    assert message.endswith('pip install "mwa-export[tensorrt]"')


@pytest.mark.parametrize("command", ["trt nothing --fp16", "refit nothing absent.pth -o new"])
def test_without_a_gpu_it_says_so_before_it_reads_anything(
    command: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    driver.fails["cuInit"] = 100
    message = refused(*command.split())
    assert message.startswith("no NVIDIA GPU found")
    assert "--rtx" in message
    driver.fails.clear()
    driver.count = 0
    assert refused(*command.split()).startswith("no NVIDIA GPU found")


def test_what_needs_no_gpu_works_without_one(
    driver: FakeDriver, calibrated: Path, tmp_path: Path
) -> None:
    driver.fails["cuInit"] = 100
    done = run("trt", calibrated, "--int8", "--graphs-only", tmp_path / "graphs")
    assert done.status == 0, done
    assert f"Next: sh {tmp_path / 'graphs'}/replay.sh" in done.stderr


def test_a_batch_beyond_any_gpu_is_refused_by_name(trt: FakeTensorRT, bundle: Path) -> None:
    message = refused("trt", bundle, "--fp16", "--batch", "1,8,1000000")
    assert message.startswith("--batch 1000000: expected at most ")


def test_the_next_step_checks_the_engines_that_were_built(trt: FakeTensorRT, bundle: Path) -> None:
    advice = trt_command(bundle, "--fp16").splitlines()[-1]
    how = "--runtime tensorrt --precision float16 --data DATA"
    assert advice == f"Next: mwa-export parity {bundle} --reference {bundle} {how}"


def test_an_old_driver_is_refused(
    trt: FakeTensorRT, driver: FakeDriver, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "_cuda_of", lambda version: 13)
    driver.version = 12080
    assert "driver is too old" in refused("trt", bundle, "--fp16")


def test_what_is_no_bundle_is_refused(trt: FakeTensorRT, tmp_path: Path) -> None:
    assert "is not a bundle" in refused("trt", tmp_path, "--fp16")
