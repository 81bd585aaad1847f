"""Options stored in a checkpoint are used, overridden with a warning, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run, save, spm_model
from configs import CONFIGS, MWA
from torch_tower import TorchTower

from mwa_export import load
from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.open import ON_ONNX_RUNTIME
from mwa_export.errors import CheckpointError, UsageError
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.options import ModelOptions
from mwa_export.model.reference import reference_from_tensors
from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.spec import BackboneConfig, ModelConfig
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS

LONG = replace(MWA, backbone=replace(MWA.backbone, text_positions=200))


def _saved(path: Path, config: ModelConfig = LONG, **args: Any) -> Path:
    stored = training_args(config)
    for name, value in args.items():
        setattr(stored, name, value)
    torch.save({"model": random_tensors(config), "args": stored}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("length", [16, 32, 64, 128, 200])
def test_texts_are_as_long_as_in_training_everywhere(length: int, tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.pth", num_max_bpe_tokens=length)
    spm = tmp_path / "words.spm"
    spm.write_bytes(spm_model(LONG.backbone.vocab_size - 2))
    assert run("onnx", path, "-o", tmp_path / "b", "--tokenizer", spm).status == 0
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.manifest.max_length == length
    assert bundle.manifest.model.backbone.max_text_length == length
    text = "abc def " * 200
    assert len(bundle.tokenizer().encode(text)) == length
    encoder = load(bundle, ON_ONNX_RUNTIME)
    assert encoder.max_length == length
    model = load_model(ModelSource(path))
    ids = torch.tensor([bundle.tokenizer().encode(text)])
    reference = reference_from_tensors(model.config, model.tensors)
    expected = reference.encode_text(ids, torch.zeros_like(ids)).numpy()
    assert np.abs(encoder.embed_texts([text]) - expected).max() <= 2e-5


def test_length_of_training_can_be_overridden_and_that_is_said(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.pth", num_max_bpe_tokens=32)
    model = load_model(ModelSource(path), ModelOptions(max_length=128))
    assert model.config.backbone.max_text_length == 128
    assert "`max_length=128` overrides the 32 stored in a.pth." in model.warnings


def test_length_that_nobody_stored_is_64_and_that_is_said(tmp_path: Path) -> None:
    torch.save(random_tensors(replace(LONG, adapter=None)), tmp_path / "raw.pth")
    model = load_model(ModelSource(tmp_path / "raw.pth"))
    assert model.config.backbone.max_text_length == 64
    assert any("num_max_bpe_tokens" in note for note in model.warnings)


def test_space_is_that_of_older_versions_for_the_usual_length(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.pth", num_max_bpe_tokens=64)
    assert "max_tokens" not in load_model(ModelSource(path)).config.to_json()["backbone"]
    changed = load_model(ModelSource(path), ModelOptions(max_length=63)).config
    assert changed.to_json()["backbone"]["max_tokens"] == 63
    assert ModelConfig.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("length", [201, 2])
def test_length_without_positions_is_refused(length: int, tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"do not fit. Expected 3 to 200"):
        load_model(ModelSource(path), ModelOptions(max_length=length))
    with pytest.raises(UsageError, match=r"250 tokens \(num_max_bpe_tokens\) do not fit"):
        load_model(ModelSource(_saved(tmp_path / "b.pth", num_max_bpe_tokens=250)))


def test_adapter_file_decides_the_resolution_of_the_pair(tmp_path: Path) -> None:
    base = save(tmp_path / "base.pth", random_tensors(CONFIGS["plain"]))
    added = {n: t for n, t in random_tensors(MWA).items() if "mlp_" in n or "enhancemlp" in n}
    args = training_args(MWA)
    args.input_size = 56
    torch.save({"model": added, "args": args}, tmp_path / "adapter.pth")
    source = ModelSource(base=base, adapter=tmp_path / "adapter.pth")
    model = load_model(source)
    assert model.config.backbone.image_size == 56
    assert any("trained at 56 x 56 pixels (input_size)" in note for note in model.warnings)
    given = load_model(source, ModelOptions(image_size=40))
    assert given.config.backbone.image_size == 40
    assert "`image_size=40` overrides the 56 stored in adapter.pth." in given.warnings
    args.input_size = 55
    torch.save({"model": added, "args": args}, tmp_path / "adapter.pth")
    with pytest.raises(CheckpointError, match=r"adapter.pth: its stored option input_size is 55"):
        load_model(source)


@pytest.mark.parametrize("stored", [(3, 32, 32), [32, 32], (32,)])
def test_image_size_may_be_stored_as_timm_does(stored: Any, tmp_path: Path) -> None:
    model = load_model(ModelSource(_saved(tmp_path / "a.pth", input_size=stored)))
    assert model.config.backbone.image_size == 32
    with pytest.raises(CheckpointError, match="input_size is a list"):
        load_model(ModelSource(_saved(tmp_path / "b.pth", input_size=[3, 32, 40])))


UNSUPPORTED: dict[str, Any] = {
    "activation_fn": "relu",
    "layernorm_eps": 1e-6,
    "no_scale_embedding": False,
    "normalize_output": False,
    "subln": False,
    "rel_pos_buckets": 32,
    "xpos_rel_pos": True,
    "moe_freq": 2,
    "layernorm_embedding": True,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_stored_option_that_the_export_does_not_compute_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    path = _saved(tmp_path / "a.pth", LONG, **{name: UNSUPPORTED[name]})
    message = refused("onnx", path, "-o", tmp_path / "b")
    assert f"{path}: was trained with {name}={UNSUPPORTED[name]!r}" in message


@pytest.mark.slow
@pytest.mark.parametrize(("width", "heads"), [(128, 4), (96, 3), (88, 1), (128, 1)])
def test_heads_of_any_width_compute_what_torchscale_computes(
    width: int, heads: int, tmp_path: Path
) -> None:
    backbone = replace(MWA.backbone, embed_dim=width, heads=heads)
    config = replace(MWA, backbone=backbone)
    path = tmp_path / "heads.pth"
    args = training_args(config)
    del args.encoder_attention_heads
    torch.save({"model": random_tensors(config), "args": args}, path)
    assert run("onnx", path, "-o", tmp_path / "b", "--heads", heads).status == 0
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.model.backbone.heads == heads
    assert max(manifest.export.largest_difference_from_reference.values()) <= 2e-5
    model = load_model(ModelSource(path), ModelOptions(heads=heads))
    plan, tensors = tower_from_model(model.config, model.tensors, "vision")
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    merged = TorchTower(*merge_tower(plan, tensors, STEPS))
    expected = reference_from_tensors(model.config, model.tensors).encode_image(image)
    assert (merged(image) - expected).abs().max() <= 2e-5


def test_stored_heads_are_taken(tmp_path: Path) -> None:
    config = replace(MWA, backbone=replace(MWA.backbone, heads=8))
    path = _saved(tmp_path / "a.pth", config)
    assert load_model(ModelSource(path)).config.backbone.heads == 8


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1408, 16), (128, 2)])
def test_usual_widths_have_the_heads_of_beit3(width: int, heads: int) -> None:
    backbone = BackboneConfig(width, 4 * width, 2, 100, 224, 16, 64)
    assert backbone.heads == heads
    assert "heads" not in backbone.to_json()


def test_width_that_tells_no_heads_asks_for_them(tmp_path: Path) -> None:
    config = replace(MWA, backbone=replace(MWA.backbone, embed_dim=96, heads=4))
    args = training_args(config)
    del args.encoder_attention_heads
    torch.save({"model": random_tensors(config), "args": args}, tmp_path / "a.pth")
    message = refused("inspect", tmp_path / "a.pth")
    assert "width 96 is not a multiple of 64" in message
    assert "--heads NUMBER" in message
    assert run("inspect", tmp_path / "a.pth", "--heads", "4").status == 0
    assert "expected a number that divides" in refused("inspect", tmp_path / "a.pth", "--heads", 5)


# --- values ---------------------------------------------------------------------------------------


def test_weight_that_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in random_tensors(MWA).items()}
    name = "beit3.encoder.layers.0.ffn.B.fc2.weight"
    tensors[name][3, 4] = 1e39
    with pytest.raises(CheckpointError, match=f"{name} has 1 of .* not finite in float32"):
        load_model(ModelSource(save(tmp_path / "a.pth", tensors)))


@pytest.mark.parametrize("scale", ["1e39", "inf", "nan", "-1e300"])
def test_adapter_scale_that_float32_cannot_hold_is_refused(scale: str, tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.pth", ffn_adapter_scalar=scale)
    with pytest.raises(UsageError, match="the adapter scale"):
        load_model(ModelSource(path))


def test_weights_that_overflow_on_the_way_are_never_verified(
    tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tensors = random_tensors(MWA)
    for name in tensors:
        if name.endswith("fc1.weight"):
            tensors[name] *= 1e38
    message = export_refused(save(tmp_path / "large.pth", tensors), status=1)
    assert "embeddings of the vision tower are not finite" in message


def test_layer_number_without_end_costs_nothing(tmp_path: Path) -> None:
    tensors = random_tensors(MWA)
    for number in ("99999999", "9" * 9000, "1\x1b[2J"):
        name = f"beit3.encoder.layers.{number}.ffn.A.fc1.weight"
        path = save(tmp_path / "layers.pth", {**tensors, name: torch.ones(2, 2)})
        message = refused("inspect", path)
        assert "\x1b" not in message
        assert "layer" in message
