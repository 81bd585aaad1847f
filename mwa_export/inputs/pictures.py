"""Where a picture's bytes lie: in a file, or in a member of a tar."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from mwa_export.inputs.content import RowRefusedError


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
        """The last part of its path, for people."""
        return self.path.name if self.member is None else self.member.rpartition("/")[2]

    def read(self) -> bytes:
        """Read the encoded picture.

        Raises:
            RowRefusedError: there is no such file, it is a folder, pipe or device, or it cannot be
                read in full.
        """
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # opening a pipe waits for a writer
                raise RowRefusedError(
                    "unreadable", f"{self}: is not a regular file. Expected a picture."
                )
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read() if self.size is None else file.read(self.size)
        except FileNotFoundError:
            raise RowRefusedError("missing", f"{self}: no such file. Expected a picture.") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            reason = getattr(error, "strerror", None) or error
            raise RowRefusedError("unreadable", f"{self}: cannot be read ({reason}).") from error
        if self.size is not None and len(data) != self.size:
            raise RowRefusedError(
                "truncated", f"{self}: {len(data)} of {self.size} bytes. The tar was cut short."
            )
        return data
