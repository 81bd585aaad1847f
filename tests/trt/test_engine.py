"""An engine is loaded only if the manifest vouches for it and this machine can run it."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from configs import MWA
from manifests import EXPORT
from trt_fake import GIB, FakeTensorRT

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import (
    TENSORRT,
    TENSORRT_RTX,
    Compiler,
    Engine,
    ShapeRange,
    with_engines,
)
from mwa_export.bundle.manifest import Manifest, StoredFile
from mwa_export.errors import BundleError, EngineError
from mwa_export.trt.device import Device
from mwa_export.trt.engine import engine_name, load_engine, obstacle, usable_engines
from mwa_export.trt.install import EngineHost
from mwa_export.trt.versions import TensorRt

H200 = Device(0, "NVIDIA H200", (9, 0), 140 * GIB, 100 * GIB, 13000)
L4 = Device(0, "NVIDIA L4", (8, 9), 24 * GIB, 20 * GIB, 13000)
T4 = Device(0, "Tesla T4", (7, 5), 16 * GIB, 12 * GIB, 13000)
VERSION = "11.4.0.106"
ENGINE = Engine(
    file="engines/vision.engine",
    sha256=hashlib.sha256(b"an engine").hexdigest(),
    tower="vision",
    precision="float16",
    tensorrt=VERSION,
    gpu="NVIDIA H200",
    capability=(9, 0),
    profiles=((ShapeRange("image", (1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4)),),),
    sources=("the graph",),
    graph="the graph, typed",
    flags=(),
    seconds=12.5,
)


def bundle_with(folder: Path, *engines: Engine) -> Bundle:
    """A bundle of which only the engines are there."""
    (folder / "engines").mkdir(exist_ok=True)
    for engine in engines:
        (folder / engine.file).write_bytes(b"an engine")
    manifest = Manifest(
        space_id="space",
        model=MWA,
        preprocessing={},
        graphs=(),
        tokenizer=None,
        export=EXPORT,
        files={"vision.onnx": StoredFile(1, "the graph")},
        engines=engines,
    )
    return Bundle(folder, manifest)


def vision_engine(
    bundle: Bundle, version: str, device: Device, precision: str = "float16"
) -> Engine | str:
    """The vision tower's engine for a machine, or why there is none."""
    host = EngineHost({TENSORRT: version}, device)
    found, reasons = usable_engines(bundle.manifest, precision, host)
    return next((e for e in found if e.tower == "vision"), reasons[0])


def test_files_are_named_after_what_they_run_on() -> None:
    name = engine_name("vision", "float16", VERSION, H200)
    assert name == "engines/vision.float16.sm90.trt11.4.0.106.engine"


@pytest.mark.parametrize(
    ("flags", "version", "device", "reason"),
    [
        ((), VERSION, H200, None),
        ((), "11.4.1.1", H200, "it needs TensorRT 11.4.0.106, but 11.4.1.1 is installed"),
        ((), VERSION, L4, r"it needs NVIDIA H200 \(compute capability 9.0\), .* NVIDIA L4 \(8.9\)"),
        (("version_compatible",), "11.5.0.1", H200, None),
        (("version_compatible",), "11.3.0.1", H200, "it needs TensorRT 11.4.0.106 or later"),
        (("version_compatible",), "10.16.1.11", H200, "it needs TensorRT 11.4.0.106 or later"),
        (("version_compatible",), VERSION, L4, "it needs NVIDIA H200"),
        (("hardware_compatible",), VERSION, L4, None),
        (("hardware_compatible",), VERSION, T4, "Ampere generation or later"),
        (("hardware_compatible",), "11.5.0.1", H200, "it needs TensorRT 11.4.0.106, but"),
    ],
)
def test_an_engine_says_what_it_needs(
    flags: tuple[str, ...], version: str, device: Device, reason: str | None, tmp_path: Path
) -> None:
    engine = replace(ENGINE, flags=flags)
    bundle = bundle_with(tmp_path, engine)
    if reason is None:
        host = EngineHost({TENSORRT: version}, device)
        assert obstacle(engine, bundle.manifest, host) is None
        assert vision_engine(bundle, version, device) == engine
        return
    assert re.search(
        rf"{reason}.*precision=float16` `rebuild`", str(vision_engine(bundle, version, device))
    )


@pytest.mark.parametrize(
    ("versions", "capability", "reason"),
    [
        ({TENSORRT_RTX: "1.7.1"}, (8, 9), None),
        ({TENSORRT_RTX: "1.7.1", TENSORRT: VERSION}, (12, 0), None),
        ({TENSORRT_RTX: "1.7.1"}, (9, 0), r"compute capability 8\.9 or 12\.0, but this GPU is"),
        ({TENSORRT_RTX: "1.8.0"}, (8, 9), r"needs TensorRT-RTX 1\.7\.1, but 1\.8\.0 is installed"),
        ({TENSORRT: VERSION}, (8, 9), r"needs TensorRT-RTX 1\.7\.1, which is not installed"),
    ],
)
def test_an_engine_of_tensorrt_rtx_runs_on_the_cards_that_it_was_built_for(
    versions: dict[Compiler, str], capability: tuple[int, int], reason: str | None, tmp_path: Path
) -> None:
    engine = replace(
        ENGINE,
        tensorrt="1.7.1",
        gpu="",
        capability=(8, 9),
        capabilities=((8, 9), (12, 0)),
    )
    bundle = bundle_with(tmp_path, engine)
    host = EngineHost(versions, replace(H200, capability=capability))
    found = obstacle(engine, bundle.manifest, host)
    assert found is None if reason is None else re.search(reason, str(found))


def test_engines_of_one_compiler_are_taken_together(tmp_path: Path) -> None:
    rtx = replace(ENGINE, file="r", tensorrt="1.7.1", capabilities=((9, 0),))
    text = replace(rtx, file="t", tower="text")
    host = EngineHost({TENSORRT: VERSION, TENSORRT_RTX: "1.7.1"}, H200)

    def usable(*engines: Engine) -> Any:
        manifest = bundle_with(tmp_path, *engines).manifest
        return usable_engines(manifest, "float16", host)

    assert usable(ENGINE, rtx, text)[0] == (rtx, text)
    whole = replace(ENGINE, file="w", tower="text")
    assert usable(ENGINE, rtx, text, whole)[0] == (ENGINE, whole)
    (reason,) = usable(ENGINE, text)[1]
    assert "run on different compilers" in reason


def test_an_engine_of_a_graph_that_changed_is_stale(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, replace(ENGINE, sources=("the graph", "an older calibration")))
    reason = str(vision_engine(bundle, VERSION, H200))
    assert "a calibration that the bundle no longer has" in reason
    assert reason.endswith("`rebuild`")


def test_of_several_engines_the_one_for_this_gpu_is_taken(tmp_path: Path) -> None:
    other = replace(ENGINE, file="engines/b", gpu=L4.name, capability=L4.capability)
    bundle = bundle_with(tmp_path, ENGINE, other)
    assert vision_engine(bundle, VERSION, H200) == ENGINE
    assert vision_engine(bundle, VERSION, L4) == other


def test_a_missing_engine_says_how_to_build_it(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, ENGINE)
    reason = str(vision_engine(bundle, VERSION, H200, "int8"))
    assert re.search(r"no int8 engine for the vision .*mwa-export trt` with .*=int8`$", reason)


def test_an_engine_is_loaded(tmp_path: Path) -> None:
    trt, bundle = FakeTensorRT(11), bundle_with(tmp_path, ENGINE)
    with load_engine(TensorRt(trt), bundle, ENGINE, H200) as loaded:
        assert loaded.engine is not None
    assert trt.called("load") == [(b"an engine", False)]


@pytest.mark.parametrize("fails", [False, True])
def test_context_engine_and_runtime_are_released_in_this_order(fails: bool, tmp_path: Path) -> None:
    released: list[str] = []

    class Counted:
        """Says when the last reference to it is gone."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            released.append(self.name)

        def create_execution_context(self) -> Counted:
            return Counted("context")

    class Runtime(Counted):
        def __init__(self, logger: Any) -> None:
            super().__init__("runtime")

        def deserialize_cuda_engine(self, blob: bytes) -> Counted:
            return Counted("engine")

    trt, bundle = FakeTensorRT(11), bundle_with(tmp_path, ENGINE)
    vars(trt)["Runtime"] = Runtime
    with (
        contextlib.suppress(ZeroDivisionError),
        load_engine(TensorRt(trt), bundle, ENGINE, H200) as loaded,
    ):
        loaded.create_context()
        assert not released
        assert 1 / (not fails)
    assert released == ["context", "engine", "runtime"]


def test_code_inside_an_engine_is_allowed_only_where_it_was_built_in(tmp_path: Path) -> None:
    engine = replace(ENGINE, flags=("version_compatible",))
    trt, bundle = FakeTensorRT(11), bundle_with(tmp_path, engine)
    load_engine(TensorRt(trt), bundle, engine, H200)
    assert trt.called("load") == [(b"an engine", True)]


@pytest.mark.parametrize("content", [b"an enginE", b"", None])
def test_tensorrt_never_sees_a_file_that_the_manifest_does_not_describe(
    content: bytes | None, tmp_path: Path
) -> None:
    trt, bundle = FakeTensorRT(11), bundle_with(tmp_path, ENGINE)
    path = tmp_path / ENGINE.file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BundleError, match="`rebuild`"):
        load_engine(TensorRt(trt), bundle, ENGINE, H200)
    assert not trt.calls


def test_an_engine_for_another_gpu_is_never_loaded(tmp_path: Path) -> None:
    trt, bundle = FakeTensorRT(11), bundle_with(tmp_path, ENGINE)
    with pytest.raises(EngineError, match="it needs NVIDIA H200"):
        load_engine(TensorRt(trt), bundle, ENGINE, L4)
    assert not trt.calls


@pytest.mark.parametrize(
    ("text", "advice"),
    [("Magic tag does not match", "`rebuild`"), ("out of memory", "Stop other programs")],
)
def test_a_load_that_fails_says_why(text: str, advice: str, tmp_path: Path) -> None:
    trt, bundle = FakeTensorRT(11), bundle_with(tmp_path, ENGINE)
    trt.loads, trt.messages = False, [(1, text)]
    with pytest.raises(EngineError, match=rf"cannot load it \({text}\).*{advice}"):
        load_engine(TensorRt(trt), bundle, ENGINE, H200)


def test_new_engines_replace_those_of_the_same_file() -> None:
    old = (ENGINE, replace(ENGINE, file="other"))
    new = replace(ENGINE, seconds=1.0)
    assert with_engines(old, [new]) == (old[1], new)
