"""Commands on valid input: files, output and exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, run
from configs import CONFIGS, MWA

from mwa_export import Bundle
from mwa_export.export.verify import TOLERANCE
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.model.load import ModelSource, load_model
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.runtimes.pytorch import TorchBackend


def test_onnx_writes_a_bundle_that_reproduces_the_reference(
    checkpoint: Path, tmp_path: Path
) -> None:
    status, out, err = run("onnx", checkpoint, "-o", tmp_path / "bundle")
    assert status == 0
    assert out == f"{tmp_path / 'bundle'}\n"
    assert "token ids, not texts" in err
    backend = OnnxBackend(Bundle.open(tmp_path / "bundle"))
    reference = TorchBackend(load_model(ModelSource(checkpoint)))
    rng = np.random.default_rng(5)
    pixels, texts = random_pixels(rng, 2, 32), random_texts(rng, 3, 8, 90)
    assert np.abs(backend.embed_images(pixels) - reference.embed_images(pixels)).max() <= TOLERANCE
    assert np.abs(backend.embed_texts(*texts) - reference.embed_texts(*texts)).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--input", "uint8"),
        ("--image-size", "48"),
        ("--no-merge", "qkv", "--no-merge", "constants"),
        ("--input", "uint8", "--no-merge", "constants", "--image-size", "24"),
    ],
    ids=" ".join,
)
def test_every_export_option_gives_a_verified_bundle(
    checkpoint: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    assert run("onnx", checkpoint, "-o", tmp_path / "bundle", *options, "-q")[0] == 0
    bundle = Bundle.open(tmp_path / "bundle")
    differences = bundle.manifest.export.largest_difference_from_reference
    assert max(differences.values()) <= TOLERANCE
    OnnxBackend(bundle)  # checks the conformance vectors


@pytest.mark.slow
def test_quiet_prints_the_result_only(checkpoint: Path, tmp_path: Path) -> None:
    _, out, err = run("onnx", checkpoint, "-o", tmp_path / "bundle", "-q")
    assert (out, err) == (f"{tmp_path / 'bundle'}\n", "")


def test_inspect_shows_model_adapters_and_counts(checkpoint: Path) -> None:
    status, out, _ = run("inspect", checkpoint)
    assert status == 0
    for text in ("2 layers, width 128, 2 heads", "scale 0.6", "images run adaptmlp_text"):
        assert text in out


def test_inspect_json_is_one_object(checkpoint: Path) -> None:
    found = json.loads(run("inspect", checkpoint, "--json")[1])
    assert found["model"] == MWA.to_json()
    assert found["heads"] == 2
    assert found["parameters"]["enhancer"]["file"] > 0


@pytest.mark.slow
def test_split_and_combine_export_the_same_model(
    write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    trained = write_checkpoint(MWA)
    state = torch.load(trained, weights_only=False)["model"]
    base = tmp_path / "base.pth"
    plain = {k: v for k, v in state.items() if "adaptmlp" not in k and "enhancemlp" not in k}
    torch.save({"model": plain | {"vision_head.weight": torch.randn(128, 128)}}, base)
    adapter = tmp_path / "adapter.safetensors"
    status, out, err = run("split", trained, "--base", base, "-o", adapter)
    assert (status, out) == (0, f"{adapter}\n")
    assert "tensors differ" in err
    assert run("onnx", trained, "-o", tmp_path / "one")[0] == 0
    assert run("onnx", "--base", base, "--adapter", adapter, "-o", tmp_path / "two")[0] == 0
    one, two = Bundle.open(tmp_path / "one"), Bundle.open(tmp_path / "two")
    assert one.manifest.space_id == two.manifest.space_id
    assert one.manifest.files["vision.onnx"] == two.manifest.files["vision.onnx"]


def test_warnings_reach_the_user_and_the_manifest(
    write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_checkpoint(CONFIGS["sequential"])
    _, _, err = run("onnx", path, "-o", tmp_path / "bundle", "-q")
    assert "warning: ffn_option is sequential" in err
    warnings = Bundle.open(tmp_path / "bundle").manifest.export.warnings
    assert "never applies" in warnings[0]


def test_version_and_unknown_commands() -> None:
    assert run("--version")[1].startswith("mwa-export, version ")
    assert "no such command 'nonsense'" in refused("nonsense")


WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from mwa_export.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("torch", ("demo", "-o", "new")),
        ("torch", ("onnx", "none.pth", "-o", "new")),
        ("torch", ("inspect", "none.pth")),
        ("onnx", ("onnx", "none.pth", "-o", "new")),
        ("onnx", ("quantize", "none", "--data", "none.csv")),
    ],
)
def test_a_missing_package_is_one_error_with_the_line_that_installs_it(
    package: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{package} is needed" in done.stderr
    assert "mwa-export[export]" in done.stderr
    assert not (tmp_path / "new").exists()
