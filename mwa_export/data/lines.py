"""Lines of a file or of standard input: one text each, or one path of a picture each."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mwa_export.data.addresses import folder_of
from mwa_export.data.compressed import open_plain
from mwa_export.data.fields import Record, text_field
from mwa_export.data.files import readable, unreadable
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind, Problem

STANDARD_INPUT = "-"
MAX_LINE = 16 << 20  # characters; the rest of a longer line is not kept
TOO_LONG = Problem("too-large", f"the line is above {MAX_LINE:,} characters.")


def text_lines(name: str) -> Iterator[str | None]:
    """Lines of a file, URL or `-`, with their ends (LF, CRLF or CR); None: above `MAX_LINE`.

    The text is UTF-8, or UTF-16 with its byte order mark, which is left out. A byte that is not
    UTF-8 becomes a lone surrogate.

    Raises:
        DataError: the file cannot be read.
    """
    own = name != STANDARD_INPUT
    if not own and sys.stdin is None:
        raise DataError("standard input is closed. Give it a file or a pipe, or name a file.")
    file = open_plain(name) if own else sys.stdin.buffer
    try:
        text = _text(file, marked=own)
        while line := text.readline(MAX_LINE):
            if len(line) < MAX_LINE or line.endswith(("\n", "\r")):
                yield line
                continue
            while (rest := text.readline(MAX_LINE)) and not rest.endswith(("\n", "\r")):
                pass
            yield None
    except OSError as error:
        raise unreadable(name, error) from error
    finally:
        if own:
            file.close()
        else:
            text.detach()  # and leave it open


def _text(file: Any, *, marked: bool) -> io.TextIOWrapper:
    if marked and file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return io.TextIOWrapper(file, "utf-16", "replace", "")
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", "")


@dataclass(frozen=True, slots=True)
class LineReader:
    """A text file. A text's id is its line number from 0, a picture's the path as written.

    A blank line is a failed row of texts, and is passed over in a list of paths.
    """

    kind: Kind
    name: str
    images: str | None = None  # folder of the paths; None: the list's own

    @property
    def root(self) -> str:
        """Folder of the paths."""
        return folder_of(self.name) if self.images is None else self.images

    def records(self) -> Iterator[Record]:
        """Every line."""
        name = readable(self.name)
        for number, line in enumerate(text_lines(self.name), 1):
            where = f"{name}:{number}"
            if line is None:
                yield Record(where, problem=TOO_LONG)
                continue
            line = line.removesuffix("\n").removesuffix("\r")
            if self.kind == "text":
                yield Record(where, captions=(text_field(line, "the text"),))
            elif line.strip():
                yield Record(where, line, key=readable(line))
