"""Decode images and check texts: return a usable value or raise one error with a reason."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.content import Code, Content, Problem
from mwa_export.inputs.formats import formats, is_cut, unknown
from mwa_export.inputs.preprocess import pixels_from_image

MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit: about 512 MiB of RGB
MAX_SIDE = 1 << 20  # pixels; resizing a longer line overflows Pillow's tables
MAX_CHARACTERS = 1_000_000  # of a text; tokenizing this many takes well under a second

Room = Callable[[int], AbstractContextManager[object]]
"""Context manager that waits for memory for a number of pixels and holds it while entered."""
_OPENS_MORE = ("EPS", "IPTC")  # formats that open other files or start other programs
_READ_TO_NAME = 1024  # bytes


class RowRefusedError(DataError):
    """A text cannot be embedded. ``code`` is the machine-readable reason."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code

    @property
    def problem(self) -> Problem:
        """The code and message as a Problem."""
        return Problem(self.code, str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self))


def decode_picture(
    content: Content | Image.Image, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image completely, to RGB.

    Only the first frame of an animation is used. The EXIF orientation is not applied.

    Args:
        content: a file or other Readable, encoded bytes, or an image opened by Pillow.
        name: its name in messages; None: its path.
        max_pixels: refuse larger images before they are decoded.

    Raises:
        ImageError: it cannot be read or decoded, or its format is not in FORMATS.
    """
    if name is None:
        name = "image" if isinstance(content, bytes | Image.Image) else str(content)
    return _rgb(*_opened(content, name, max_pixels), name, max_pixels)


def pixels_of(
    content: Content | Image.Image,
    name: str,
    size: int,
    *,
    max_pixels: int = MAX_PIXELS,
    room: Room = nullcontext,
    on_loss: Callable[[str], None] | None = None,
) -> NDArray[np.uint8]:
    """Decode an image and resize it with `preprocess.pixels_from_image`.

    Args:
        content, name, max_pixels: see `decode_picture`.
        size: side of the result in pixels.
        room: called with the number of pixels; entered while they are in memory.
        on_loss: called with a description of what conversion to 8-bit RGB loses.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ImageError: see `decode_picture`.
    """
    image, data = _opened(content, name, max_pixels)
    with room(image.width * image.height):
        rgb = _rgb(image, data, name, max_pixels)
        if on_loss is not None and (lost := _lost(image)) is not None:
            on_loss(lost)
        return pixels_from_image(rgb, size)


def _opened(
    content: Content | Image.Image, name: str, max_pixels: int
) -> tuple[Image.Image, bytes]:
    """Open an image and check its header. Returns it and its encoded bytes, if known."""
    if isinstance(content, str):
        raise ImageError(f"{name}: is a text. Expected an image.", "not-a-picture")
    if isinstance(content, Image.Image):
        image, data = content, b""
    else:
        data = content if isinstance(content, bytes) else content.read()
        if not data:
            raise ImageError(f"{name}: is empty. Expected an image.", "empty")
        known = formats()
        with _one_error(name, data):
            image = Image.open(io.BytesIO(data), formats=known)
    _check(image, name, max_pixels)
    return image, data


def _rgb(image: Image.Image, data: bytes, name: str, max_pixels: int) -> Image.Image:
    form = image.format  # loading an icon changes it
    with _one_error(name, data, form):
        image.load()
    _check(image, name, max_pixels)  # icons store their size twice, and the two may differ
    with _one_error(name, data, form):
        return image if image.mode == "RGB" else image.convert("RGB")


def _lost(image: Image.Image) -> str | None:
    """Describe what converting an image to 8-bit RGB, like the reference does, loses."""
    if image.mode.startswith(("I", "F")):
        return "image: 16-bit or float grey, cut to 8 bits"
    return "image: transparency, dropped" if image.has_transparency_data else None


@contextmanager
def _one_error(name: str, data: bytes, form: str | None = None) -> Iterator[None]:
    """Convert every error of Pillow to ImageError. None of our own code goes inside.

    For damaged files its plugins raise many types: struct.error, zlib.error, OverflowError,
    NotImplementedError, and warnings if Python turns them into errors.
    """
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: has too many pixels ({error}).", "too-large") from error
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit in memory.", "too-large") from error
    except Exception as error:
        found = f"({type(error).__name__}: {error})."
        code: Code = "unreadable"
        if isinstance(error, EOFError) or "truncated" in str(error).lower() or is_cut(data, form):
            code = "truncated"
        elif isinstance(error, UnidentifiedImageError):
            code, found = "not-a-picture", unknown(data[:_READ_TO_NAME])
        at = ":" if code == "not-a-picture" else ""
        raise ImageError(f"{name}: cannot be decoded{at} {found}", code) from error


def _check(image: Image.Image, name: str, max_pixels: int) -> None:
    """Raise ImageError for an image that its header rules out."""
    if image.format in _OPENS_MORE:
        raise ImageError(
            f"{name}: was opened as {image.format}, a format that can start another program. If "
            'you trust it, pass the result of its convert("RGB").',
            "not-a-picture",
        )
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name}: is {width} x {height}. Expected at most {max_pixels} pixels, and at most "
            f"{MAX_SIDE} per side. Resize it.",
            "too-large",
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name}: is {width} x {height}. Expected at least 1 x 1.", "unreadable")


def text_of(content: object, *, what: str = "the text") -> str:
    """Check that a text can be tokenized, and return it. Bytes are decoded as UTF-8.

    Raises:
        RowRefusedError: it is null, blank, binary, not valid Unicode, or longer than
            `MAX_CHARACTERS`.
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
            "too-large",
            f"{what} has {len(content):,} characters. Expected at most {MAX_CHARACTERS:,}.",
        )
    if not content.strip():
        raise RowRefusedError("empty-text", f"{what} is blank. Expected a text.")
    if "\0" in content or not (content.isascii() or _is_unicode(content)):
        raise RowRefusedError("not-text", f"{what} is binary or not valid Unicode.")
    return content


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return True
