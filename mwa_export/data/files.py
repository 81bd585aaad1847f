"""Files of a source, local or remote: opening them, and a picture's place and state."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.content import Content, Problem
from mwa_export.inputs.pictures import Picture
from mwa_export.optional import require

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def is_remote(name: str) -> bool:
    """Whether a name is a URL that fsspec opens. No local name with `://` is looked for."""
    return "://" in name


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        DataError: no such protocol, or it needs a package that is not installed.
    """
    fsspec = require("fsspec", extra="embed", why="read remote paths")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: cannot be opened ({error}).") from error
    return system, path


def open_file(name: str) -> BinaryIO:
    """Open a plain file or a URL for reading. A pipe or a device is refused, not waited for.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        if is_remote(name):
            system, path = file_system(name)
            return cast("BinaryIO", system.open(path, "rb"))
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise DataError(f"{readable(name)}: is not a plain file. Expected one.")
        return open(name, "rb")
    except OSError as error:
        raise DataError(f"{readable(name)}: cannot be read ({error.strerror or error}).") from error


def readable(name: str) -> str:
    r"""A file's name as text. Bytes that are not UTF-8 become `\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def joined(root: str, name: str) -> str:
    """A name below a root, or the name itself if it is absolute or a URL."""
    if is_remote(name):
        return name
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else os.path.join(root, name)


def place_of(root: str, name: str) -> tuple[list[Any] | None, Problem | None]:
    """The place of a picture file, or None and the problem.

    Of a remote file nothing is looked at: that would be a round trip for each.
    """
    full = joined(root, name)
    if is_remote(full):
        return [name, None, None], None
    try:
        found = os.stat(full)
    except FileNotFoundError:
        return None, Problem("missing", "no such file. Expected a picture.")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return None, Problem("unreadable", f"cannot be read ({reason}).")
    for is_kind, words in _KINDS:
        if is_kind(found.st_mode):
            return None, Problem("unreadable", f"is {words}. Expected a picture.")
    return [name, found.st_size, found.st_mtime_ns], None


def picture_at(root: str, place: list[Any], checked: dict[str, None]) -> Content:
    """A picture from its place: name, size, time, and in a tar member, offset and length.

    ``checked`` holds the tars that were compared already.

    Raises:
        DataError: the file is not what it was during the scan.
    """
    name, size, changed, *member = place
    full = joined(root, name)
    if is_remote(full):
        return RemotePicture(full, *member[1:])
    if full not in checked:
        try:
            found = os.stat(full)
            same = (found.st_size, found.st_mtime_ns) == (size, changed)
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{readable(full)}: changed since the source was scanned. Run the command again."
            )
        if member:
            checked[full] = None
    return Picture(Path(full), *member)


@dataclass(frozen=True, slots=True)
class RemotePicture:
    """A picture that fsspec reads; ``offset`` and ``size`` in a tar."""

    url: str
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: it cannot be read in full.
        """
        try:
            system, path = file_system(self.url)
            end = None if self.size is None else self.offset + self.size
            data = bytes(system.cat_file(path, start=self.offset or None, end=end))
        except FileNotFoundError:
            raise ImageError(f"{self.url}: no such file. Expected a picture.") from None
        except (OSError, DataError, io.UnsupportedOperation) as error:
            raise ImageError(f"{self.url}: cannot be read ({error}).") from error
        if self.size is not None and len(data) != self.size:
            raise ImageError(f"{self.url}: {len(data)} of {self.size} bytes. It was cut short.")
        return data
