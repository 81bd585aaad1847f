"""Small random checkpoints, and the golden cases where they are there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mwa_export.config import AdapterConfig, BackboneConfig, ModelConfig
from mwa_export.synthetic import random_tensors, training_args

BACKBONE = BackboneConfig(
    embed_dim=128,
    ffn_dim=256,
    layers=2,
    vocab_size=90,
    image_size=32,
    patch_size=8,
    text_positions=62,
)
MWA = ModelConfig(BACKBONE, AdapterConfig("both", 16, "none", 0.6, "parallel"), enhancer=True)
CONFIGS: dict[str, ModelConfig] = {
    "plain": ModelConfig(BACKBONE),
    "mwa": MWA,
    "norm_in_learned": ModelConfig(BACKBONE, AdapterConfig("both", 16, "in", None, "parallel")),
    "norm_out": ModelConfig(BACKBONE, AdapterConfig("both", 8, "out", 0.1, "parallel")),
    "text_mode": ModelConfig(BACKBONE, AdapterConfig("text", 16, "none", 0.6, "parallel")),
    "vision_mode": ModelConfig(BACKBONE, AdapterConfig("vision", 16, "in", 0.6, "parallel"), True),
    "sequential": ModelConfig(BACKBONE, AdapterConfig("both", 16, "none", 0.6, "sequential")),
}

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
SPM = Path(__file__).parents[2] / "shared" / "spm" / "beit3.spm"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden cases are not here")


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Every kind of model."""
    return CONFIGS[request.param]


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Save a random model as the authors' training script saves it."""
    count = itertools.count()

    def write(config: ModelConfig = MWA, *, seed: int = 0) -> Path:
        path = tmp_path / f"checkpoint-{next(count)}.pth"
        torch.save(
            {
                "model": random_tensors(config, seed),
                "optimizer": {"state": {}, "param_groups": []},
                "epoch": 1,
                "args": training_args(config),
            },
            path,
        )
        return path

    return write


@pytest.fixture
def checkpoint(write_checkpoint: Callable[..., Path]) -> Path:
    """A small checkpoint with adapters and enhancers, as the authors' README trains them."""
    return write_checkpoint()
