"""Graphs that load but do not match the manifest give one error."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from manifests import seal

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import MANIFEST
from mwa_export.errors import BundleError
from mwa_export.files import sha256_of
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import RuntimeOptions

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO not installed")


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize(("which", "by"), [("vision", "text"), ("text", "vision")])
def test_graph_of_the_other_tower_is_refused(
    files: Path, tmp_path: Path, runtime: str, which: str, by: str
) -> None:
    folder = Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))
    wrong = folder / f"{which}.onnx"
    shutil.copyfile(folder / f"{by}.onnx", wrong)
    data = json.loads((folder / MANIFEST).read_text())
    data["files"][wrong.name] = {"sha256": sha256_of(wrong), "bytes": wrong.stat().st_size}
    bundle = Bundle.open(seal(folder, data))
    with pytest.raises(BundleError, match=f"{which} tower's graph"):
        open_backend(bundle, RuntimeOptions(runtime, "float32"))
