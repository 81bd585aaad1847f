"""Read the images or texts of a folder or glob, ordered by name within each directory."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from mwa_export.data.addresses import is_remote, joined, path_of, split_glob
from mwa_export.data.fields import Record, text_field
from mwa_export.data.files import open_file, readable, unreadable
from mwa_export.data.places import place_of
from mwa_export.data.remote.access import ask
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind, Problem
from mwa_export.inputs.formats import HEAD, extension_of, extensions, likely, shown, unknown

TEXT_SUFFIX = "txt"
_READ_TO_NAME = 1024  # bytes
MAX_TEXT = 16 << 20  # max bytes of a text file; longer files are not texts to embed


@dataclass(frozen=True, slots=True)
class FolderReader:
    r"""Reads the files below ``root`` that have an image or text extension, or match ``pattern``.

    A text file is one text, whatever its number of lines; surrounding white space is stripped.
    The id is the path relative to the folder; bytes in it that are not UTF-8 become `\xNN`.
    Links are followed, but each real folder is walked once. Directories and sockets with the
    extension of an image, and folders that cannot be listed, are failed rows. A file without an
    extension is an image if its first bytes are those of one. If a pattern for images is given,
    every matching file is one. All other files, also hidden ones, are counted in ``skipped``.
    """

    root: str
    pattern: str | None = None  # `*` and `?` match within one folder, `**/` any number of folders
    kind: Kind = "image"
    skipped: Counter[str] = field(default_factory=Counter, compare=False)  # kind of file -> count

    def records(self) -> Iterator[Record]:
        """Yield every file."""
        self.skipped.clear()
        wanted = None if self.pattern is None else re.compile(_regex(self.pattern), re.DOTALL)
        for name, problem in self._remote() if is_remote(self.root) else self._local():
            record = Record(joined(self.root, name), name, key=readable(name), problem=problem)
            if problem is not None:
                yield record
            elif wanted is not None and not wanted.fullmatch(name):
                continue
            elif (wanted and self.kind == "image") or self._is_wanted(name):
                if self.kind == "text":
                    record = record._replace(captions=(self._text(name),))
                yield record
            else:
                self.skipped[shown(extension_of(name))] += 1

    def _is_named(self, name: str) -> bool:
        """Whether a name has the extension of an image or text."""
        extension = extension_of(name)
        return extension in extensions() if self.kind == "image" else extension == TEXT_SUFFIX

    def _is_wanted(self, name: str) -> bool:
        if self._is_named(name) or self.kind == "text" or extension_of(name):
            return self._is_named(name)
        return begins_like_a_picture(joined(self.root, name))

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
            return Problem("too-large", f"the file is larger than {MAX_TEXT:,} bytes.")
        return text_field(data.removeprefix(b"\xef\xbb\xbf").strip(), "the text")

    def _local(self) -> Iterator[tuple[str, Problem | None]]:
        try:
            pending, seen = [iter(self._listed(""))], {_identity(self.root)}
        except OSError as error:
            raise unreadable(self.root, error) from error
        while pending:
            name, is_folder = next(pending[-1], ("", False))
            if not name:
                pending.pop()
                continue
            if not is_folder or self._is_named(name):
                yield name, None
            if is_folder:
                try:
                    if self._is_new(name, seen):
                        pending.append(iter(self._listed(name + "/")))
                except OSError as error:
                    reason = f"the folder cannot be listed ({error.strerror})."
                    yield name, Problem("unreadable", reason)

    def _is_new(self, name: str, seen: set[tuple[int, int]]) -> bool:
        """Whether to walk a folder: it must be new, and the pattern must reach below it."""
        if self.pattern is not None and "**" not in self.pattern:
            return name.count("/") < self.pattern.count("/")
        full = os.path.join(self.root, name)
        root, real = os.path.realpath(self.root), os.path.realpath(full)
        below = real.removeprefix(root + "/")
        has_own = os.path.islink(full) and below != real and "/." not in f"/{below}"
        if has_own or (here := _identity(full)) in seen:
            self.skipped["links to folders that are read under another name"] += 1
            return False
        seen.add(here)
        return True

    def _listed(self, below: str) -> list[tuple[str, bool]]:
        with os.scandir(os.path.join(self.root, below)) as found:
            entries = list(found)
        names = [(below + e.name, _is_folder(e)) for e in entries if not e.name.startswith(".")]
        if self.pattern is None and (hidden := len(entries) - len(names)):
            self.skipped["hidden"] += hidden
        return sorted(names, key=lambda item: os.fsencode(item[0]))

    def _remote(self) -> Iterator[tuple[str, Problem | None]]:
        path, found = ask(self.root, lambda system, path: (path, sorted(system.find(path))))
        start = len(path.rstrip("/")) + 1
        for full in found:
            if "/." not in f"/{full[start:]}":
                yield full[start:], None
            elif self.pattern is None:
                self.skipped["hidden"] += 1


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads a single image. Its id is its file name."""

    root: str
    name: str

    def records(self) -> Iterator[Record]:
        """Yield the file."""
        yield Record(joined(self.root, self.name), self.name, key=readable(self.name))


def is_picture(name: str) -> bool:
    """Whether this has the extension of an image, or is a local file that begins like one."""
    if extension_of(path_of(name)) in extensions():
        return is_remote(name) or os.path.isfile(name)
    return begins_like_a_picture(name)


def begins_like_a_picture(name: str) -> bool:
    """Whether a local file begins like an image. False for remote files, to save a request each."""
    if is_remote(name) or not os.path.isfile(name):
        return False
    try:
        with open_file(name) as file:
            return bool(likely(file.read(HEAD)))
    except DataError:
        return False


def is_glob(spec: str) -> bool:
    """Whether a source is a glob pattern, and not the name of an existing file."""
    return split_glob(spec)[1] != ""


def folder_reader(spec: str, kind: Kind) -> FolderReader:
    """Return the reader of a folder or a glob.

    Raises:
        DataError: the folder, or that before the glob's first wildcard, does not exist.
    """
    root, pattern = split_glob(spec)
    root = root or "."
    if not is_remote(root) and not os.path.isdir(root):
        raise DataError(f"{readable(root)}: {_no_folder(root)}")
    return FolderReader(root, pattern or None, kind)


def _no_folder(root: str) -> str:
    """Explain why a local name cannot be read as a folder."""
    if not os.path.lexists(root):
        hint = " Braces work only for tars and Parquet files." if "{" in root else ""
        return f"no such file or folder.{hint}"
    with open_file(root) as file:
        head = file.read(_READ_TO_NAME)
    if head.startswith(b"PK"):
        return "is a zip archive, which is not supported. Unpack it, or convert it to a tar."
    return unknown(head)


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
