"""Single towers, from a checkpoint with only one or extracted from a full one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run, save, spm_model
from configs import CONFIGS, MWA
from PIL import Image

from mwa_export import load
from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.open import ON_ONNX_RUNTIME
from mwa_export.errors import UsageError
from mwa_export.model.state_dict import towers_in
from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.spec import TOWERS, ModelConfig, Tower, tower_of

KINDS = ("plain", "mwa", "norm_in_learned", "text_mode", "vision_mode")


def _of_one_tower(config: ModelConfig, tower: Tower) -> dict[str, torch.Tensor]:
    tensors = random_tensors(config)
    return {name: tensor for name, tensor in tensors.items() if tower_of(name) in (None, tower)}


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spm") / "words.spm"
    path.write_bytes(spm_model(MWA.backbone.vocab_size - 2))
    return path


@pytest.fixture(scope="module")
def bundles(spm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole checkpoint as one bundle, and as one of each tower."""
    folder = tmp_path_factory.mktemp("towers")
    checkpoint = save(folder / "checkpoint.pth", random_tensors(MWA))
    for towers in ("both", *TOWERS):
        out = folder / towers
        options = ("--towers", towers, "--tokenizer", spm)
        assert run("onnx", checkpoint, "-o", out, *options).status == 0
    return {towers: folder / towers for towers in ("both", *TOWERS)}


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_of_one_tower_becomes_a_bundle_of_it(
    kind: str, tower: Tower, tmp_path: Path
) -> None:
    config = CONFIGS[kind]
    path = tmp_path / "one.pth"
    torch.save({"model": _of_one_tower(config, tower), "args": training_args(config)}, path)
    assert run("inspect", path).status == 0
    for options in ((), ("--towers", tower)):
        out = tmp_path / f"bundle{len(options)}"
        outcome = run("onnx", path, "-o", out, *options)
        assert outcome.status == 0, outcome.stderr
        assert f"contains only the {tower} tower" in outcome.stderr
        manifest = Bundle.open(out).manifest
        assert manifest.towers == manifest.model.towers == (tower,)
        differences = manifest.export.largest_difference_from_reference
        assert list(differences) == [tower]
        assert differences[tower] <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_tower_of_a_whole_checkpoint_makes_the_same_vectors_in_the_same_space(
    runtime: Any, bundles: dict[str, Path]
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    options = RuntimeOptions(runtime=runtime, precision="float32")
    whole, vision, text = (load(bundles[key], options) for key in ("both", *TOWERS))
    assert whole.space_id == vision.space_id == text.space_id
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    assert np.array_equal(vision.embed_images(images), whole.embed_images(images))
    assert np.array_equal(text.embed_texts(["abc def"]), whole.embed_texts(["abc def"]))


def test_every_part_of_python_says_which_tower_is_missing(bundles: dict[str, Path]) -> None:
    vision, text = (load(bundles[key], ON_ONNX_RUNTIME) for key in TOWERS)
    with pytest.raises(UsageError, match="contains only the vision tower"):
        vision.embed_texts(["a"])
    with pytest.raises(UsageError, match="contains only the text tower"):
        text.embed_images([Image.new("RGB", (8, 8))])


@pytest.mark.slow
def test_every_command_that_needs_the_other_tower_says_so(
    bundles: dict[str, Path], files: Path, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("abc\ndef\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    data = ("--data", files / "data")
    vision, text = bundles["vision"], bundles["text"]
    assert run("embed", text, "--texts", tmp_path / "lines.txt", "-o", tmp_path / "e").status == 0
    commands: list[tuple[object, ...]] = [
        ("embed", vision, "--texts", tmp_path / "lines.txt", "-o", tmp_path / "x"),
        ("embed", text, "--images", tmp_path, "-o", tmp_path / "x"),
        ("embed", text, "--images", tmp_path, "-o", tmp_path / "x", "--dry-run"),
        ("search", tmp_path / "e", "abc", "--bundle", vision),
        ("search", tmp_path / "e", "--image", tmp_path / "picture.png"),
        ("parity", vision, "--reference", bundles["both"], *data, "-o", tmp_path / "x"),
        ("parity", bundles["both"], "--reference", text, *data, "-o", tmp_path / "x"),
        ("quantize", vision, *data, "-o", tmp_path / "x"),
        ("bench", text, "-o", tmp_path / "x"),
    ]
    for command in commands:
        message = refused(*command)
        assert "tower" in message, command
        assert not (tmp_path / "x").exists()


def test_search_by_text_works_with_the_text_tower_alone(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    for colour in ("red", "blue"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "pictures" / f"{colour}.png")
    out = tmp_path / "e"
    command = ("embed", bundles["vision"], "--images", tmp_path / "pictures", "-o", out)
    assert run(*command).status == 0
    found = run("search", out, "abc", "--bundle", bundles["text"])
    assert found.status == 0, found.stderr
    assert "red.png" in found.stdout


def test_tower_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "one.pth", _of_one_tower(CONFIGS["plain"], "vision"), CONFIGS["plain"])
    message = refused("onnx", path, "-o", tmp_path / "b", "--towers", "text")
    assert "has no text tower for --towers text. It has: vision." in message
    assert "has no text tower" in refused("onnx", path, "-o", tmp_path / "b", "--towers", "both")


def test_tower_that_is_not_whole_is_named_with_the_way_to_the_other(tmp_path: Path) -> None:
    tensors = random_tensors(MWA)
    del tensors["beit3.encoder.embed_positions.B.weight"]
    del tensors["beit3.encoder.layers.1.ffn.B.fc1.weight"]
    path = save(tmp_path / "half.pth", tensors)
    assert "embed_positions.B.weight is missing" in refused("onnx", path, "-o", tmp_path / "b")
    assert run("onnx", path, "-o", tmp_path / "b", "--towers", "vision").status == 0
    assert Bundle.open(tmp_path / "b").manifest.towers == ("vision",)


def test_names_tell_their_tower() -> None:
    names = random_tensors(MWA)
    for tower in TOWERS:
        alone = {name: tuple(t.shape) for name, t in names.items() if tower_of(name) == tower}
        assert towers_in(alone) == (tower,)
    assert tower_of("beit3.encoder.layers.0.enhancemlp.fc1.weight") is None
