"""Small pictures for reports and contact sheets."""

from __future__ import annotations

import io

from mwa_export.inputs.content import Content
from mwa_export.inputs.decode import decode_picture

THUMBNAIL = 160  # pixels of the longer side, in the parity report
_QUALITY = 80  # of the JPEG


def thumbnail(picture: Content, longest: int) -> bytes:
    """Encode a picture as a small JPEG, the longer side at most ``longest`` pixels.

    Raises:
        ImageError: it cannot be read or decoded.
    """
    small = decode_picture(picture)
    small.thumbnail((longest, longest))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
