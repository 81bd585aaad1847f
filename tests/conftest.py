"""Fixtures: every kind of model, and small checkpoints on disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from configs import CONFIGS, MWA

from mwa_export.config import ModelConfig
from mwa_export.synthetic import random_tensors, training_args


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
