"""Small pictures for reports."""

from __future__ import annotations

import io

from mwa_export.inputs.content import Content
from mwa_export.inputs.decode import picture_of, refusals

THUMBNAIL = 160  # pixels of the longer side


def thumbnail(content: Content, name: str, size: int = THUMBNAIL, *, quality: int = 75) -> bytes:
    """Reduce a picture to a JPEG whose longer side has ``size`` pixels; ``name`` is for messages.

    Raises:
        ImageError: it cannot be read or decoded.
    """
    image, buffer = picture_of(content, name), io.BytesIO()
    with refusals(name):
        small = image.convert("RGB")
        small.thumbnail((size, size))
        small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
