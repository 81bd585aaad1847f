"""One row's content to pixels or text, or a short code and a sentence for why it cannot be."""

from __future__ import annotations

import io
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mwa_export.errors import ImageError
from mwa_export.inputs.content import Code, Content, Problem
from mwa_export.inputs.pictures import Picture
from mwa_export.inputs.preprocess import pixels_from_image

MAX_PIXELS = 2 * 89_478_485  # where Pillow itself stops: about 512 MiB of RGB
MAX_CHARACTERS = 1_000_000  # of a text; tokenizing this many takes well under a second


class RowRefusedError(ImageError):
    """A row that cannot be embedded. ``code`` is for programs, the message for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def problem(self) -> Problem:
        """The same as a value."""
        return Problem(self.code, str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self))


def pixels_of(
    content: Content, name: str, size: int, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode a picture. Returns (size, size, 3) uint8, as `preprocess.pixels_from_image` does.

    The first frame of an animation is taken; the EXIF orientation is not applied.

    Raises:
        ImageError: it cannot be read or decoded; a `RowRefusedError` wherever we know the code.
    """
    if isinstance(content, str):
        raise RowRefusedError("not-a-picture", f"{name}: is a text. Expected a picture.")
    if isinstance(content, Picture):
        _refuse_special(content)
    data = content if isinstance(content, bytes) else content.read()
    if not data:
        raise RowRefusedError("empty", f"{name}: is empty. Expected a picture.")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise RowRefusedError(
                "too-large",
                f"{name}: is {image.width} x {image.height}. Expected {max_pixels} pixels at most.",
            )
        image.load()
        return pixels_from_image(image, size)
    except UnidentifiedImageError as error:
        reason = f"{name}: is no picture that can be decoded. It starts with {data[:16]!r}."
        raise RowRefusedError("not-a-picture", reason) from error
    except Image.DecompressionBombError as error:
        raise RowRefusedError("too-large", f"{name}: has too many pixels ({error}).") from error
    except MemoryError as error:
        raise RowRefusedError("too-large", f"{name}: does not fit in memory.") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        cut = isinstance(error, EOFError) or "truncated" in str(error)
        reason = f"{name}: cannot be decoded ({type(error).__name__}: {error})."
        raise RowRefusedError("truncated" if cut else "unreadable", reason) from error


def _refuse_special(picture: Picture) -> None:
    """Opening a pipe would wait for a writer."""
    try:
        mode = picture.path.stat().st_mode
    except FileNotFoundError:
        raise RowRefusedError("missing", f"{picture}: no such file. Expected a picture.") from None
    except (OSError, ValueError) as error:
        raise RowRefusedError("unreadable", f"{picture}: cannot be read ({error}).") from error
    if not stat.S_ISREG(mode):
        raise RowRefusedError("unreadable", f"{picture}: is no plain file. Expected a picture.")


def text_of(content: object, *, what: str = "the text") -> str:
    """A text that can be tokenized.

    Raises:
        RowRefusedError: it is null, blank, no Unicode, binary, or above `MAX_CHARACTERS`.
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
        raise RowRefusedError("not-text", f"{what} is binary or no valid Unicode.")
    return content


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return True
