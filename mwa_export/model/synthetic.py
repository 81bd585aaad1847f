"""Random checkpoints of any size, for tests and benchmarks.

Every tensor is non-trivial (norms, biases, adapters and scales included), so an exporter that
skips, swaps or shifts one gives a clearly wrong result.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from mwa_export.model.adapters import training_options
from mwa_export.model.state_dict import Shape, expected_shapes
from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig

SIZES: dict[str, tuple[int, int]] = {"base": (768, 12), "large": (1024, 24)}  # width, layers


def beit3_config(
    size: str,
    *,
    image_size: int = 224,
    adapter: AdapterConfig | None = None,
    enhancer: bool = False,
) -> ModelConfig:
    """Return the configuration of BEiT-3 base or large, patch 16, with its original vocabulary."""
    width, layers = SIZES[size]
    backbone = BackboneConfig(
        embed_dim=width,
        ffn_dim=4 * width,
        layers=layers,
        vocab_size=64010,
        image_size=image_size,
        patch_size=16,
        text_positions=1022,
    )
    return ModelConfig(backbone, adapter, enhancer)


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return a complete random float32 state dict, named as in checkpoints."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: _random(name, shape, generator) for name, shape in expected_shapes(config).items()
    }
    tensors["logit_scale"] = torch.tensor(4.6)
    tensors["beit3.vision_embed.mask_token"] = torch.zeros(1, 1, config.backbone.embed_dim)
    return tensors


def training_args(config: ModelConfig) -> argparse.Namespace:
    """Return the options that the authors' training script would store with such weights."""
    return argparse.Namespace(
        task="coco_retrieval",
        vocab_size=config.backbone.vocab_size,
        **training_options(config),
    )


def _random(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    x: Tensor = torch.randn(shape, generator=generator)
    if name.endswith(".scale"):
        return 0.5 + 0.1 * x
    if "norm" in name or "_ln." in name:
        return (1.0 if name.endswith("weight") else 0.0) + 0.2 * x
    if len(shape) == 1:
        return 0.1 * x
    if len(shape) == 4:
        return x / math.sqrt(math.prod(shape[1:]))
    if name.endswith(("positions.A.weight", "positions.B.weight", "cls_token")):
        return 0.3 * x
    return x if "text_embed" in name else x / math.sqrt(shape[-1])
