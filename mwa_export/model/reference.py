"""The PyTorch reference: torchscale's own BEiT-3 encoder with MultiWay-Adapters, never merged.

Every exported graph is compared with this model, so it shares no code with the merge. Torchscale's
forward pass is unchanged; hooks add the adapters and enhancers where the authors' implementation
(arXiv 2309.01516, `multiway_encoder.py`) computes them.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from mwa_export.errors import MissingPackageError
from mwa_export.optional import require
from mwa_export.spec import (
    ADAPTER_OF_TOWER,
    LAYERNORM_EPS,
    POSITION_OFFSET,
    AdapterConfig,
    ModelConfig,
    Tower,
    tower_of,
)

# Torchscale imports these names at module level but calls them only in training.
_TRAINING_ONLY = {
    "fairscale.nn": ("checkpoint_wrapper", "wrap"),
    "timm.models.layers": ("drop_path",),
}


class Adapter(nn.Module):
    """One bottleneck adapter: (B, T, D) float -> (B, T, D), which is added to the FFN's output."""

    def __init__(self, width: int, config: AdapterConfig, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.layernorm = config.layernorm
        if config.layernorm != "none":
            # The reference uses this name for both positions, `in` and `out`.
            self.adapter_layer_norm_before = nn.LayerNorm(width, eps=LAYERNORM_EPS)
        self.scale: nn.Parameter | float
        self.scale = nn.Parameter(torch.ones(1)) if config.scale is None else config.scale
        self.down_proj = nn.Linear(width, config.bottleneck)
        self.up_proj = nn.Linear(config.bottleneck, width)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():  # `lora` initialization: an untrained adapter adds nothing
            nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
            for zero in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
                nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        if self.layernorm == "in":
            x = self.adapter_layer_norm_before(x)
        x = self.up_proj(self.dropout(torch.relu(self.down_proj(x)))) * self.scale
        if self.layernorm == "out":
            x = self.adapter_layer_norm_before(x)
        return x


class ReferenceModel(nn.Module):
    """BEiT-3 for retrieval with optional adapters and enhancers, named as in the checkpoints.

    Weights are random until a state dict is loaded; see ``reference_from_tensors``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        backbone = config.backbone
        beit3, encoder_config = _torchscale()
        self.beit3 = beit3(
            encoder_config(
                multiway=True,
                no_output_layer=True,
                encoder_embed_dim=backbone.embed_dim,
                encoder_attention_heads=backbone.heads,
                encoder_ffn_embed_dim=backbone.ffn_dim,
                encoder_layers=backbone.layers,
                vocab_size=backbone.vocab_size or 1,
                # A missing tower never runs, so any size works.
                img_size=backbone.image_size or 16,
                patch_size=backbone.patch_size or 16,
                max_source_positions=backbone.text_positions + POSITION_OFFSET,
                layernorm_eps=LAYERNORM_EPS,
            )
        )
        for layer in self.beit3.encoder.layers:
            _add_adapters(layer, config)
        self.vision_head = nn.Linear(backbone.embed_dim, backbone.embed_dim, bias=False)
        self.language_head = nn.Linear(backbone.embed_dim, backbone.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed images: (B, 3, H, W) float in [-1, 1]. Returns (B, D), unit L2 norm."""
        hidden = self.beit3(visual_tokens=image)["encoder_out"]  # (B, patches + 1, D)
        return nn.functional.normalize(self.vision_head(hidden[:, 0]), dim=-1)

    def encode_text(self, token_ids: Tensor, padding_mask: Tensor) -> Tensor:
        """Embed texts: token_ids and padding_mask (B, T) int64, mask 1 = padding.

        Returns (B, D), unit L2 norm.
        """
        hidden = self.beit3(textual_tokens=token_ids, text_padding_position=padding_mask)
        return nn.functional.normalize(self.language_head(hidden["encoder_out"][:, 0]), dim=-1)

    def forward(
        self, image: Tensor, token_ids: Tensor, padding_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.encode_image(image), self.encode_text(token_ids, padding_mask)


def reference_from_tensors(
    config: ModelConfig, tensors: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32
) -> ReferenceModel:
    """Build the reference from existing tensors, without copying those that have ``dtype``.

    Args:
        config: as inferred from the same checkpoint.
        tensors: a complete, validated state dict; float tensors of any precision.
        dtype: precision of the result.

    Returns:
        The model in eval mode, without gradients. Towers missing in ``config`` cannot be run.
    """
    with torch.device("meta"):  # allocate no memory for weights that are replaced right away
        model = ReferenceModel(config)
    state = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    width = config.backbone.embed_dim
    # Neither is used in inference, so files may lack them.
    state.setdefault("logit_scale", torch.zeros((), dtype=dtype))
    state.setdefault("beit3.vision_embed.mask_token", torch.zeros(1, 1, width, dtype=dtype))
    found = model.load_state_dict(state, strict=False, assign=True)
    needed = [n for n in found.missing_keys if tower_of(n) in (None, *config.towers)]
    assert not needed, needed
    assert not found.unexpected_keys, found.unexpected_keys
    return model.eval().requires_grad_(False)


def _add_adapters(layer: nn.Module, config: ModelConfig) -> None:
    """Add adapters and enhancer to one torchscale EncoderLayer with forward hooks.

    The adapter reads the input of `final_layer_norm` (the residual stream after attention). Its
    result is added to the FFN's output before the residual sum. The enhancer follows the block.
    """
    encoder_layer = cast(Any, layer)
    if config.adapter is not None:
        for tower in ADAPTER_OF_TOWER:
            if config.adapter.has_adapter(tower):
                adapter = Adapter(config.backbone.embed_dim, config.adapter)
                layer.add_module(ADAPTER_OF_TOWER[tower], adapter)
        stream: list[Tensor] = []

        def remember_stream(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            stream[:] = inputs[:1]

        def add_adapter(ffn: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            tower: Tower = "vision" if cast(Any, ffn).split_position == -1 else "text"
            assert config.adapter is not None
            if not config.adapter.applies_to(tower):
                return output
            return output + cast(Tensor, getattr(layer, ADAPTER_OF_TOWER[tower])(stream.pop()))

        encoder_layer.final_layer_norm.register_forward_pre_hook(remember_stream)
        encoder_layer.ffn.register_forward_hook(add_adapter)
    if config.enhancer:
        enhancer = encoder_layer.build_ffn(encoder_layer.embed_dim, encoder_layer.args)
        layer.add_module("enhancemlp", enhancer)

        def enhance(_layer: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> Any:
            hidden, aux = output
            return hidden + enhancer(hidden), aux

        layer.register_forward_hook(enhance)


def _torchscale() -> tuple[Any, Any]:
    """Import torchscale's BEiT3 and EncoderConfig classes."""
    with training_only_packages():
        model = require("torchscale.model.BEiT3")
        config = require("torchscale.architecture.config")
    return model.BEiT3, config.EncoderConfig


@contextmanager
def training_only_packages() -> Iterator[None]:
    """Make torchscale importable where timm or fairscale cannot be imported.

    The real packages are used if they can be imported. Otherwise (timm needs torchvision, whose
    default wheel needs CUDA libraries) stand-ins provide the names that torchscale imports. They
    raise when called, and are removed on exit so that other code does not see them.
    """
    added: list[str] = []
    for package, names in _TRAINING_ONLY.items():
        try:
            importlib.import_module(package)
            continue
        except (ImportError, RuntimeError, AttributeError, OSError):
            pass  # mismatched versions of torch and torchvision raise each of these
        parts = package.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            if name not in sys.modules:
                sys.modules[name] = ModuleType(name)
                added.append(name)
        for name in names:
            setattr(sys.modules[package], name, _not_for_inference(f"{package}.{name}"))
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _not_for_inference(name: str) -> Any:
    def stand_in(*_args: Any, **_kwargs: Any) -> Any:
        raise MissingPackageError(
            f"this training option needs {name}, whose package cannot be imported. Install it."
        )

    return stand_in
