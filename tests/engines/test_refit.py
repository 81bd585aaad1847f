"""`mwa-export refit` on a fake GPU: engines get other weights, and their old ones back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands import files_below, refused, run, save
from configs import MWA
from manifests import seal
from numpy.typing import NDArray
from torch import Tensor
from trt_fake import VERSIONS
from trt_fake_gpu import LateDriver, LateTensorRT
from trt_files import calibrated_bundle

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.engines import graphs
from mwa_export.engines.refit import structural_difference
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.model.synthetic import random_tensors
from mwa_export.runtimes.magnitudes import largest_magnitudes
from mwa_export.runtimes.trt import TensorRtBackend
from mwa_export.spec import AdapterConfig

pytestmark = pytest.mark.slow

ADDED = ("adaptmlp", "enhancer", "ffn_enhance")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> LateDriver:
    driver = LateDriver()
    driver.install(monkeypatch)
    return driver


@pytest.fixture
def trt(driver: LateDriver, monkeypatch: pytest.MonkeyPatch) -> LateTensorRT:
    fake = LateTensorRT(11, driver)
    fake.install(monkeypatch)
    return fake


def other_adapter(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same base with another adapter."""
    new = random_tensors(MWA, 5)
    return {n: new[n] if any(part in n for part in ADDED) else t for n, t in tensors.items()}


@pytest.fixture
def checkpoints(files: Path, tmp_path: Path) -> tuple[Path, Path]:
    """That of the bundle, and one with another adapter."""
    content = torch.load(files / "checkpoint.pth", weights_only=False)
    changed = other_adapter(content["model"])
    assert sum(not torch.equal(changed[n], t) for n, t in content["model"].items()) > 4
    path = tmp_path / "other.pth"
    torch.save({**content, "model": changed}, path)
    return files / "checkpoint.pth", path


@pytest.fixture
def bundle(files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))


def embedded(bundle: Path, precision: Any = "float16") -> tuple[Any, Any]:
    opened = Bundle.open(bundle)
    rng = np.random.default_rng(0)
    with TensorRtBackend(opened, precision=precision) as backend:
        pictures = backend.embed_images(random_pixels(rng, 5, MWA.backbone.image_size))
        return pictures, backend.embed_texts(*random_texts(rng, 5, 9, 90))


def built(bundle: Path, *options: Any) -> None:
    outcome = run("trt", bundle, *(options or ("--fp16",)), "--refit", "--batch", "1,2,4")
    assert outcome.status == 0, outcome


def refit(bundle: Path, checkpoint: Path, out: Path) -> str:
    outcome = run("refit", bundle, checkpoint, "-o", out)
    assert outcome.status == 0, outcome
    assert outcome.stdout == f"{out}\n"
    return outcome.stderr


@pytest.mark.parametrize("major", VERSIONS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_an_engine_takes_another_adapter_and_the_first_one_again(
    major: int,
    precision: str,
    driver: LateDriver,
    bundle: Path,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if major == 8 and precision == "bfloat16":
        pytest.skip("8.6 has no bfloat16")
    trt = LateTensorRT(major, driver)
    trt.install(monkeypatch)
    built(bundle, {"float16": "--fp16", "bfloat16": "--bf16"}[precision])
    before, files = embedded(bundle, precision), files_below(bundle)
    trt.graphs.clear()
    refit(bundle, checkpoints[1], tmp_path / "there")
    there = embedded(tmp_path / "there", precision)
    refit(tmp_path / "there", checkpoints[0], tmp_path / "back")
    back = embedded(tmp_path / "back", precision)
    assert not trt.graphs, "nothing was built"
    for one, other, again in zip(before, there, back, strict=True):
        assert np.abs(one - other).max() > 0.01
        assert np.array_equal(one, again)
    assert files_below(bundle) == files
    assert driver.allocated == 0


def test_the_new_bundle_is_that_of_its_checkpoint(
    trt: LateTensorRT, bundle: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    built(bundle)
    refit(bundle, checkpoints[1], tmp_path / "new")
    options = ("--tokenizer", bundle / "tokenizer" / "beit3.spm", "-o", tmp_path / "plain")
    assert run("onnx", checkpoints[1], *options).status == 0
    new, plain = Bundle.open(tmp_path / "new"), Bundle.open(tmp_path / "plain")
    assert new.manifest.space_id == plain.manifest.space_id != Bundle.open(bundle).manifest.space_id
    built(tmp_path / "plain")
    for one, other in zip(embedded(tmp_path / "new"), embedded(tmp_path / "plain"), strict=True):
        assert np.array_equal(one, other), "as if it had been built"
    for engine in new.manifest.engines:
        assert engine.flags == ("refit",)
        assert engine.measured is None
        assert engine.sources == (new.manifest.files[f"{engine.tower}.onnx"].sha256,)


def test_base_and_adapter_file_are_taken_as_onnx_takes_them(
    trt: LateTensorRT, bundle: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    built(bundle)
    content = torch.load(checkpoints[1], weights_only=False)
    base = {n: t for n, t in content["model"].items() if not any(part in n for part in ADDED)}
    torch.save({"model": base}, tmp_path / "base.pth")
    adapter = tmp_path / "adapter.safetensors"
    assert run("split", checkpoints[1], "--base", tmp_path / "base.pth", "-o", adapter).status == 0
    files = ("--base", tmp_path / "base.pth", "--adapter", adapter)
    outcome = run("refit", bundle, *files, "-o", tmp_path / "new")
    assert outcome.status == 0, outcome
    refit(bundle, checkpoints[1], tmp_path / "whole")
    for one, other in zip(embedded(tmp_path / "new"), embedded(tmp_path / "whole"), strict=True):
        assert np.array_equal(one, other)
    assert "both --base BASE and --adapter" in refused(
        "refit", bundle, "--adapter", adapter, "-o", tmp_path / "n"
    )


def test_engines_that_cannot_be_refitted_are_refused_with_what_to_build(
    trt: LateTensorRT,
    bundle: Path,
    checkpoints: tuple[Path, Path],
    data: RetrievalData,
    files: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    arguments = (checkpoints[1], "-o", tmp_path / "new")
    assert "it has no engines" in refused("refit", bundle, *arguments)
    assert run("trt", bundle, "--fp16").status == 0
    message = refused("refit", bundle, *arguments)
    assert "built without --refit" in message
    assert message.endswith(f"`mwa-export trt {bundle}` with --fp16 --refit")
    folder = tmp_path_factory.mktemp("refit") / "bundle"
    int8 = calibrated_bundle(files / "bundle", data, folder).path
    options = ("--int8", "--refit", "--no-speed-gate", "-o", tmp_path / "int8")
    assert run("trt", int8, *options).status == 0
    message = refused("refit", tmp_path / "int8", *arguments)
    assert "int8 scales only fit the weights that they were calibrated with" in message
    assert not (tmp_path / "new").exists()


def test_a_model_of_another_structure_is_refused_and_named(
    trt: LateTensorRT, bundle: Path, tmp_path: Path
) -> None:
    built(bundle)
    other = AdapterConfig("both", 4, "none", 0.6, "parallel")
    config = type(MWA)(MWA.backbone, other, MWA.enhancer)
    checkpoint = save(tmp_path / "other.pth", dict(random_tensors(config)), config)
    before = files_below(tmp_path)
    message = refused("refit", bundle, checkpoint, "-o", tmp_path / "new")
    assert "cannot take the new model's weights, because its graph differs" in message
    assert "the weight blocks.0." in message
    assert files_below(tmp_path) == before


def test_a_model_whose_values_do_not_fit_the_engines_float16_is_refused(
    trt: LateTensorRT,
    bundle: Path,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built(bundle)
    measure = largest_magnitudes

    def large(file: Any, batches: Any, progress: Any) -> dict[str, float]:
        found = measure(file, batches, progress)
        name = next(value for value in found if value.startswith("blocks.0.") and "MatMul" in value)
        return found if file[0].is_relative_to(bundle) else {**found, name: 1e6}

    monkeypatch.setattr(graphs, "largest_magnitudes", large)
    message = refused("refit", bundle, checkpoints[1], "-o", tmp_path / "new")
    assert "in float16, but the new model's values do not fit float16" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("major", [8, 11])
def test_weights_that_tensorrt_does_not_take_leave_nothing(
    major: int,
    driver: LateDriver,
    bundle: Path,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trt = LateTensorRT(major, driver)
    trt.install(monkeypatch)
    built(bundle)
    trt.rejects = "blocks.0.fc2_up.0.weight"
    before = files_below(tmp_path)
    message = refused("refit", bundle, checkpoints[1], "-o", tmp_path / "new")
    assert "TensorRT does not accept the new weights" in message
    trt.rejects, trt.refuses = None, "refit"
    assert "does not accept" in refused("refit", bundle, checkpoints[1], "-o", tmp_path / "new")
    assert files_below(tmp_path) == before


def test_an_engine_of_an_earlier_version_says_to_build_it_again(
    trt: LateTensorRT, bundle: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    built(bundle)
    manifest = (bundle / "manifest.json").read_text()
    seal(bundle, json.loads(manifest.replace('"float32": [', '"other": [')))
    message = refused("refit", bundle, checkpoints[1], "-o", tmp_path / "new")
    assert "built by an earlier version of mwa-export" in message


def model(weight: NDArray[Any], op: str = "Add", name: str = "w") -> onnx.ModelProto:
    ports = [onnx.helper.make_tensor_value_info(n, 1, [2, 2]) for n in ("x", "y")]
    node = onnx.helper.make_node(op, ["x", name], ["y"], name="node")
    tensor = onnx.numpy_helper.from_array(weight, name)
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", ports[:1], ports[1:], [tensor])
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (model(np.ones((2, 2), np.float32)), None),
        (model(np.ones((1, 2), np.float32)), "the weight w is float 2 x 2 in one and is float 1 x"),
        (model(np.ones((2, 2), np.float16)), "is float16 2 x 2 in the other"),
        (
            model(np.ones((2, 2), np.float32), name="v"),
            "w is float 2 x 2 in one and does not exist",
        ),
        (model(np.ones((2, 2), np.float32), "Mul"), "node (Add) and the node node (Mul) differ"),
    ],
)
def test_only_the_values_of_weights_may_differ(
    other: onnx.ModelProto, said: str | None, tmp_path: Path
) -> None:
    paths = tmp_path / "one.onnx", tmp_path / "other.onnx"
    onnx.save(model(np.zeros((2, 2), np.float32)), paths[0])
    onnx.save(other, paths[1])
    found = structural_difference(*paths)
    assert found is None if said is None else said in str(found)
