"""The place of an image: recorded during the scan, and used to read it later."""

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
    """Return the place of an image that a row names, or None and the problem.

    Remote files are not checked, which would take a request each.
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
        return None, Problem("missing", f"{where}: no such file. Expected an image.")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return None, Problem("unreadable", f"cannot be read ({reason}).")
    for is_kind, words in _KINDS:
        if is_kind(found.st_mode):
            return None, Problem("unreadable", f"is {words}. Expected an image.")
    return [local_name(name), found.st_size, found.st_mtime_ns], None


def picture_of(root: str, name: str, *member: Any) -> Picture | RemotePicture:
    """Return the image in a file below ``root``, or in a tar's ``member``: name, offset, size."""
    full = joined(root, name)
    if member and packing_of(full):
        return replace(Picture(plain_copy(full), *member), archive=readable(full))
    return RemotePicture(full, *member) if is_remote(full) else Picture(Path(full), *member)


def state_of(name: str) -> tuple[int, int] | None:
    """Return a file's size and modification time; None if it is missing or remote."""
    try:
        found = None if is_remote(name) else os.stat(name)
    except OSError:
        return None
    return None if found is None else (found.st_size, found.st_mtime_ns)


def check_state(name: str, state: tuple[int, int] | None) -> None:
    """Raise DataError if a file has changed since the scan."""
    if not is_remote(name) and state_of(name) != state:
        raise DataError(
            f"{readable(name)}: has changed since the source was scanned. Run the command again."
        )


def picture_at(root: str, place: Place, checked: dict[str, None]) -> Picture | RemotePicture:
    """Return the image at a place. ``checked`` caches the tars that have been checked.

    Raises:
        DataError: the file has changed since the scan.
    """
    name, size, changed, *member = place
    full = joined(root, name)
    if full not in checked:
        check_state(full, (size, changed))
        if member:
            checked[full] = None
    return picture_of(root, name, *member)
