"""The one decoder of pictures, and the validation of texts: content to pixels or to a clean text.

Whatever Pillow raises on a damaged file becomes one error of one type, with a code for programs and
a sentence for people.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mwa_export.errors import ImageError
from mwa_export.inputs.content import Content, RowRefusedError
from mwa_export.inputs.preprocess import pixels_from_image

MAX_PIXELS = 2 * 89_478_485  # where Pillow itself stops: about 512 MiB of RGB
MAX_CHARACTERS = 1_000_000  # of a text; tokenizing this many takes well under a second
FORMATS = tuple(
    re.findall(
        r"\w+",
        "AVIF BLP BMP CUR DCX DDS DIB FITS FLI FTEX GBR GIF ICNS ICO IM IMT JPEG JPEG2000 MCIDAS "
        "MSP PCD PCX PIXAR PNG PPM PSD QOI SGI SPIDER SUN TGA TIFF WEBP XBM XPM XVTHUMB",
    )
)
"""Raster formats that Pillow decodes inside this process.

Left out: PostScript (Pillow starts Ghostscript), WMF and EMF (drawn by Windows), and formats that
Pillow recognizes but leaves to other programs (BUFR, FPX, GRIB, HDF5, MIC, MPEG).
"""
_REFUSED = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "a PDF document",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile",
    b"\x01\x00\x00\x00": "a Windows metafile",
    b"<svg": "SVG",
    b"<?xm": "XML",
}


def picture_of(
    content: Content | Image.Image, name: str, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read and fully decode a picture: the first frame, without applying its EXIF orientation.

    Args:
        content: encoded bytes, something that reads them, or a picture that Pillow has opened.
        name: for messages.
        max_pixels: refuse larger pictures before decoding them.

    Raises:
        ImageError: it cannot be read or decoded; a `RowRefusedError` wherever the code is known.
    """
    if isinstance(content, str):
        raise RowRefusedError("not-a-picture", f"{name}: is a text. Expected a picture.")
    if isinstance(content, Image.Image):
        data, opened = b"", content
    else:
        data, opened = content if isinstance(content, bytes) else content.read(), None
        if not data:
            raise RowRefusedError("empty", f"{name}: is empty. Expected a picture.")
    with refusals(name, data):
        image = opened or Image.open(io.BytesIO(data), formats=formats())
        if image.width * image.height > max_pixels:
            raise RowRefusedError(
                "too-large",
                f"{name}: is {image.width} x {image.height}. Expected {max_pixels} pixels at most.",
            )
        image.load()
        return image


def pixels_of(
    content: Content | Image.Image, name: str, size: int, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode a picture and resize it for the model. Returns (size, size, 3) uint8 RGB.

    Raises:
        ImageError: see `picture_of`.
    """
    image = picture_of(content, name, max_pixels=max_pixels)
    with refusals(name):
        return pixels_from_image(image, size)


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def refusals(name: str, data: bytes = b"") -> Iterator[None]:
    """Turn whatever Pillow raises into one ImageError that names the picture."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        known = _REFUSED.get(data[:4])
        found = f"{known}, which is not decoded" if known else f"no picture we know: {data[:16]!r}"
        reason = f"{name}: is {found}. Expected PNG, JPEG, WebP or another raster format."
        raise RowRefusedError("not-a-picture", reason) from error
    except Image.DecompressionBombError as error:
        raise RowRefusedError("too-large", f"{name}: has too many pixels ({error}).") from error
    except MemoryError as error:
        raise RowRefusedError("too-large", f"{name}: does not fit in memory.") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        cut = isinstance(error, EOFError) or "truncated" in str(error)
        reason = f"{name}: cannot be decoded ({type(error).__name__}: {error})."
        raise RowRefusedError("truncated" if cut else "unreadable", reason) from error


def text_of(content: object, *, what: str = "the text") -> str:
    """Validate a text before it is tokenized, decoding UTF-8 bytes.

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
