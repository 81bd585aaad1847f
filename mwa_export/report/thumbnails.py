"""Small pictures for reports, as data URLs."""

from __future__ import annotations

import io

from mwa_export.inputs.pictures import Picture, decode_picture

THUMBNAIL = 160  # pixels of the longer side


def thumbnail(picture: Picture) -> bytes:
    """A picture as a small JPEG.

    Raises:
        ImageError: it cannot be read.
    """
    image = decode_picture(picture.read(), str(picture)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
