"""Pictures, or texts, of a folder or glob in the order of their names, a directory at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mwa_export.data.addresses import is_remote, joined, path_of, wildcard
from mwa_export.data.fields import Record, text_field
from mwa_export.data.files import open_file, place_of, readable, unreadable
from mwa_export.data.remote import ask
from mwa_export.data.tars import PICTURES
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind, Problem

SUFFIXES = frozenset(PICTURES | {"svg", "avif", "heic", "jfif", "jp2", "ppm", "pgm", "tga", "ico"})
TEXT_SUFFIX = "txt"
MAX_TEXT = 16 << 20  # bytes of a file of text; what is longer is no text to embed


@dataclass(frozen=True, slots=True)
class FolderReader:
    r"""Files below ``root`` with the extension of a picture or text, or those of ``pattern``.

    A text file is one text, whatever its lines; white space around it goes.
    The id is the path relative to the folder; bytes in it that are not UTF-8 become `\xNN`.
    Names that start with a dot are skipped, and so is a link to a folder that it lies in. A
    directory or socket named like a picture, and a folder that cannot be listed, are failed rows.
    """

    root: str
    pattern: str | None = None  # `*` and `?` stay in one folder, `**/` is any number of them
    kind: Kind = "image"

    def records(self) -> Iterator[Record]:
        """Every file."""
        wanted = None if self.pattern is None else re.compile(_regex(self.pattern), re.DOTALL)
        for name, problem in self._remote() if is_remote(self.root) else self._local():
            record = Record(joined(self.root, name), name, key=readable(name), problem=problem)
            if problem is not None:
                yield record
            elif self._is_wanted(name) if wanted is None else wanted.fullmatch(name):
                if self.kind == "text":
                    record = record._replace(captions=(self._text(name),))
                yield record

    def _is_wanted(self, name: str) -> bool:
        suffix = name.rpartition("/")[2].rpartition(".")[2].lower()
        return suffix in SUFFIXES if self.kind == "image" else suffix == TEXT_SUFFIX

    def _text(self, name: str) -> str | Problem:
        """Read the text of a file during the scan, so that later changes do not affect the run."""
        place, problem = place_of(self.root, name)
        if place is None and problem is not None:
            return problem
        try:
            with open_file(joined(self.root, name)) as file:
                data = file.read(MAX_TEXT + 1)
        except DataError as error:
            return Problem(getattr(error, "code", "unreadable"), str(error))
        if len(data) > MAX_TEXT:
            return Problem("too-large", f"the file is above {MAX_TEXT:,} bytes.")
        return text_field(data.removeprefix(b"\xef\xbb\xbf").strip(), "the text")

    def _local(self) -> Iterator[tuple[str, Problem | None]]:
        try:
            pending = [(iter(self._listed("")), frozenset({_identity(self.root)}))]
        except OSError as error:
            raise unreadable(self.root, error) from error
        while pending:
            names, above = pending[-1]
            item = next(names, None)
            if item is None:
                pending.pop()
                continue
            name, is_folder = item
            if not is_folder or self._is_wanted(name):
                yield name, None
            if is_folder:
                try:
                    here = _identity(os.path.join(self.root, name))
                    if here not in above:
                        pending.append((iter(self._listed(name + "/")), above | {here}))
                except OSError as error:
                    reason = f"the folder cannot be listed ({error.strerror})."
                    yield name, Problem("unreadable", reason)

    def _listed(self, below: str) -> list[tuple[str, bool]]:
        with os.scandir(os.path.join(self.root, below)) as found:
            names = [(below + e.name, _is_folder(e)) for e in found if not e.name.startswith(".")]
        return sorted(names, key=lambda item: os.fsencode(item[0]))

    def _remote(self) -> Iterator[tuple[str, Problem | None]]:
        path, found = ask(self.root, lambda system, path: (path, sorted(system.find(path))))
        start = len(path.rstrip("/")) + 1
        for full in found:
            if not any(part.startswith(".") for part in full[start:].split("/")):
                yield full[start:], None


def is_glob(spec: str) -> bool:
    """Whether a source names files by a pattern, and is not itself the name of a file."""
    return wildcard(spec) is not None and not os.path.isfile(spec)


def folder_reader(spec: str, kind: Kind) -> FolderReader:
    """The reader of a folder, or of a glob, whose folder is the part before the first wildcard.

    Raises:
        DataError: there is no such folder.
    """
    root, pattern = path_of(spec), None
    if (start := wildcard(spec)) is not None:
        root, _, rest = (head := spec[:start]).rpartition("/")
        pattern = rest + path_of(spec)[start:]
        root = root or ("/" if head.startswith("/") else ".")
    if not is_remote(root) and not os.path.isdir(root):
        raise DataError(f"{readable(root)}: is not a folder. Expected one with {kind}s.")
    return FolderReader(root, pattern, kind)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*+|\?|\[!?[^\]/]+\])", pattern)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "**": ".*", "?": "[^/]"}
    return "".join(
        known.get(p) or (p.replace("[!", "[^", 1) if n % 2 else re.escape(p))
        for n, p in enumerate(parts)
    )
