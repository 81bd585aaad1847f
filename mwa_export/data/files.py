"""Find and open the files of a data set or source, local or remote."""

from __future__ import annotations

import glob
import os
import re
import stat
from typing import Any, BinaryIO

from mwa_export.data.addresses import (
    HTTP,
    is_remote,
    joined,
    path_of,
    protocol_of,
    public,
    split_glob,
    suffix_of,
)
from mwa_export.data.remote.access import ask, check_packages
from mwa_export.data.remote.files import open_remote
from mwa_export.errors import DataError, RemoteError

_SHARDS = (".tar", ".parquet")
_BRACE = re.compile(r"\{([^{}]*)\}")


def open_file(name: str) -> BinaryIO:
    """Open a regular file or a URL for reading. Pipes and devices are refused, as they may block.

    Raises:
        DataError: it cannot be opened.
    """
    if is_remote(name):
        return open_remote(name)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise DataError(f"{readable(name)}: is not a regular file. Expected one.")
        return open(name, "rb")
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise unreadable(name, error) from error


def unreadable(name: str, error: OSError | ValueError) -> DataError:
    """Make the error for a file or folder that the system cannot read."""
    return DataError(
        f"{readable(name)}: cannot be read ({getattr(error, 'strerror', 0) or error})."
    )


def exists(name: str) -> bool:
    """Whether a file or folder exists."""
    if not is_remote(name):
        return os.path.exists(name)
    try:
        open_file(name).close()
    except RemoteError as error:
        if error.code != "missing":
            raise
        return False
    return True


def is_folder(name: str) -> bool:
    """Whether this is a folder. Over http, a folder is a URL that ends with `/`."""
    if not is_remote(name):
        return os.path.isdir(name)
    if protocol_of(name) in HTTP:
        return path_of(name).endswith("/")
    return ask(name, lambda system, path: bool(system.isdir(path)))


def files_in(folder: str) -> list[str]:
    """List the names of the files in a folder, sorted, without those that start with `.` or `_`.

    Tools that write tables in parts use such names for their own files.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        if is_remote(folder):
            entries = ask(folder, lambda system, path: system.ls(path, detail=True))
            found = [e["name"].rpartition("/")[2] for e in entries if e["type"] == "file"]
        else:
            found = [e.name for e in os.scandir(folder) if _is_file(e)]
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(name for name in found if not name.startswith((".", "_")))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def expanded(spec: str) -> list[str]:
    """Expand a folder, glob or `{000..123}` to its tars or Parquet files; else return the spec.

    Raises:
        DataError: a glob matches no file, or a folder contains both tars and Parquet files.
        MissingPackageError: a package that reads such an address is not installed.
    """
    if is_remote(spec):
        check_packages(spec)
    if (brace := _BRACE.search(spec)) and not os.path.lexists(spec):
        start, end = spec[: brace.start()], spec[brace.end() :]
        return [n for part in _alternatives(brace[1]) for n in expanded(start + part + end)]
    if suffix_of(spec) in _SHARDS and split_glob(spec)[1]:
        return _globbed(spec)
    if not is_folder(spec):
        return [spec]
    found = [name for name in files_in(spec) if suffix_of(name) in _SHARDS]
    if len({suffix_of(name) for name in found}) > 1:
        raise DataError(mixed(spec, *(f"{suffix} files" for suffix in _SHARDS)))
    if not found and protocol_of(spec) not in HTTP:  # http cannot be searched
        parts = _matches(joined(spec, "*=*/**/*.parquet"))
        return [part for part in parts if "/_" not in part[len(spec) :]] or [spec]
    return [joined(path_of(spec), name) for name in found] or [spec]


def mixed(folder: str, shards: str, others: str) -> str:
    """Make the message for a folder that contains shards and other files."""
    shown = readable(folder).rstrip("/")
    suffix = shards.partition(" ")[0]
    return (
        f"{shown}: contains {shards} and {others}. Expected only one kind. Pass the shards as a "
        f"glob ({shown}/*{suffix}), or move them to a separate folder."
    )


def _matches(pattern: str) -> list[str]:
    if is_remote(pattern):
        found = ask(pattern, lambda system, path: _urls(system, system.glob(path)))
    else:
        root, rest = split_glob(pattern)
        found = glob.glob(os.path.join(glob.escape(root), rest), recursive=True)
    return sorted(found)


def _globbed(pattern: str) -> list[str]:
    if not (found := _matches(pattern)):
        raise DataError(f"{readable(pattern)}: matches no file. Expected at least one.")
    return found


def _urls(system: Any, paths: list[str]) -> list[str]:
    return [str(system.unstrip_protocol(path)) for path in paths]


def _alternatives(text: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        width = len(span[1]) if span[1].startswith("0") else 0
        return [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    return text.split(",")


def readable(name: str) -> str:
    r"""Convert a file's name to text without secrets. Bytes that are not UTF-8 become `\xNN`."""
    return public(os.fsencode(name).decode("utf-8", "backslashreplace"))
