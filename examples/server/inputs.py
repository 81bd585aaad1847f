"""The inputs of a request: texts to token ids, and base64 images to pixels."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from typing import Any

from batching import Row
from PIL import Image

import mwa_export

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""What Pillow may decode here: the formats that OpenAI accepts, and fewer native parsers."""
MAX_CHARACTERS = 100_000  # of one text; the model reads its first few dozen tokens


class ApiError(Exception):
    """An error in the form that OpenAI's clients expect."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refused(message: str) -> ApiError:
    """An input that cannot be embedded."""
    return ApiError(400, message, param="input")


def inputs_of(value: Any, most: int) -> list[Any]:
    """The `input` of a request as a list of texts and images, not checked any further."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise refused("`input` is empty. Expected at least one text or image.")
    if len(items) > most:
        raise refused(f"`input` has {len(items)} items. Expected at most {most}.")
    if any(type(item) in (int, list) for item in items):
        raise refused(
            "Token arrays are not supported: this model has a tokenizer of its own. "
            "Send the text itself."
        )
    return items


def row_of(encoder: mwa_export.Encoder, item: Any, name: str, max_pixels: int) -> Row:
    """Prepare one input for the model; ``name`` is for messages."""
    if isinstance(item, str):
        cut: list[object] = []
        ids = token_ids_of(encoder, item, name, cut.append)
        return Row("text", ids, truncated=bool(cut))
    if isinstance(item, dict) and item.keys() == {"image"} and isinstance(item["image"], str):
        data = bytes_of(item["image"], name)
        return Row("image", pixels_of(encoder, data, name, max_pixels))
    raise refused(f'{name} is neither a text nor {{"image": "BASE64"}}.')


def token_ids_of(
    encoder: mwa_export.Encoder, text: str, name: str, on_cut: Callable[[object], object]
) -> tuple[int, ...]:
    """Token ids with BOS and EOS, cut to the longest text of the model."""
    if not text.strip():
        raise refused(f"{name} is a blank text.")
    if len(text) > MAX_CHARACTERS:
        raise refused(f"{name} has {len(text)} characters. Expected at most {MAX_CHARACTERS}.")
    if text.startswith("data:image/"):
        raise refused(f'{name} is an image in a text. Send it as {{"image": "data:image/..."}}.')
    encoder.require("text")
    return tuple(encoder.encode([text], on_cut)[0])


def bytes_of(image: str, name: str) -> bytes:
    """Decode an image that was sent as a data URL or as bare base64."""
    if "://" in image[:16]:
        raise refused(
            f"{name} is a URL, and this server does not fetch URLs: a client could make it read "
            "from your private network. Download the image, and send its bytes as base64."
        )
    head, comma, data = image.partition(",")
    if comma and not (head.startswith("data:image/") and head.endswith(";base64")):
        raise refused(f'{name} is not base64 and does not begin with "data:image/...;base64,".')
    try:
        return base64.b64decode(data if comma else image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(f"{name} is not valid base64 ({error}).") from error


def pixels_of(encoder: mwa_export.Encoder, data: bytes, name: str, max_pixels: int) -> Any:
    """Decode an image and resize it. Returns (S, S, 3) uint8."""
    encoder.require("vision")
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
    except Image.DecompressionBombError as error:  # Pillow's own bound
        raise refused(f"{name} is too large. Expected at most {max_pixels} pixels.") from error
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise refused(f"{name} is not a {', '.join(FORMATS)} image.") from error
    width, height = opened.size
    if width * height > max_pixels:
        raise refused(f"{name} is {width} x {height}. Expected at most {max_pixels} pixels.")
    try:
        return encoder.pixels(opened, name)
    except mwa_export.ImageError as error:
        raise refused(str(error)) from error
