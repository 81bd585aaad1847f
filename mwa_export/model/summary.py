"""Describe a loaded model for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mwa_export.model.load import Model
from mwa_export.spec import (
    ADAPTER_OF_TOWER,
    BRANCH_OF_TOWER,
    HEAD_OF_TOWER,
    TOWERS,
    ModelConfig,
    Tower,
)

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
        """(what, value), for a table."""
        backbone, adapter = self.config.backbone, self.config.adapter
        side = backbone.image_size // backbone.patch_size
        rows = [("file", f"{file['file']} ({file['layout']})") for file in self.files]
        rows += [
            ("stored as", ", ".join(self.dtypes)),
            (
                "encoder",
                f"{backbone.layers} layers, width {backbone.embed_dim}, {backbone.heads} heads, "
                f"FFN {backbone.ffn_dim}",
            ),
            (
                "image",
                f"{backbone.image_size} x {backbone.image_size} pixels, "
                f"{side} x {side} patches of {backbone.patch_size}",
            ),
            (
                "text",
                f"vocabulary {backbone.vocab_size:,}, at most {backbone.max_text_length} tokens",
            ),
        ]
        if adapter is None:
            rows.append(("adapters", "none"))
        else:
            scale = "learned" if adapter.scale is None else f"{adapter.scale:g}"
            rows += [
                (
                    "adapters",
                    f"mode {adapter.mode}, bottleneck {adapter.bottleneck}, {adapter.option}, "
                    f"LayerNorm {adapter.layernorm}, scale {scale}",
                ),
                (
                    "",
                    f"images run {_runs(self.config, 'vision')}, "
                    f"texts run {_runs(self.config, 'text')}",
                ),
            ]
        rows.append(
            ("enhancer", "in every block of both towers" if self.config.enhancer else "none")
        )
        return rows

    def parameter_rows(self) -> list[tuple[str, ...]]:
        """(part, vision, text, file) with thousands separators, and the sum."""
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


def describe(model: Model) -> Description:
    """Count parameters by part and by the tower that uses them."""
    parameters = {part: {"vision": 0, "text": 0, "file": 0} for part in _PARTS}
    for name, tensor in model.tensors.items():
        counts = parameters[_part(name)]
        counts["file"] += tensor.numel()
        for tower in TOWERS:
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
