"""Pictures of a folder or glob, in the order of their names, one directory in memory at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mwa_export.data_rows import unreadable
from mwa_export.data_webdataset import PICTURES
from mwa_export.errors import DataError
from mwa_export.source_files import file_system, is_remote, place_of, readable
from mwa_export.source_spool import Entry

SUFFIXES = frozenset(PICTURES | {"svg", "avif", "heic", "jfif", "jp2", "ppm", "pgm", "tga", "ico"})
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class FolderReader:
    r"""Files below ``root`` with a picture's extension, or those that ``pattern`` names.

    The id is the path relative to the folder; bytes in it that are not UTF-8 become `\xNN`.
    Names that start with a dot are skipped, and so is a link to a folder that it lies in. A
    directory or socket named like a picture, and a folder that cannot be listed, are failed rows.
    """

    root: str
    pattern: str | None = None  # `*` and `?` stay in one folder, `**/` is any number of them

    def entries(self) -> Iterator[Entry]:
        wanted = None if self.pattern is None else re.compile(_regex(self.pattern), re.DOTALL)
        for name, problem in self._remote() if is_remote(self.root) else self._local():
            if problem is not None:
                yield readable(name), None, (), problem
            elif _is_picture(name) if wanted is None else wanted.fullmatch(name):
                place, problem = place_of(self.root, name)
                yield readable(name), place, (), problem

    def _local(self) -> Iterator[tuple[str, str | None]]:
        try:
            pending = [(iter(self._listed("")), frozenset({_identity(self.root)}))]
        except OSError as error:
            raise unreadable(Path(self.root), error) from error
        while pending:
            names, above = pending[-1]
            item = next(names, None)
            if item is None:
                pending.pop()
                continue
            name, is_folder = item
            if not is_folder or _is_picture(name):
                yield name, None
            if is_folder:
                try:
                    here = _identity(os.path.join(self.root, name))
                    if here not in above:
                        pending.append((iter(self._listed(name + "/")), above | {here}))
                except OSError as error:
                    yield name, f"the folder cannot be listed ({error.strerror})."

    def _listed(self, below: str) -> list[tuple[str, bool]]:
        with os.scandir(os.path.join(self.root, below)) as found:
            names = [(below + e.name, _is_folder(e)) for e in found if not e.name.startswith(".")]
        return sorted(names, key=lambda item: os.fsencode(item[0]))

    def _remote(self) -> Iterator[tuple[str, str | None]]:
        system, path = file_system(self.root)
        start = len(path.rstrip("/")) + 1
        for full in sorted(system.find(path)):
            if not any(part.startswith(".") for part in full[start:].split("/")):
                yield full[start:], None


def folder_reader(spec: str) -> FolderReader:
    """The reader of a folder, or of a glob, whose folder is the part before the first wildcard.

    Raises:
        DataError: there is no such folder.
    """
    root, pattern = spec, None
    if magic := _MAGIC.search(spec):
        head = spec[: magic.start()]
        root, _, rest = head.rpartition("/")
        pattern = rest + spec[magic.start() :]
        root = root or ("/" if head.startswith("/") else ".")
    if not is_remote(root) and not os.path.isdir(root):
        raise DataError(f"{readable(root)}: is no folder. Expected one with pictures.")
    return FolderReader(root, pattern)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_picture(name: str) -> bool:
    return name.rpartition("/")[2].rpartition(".")[2].lower() in SUFFIXES


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*+|\?|\[!?[^\]/]+\])", pattern)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "**": ".*", "?": "[^/]"}
    return "".join(
        known.get(p) or (p.replace("[!", "[^", 1) if n % 2 else re.escape(p))
        for n, p in enumerate(parts)
    )
