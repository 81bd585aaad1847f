"""A bad picture or text has a reason; a good one has the pixels of the reference."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mwa_export.errors import ImageError
from mwa_export.inputs.content import RowRefusedError
from mwa_export.inputs.decode import MAX_CHARACTERS, pixels_of, text_of
from mwa_export.inputs.pictures import Picture
from mwa_export.inputs.preprocess import pixels_from_image


def image(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (41, 57, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image(), "JPEG", exif=exif)


def sixteen_bits() -> bytes:
    values = np.arange(41 * 57, dtype=np.uint16).reshape(41, 57) * 20
    return encoded(Image.fromarray(values), "PNG")


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large; its data are few."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


GOOD: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: encoded(image("CMYK"), "JPEG"),
    "palette": lambda: encoded(image("P"), "PNG"),
    "transparent palette": lambda: encoded(image("P"), "PNG", transparency=3),
    "16 bit": sixteen_bits,
    "grey and alpha": lambda: encoded(image("LA"), "PNG"),
    "transparent": lambda: encoded(image("RGBA"), "PNG"),
    "animated": lambda: encoded(
        image(), "GIF", save_all=True, append_images=[Image.new("RGB", (57, 41))]
    ),
    "turned by EXIF": turned,
    "webp": lambda: encoded(image(), "WEBP"),
}


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong-extension.bmp"
    path.write_bytes(GOOD[name]())
    expected = pixels_from_image(Image.open(path), 24)
    for content in (path.read_bytes(), Picture(path)):
        found = pixels_of(content, "x", 24)
        assert found.shape == (24, 24, 3)
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)


def test_the_orientation_of_exif_is_not_applied() -> None:
    plain = pixels_of(encoded(image(), "JPEG"), "x", 24)
    assert np.array_equal(pixels_of(turned(), "x", 24), plain)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated jpeg": (lambda: encoded(image(), "JPEG")[:-400], "truncated"),
    "truncated png": (lambda: encoded(image(), "PNG")[:-900], "truncated"),
    "empty": (lambda: b"", "empty"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-a-picture"),
    "html": (lambda: b"<!doctype html><html>not found</html>", "not-a-picture"),
    "bomb": (lambda: bomb(60_000, 60_000), "too-large"),
    "above the limit": (lambda: bomb(13_000, 13_800), "too-large"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_picture_has_its_code(name: str) -> None:
    make, code = BAD[name]
    with pytest.raises(RowRefusedError) as caught:
        pixels_of(make(), "photo.jpg", 24)
    assert caught.value.code == code
    assert "photo.jpg" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).code == code


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match=r"photo\.png"):
        pixels_of(bomb(0, 5), "photo.png", 24)


def test_the_limit_of_pixels_can_be_chosen() -> None:
    data = encoded(image(), "PNG")
    assert pixels_of(data, "x", 8, max_pixels=41 * 57).shape == (8, 8, 3)
    with pytest.raises(RowRefusedError, match="57 x 41"):
        pixels_of(data, "x", 8, max_pixels=41 * 57 - 1)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("none", "missing"), ("pipe", "unreadable"), ("folder", "unreadable"), ("loop", "unreadable")],
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    kind: str, code: str, tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    with pytest.raises(RowRefusedError, match=r"photo\.jpg") as caught:
        pixels_of(Picture(path), "photo.jpg", 24)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "null"),
        ("", "empty-text"),
        (" \n", "empty-text"),
        (3, "not-text"),
        (b"\xff\xfe", "not-text"),
        ("a\0b", "not-text"),
        ("\udcff", "not-text"),
        ("x" * (MAX_CHARACTERS + 1), "too-large"),
    ],
)
def test_a_bad_text_has_its_code(content: object, code: str) -> None:
    with pytest.raises(RowRefusedError) as caught:
        text_of(content)
    assert caught.value.code == code


def test_a_good_text_is_kept_as_it_is() -> None:
    for text in (" a cat ", "ein Bär", "x" * MAX_CHARACTERS):
        assert text_of(text) == text
    assert text_of("ein Bär".encode()) == "ein Bär"
