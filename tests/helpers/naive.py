"""BEiT-3 with MultiWay-Adapters in plain numpy, following the design's table line by line.

It is independent of torch, torchscale and our own code, and serves as their oracle.
"""

from __future__ import annotations

from math import erf

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def embed(
    weights: dict[str, Array],
    options: dict[str, object],
    *,
    image: Array | None = None,
    token_ids: NDArray[np.int64] | None = None,
    padding_mask: NDArray[np.int64] | None = None,
) -> Array:
    """Embeddings (B, D) of images (B, 3, H, W) or of texts (B, T); weights as in the checkpoint."""
    vision = image is not None
    branch = "A" if vision else "B"
    positions = weights[f"beit3.encoder.embed_positions.{branch}.weight"]
    if image is not None:
        x = _patches(weights, image)
        keep = np.ones(x.shape[:2], bool)
    else:
        assert token_ids is not None
        assert padding_mask is not None
        x = weights["beit3.text_embed.weight"][token_ids]
        keep = padding_mask == 0
    x = x + positions[2 : 2 + x.shape[1]]  # both tables start at row 2
    x = x * keep[..., None]
    # The names are swapped in the reference implementation.
    adapter = "adaptmlp_text" if vision else "adaptmlp_vision"
    used = options.get("ffn_option") == "parallel"
    layer = 0
    while (name := f"beit3.encoder.layers.{layer}") + ".ffn.A.fc1.weight" in weights:
        h = _norm(weights, f"{name}.self_attn_layer_norm.{branch}", x)
        x = x + _attention(weights, f"{name}.self_attn", branch, h, keep)
        h = _norm(weights, f"{name}.final_layer_norm.{branch}", x)
        out = _ffn(weights, f"{name}.ffn.{branch}", h)
        if used and f"{name}.{adapter}.up_proj.weight" in weights:
            out = out + _adapter(weights, f"{name}.{adapter}", options, x)
        x = x + out
        if f"{name}.enhancemlp.fc1.weight" in weights:
            x = x + _ffn(weights, f"{name}.enhancemlp", x)
        layer += 1
    x = _norm(weights, f"beit3.encoder.layer_norm.{branch}", x)[:, 0]
    x = x @ weights["vision_head.weight" if vision else "language_head.weight"].T
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def resize_positions(table: Array, side: int) -> Array:
    """Bicubic (Keys, a = -0.75), half-pixel centres, edges repeated; the first 3 rows kept."""
    old = round((len(table) - 3) ** 0.5)
    grid = table[3:].reshape(old, old, -1)
    matrix = np.zeros((side, old))
    for row in range(side):
        centre = (row + 0.5) * old / side - 0.5
        start = int(np.floor(centre))
        for tap in range(start - 1, start + 3):
            matrix[row, min(max(tap, 0), old - 1)] += _keys(abs(centre - tap))
    grid = np.einsum("ab,cd,bde->ace", matrix, matrix, grid)
    return np.concatenate([table[:3], grid.reshape(side * side, -1)])


def _keys(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a if distance < 2 else 0


def _patches(weights: dict[str, Array], image: Array) -> Array:
    kernel = weights["beit3.vision_embed.proj.weight"]
    width, channels, size, _ = kernel.shape
    batch, _, height, _ = image.shape
    side = height // size
    cut = image.reshape(batch, channels, side, size, side, size).transpose(0, 2, 4, 1, 3, 5)
    x = cut.reshape(batch, side * side, -1) @ kernel.reshape(width, -1).T
    x = x + weights["beit3.vision_embed.proj.bias"]
    cls = np.broadcast_to(weights["beit3.vision_embed.cls_token"], (batch, 1, width))
    return np.concatenate([cls, x], axis=1)


def _attention(
    weights: dict[str, Array], name: str, branch: str, x: Array, keep: NDArray[np.bool_]
) -> Array:
    batch, length, width = x.shape
    q, k, v = (
        _linear(weights, f"{name}.{part}_proj.{branch}", x)
        .reshape(batch, length, -1, 64)
        .transpose(0, 2, 1, 3)
        for part in "qkv"
    )
    scores = q @ k.transpose(0, 1, 3, 2) / 8  # sqrt(64)
    scores = np.where(keep[:, None, None, :], scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    x = (scores / scores.sum(-1, keepdims=True)) @ v
    x = x.transpose(0, 2, 1, 3).reshape(batch, length, width)
    x = _norm(weights, f"{name}.inner_attn_ln.{branch}", x)
    return _linear(weights, f"{name}.out_proj.{branch}", x)


def _ffn(weights: dict[str, Array], name: str, x: Array) -> Array:
    x = _linear(weights, f"{name}.fc1", x)
    x = x * 0.5 * (1 + np.vectorize(erf)(x / 2**0.5))
    return _linear(weights, f"{name}.fc2", _norm(weights, f"{name}.ffn_layernorm", x))


def _adapter(weights: dict[str, Array], name: str, options: dict[str, object], x: Array) -> Array:
    where = options["ffn_adapter_layernorm_option"]
    if where == "in":
        x = _norm(weights, f"{name}.adapter_layer_norm_before", x)
    x = np.maximum(_linear(weights, f"{name}.down_proj", x), 0)
    scale = weights.get(f"{name}.scale")
    x = _linear(weights, f"{name}.up_proj", x)
    x = x * (float(str(options["ffn_adapter_scalar"])) if scale is None else scale)
    return _norm(weights, f"{name}.adapter_layer_norm_before", x) if where == "out" else x


def _linear(weights: dict[str, Array], name: str, x: Array) -> Array:
    return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


def _norm(weights: dict[str, Array], name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])
