"""Test sets and bundles on disk for parity tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import spm_model
from PIL import Image

from mwa_export.bundle.bundle import Bundle
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.options import ModelOptions
from mwa_export.parity.result import Parity

PIECES = 80  # of the tokenizer; the small models have 90 rows
PICTURES = 20


def write_test_set(folder: Path, *, pictures: int = PICTURES, seed: int = 0) -> Path:
    """A table `captions.jsonl` with two captions per picture, and the pictures beside it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(pictures):
        blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((48, 40), Image.Resampling.NEAREST)
        image.save(folder / f"{number:03d}.png")
        words = ["".join(rng.choice(list("abcdefghijklmnop"), 4)) for _ in range(12)]
        captions = [" ".join(words[:5]), " ".join(words[5:])]
        lines.append(json.dumps({"image": f"{number:03d}.png", "captions": captions}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tokenizer(folder: Path, seed: int = 0) -> Path:
    """A small tokenizer; other seeds cut words elsewhere."""
    path = folder / f"tokenizer-{seed}.spm"
    path.write_bytes(spm_model(PIECES, seed))
    return path


def export(
    checkpoint: Path,
    out: Path,
    tokenizer: Path | None,
    *,
    options: ModelOptions | None = None,
) -> Bundle:
    """The bundle of a checkpoint."""
    model = load_model(ModelSource(checkpoint), options)
    return bundle_from_model(model, out, ExportOptions(tokenizer=tokenizer))


def quantized(bundle: Path, tower: str, out: Path) -> Path:
    """A graph that another tool made: ONNX Runtime's own dynamic INT8."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    # Not Conv: ONNX Runtime 1.23 has no kernel for the ConvInteger that it becomes.
    products = {"op_types_to_quantize": ["MatMul", "Gemm"]}
    quantization.quantize_dynamic(bundle / f"{tower}.onnx", out, **products)
    return out


def states(result: Parity) -> dict[str, str]:
    """What became of each stage."""
    return {stage.name: stage.state for stage in result.stages}
