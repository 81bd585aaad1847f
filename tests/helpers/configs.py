"""Small model configurations of every kind."""

from __future__ import annotations

from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig

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
