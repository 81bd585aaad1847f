"""The place of a picture: what a scan keeps of it, and what reads it later."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from mwa_export.data.addresses import is_remote, joined, local_name, located, packing_of
from mwa_export.data.compressed import plain_copy
from mwa_export.data.fields import Place
from mwa_export.data.files import readable
from mwa_export.data.remote.files import RemotePicture
from mwa_export.errors import DataError
from mwa_export.inputs.content import Problem
from mwa_export.inputs.pictures import Picture

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def place_of(root: str, name: str) -> tuple[Place | None, Problem | None]:
    """The place of a picture that a row names, or None and the problem.

    Of a remote file nothing is looked at: that would be a round trip for each.
    """
    full = located(root, name)
    if isinstance(full, Problem):
        return None, full
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
    return [local_name(name), found.st_size, found.st_mtime_ns], None


def picture_of(root: str, name: str, *member: Any) -> Picture | RemotePicture:
    """The picture of a file below ``root``; of a tar's ``member``: name, offset and size."""
    full = joined(root, name)
    if member and packing_of(full):
        return replace(Picture(plain_copy(full), *member), archive=readable(full))
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
