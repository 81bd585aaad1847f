"""Resizing gives the pixels of the Pillow used for training, on every version of Pillow."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from mwa_export.inputs.preprocess import pixels_from_image

MODES = ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr", "HSV", "I", "F")
# (width, height) -> hash of the pixels in all modes at 64 and 224, from a plain
# `image.convert("RGB").resize((S, S), BICUBIC)` of Pillow 10.3.
EXPECTED = {
    (480, 640): "4713aa55ce0f5a77",
    (640, 480): "6aee763ee72af485",
    (5, 5): "df2cb5ea546a653e",
    (3, 900): "d96c3649960cf1c7",
    (900, 3): "eb0dcc859658ce91",
    (1, 1): "23d229cd526576de",
    (2000, 1500): "dc7906938b920206",
    (1500, 2000): "b19692669743d8ac",
    (64, 224): "ec105dbebe8d1a6b",
    (224, 64): "91531445935b3494",
    (333, 777): "c4f4c7073cb15262",
}


def _picture(width: int, height: int, mode: str) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([(x * 7 + y * 3) % 256, (x * x + y * 5) % 256, (x * y + 11) % 256], -1)
    picture = Image.fromarray(waves.astype(np.uint8))
    return picture if mode == "RGB" else picture.convert(mode)


SIZES = [
    pytest.param(
        size, marks=pytest.mark.slow if max(size) > 1000 else (), id="x".join(map(str, size))
    )
    for size in EXPECTED
]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_reference(size: tuple[int, int]) -> None:
    digest = hashlib.sha256()
    for mode in MODES:
        for side in (64, 224):
            digest.update(pixels_from_image(_picture(*size, mode), side).tobytes())
    assert digest.hexdigest()[:16] == EXPECTED[size]


def test_picture_of_the_right_size_is_left_as_it_is() -> None:
    picture = _picture(64, 64, "RGB")
    assert np.array_equal(pixels_from_image(picture, 64), np.asarray(picture))
