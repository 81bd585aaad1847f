"""Float16 graphs for ONNX Runtime on CUDA: their content, and the change to the bundle."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import files_below, save
from configs import MWA
from onnx import TensorProto

from mwa_export import Bundle, ExportOptions, ModelOptions, VerificationError, add_float16, export
from mwa_export.export import export as exporting
from mwa_export.export import float16
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.check import lint
from mwa_export.graphs.typed import Typed, to_float16
from mwa_export.model.synthetic import random_tensors
from mwa_export.runtimes.choose import choose
from mwa_export.runtimes.machine import Machine
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.spec import Tower
from mwa_export.towers.export import onnx_from_tower

TOWER = pytest.mark.parametrize("tower", ["vision", "text"])


@pytest.fixture
def copy(files: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))


@pytest.fixture(scope="module")
def half(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shared bundle with float16 graphs."""
    return add_float16(files / "bundle", out=tmp_path_factory.mktemp("half") / "bundle")


def grown(folder: Path, name: str, factor: float, rows: slice = slice(None)) -> Path:
    """A bundle with larger values in one tensor of its checkpoint."""
    tensors = random_tensors(MWA)
    tensors[name][rows] *= factor
    return export(save(folder / "grown.pth", tensors), folder / "grown").path


def kept(bundle: Bundle, tower: Tower) -> tuple[str, ...]:
    return bundle.describe(tower, precision="float16").float32 or ()


@TOWER
def test_graph_is_float16_between_the_same_inputs_and_outputs(half: Bundle, tower: Tower) -> None:
    exact, (path, graph) = half.graph(tower), half.graph(tower, precision="float16", dialect="onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (graph.opset, model.opset_import[0].version) == (17, 17)
    assert graph.spec == exact[1].spec
    assert not lint(model, "onnx-float16")
    assert lint(onnx.load(exact[0]), "onnx-float16")
    weights = [t for t in model.graph.initializer if len(t.dims) > 1 and t.data_type != 7]
    assert {t.data_type for t in weights} == {TensorProto.FLOAT16}
    assert 0.9999 < (graph.conformance or 0) < 1 + 1e-6
    assert len(kept(half, tower)) == 4  # the unit norm


def test_auto_takes_them_on_cuda(half: Bundle, files: Path) -> None:
    machine = Machine(None, frozenset({"onnxruntime", "cuda"}), nvidia=True)
    choice = choose(half.manifest, RuntimeOptions(), machine)
    assert (choice.runtime, choice.precision) == ("cuda", "float16")
    without = choose(Bundle.open(files / "bundle").manifest, RuntimeOptions(), machine)
    assert (without.runtime, without.precision) == ("cuda", "float32")
    assert any("`mwa-export quantize` with `float16`" in reason for reason in without.rejected)


def test_values_beyond_float16_stay_in_float32(tmp_path: Path) -> None:
    bundle = add_float16(grown(tmp_path, "beit3.encoder.layers.0.ffn.A.fc1.weight", 1e5))
    assert any("blocks.0.fc1" in name for name in kept(bundle, "vision"))
    assert not any("blocks.1" in name for name in kept(bundle, "vision"))
    assert len(kept(bundle, "text")) == 4
    assert (bundle.describe("vision", precision="float16").conformance or 0) > 0.9999


def test_batches_are_measured_beside_the_conformance_vectors(tmp_path: Path) -> None:
    """A token that becomes large is not among the conformance vectors."""
    token = 50
    path = grown(tmp_path, "beit3.text_embed.weight", 12_000, slice(token, token + 1))
    assert token not in Bundle.open(path).conformance().token_ids
    without = add_float16(path)
    assert len(kept(without, "text")) == 4
    assert without.describe("text", precision="float16").measured == 4
    texts = np.array([[0, token, 2], [0, 7, 2]])
    bundle = add_float16(path, {"text": [(texts, np.zeros_like(texts))]})
    assert len(kept(bundle, "text")) > 4
    assert bundle.describe("text", precision="float16").measured == 6
    assert bundle.describe("vision", precision="float16").measured == 2
    assert [g.file for g in bundle.manifest.graphs if g.precision == "float16"] == [
        "vision.float16.onnx",
        "text.float16.onnx",
    ]


def damaged(model: onnx.ModelProto, **options: Any) -> Typed:
    typed = to_float16(model, **options)
    for tensor in typed.model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT16:
            tensor.raw_data = bytes(reversed(tensor.raw_data))
    return typed


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "fault", "expected"),
    [
        ("to_float16", damaged, VerificationError),
        ("least_cosine", interrupted, KeyboardInterrupt),
        ("least_cosine", lambda *_: float("nan"), VerificationError),
    ],
)
def test_a_run_that_fails_leaves_the_bundle_as_it_was(
    name: str,
    fault: Any,
    expected: type[BaseException],
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = files_below(copy)
    monkeypatch.setattr(float16, name, fault)
    with pytest.raises(expected):
        add_float16(copy)
    assert files_below(copy) == before


def test_weights_in_data_files_stay_in_data_files(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    external = functools.partial(onnx_from_tower, external_bytes=0)
    monkeypatch.setattr(exporting, "onnx_from_tower", external)
    path = export(files / "checkpoint.pth", tmp_path / "bundle").path
    with monkeypatch.context() as patch:
        write = functools.partialmethod(FloatGraph.write, external_bytes=0)
        patch.setattr(FloatGraph, "write", write)
        add_float16(path)
    data = path / "vision.float16.onnx.data"
    assert data.stat().st_size < 0.6 * (path / "vision.onnx.data").stat().st_size
    moved = path.rename(tmp_path / "moved")
    found, graph = Bundle.open(moved).graph("vision", precision="float16")
    assert lint(onnx.load(found, load_external_data=False), "onnx-float16", folder=moved) == []
    assert (graph.conformance or 0) > 0.9999
    assert "vision.float16.onnx.data" not in add_float16(moved).manifest.files  # they are small now
    assert not (moved / "vision.float16.onnx.data").exists()


def test_a_bundle_of_one_tower_has_one(files: Path, tmp_path: Path) -> None:
    options = ModelOptions(towers=("text",))
    path = export(files / "checkpoint.pth", tmp_path / "b", model_options=options).path
    bundle = add_float16(path)
    assert [g.file for g in bundle.manifest.graphs] == ["text.onnx", "text.float16.onnx"]


def test_pixels_may_be_bytes(files: Path, tmp_path: Path) -> None:
    uint8 = ExportOptions(image_input="uint8")
    bundle = add_float16(export(files / "checkpoint.pth", tmp_path / "bundle", uint8).path)
    graph = bundle.describe("vision", precision="float16")
    assert graph.spec.inputs[0].dtype == "uint8"
    assert (graph.conformance or 0) > 0.9999
