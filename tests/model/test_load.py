"""Loading a model: image size, options, warnings, and the output of inspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import CONFIGS, MWA
from hypothesis import given
from hypothesis import strategies as st
from naive import resize_positions as naive_resize

from mwa_export.errors import UsageError
from mwa_export.model.load import ModelSource, load_model, resize_positions
from mwa_export.model.options import ModelOptions
from mwa_export.model.state_dict import POSITIONS
from mwa_export.model.summary import describe
from mwa_export.spec import ModelConfig


@given(st.integers(2, 7), st.integers(1, 12))
def test_positions_are_interpolated_bicubically(old: int, new: int) -> None:
    table = np.random.default_rng(old).standard_normal((3 + old * old, 5))
    found = resize_positions(torch.from_numpy(table).float(), new * new)
    assert np.abs(found.numpy() - naive_resize(table, new)).max() <= 1e-5


def test_another_image_size_keeps_the_first_three_rows(checkpoint: Path) -> None:
    small = load_model(ModelSource(checkpoint))
    large = load_model(ModelSource(checkpoint), ModelOptions(image_size=48))
    before, after = small.tensors[POSITIONS["vision"]], large.tensors[POSITIONS["vision"]]
    assert large.config.backbone.image_size == 48
    assert after.shape == (3 + 36, 128)
    assert torch.equal(before[:3], after[:3])


def test_the_checkpoints_own_image_size_leaves_the_table_alone(checkpoint: Path) -> None:
    plain, same = (
        load_model(ModelSource(checkpoint), ModelOptions(image_size=size)) for size in (None, 32)
    )
    assert torch.equal(plain.tensors[POSITIONS["vision"]], same.tensors[POSITIONS["vision"]])


def test_image_size_that_is_no_multiple_names_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="40 or 48"):
        load_model(ModelSource(checkpoint), ModelOptions(image_size=45))


def test_loaded_config_is_the_one_that_was_trained(
    config: ModelConfig, write_checkpoint: Callable[..., Path]
) -> None:
    assert load_model(ModelSource(write_checkpoint(config))).config == config


def test_sequential_adapters_are_left_out_with_a_warning(
    write_checkpoint: Callable[..., Path],
) -> None:
    model = load_model(ModelSource(write_checkpoint(CONFIGS["sequential"])))
    assert len(model.warnings) == 1
    assert "never applies the adapters" in model.warnings[0]


def test_overriding_a_stored_option_is_a_warning(checkpoint: Path) -> None:
    model = load_model(ModelSource(checkpoint), ModelOptions(adapter_scale=0.3))
    assert model.config.adapter is not None
    assert model.config.adapter.scale == 0.3
    assert "overrides the 0.6" in model.warnings[0]


def test_description_counts_each_tensor_once_and_towers_apart(checkpoint: Path) -> None:
    model = load_model(ModelSource(checkpoint))
    counts = describe(model).parameters
    assert sum(c["file"] for c in counts.values()) == sum(t.numel() for t in model.tensors.values())
    adapters = counts["adapters"]
    assert adapters["vision"] == adapters["text"] == adapters["file"] // 2
    assert counts["enhancer"]["vision"] == counts["enhancer"]["text"] == counts["enhancer"]["file"]


def test_config_survives_json(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config


def test_text_mode_adapts_images_only(write_checkpoint: Callable[..., Path]) -> None:
    counts = describe(load_model(ModelSource(write_checkpoint(CONFIGS["text_mode"])))).parameters
    assert counts["adapters"]["vision"] > 0
    assert counts["adapters"]["text"] == 0
    assert MWA.adapter is not None
    assert all(MWA.adapter.applies_to(tower) for tower in ("vision", "text"))
