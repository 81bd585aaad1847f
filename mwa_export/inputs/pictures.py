"""The place of a picture's bytes: a file, or a member of a tar."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from mwa_export.errors import ImageError

MAX_BYTES = 2**31  # of an encoded picture; the largest that is decoded needs less in any format


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, not yet read."""

    path: Path  # the file, or the tar that holds it
    member: str | None = None  # its name in the tar
    offset: int = 0  # of its bytes in the tar
    size: int | None = None  # bytes; None: to the end of the file
    archive: str | None = None  # what the tar was decompressed from, for people

    def __str__(self) -> str:
        file = self.archive or str(self.path)
        return file if self.member is None else f"{file}:{self.member}"

    @property
    def name(self) -> str:
        """The last part of its name, for people."""
        return self.path.name if self.member is None else self.member.rpartition("/")[2]

    def read(self) -> bytes:
        """The encoded picture. A pipe, a device or a folder is refused and not waited for.

        Raises:
            ImageError: there is no such file, or it cannot be read in full.
        """
        try:
            state = self.path.stat()
            if not stat.S_ISREG(state.st_mode):
                raise ImageError(f"{self}: is not a plain file. Expected a picture.")
            size = state.st_size if self.size is None else self.size
            if size > MAX_BYTES:
                found = f"has {size:,} bytes. Expected {MAX_BYTES:,} at most."
                raise ImageError(f"{self}: {found}", "too-large")
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(-1 if self.size is None else self.size)
        except FileNotFoundError:
            raise ImageError(f"{self}: no such file. Expected a picture.", "missing") from None
        except (OSError, ValueError, OverflowError) as error:  # ValueError: NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{self}: cannot be read ({reason}).") from error
        except MemoryError as error:
            raise ImageError(f"{self}: does not fit in memory.", "too-large") from error
        if self.size is not None and len(data) != self.size:
            found = f"{len(data)} of {self.size} bytes. The tar was cut short."
            raise ImageError(f"{self}: {found}", "truncated")
        return data
