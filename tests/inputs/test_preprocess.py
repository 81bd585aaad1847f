"""Preprocessing gives the pixels that the reference was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mwa_export.errors import ImageError
from mwa_export.inputs.preprocess import normalize, pixels_from_image


def picture(mode: str = "RGB", size: tuple[int, int] = (50, 30)) -> Image.Image:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image.convert(mode)


@given(st.integers(1, 4), st.integers(1, 9))
def test_normalized_pixels_follow_the_reference_formula(batch: int, size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    expected = (pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5
    found = normalize(pixels)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)


def test_black_is_minus_one_and_white_is_one() -> None:
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert normalize(pixels)[:, 0].tolist() == [[-1, 1]] * 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA", "YCbCr"])
def test_every_mode_becomes_a_square_of_rgb(mode: str) -> None:
    pixels = pixels_from_image(picture(mode), 24)
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8


def test_whole_picture_is_squeezed_into_the_square() -> None:
    image = Image.new("RGB", (80, 20), "black")
    image.paste("white", (60, 0, 80, 20))  # a crop to the middle square would lose it
    assert pixels_from_image(image, 16)[8, -1].tolist() == [255, 255, 255]


def test_resize_is_bicubic() -> None:
    expected = picture().resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels_from_image(picture(), 16), np.asarray(expected))


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)])
def test_wrong_pixels_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"Expected uint8 with shape"):
        normalize(array)
