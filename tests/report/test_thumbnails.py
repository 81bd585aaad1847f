"""Thumbnails of any image are small JPEG files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from picture_formats import damaged_avif, unknown_dds
from PIL import Image

from mwa_export.errors import ImageError
from mwa_export.inputs.pictures import Picture
from mwa_export.report.page import thumbnail


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (12, 8), (2000, 3), (3, 2000), (320, 160)])
def test_thumbnail_is_small_whatever_the_picture(
    mode: str, size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"  # what it is called does not matter
    Image.new(mode, size, 90).save(path, "PNG")
    for picture in (Picture(path), path.read_bytes()):
        made = Image.open(io.BytesIO(thumbnail(picture, 160)))
        assert (made.format, made.mode) == ("JPEG", "RGB")
        assert max(made.size) == min(160, max(size)), "never enlarged, never smaller than asked"


@pytest.mark.parametrize("data", [b"<html>", unknown_dds(), damaged_avif()])
def test_thumbnail_of_a_damaged_picture_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="image: cannot be decoded"):
        thumbnail(data, 160)


def test_thumbnail_of_no_picture_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        thumbnail(Picture(tmp_path / "gone.jpg"), 160)
