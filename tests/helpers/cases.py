"""Models with inputs and their correct embeddings, ours and those of the authors' code.

The prefix tells the origin of a case: `own-` is random, `golden-` is committed, and `shared-` is in
the folder beside the checkout, or skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from configs import CONFIGS
from naive import embed
from numpy.typing import NDArray
from paths import GOLDEN, SHARED_GOLDEN

from mwa_export.inputs.noise import random_texts
from mwa_export.model.adapters import training_options
from mwa_export.model.load import Model, ModelSource, load_model
from mwa_export.model.options import ModelOptions
from mwa_export.model.synthetic import random_tensors

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A model, inputs of both towers, and the expected embeddings."""

    model: Model
    image: Floats  # (B, 3, H, W) in [-1, 1]
    token_ids: NDArray[np.int64]
    padding_mask: NDArray[np.int64]
    vision: Floats
    text: Floats


@cache
def own_case(name: str) -> Case:
    """Random weights; the numpy implementation says what is right."""
    config = CONFIGS[name]
    tensors = random_tensors(config)
    rng = np.random.default_rng(0)
    size = config.backbone.image_size
    image = rng.uniform(-1, 1, (2, 3, size, size)).astype(np.float32)
    ids, mask = random_texts(rng, 4, 9, config.backbone.vocab_size)
    weights = {key: value.double().numpy() for key, value in tensors.items()}
    options = training_options(config)
    vision = embed(weights, options, image=image.astype(np.float64))
    text = embed(weights, options, token_ids=ids, padding_mask=mask)
    model = Model(config, {k: v for k, v in tensors.items() if k not in _UNUSED}, (), ())
    return Case(model, image, ids, mask, vision.astype(np.float32), text.astype(np.float32))


@cache
def golden_case(folder: Path) -> Case:
    """A checkpoint and what the authors' own code computes for it."""
    if not folder.is_dir():
        pytest.skip(f"{folder.parent} has no {folder.name}")
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    options = None
    if facts["layout"] == "raw":
        options = ModelOptions(
            adapter_scale=float(facts["ffn_adapter_scalar"]), ffn_option=facts["ffn_option"]
        )
    source = ModelSource(folder / "checkpoint.pth")
    if (base := facts.get("base")) is not None:
        base_file = folder.parent / base / "checkpoint.pth"
        source = ModelSource(base=base_file, adapter=folder / "adapter.pth")
    arrays = np.load(folder / "io.npz")
    return Case(
        load_model(source, options),
        **{key: arrays[key] for key in ("image", "token_ids", "padding_mask", "vision", "text")},
    )


_UNUSED = ("logit_scale", "beit3.vision_embed.mask_token")
_COMMITTED = sorted(path.parent for path in GOLDEN.glob("*/case.json"))
_LARGE = (
    "beit3_plain",
    "mwa_both_enhance",
    "mwa_both_ln_in_learnable",
    "mwa_ln_out",
    "mwa_raw_state_dict",
    "mwa_text_mode",
)

ALL: dict[str, Callable[[], Case]] = {
    **{f"own-{name}": partial(own_case, name) for name in CONFIGS},
    **{f"golden-{folder.name}": partial(golden_case, folder) for folder in _COMMITTED},
    **{f"shared-{name}": partial(golden_case, SHARED_GOLDEN / name) for name in _LARGE},
}
