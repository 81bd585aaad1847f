"""Drawn inputs and random models for benchmarks/embed.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mwa_export.bundle.bundle import Bundle
from mwa_export.calib.calibrate import calibrate
from mwa_export.calib.quantize import QuantizeOptions, quantize
from mwa_export.calib.samples import Samples
from mwa_export.demo.run import assets
from mwa_export.demo.scenes import picture_from_seed
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.inputs.decode import decode_picture
from mwa_export.inputs.preprocess import pixels_from_image
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import beit3_config, random_tensors, training_args
from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig

WIDTH, HEIGHT = 640, 480
DISTINCT = 500  # drawn images; the others are links to these
_SAMPLES = 16  # for calibration: the speed of INT8 does not depend on the ranges


def write_pictures(folder: Path, count: int) -> Path:
    """Write JPEG files of 640 x 480 in folders of 1,000, with file sizes like photographs."""
    rng = np.random.default_rng(0)
    originals: list[Path] = []
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            _photograph(rng).save(path, quality=88)
            originals.append(path)
        else:
            os.link(originals[number % DISTINCT], path)
    return folder


def write_texts(path: Path, count: int) -> Path:
    """Write a JSONL of distinct captions of 4 to 30 words: equal ones would be embedded once."""
    captions = [
        caption
        for index in range(200)
        for caption in picture_from_seed("target", 1, index).captions
    ]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            caption = captions[number % len(captions)]
            file.write(json.dumps({"id": number, "text": f"{caption} {number}"}) + "\n")
    return path


def free_bundle(out: Path) -> Path:
    """Export a nearly free model of 224 pixels: one layer of width 64, four patches.

    It reads bytes (`--input uint8`): scaling pixels to floats would cost more than the model.
    """
    backbone = BackboneConfig(
        embed_dim=64,
        ffn_dim=64,
        layers=1,
        vocab_size=602,
        image_size=224,
        patch_size=112,
        text_positions=64,
    )
    return _export(ModelConfig(backbone), out, ExportOptions("uint8", tokenizer=assets()[1]))


def tiny_bundle(out: Path) -> Path:
    """Export the shipped demo model: 64 pixels, four layers of width 128."""
    bundle_from_model(
        load_model(ModelSource(assets()[0])), out, ExportOptions(tokenizer=assets()[1])
    )
    return out


def base_bundle(out: Path, runtime: str) -> Path:
    """Export random weights of base size at 224 pixels with adapters, every layer in INT8."""
    config = beit3_config("base", adapter=AdapterConfig("both", 64, "in", 0.6, "parallel"))
    bundle = Bundle.open(_export(config, out, ExportOptions()))
    samples = _samples(bundle)
    calibration = out.parent / "calibration.json"
    found = calibrate(bundle, samples)
    found.save(calibration.parent)
    quantize(out, None, calibration=calibration, options=QuantizeOptions(dialects=(runtime,)))
    return out


def _export(config: ModelConfig, out: Path, options: ExportOptions) -> Path:
    import torch

    checkpoint = out.with_suffix(".pth")
    torch.save({"model": random_tensors(config), "args": training_args(config)}, checkpoint)
    bundle_from_model(load_model(ModelSource(checkpoint)), out, options)
    checkpoint.unlink()
    return out


def _samples(bundle: Bundle) -> Samples:
    """Make calibration samples of drawn images and random ids."""
    backbone = bundle.manifest.model.backbone
    rng = np.random.default_rng(1)
    pixels = [
        pixels_from_image(
            decode_picture(picture_from_seed("target", 1, index).jpeg, "drawing"),
            backbone.image_size,
        )
        for index in range(_SAMPLES)
    ]
    texts = tuple(
        (0, *rng.integers(4, backbone.vocab_size, length).tolist(), 2)
        for length in rng.integers(6, 29, _SAMPLES)
    )
    return Samples(np.stack(pixels), texts, "drawn", "drawn", 1)


def _photograph(rng: np.random.Generator) -> Image.Image:
    """Draw clouds of several sizes with some grain; about 80 KiB as JPEG."""
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells in (3, 9, 27, 81):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        canvas += np.asarray(layer, np.float32) / 4
    canvas += rng.normal(0, 6, canvas.shape).astype(np.float32)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
