"""Where a picture's bytes lie: in a file, or in a member of a tar."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_export.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, not yet read."""

    path: Path  # the file, or the tar that holds it
    member: str | None = None  # its name in the tar
    offset: int = 0  # of its bytes in the tar
    size: int | None = None  # bytes; None: to the end of the file

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    @property
    def name(self) -> str:
        """The last part of its name, for people."""
        return self.path.name if self.member is None else self.member.rpartition("/")[2]

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: there is no such file, or it cannot be read in full.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read() if self.size is None else file.read(self.size)
        except FileNotFoundError:
            raise ImageError(f"{self}: no such file. Expected a picture.") from None
        except OSError as error:
            raise ImageError(f"{self}: cannot be read ({error.strerror}).") from error
        if self.size is not None and len(data) != self.size:
            raise ImageError(f"{self}: {len(data)} of {self.size} bytes. The tar was cut short.")
        return data


def decode_picture(data: bytes, name: str) -> Image.Image:
    """Decode one picture fully. ``name`` is for messages.

    Raises:
        ImageError: Pillow cannot decode it.
    """
    from PIL import Image

    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: cannot be decoded as a picture ({error}).") from error
