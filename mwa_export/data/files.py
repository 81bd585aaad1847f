"""Files of a collection, local or remote: finding and opening them, and the place of a picture."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from mwa_export.data.fields import Place
from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.content import Problem
from mwa_export.inputs.pictures import Picture
from mwa_export.optional import require

_MAGIC = re.compile(r"[*?\[]")
_BRACE = re.compile(r"\{([^{}]*)\}")
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
        raise unreadable(name, error) from error


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a file or folder that the system does not let us read."""
    return DataError(f"{readable(name)}: cannot be read ({error.strerror or error}).")


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name."""
    if is_remote(name):
        system, path = file_system(name)
        return bool(system.exists(path))
    return os.path.exists(name)


def is_folder(name: str) -> bool:
    """Whether this is the name of a folder."""
    if is_remote(name):
        system, path = file_system(name)
        return bool(system.isdir(path))
    return os.path.isdir(name)


def files_in(folder: str) -> list[str]:
    """Names of the files in a folder, sorted, without those that start with a dot.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        if is_remote(folder):
            system, path = file_system(folder)
            entries = system.ls(path, detail=True)
            found = [e["name"].rpartition("/")[2] for e in entries if e["type"] == "file"]
        else:
            found = [e.name for e in os.scandir(folder) if e.is_file()]
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(name for name in found if not name.startswith("."))


def expanded(spec: str) -> list[str]:
    """Files of tars or Parquet that a folder, a glob or `{000..123}` means; else the spec itself.

    Raises:
        DataError: a glob matches no file.
    """
    if (brace := _BRACE.search(spec)) and not os.path.lexists(spec):
        start, end = spec[: brace.start()], spec[brace.end() :]
        return [n for part in _alternatives(brace[1]) for n in expanded(start + part + end)]
    for suffix, below in ((".tar", ""), (".parquet", ""), (".parquet", "*=*/**/")):
        if spec.lower().endswith(suffix) and split_glob(spec)[1]:
            return _globbed(spec)
        folder = not is_remote(spec) and os.path.isdir(spec)
        if folder and (found := _globbed(f"{os.path.join(spec, below)}*{suffix}")):
            return found
    return [spec]


def split_glob(spec: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it; without one all, and "".

    A file or folder that is there is never taken for a pattern, whatever its name.
    """
    parts = spec.split("/")
    for n, part in enumerate(parts):
        if _MAGIC.search(part) and not os.path.lexists("/".join(parts[: n + 1])):
            folder = "/".join(parts[:n])
            return folder or ("/" if n else ""), "/".join(parts[n:])
    return spec, ""


def _globbed(pattern: str) -> list[str]:
    if is_remote(pattern):
        system, path = file_system(pattern)
        found = [str(system.unstrip_protocol(name)) for name in system.glob(path)]
    else:
        root, rest = split_glob(pattern)
        found = glob.glob(os.path.join(glob.escape(root), rest), recursive=True)
    if not found and not pattern.endswith(("/*.tar", "/*.parquet")):
        raise DataError(f"{readable(pattern)}: matches no file. Expected one at least.")
    return sorted(found)


def _alternatives(text: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        width = len(span[1]) if span[1].startswith("0") else 0
        return [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    return text.split(",")


def readable(name: str) -> str:
    r"""A file's name as text. Bytes that are not UTF-8 become `\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def joined(root: str, name: str) -> str:
    """A name below a root, or the name itself if it is absolute or a URL."""
    if is_remote(name):
        return name
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else os.path.join(root, name)


def place_of(root: str, name: str) -> tuple[Place | None, Problem | None]:
    """The place of a picture file, or None and the problem.

    Of a remote file nothing is looked at: that would be a round trip for each.
    """
    full = joined(root, name)
    if is_remote(full):
        return [name, None, None], None
    try:
        found = os.stat(full)
    except FileNotFoundError:
        where = readable(os.path.abspath(full))
        return None, Problem("missing", f"{where}: no such file. Expected a picture.")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return None, Problem("unreadable", f"cannot be read ({reason}).")
    for is_kind, words in _KINDS:
        if is_kind(found.st_mode):
            return None, Problem("unreadable", f"is {words}. Expected a picture.")
    return [name, found.st_size, found.st_mtime_ns], None


def picture_of(root: str, name: str, *member: Any) -> Picture | RemotePicture:
    """The picture of a file below ``root``; of a tar's ``member``: name, offset and size."""
    full = joined(root, name)
    return RemotePicture(full, *member) if is_remote(full) else Picture(Path(full), *member)


def state_of(name: str) -> tuple[int, int] | None:
    """Size and time of change of a file; None: it is not there, or remote and not looked at."""
    try:
        found = None if is_remote(name) else os.stat(name)
    except OSError:
        return None
    return None if found is None else (found.st_size, found.st_mtime_ns)


def check_state(name: str, state: tuple[int, int] | None) -> None:
    """Raise DataError if a file is not what it was during the scan."""
    if not is_remote(name) and state_of(name) != state:
        raise DataError(
            f"{readable(name)}: changed since the source was scanned. Run the command again."
        )


def picture_at(root: str, place: Place, checked: dict[str, None]) -> Picture | RemotePicture:
    """The picture at a place. ``checked`` holds the tars that were compared already.

    Raises:
        DataError: the file is not what it was during the scan.
    """
    name, size, changed, *member = place
    full = joined(root, name)
    if full not in checked:
        check_state(full, (size, changed))
        if member:
            checked[full] = None
    return picture_of(root, name, *member)


@dataclass(frozen=True, slots=True)
class RemotePicture:
    """A picture that fsspec reads: a file, or a member of a tar."""

    url: str
    member: str | None = None
    offset: int = 0
    size: int | None = None

    def __str__(self) -> str:
        return self.url if self.member is None else f"{self.url}:{self.member}"

    @property
    def name(self) -> str:
        """The last part of its name, for people."""
        return (self.member or self.url).rpartition("/")[2]

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
            raise ImageError(f"{self}: no such file. Expected a picture.") from None
        except (OSError, DataError, io.UnsupportedOperation) as error:
            raise ImageError(f"{self}: cannot be read ({error}).") from error
        if self.size is not None and len(data) != self.size:
            raise ImageError(f"{self}: {len(data)} of {self.size} bytes. It was cut short.")
        return data
