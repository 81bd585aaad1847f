"""Read the lines of a file or of standard input: one text or one image path per line."""

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
MAX_LINE = 16 << 20  # characters; longer lines are discarded
TOO_LONG = Problem("too-large", f"the line is longer than {MAX_LINE:,} characters.")


def text_lines(name: str) -> Iterator[str | None]:
    """Yield the lines of a file, URL or `-` with their ends (LF, CRLF or CR).

    A line longer than `MAX_LINE` is None. The text is UTF-8, or UTF-16 with a byte order mark,
    which is removed. Bytes that are not UTF-8 become lone surrogates.

    Raises:
        DataError: the file cannot be read.
    """
    own = name != STANDARD_INPUT
    if not own and sys.stdin is None:
        raise DataError("standard input is closed. Connect a file or a pipe, or pass a file.")
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
            text.detach()  # keeps standard input open


def _text(file: Any, *, marked: bool) -> io.TextIOWrapper:
    if marked and file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return io.TextIOWrapper(file, "utf-16", "replace", "")
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", "")


@dataclass(frozen=True, slots=True)
class LineReader:
    """Reads a text file with one text or image path per line.

    The id of a text is its line number from 0, that of an image its path as written. A blank line
    is a failed row among texts, and is skipped among paths.
    """

    kind: Kind
    name: str
    images: str | None = None  # folder that paths are relative to; None: the file's own

    @property
    def root(self) -> str:
        """Folder that paths are relative to."""
        return folder_of(self.name) if self.images is None else self.images

    def records(self) -> Iterator[Record]:
        """Yield every line."""
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
