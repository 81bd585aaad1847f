"""An image on disk that is read later: a file, or a member of a tar."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from mwa_export.errors import ImageError

MAX_BYTES = 2**31  # of an encoded image; the largest allowed image needs less in any format


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, not yet read."""

    path: Path  # the file, or the tar that contains it
    member: str | None = None  # its name in the tar
    offset: int = 0  # of its bytes in the tar
    size: int | None = None  # bytes; None: the whole file
    archive: str | None = None  # the compressed tar that ``path`` is a copy of, for messages

    def __str__(self) -> str:
        file = self.archive or str(self.path)
        return file if self.member is None else f"{file}:{self.member}"

    @property
    def name(self) -> str:
        """Last part of its name, for messages."""
        return self.path.name if self.member is None else self.member.rpartition("/")[2]

    def read(self) -> bytes:
        """Read the encoded image. Pipes, devices and folders are refused, as they may block.

        Raises:
            ImageError: the file does not exist or cannot be read completely.
        """
        try:
            state = self.path.stat()
            if not stat.S_ISREG(state.st_mode):
                raise ImageError(f"{self}: is not a regular file. Expected an image.")
            size = state.st_size if self.size is None else self.size
            if size > MAX_BYTES:
                found = f"has {size:,} bytes. Expected at most {MAX_BYTES:,}."
                raise ImageError(f"{self}: {found}", "too-large")
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(-1 if self.size is None else self.size)
        except FileNotFoundError:
            raise ImageError(f"{self}: no such file. Expected an image.", "missing") from None
        except (OSError, ValueError, OverflowError) as error:  # ValueError: NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{self}: cannot be read ({reason}).") from error
        except MemoryError as error:
            raise ImageError(f"{self}: does not fit in memory.", "too-large") from error
        if self.size is not None and len(data) != self.size:
            found = f"has {len(data)} of {self.size} bytes, because the tar is truncated."
            raise ImageError(f"{self}: {found}", "truncated")
        return data
