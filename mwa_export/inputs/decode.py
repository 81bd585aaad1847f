"""The one image decoder, and the check of texts: a usable value, or one error with its reason."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.content import Code, Content, Problem
from mwa_export.inputs.preprocess import pixels_from_image

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000"),
    *("BLP", "CUR", "DCX", "DDS", "FITS", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "IMT"),
    *("MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA"),
    *("XBM", "XPM", "XVTHUMB"),
)
"""Pillow's names of the formats that are read. Pillow decodes all of them inside this process.

Left out: EPS starts Ghostscript; IPTC opens whatever it holds, EPS included; WMF, EMF, BUFR, GRIB,
HDF5 and MPEG need a handler from elsewhere; FPX and MIC are containers of other formats.
"""

MAX_PIXELS = 2 * 89_478_485  # where Pillow itself stops: about 512 MiB of RGB
MAX_SIDE = 1 << 20  # pixels; resizing a longer line overflows Pillow's tables
MAX_CHARACTERS = 1_000_000  # of a text; tokenizing this many takes well under a second

_REFUSED = (  # how files of well-known formats begin that are not read
    ("PostScript (EPS)", rb"%!|\xc5\xd0\xd3\xc6"),
    ("PDF", rb"%PDF"),
    ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg\b"),
    ("WMF", rb"\xd7\xcd\xc6\x9a"),
    ("EMF", rb"\x01\0\0\0.{36} EMF"),
    ("HEIC", rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)"),
    ("AVIF (by this version of Pillow)", rb".{4}ftypavi[fs]"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("FlashPix or MIC", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("HDF5", rb"\x89HDF\r\n"),
    ("GRIB", rb"GRIB"),
    ("BUFR", rb"BUFR"),
    ("MPEG", rb"\0\0\x01[\xb3\xba]"),
    ("IPTC", rb"\x1c[\x01-\x09]"),
)
_OPENS_MORE = ("EPS", "IPTC")  # of the formats left out
_READ_TO_NAME = 1024  # bytes


class RowRefusedError(DataError):
    """A text that cannot be embedded. ``code`` is for programs, the message for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code

    @property
    def problem(self) -> Problem:
        """The code and the message as a value."""
        return Problem(self.code, str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self))


def decode_picture(
    content: Content | Image.Image, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a picture fully, to RGB.

    The first frame of an animation is taken; the EXIF orientation is not applied.

    Args:
        content: where the picture lies, its encoded bytes, or a picture that Pillow has opened.
        name: what messages call it; by default where it lies.
        max_pixels: refuse larger pictures before they are decoded.

    Raises:
        ImageError: it cannot be read or decoded, or is of a format that is not in FORMATS.
    """
    if name is None:
        name = "picture" if isinstance(content, bytes | Image.Image) else str(content)
    if isinstance(content, str):
        raise ImageError(f"{name}: is a text. Expected a picture.", "not-a-picture")
    if isinstance(content, Image.Image):
        image = content
    else:
        data = content if isinstance(content, bytes) else content.read()
        if not data:
            raise ImageError(f"{name}: is empty. Expected a picture.", "empty")
        formats = _formats()
        with _one_error(name, data[:_READ_TO_NAME]):
            image = Image.open(io.BytesIO(data), formats=formats)
    _check(image, name, max_pixels)
    with _one_error(name):
        image.load()
    _check(image, name, max_pixels)  # icons have their size in two places
    with _one_error(name):
        image = image if image.mode == "RGB" else image.convert("RGB")
    return image


def pixels_of(
    content: Content | Image.Image, name: str, size: int, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode a picture and resize it as `preprocess.pixels_from_image` does.

    Returns (size, size, 3) uint8. Arguments and errors are those of `decode_picture`.
    """
    return pixels_from_image(decode_picture(content, name, max_pixels=max_pixels), size)


@contextmanager
def _one_error(name: str, head: bytes = b"") -> Iterator[None]:
    """Turn all that Pillow may raise into ImageError. No code of ours goes inside.

    Its plugins raise nearly anything on damaged files: struct.error, zlib.error, OverflowError,
    NotImplementedError, and warnings where Python was told to raise these.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: cannot be decoded: {_unknown(head)}", "not-a-picture") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: has too many pixels ({error}).", "too-large") from error
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit in memory.", "too-large") from error
    except Exception as error:
        cut = isinstance(error, EOFError) or "truncated" in str(error)
        reason = f"{name}: cannot be decoded ({type(error).__name__}: {error})."
        raise ImageError(reason, "truncated" if cut else "unreadable") from error


def _check(image: Image.Image, name: str, max_pixels: int) -> None:
    """Refuse a picture by its header."""
    if image.format in _OPENS_MORE:
        raise ImageError(
            f"{name}: was opened as {image.format}, which can start another program. If you trust "
            'it, give what its convert("RGB") returns.',
            "not-a-picture",
        )
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name}: is {width} x {height}. Expected {max_pixels} pixels at most, and {MAX_SIDE} "
            "on a side.",
            "too-large",
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name}: is {width} x {height}. Expected pixels.", "unreadable")


def _unknown(head: bytes) -> str:
    """Why Pillow does not identify a file that starts like this."""
    for name, start in _REFUSED:
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            return f"{name} is not read here. Convert it to PNG or JPEG."
    return (
        f"it is not a picture, or its header is damaged; it starts with {head[:16]!r}. Expected "
        "JPEG, PNG, WebP, TIFF or another raster format."
    )


@cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that this version of Pillow knows; it raises KeyError for others."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def text_of(content: object, *, what: str = "the text") -> str:
    """Check that a text can be tokenized, and return it.

    Raises:
        RowRefusedError: it is null, blank, not Unicode, binary, or above `MAX_CHARACTERS`.
    """
    if content is None:
        raise RowRefusedError("null", f"{what} is null. Expected a text.")
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowRefusedError("not-text", f"{what} is not UTF-8 ({error.reason}).") from error
    if not isinstance(content, str):
        found = type(content).__name__
        raise RowRefusedError("not-text", f"{what} is of type {found}. Expected a text.")
    if len(content) > MAX_CHARACTERS:
        raise RowRefusedError(
            "too-large", f"{what} has {len(content):,} characters. Expected {MAX_CHARACTERS:,}."
        )
    if not content.strip():
        raise RowRefusedError("empty-text", f"{what} is blank.")
    if "\0" in content or not (content.isascii() or _is_unicode(content)):
        raise RowRefusedError("not-text", f"{what} is binary or not valid Unicode.")
    return content


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return True
