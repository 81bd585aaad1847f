"""Truncated images are told apart from damaged ones, in every format."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from picture_formats import GOOD, saved

from mwa_export.errors import ImageError
from mwa_export.inputs.decode import decode_picture

MORE = {
    "progressive JPEG": lambda: saved("JPEG", progressive=True),
    "lossless WebP": lambda: saved("WEBP", lossless=True),
    "JPEG 2000 without boxes": lambda: saved("JPEG2000", no_jp2=True),
    "raw TIFF": lambda: saved("TIFF"),
    "TIFF of JPEG": lambda: saved("TIFF", compression="jpeg"),
    "packed TGA": lambda: saved("TGA", compression="tga_rle"),
    "grey PPM": lambda: saved("PPM", "L"),
}
SAMPLES = GOOD | MORE
UNMARKED = {"IM": 512, "PCD": 96 * 2048, "SPIDER": 300, "XBM": 70, "XPM": 70}
"""Formats without a mark, or with one of text: the length of their headers."""


def code_of(data: bytes) -> str:
    try:
        decode_picture(data)
    except ImageError as error:
        return error.code
    return "whole"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_cut_anywhere_is_truncated_or_costs_no_pixel(name: str) -> None:
    data = SAMPLES[name]()
    whole = np.asarray(decode_picture(data))
    start = UNMARKED.get(name, 40)
    for length in {
        len(data) // 2,
        *range(start, len(data), max(1, len(data) // 40)),
        len(data) - 1,
    }:
        code = code_of(data[:length])
        if code == "whole":  # what is gone holds no pixels
            assert np.array_equal(np.asarray(decode_picture(data[:length])), whole)
        else:
            assert code == "truncated", length


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_damage_in_a_whole_file_is_not_called_truncated(name: str) -> None:
    data = bytearray(SAMPLES[name]() + b"\0")  # more than there should be
    start = data.find(b"IDAT" if name == "PNG" else b"mdat") % (len(data) // 2) + 60
    data[start : start + 200] = bytes(200)
    assert code_of(bytes(data)) in ("unreadable", "whole")


def test_libtiff_prints_nothing_that_names_no_picture() -> None:
    code = (
        "import sys; from mwa_export.inputs.decode import decode_picture\n"
        "try: decode_picture(sys.stdin.buffer.read())\n"
        "except Exception as error: print(error)"
    )
    data = bytearray(saved("TIFF", compression="jpeg"))
    tables = data.index(b"\xff\xd8\xff\xdb")
    data[tables + 3] = 0xFE  # a comment in the place of the quantization table
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert b"cannot be decoded" in done.stdout
    assert done.stderr == b""
