"""Every merge step preserves the function: equality in float64 on random weights."""

from __future__ import annotations

import pytest
import torch
from configs import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch_tower import TorchTower

from mwa_export.errors import MergeError
from mwa_export.model.synthetic import random_tensors
from mwa_export.spec import HEAD_DIM, ImageInput, ModelConfig, Tower
from mwa_export.towers import merge
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS, steps_without

EXACT = 1e-10
WIDTHS = st.integers(1, 24)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= EXACT)


@given(WIDTHS, WIDTHS, st.booleans())
def test_norm_folds_into_the_linear_behind_it(width: int, out: int, with_bias: bool) -> None:
    x, gamma, beta, weight = rand(5, width), rand(width) + 1, rand(width), rand(out, width)
    bias = rand(out) if with_bias else None
    expected = functional.linear(functional.layer_norm(x, (width,), gamma, beta), weight, bias)
    folded = merge.fold_norm(gamma, beta, weight, bias)
    assert close(functional.linear(functional.layer_norm(x, (width,)), *folded), expected)


@given(WIDTHS)
def test_scaled_query_gives_scaled_scores(width: int) -> None:
    x, keys, weight, bias = rand(5, width), rand(7, HEAD_DIM), rand(HEAD_DIM, width), rand(HEAD_DIM)
    expected = functional.linear(x, weight, bias) @ keys.T / HEAD_DIM**0.5
    assert close(
        functional.linear(x, *merge.fold_attention_scale(weight, bias, HEAD_DIM)) @ keys.T, expected
    )


def test_key_bias_does_not_reach_the_attention_weights() -> None:
    queries, keys, bias = rand(5, 8), rand(7, 8), rand(8)
    assert close((queries @ (keys + bias).T).softmax(-1), (queries @ keys.T).softmax(-1))


@given(WIDTHS, st.lists(WIDTHS, min_size=1, max_size=4))
def test_stacked_rows_compute_all_outputs(width: int, outs: list[int]) -> None:
    x, parts = rand(3, width), [(rand(out, width), rand(out)) for out in outs]
    expected = torch.cat([functional.linear(x, *part) for part in parts], -1)
    assert close(functional.linear(x, *merge.stack_rows(*parts)), expected)


@given(WIDTHS, st.lists(WIDTHS, min_size=1, max_size=4))
def test_stacked_columns_compute_the_sum(out: int, widths: list[int]) -> None:
    xs, parts = [rand(3, w) for w in widths], [(rand(out, w), rand(out)) for w in widths]
    expected = torch.stack(
        [functional.linear(x, *part) for x, part in zip(xs, parts, strict=True)]
    ).sum(0)
    assert close(functional.linear(torch.cat(xs, -1), *merge.stack_columns(*parts)), expected)


def test_table_adds_class_token_positions_and_patch_bias() -> None:
    cls, positions, bias, patches = rand(6), rand(5, 6), rand(6), rand(2, 4, 6)
    expected = torch.cat([cls.expand(2, 1, 6), patches + bias], 1) + positions
    padded = functional.pad(patches, (0, 0, 1, 0))
    assert close(padded + merge.vision_table(cls, positions, bias), expected)


@given(WIDTHS, WIDTHS)
def test_pixel_scaling_folds_into_the_patch_projection(width: int, out: int) -> None:
    pixels = torch.arange(width, dtype=torch.float64) * 255 / width
    weight, bias = rand(out, width), rand(out)
    expected = functional.linear((pixels / 255 - 0.5) / 0.5, weight, bias)
    assert close(functional.linear(pixels, *merge.fold_pixel_scaling(weight, bias)), expected)


@given(st.integers(1, 3), st.integers(1, 6))
def test_one_query_needs_no_keys_and_values(heads: int, tokens: int) -> None:
    width = heads * HEAD_DIM
    x, key, value, query = rand(tokens, width), rand(width, width), rand(width, width), rand(width)
    q = query.view(heads, 1, HEAD_DIM) / width
    k, v = (((x @ w.T).view(tokens, heads, HEAD_DIM)).transpose(0, 1) for w in (key, value))
    expected = ((q @ k.transpose(1, 2)).softmax(-1) @ v).flatten()
    absorbed = (q @ merge.by_head(key, HEAD_DIM)) @ x.T  # (heads, 1, tokens)
    seen = (absorbed.softmax(-1) @ x) @ merge.by_head(value, HEAD_DIM).transpose(1, 2)
    assert close(seen.flatten(), expected)


def inputs_for(config: ModelConfig, tower: Tower, image_input: ImageInput) -> list[Tensor]:
    generator, backbone = torch.Generator().manual_seed(3), config.backbone
    if tower == "text":
        ids = torch.randint(0, backbone.vocab_size, (3, 11), generator=generator)
        mask = (torch.arange(11) >= torch.tensor([[11], [6], [2]])).long()
        return [ids, mask]
    size = backbone.image_size
    pixels = torch.randint(0, 256, (2, size, size, 3), generator=generator, dtype=torch.uint8)
    if image_input == "uint8":
        return [pixels]
    return [((pixels.double() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)]


_CHOICES = {
    "all": frozenset(STEPS),
    **{f"only {step}": frozenset([step]) for step in STEPS},
    **{f"all but {step}": steps_without([step]) for step in STEPS},
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", _CHOICES)
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_merged_tower_equals_unmerged_tower(config: ModelConfig, tower: Tower, choice: str) -> None:
    tensors = random_tensors(config)
    for image_input in ("float32", "uint8") if tower == "vision" else ("float32",):
        plan, raw = tower_from_model(
            config, tensors, tower, image_input=image_input, dtype=torch.float64
        )
        inputs = inputs_for(config, tower, image_input)
        merged = TorchTower(*merge_tower(plan, raw, _CHOICES[choice]))
        assert close(merged(*inputs), TorchTower(plan, raw)(*inputs))


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_merging_leaves_the_given_tensors_alone(tower: Tower) -> None:
    config = CONFIGS["norm_in_learned"]
    plan, raw = tower_from_model(config, random_tensors(config), tower)
    before = {name: tensor.clone() for name, tensor in raw.items()}
    merge_tower(plan, raw, STEPS)
    assert raw.keys() == before.keys()
    assert all(torch.equal(raw[name], before[name]) for name in raw)


def test_adapter_with_norm_in_costs_no_gemm_of_its_own() -> None:
    config = CONFIGS["norm_in_learned"]
    plan, raw = tower_from_model(config, random_tensors(config), "vision")
    _, merged = merge_tower(plan, raw, STEPS)
    assert not [name for name in merged if "adapter" in name or "norm" in name]


def test_a_tower_holds_one_branch_only() -> None:
    config = CONFIGS["mwa"]
    tensors = random_tensors(config)
    sizes = {}
    for tower in ("vision", "text"):
        _, raw = tower_from_model(config, tensors, tower)
        sizes[tower] = sum(tensor.numel() for tensor in raw.values())
    shared = sum(t.numel() for name, t in tensors.items() if ".enhancemlp." in name)
    whole = sum(tensor.numel() for tensor in tensors.values())
    assert sizes["vision"] + sizes["text"] <= whole + shared + 2 * config.backbone.layers


def test_unknown_merge_step_is_refused_with_the_list_of_steps() -> None:
    with pytest.raises(MergeError, match=r"'qvk'.*qkv, layernorm"):
        steps_without(["qvk"])


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.sets(st.sampled_from(sorted(STEPS))))
def test_any_set_of_steps_is_exact(steps: set[str]) -> None:
    config = CONFIGS["mwa"]
    plan, raw = tower_from_model(config, random_tensors(config), "text", dtype=torch.float64)
    inputs = inputs_for(config, "text", "float32")
    assert close(
        TorchTower(*merge_tower(plan, raw, steps))(*inputs), TorchTower(plan, raw)(*inputs)
    )
