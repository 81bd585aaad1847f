"""The configuration is derived from tensor shapes; errors name the flag for what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import BACKBONE, CONFIGS, MWA
from hypothesis import given
from hypothesis import strategies as st

from mwa_export.errors import CheckpointError, UsageError
from mwa_export.model.adapters import training_options
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.names import UNUSED
from mwa_export.model.options import ModelOptions, StoredOptions
from mwa_export.model.reference import ReferenceModel
from mwa_export.model.state_dict import (
    POSITIONS,
    Shape,
    check_shapes,
    config_from_shapes,
    expected_shapes,
)
from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig

PATH = Path("checkpoint-29.pth")


def _infer(
    shapes: dict[str, Shape],
    args: dict[str, Any] | None = None,
    options: ModelOptions | None = None,
) -> ModelConfig:
    return config_from_shapes(shapes, StoredOptions(args or {}, PATH), options or ModelOptions())


def test_config_follows_from_shapes_and_args(config: ModelConfig) -> None:
    assert _infer(expected_shapes(config), training_options(config)) == config


@given(
    heads=st.integers(1, 16),
    ffn=st.integers(1, 4096),
    layers=st.integers(1, 12),
    vocabulary=st.integers(4, 70000),
    side=st.integers(1, 32),
    patch=st.integers(1, 32),
    text_rows=st.integers(3, 1022),
    bottleneck=st.integers(1, 256),
)
def test_every_size_is_read_from_shapes(
    heads: int,
    ffn: int,
    layers: int,
    vocabulary: int,
    side: int,
    patch: int,
    text_rows: int,
    bottleneck: int,
) -> None:
    backbone = BackboneConfig(64 * heads, ffn, layers, vocabulary, side * patch, patch, text_rows)
    config = ModelConfig(backbone, AdapterConfig("both", bottleneck, "none", 0.1, "parallel"))
    assert _infer(expected_shapes(config), training_options(config)) == config


def test_expected_tensors_are_those_of_the_reference(config: ModelConfig) -> None:
    with torch.device("meta"):
        state = ReferenceModel(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert {name: shape for name, shape in shapes.items() if name not in UNUSED} == (
        expected_shapes(config)
    )


def test_args_of_the_training_script_are_read_from_the_file(
    config: ModelConfig, write_checkpoint: Callable[..., Path]
) -> None:
    assert load_model(ModelSource(write_checkpoint(config))).config == config


SCALE, OPTION, NORM = (
    "`adapter_scale=NUMBER`",
    "`ffn_option=parallel|sequential`",
    "`adapter_layernorm=in|out`",
)


@pytest.mark.parametrize(
    ("name", "args", "needed"),
    [
        ("mwa", {}, [SCALE, OPTION]),
        ("norm_in_learned", {}, [NORM, OPTION]),
        ("norm_out", {}, [NORM, SCALE, OPTION]),
        ("norm_out", {"ffn_adapter_layernorm_option": "out"}, [SCALE, OPTION]),
        ("mwa", {"ffn_option": "parallel"}, [SCALE]),
        ("mwa", {"ffn_adapter_scalar": "0.6"}, [OPTION]),
    ],
)
def test_missing_options_are_asked_for_by_exactly_their_names(
    name: str, args: dict[str, Any], needed: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        _infer(expected_shapes(CONFIGS[name]), args)
    message = str(error.value)
    assert message.startswith(str(PATH))
    assert message.endswith("Pass: " + ", ".join(needed))


@pytest.mark.parametrize("name", ["mwa", "norm_in_learned", "norm_out", "text_mode", "sequential"])
def test_flags_stand_in_for_args(name: str) -> None:
    adapter = CONFIGS[name].adapter
    assert adapter is not None
    given_ = ModelOptions(adapter.scale, adapter.layernorm, adapter.option)
    assert _infer(expected_shapes(CONFIGS[name]), {}, given_) == CONFIGS[name]


def test_flags_win_over_args_with_a_warning(checkpoint: Path) -> None:
    model = load_model(ModelSource(checkpoint), ModelOptions(adapter_scale=0.25))
    assert MWA.adapter is not None
    assert model.config.adapter == replace(MWA.adapter, scale=0.25)
    assert model.warnings == ("`adapter_scale=0.25` overrides the 0.6 stored in checkpoint-0.pth.",)


def test_flag_that_agrees_with_the_file_is_no_reason_to_warn(checkpoint: Path) -> None:
    assert load_model(ModelSource(checkpoint), ModelOptions(adapter_scale=0.6)).warnings == ()


def test_sequential_adapters_are_left_out_with_a_warning(
    write_checkpoint: Callable[..., Path],
) -> None:
    (warning,) = load_model(ModelSource(write_checkpoint(CONFIGS["sequential"]))).warnings
    assert "never applies the adapters" in warning


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("plain", {"ffn_enhance": True}, "ffn_enhance=True, but its tensors lack enhancemlp"),
        ("mwa", {"ffn_enhance": False}, "ffn_enhance=False, but its tensors include enhancemlp"),
        ("plain", {"ffn_adapt": True}, "ffn_adapt=True, but it contains no adapters"),
        ("mwa", {"ffn_adapt": False}, "ffn_adapt=False, but it contains adapters"),
        (
            "mwa",
            {"ffn_mode": "text"},
            "ffn_mode='text', but it contains adaptmlp_text and adaptmlp_vision",
        ),
        ("text_mode", {"ffn_mode": "vision"}, "'vision', but it contains adaptmlp_text"),
        ("mwa", {"ffn_adapter_layernorm_option": "in"}, "layernorm_option is 'in'.*tensors lack"),
        ("norm_out", {"ffn_adapter_layernorm_option": "none"}, "is 'none'.*tensors include"),
        (
            "mwa",
            {"ffn_adapter_layernorm_option": "before"},
            "ffn_adapter_layernorm_option is 'before'. Expected one of none",
        ),
        (
            "mwa",
            {"ffn_adapter_scalar": "learnable_scalar"},
            "no learned scale. Pass the scale: `adapt",
        ),
        ("mwa", {"ffn_adapter_scalar": "inf"}, "ffn_adapter_scalar. is inf. Expected"),
        (
            "mwa",
            {"ffn_option": "both"},
            "ffn_option is 'both'. Expected one of parallel, sequential",
        ),
    ],
)
def test_args_that_contradict_the_tensors_are_refused(
    name: str, changed: dict[str, Any], message: str
) -> None:
    config = CONFIGS[name]
    with pytest.raises(UsageError, match=message):
        _infer(expected_shapes(config), {**training_options(config), **changed})


def test_scale_cannot_be_given_where_one_was_trained() -> None:
    config = CONFIGS["norm_in_learned"]
    with pytest.raises(UsageError, match="Leave `adapter_scale` out"):
        _infer(expected_shapes(config), training_options(config), ModelOptions(adapter_scale=1.0))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (ModelOptions(adapter_scale=1.0), "adapter_scale"),
        (ModelOptions(adapter_layernorm="in"), "adapter_layernorm"),
        (ModelOptions(ffn_option="parallel"), "ffn_option"),
    ],
)
def test_adapter_flags_are_refused_where_there_are_no_adapters(
    options: ModelOptions, field: str
) -> None:
    with pytest.raises(UsageError, match=f"has no adapters, so `{field}` cannot apply"):
        _infer(expected_shapes(CONFIGS["plain"]), {}, options)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("beit3.vision_embed.proj.weight", (128, 1, 8, 8), "1 channels. Expected 3"),
        (
            "beit3.vision_embed.proj.weight",
            (96, 3, 8, 8),
            "width 96 is not a multiple of 64.*`heads=NUMBER`",
        ),
        ("beit3.vision_embed.proj.weight", (128, 192), "is 128 x 192. Expected a rank 4"),
        (POSITIONS["vision"], (18, 128), "has 18 rows. Expected a square number of patches plus 3"),
        (POSITIONS["vision"], (3, 128), "has 3 rows. Expected a square"),
        (POSITIONS["text"], (4, 128), "has 4 rows. Expected at least 5"),
        ("beit3.text_embed.weight", (), "is a scalar. Expected a rank 2"),
        ("beit3.encoder.layers.0.ffn.A.fc1.weight", None, "is missing. Expected a rank 2"),
    ],
)
def test_shapes_no_beit3_can_have_are_refused(name: str, shape: Shape | None, message: str) -> None:
    shapes = expected_shapes(CONFIGS["plain"])
    if shape is None:
        del shapes[name]
    else:
        shapes[name] = shape
    with pytest.raises((CheckpointError, UsageError), match=message):
        _infer(shapes)


def test_file_without_layers_is_refused() -> None:
    shapes = {n: s for n, s in expected_shapes(CONFIGS["plain"]).items() if ".layers." not in n}
    with pytest.raises(CheckpointError, match="has no encoder layers"):
        _infer(shapes)


def test_adapters_without_a_down_projection_are_refused() -> None:
    name = "beit3.encoder.layers.0.adaptmlp_text.down_proj.weight"
    shapes: dict[str, Shape] = {**expected_shapes(MWA), name: ()}
    with pytest.raises(CheckpointError, match=r"is a scalar\. Expected a rank 2"):
        _infer(shapes, training_options(MWA))
    shapes = {n: s for n, s in shapes.items() if "down_proj" not in n}
    with pytest.raises(CheckpointError, match=r"is missing\. Expected a rank 2"):
        _infer(shapes, training_options(MWA))


def test_problems_are_counted_and_the_first_named() -> None:
    shapes = expected_shapes(MWA)
    names = [name for name in shapes if ".layers.1.ffn.B." in name]
    for name in names:
        del shapes[name]
    shapes["beit3.surprise"] = (1,)
    shapes["vision_head.weight"] = (64, 128)
    with pytest.raises(CheckpointError) as error:
        check_shapes(shapes, MWA, PATH)
    message = str(error.value)
    assert f"{len(names)} missing: {'; '.join(names[:4])}; ..." in message
    assert "1 unexpected: beit3.surprise" in message
    assert "1 with a wrong shape: vision_head.weight is 64 x 128, expected 128 x 128" in message
    assert f"{BACKBONE.layers} layers of width {BACKBONE.embed_dim}" in message


def test_training_only_tensors_may_be_there_or_not() -> None:
    shapes = expected_shapes(MWA)
    check_shapes(shapes, MWA, PATH)
    check_shapes({**shapes, **{name: (1,) for name in UNUSED}}, MWA, PATH)


@pytest.mark.parametrize(
    ("size", "nearest"), [(33, "32 or 40"), (36, "32 or 40"), (47, "40 or 48"), (5, "8")]
)
def test_image_size_that_does_not_fit_names_the_ones_that_do(
    size: int, nearest: str, checkpoint: Path
) -> None:
    message = rf"image size {size} is not a multiple of the patch size 8\. Use {nearest}\."
    with pytest.raises(UsageError, match=message):
        load_model(ModelSource(checkpoint), ModelOptions(image_size=size))
