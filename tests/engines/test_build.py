"""An engine is added to a bundle only if it reproduces the conformance vectors on its GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import files_below, refused, run
from onnx import numpy_helper
from trt_fake_gpu import LateDriver, LateTensorRT

from mwa_export.bundle.bundle import Bundle
from mwa_export.runtimes.trt import TensorRtBackend

pytestmark = pytest.mark.slow


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> LateTensorRT:
    driver = LateDriver()
    driver.install(monkeypatch)
    return LateTensorRT(11, driver).install(monkeypatch)  # type: ignore[return-value]


@pytest.fixture
def bundle(files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))


def compiles_wrong(trt: LateTensorRT, tensor: str) -> None:
    """A compiler that loses the sign of a weight in the text tower."""
    builder: Any = trt.Builder

    class Builder(builder):  # type: ignore[misc]
        def build_serialized_network(self, network: object, config: object) -> bytes:
            blob: bytes = super().build_serialized_network(network, config)
            model = onnx.load_from_string(blob)
            for proto in model.graph.initializer:
                if proto.name == tensor:
                    wrong = -np.asarray(numpy_helper.to_array(proto))
                    proto.CopyFrom(numpy_helper.from_array(wrong, tensor))
            return bytes(model.SerializeToString())

    trt.Builder = Builder


def test_an_engine_that_computes_something_else_is_not_added(
    trt: LateTensorRT, bundle: Path
) -> None:
    compiles_wrong(trt, "token_embedding")
    message = refused("trt", bundle, "--fp16", status=1)
    assert "does not reproduce the conformance vectors of the text tower" in message
    assert "engines/vision.float16" in message, "the first tower's engine is kept, and named"
    engines = [n for n in files_below(bundle) if n.endswith(".engine")]
    assert engines == [e.file for e in Bundle.open(bundle).manifest.engines]
    assert len(engines) == 1


def test_texts_longer_than_an_engine_takes_are_not_held_against_it(
    trt: LateTensorRT, bundle: Path
) -> None:
    assert run("trt", bundle, "--fp16", "--lengths", "2,3,5").status == 0
    with TensorRtBackend(Bundle.open(bundle)) as backend:
        assert backend.precision == "float16"
