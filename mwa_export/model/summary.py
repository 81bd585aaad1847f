"""Describe a loaded model as tables and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mwa_export.spec import (
    ADAPTER_OF_TOWER,
    BRANCH_OF_TOWER,
    HEAD_OF_TOWER,
    ModelConfig,
    Tower,
)

if TYPE_CHECKING:  # describing a bundle must not import torch
    from mwa_export.model.load import Model

_PARTS = ("backbone", "adapters", "enhancer", "head")


@dataclass(frozen=True, slots=True)
class Description:
    """Output of `mwa-export inspect`."""

    files: tuple[dict[str, str], ...]
    config: ModelConfig
    parameters: dict[str, dict[str, int]]  # part -> {"vision", "text", "file"} -> count
    dtypes: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "files": list(self.files),
            "model": self.config.to_json(),
            "heads": self.config.backbone.heads,
            "parameters": self.parameters,
            "dtypes": list(self.dtypes),
            "warnings": list(self.warnings),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a table."""
        files = [("file", f"{file['file']} ({file['layout']})") for file in self.files]
        return [*files, ("stored as", ", ".join(self.dtypes)), *config_rows(self.config)]

    def parameter_rows(self) -> list[tuple[str, ...]]:
        """Return (part, vision, text, file) with thousands separators, and a row of totals."""
        rows = [
            (part, *(f"{counts[column]:,}" for column in ("vision", "text", "file")))
            for part, counts in self.parameters.items()
            if counts["file"]
        ]
        totals = (
            f"{sum(counts[column] for counts in self.parameters.values()):,}"
            for column in ("vision", "text", "file")
        )
        return [*rows, ("total", *totals)]


def config_rows(
    config: ModelConfig, towers: tuple[Tower, ...] | None = None
) -> list[tuple[str, str]]:
    """Return a model's configuration as (label, value) pairs; ``towers`` limits it to some."""
    towers = towers or config.towers
    backbone, adapter = config.backbone, config.adapter
    rows = [
        (
            "encoder",
            f"{backbone.layers} layers, width {backbone.embed_dim}, {backbone.heads} heads, "
            f"FFN {backbone.ffn_dim}",
        )
    ]
    if len(towers) == 1:
        rows.append(("towers", f"{towers[0]} only"))
    if "vision" in towers:
        side = backbone.image_size // backbone.patch_size
        rows.append(
            (
                "image",
                f"{backbone.image_size} x {backbone.image_size} pixels, "
                f"{side} x {side} patches of {backbone.patch_size}",
            )
        )
    if "text" in towers:
        longest = backbone.max_text_length
        rows.append(("text", f"vocabulary {backbone.vocab_size:,}, at most {longest} tokens"))
    if adapter is None:
        rows.append(("adapters", "none"))
    else:
        scale = "learned" if adapter.scale is None else f"{adapter.scale:g}"
        runs = {"vision": "images", "text": "texts"}
        rows += [
            (
                "adapters",
                f"mode {adapter.mode}, bottleneck {adapter.bottleneck}, {adapter.option}, "
                f"LayerNorm {adapter.layernorm}, scale {scale}",
            ),
            ("", ", ".join(f"{runs[t]} run {_runs(config, t)}" for t in towers)),
        ]
    rows.append(("enhancer", "in every block" if config.enhancer else "none"))
    return rows


def describe(model: Model) -> Description:
    """Describe a model, with its parameters counted by part and by the tower that uses them."""
    parameters = {part: {"vision": 0, "text": 0, "file": 0} for part in _PARTS}
    for name, tensor in model.tensors.items():
        counts = parameters[_part(name)]
        counts["file"] += tensor.numel()
        for tower in model.config.towers:
            if _used_by(name, tower, model.config):
                counts[tower] += tensor.numel()
    return Description(
        files=tuple({"file": str(file.path), "layout": file.layout} for file in model.files),
        config=model.config,
        parameters=parameters,
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in model.tensors.values()})),
        warnings=model.warnings,
    )


def _part(name: str) -> str:
    if ".adaptmlp_" in name:
        return "adapters"
    if ".enhancemlp." in name:
        return "enhancer"
    return "head" if "_head." in name else "backbone"


def _used_by(name: str, tower: Tower, config: ModelConfig) -> bool:
    other: Tower = "text" if tower == "vision" else "vision"
    if ".adaptmlp_" in name:
        applies = config.adapter is not None and config.adapter.applies_to(tower)
        return applies and f".{ADAPTER_OF_TOWER[tower]}." in name
    return not (
        f".{BRANCH_OF_TOWER[other]}." in name
        or name.startswith(f"beit3.{other}_embed")
        or name.startswith(HEAD_OF_TOWER[other])
    )


def _runs(config: ModelConfig, tower: Tower) -> str:
    assert config.adapter is not None
    return ADAPTER_OF_TOWER[tower] if config.adapter.applies_to(tower) else "no adapter"
