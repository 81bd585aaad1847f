"""Lines of a file or of standard input: one text each, or one path of a picture each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from mwa_export.data.files import open_file, place_of, readable
from mwa_export.data.spool import Entry, text_entry
from mwa_export.inputs.content import Kind, Problem

STANDARD_INPUT = "-"
MAX_LINE = 16 << 20  # bytes; the rest of a longer line is not kept
_BOM = b"\xef\xbb\xbf"


def byte_lines(name: str) -> Iterator[bytes | None]:
    """Lines without their ends and a BOM; None for one above `MAX_LINE`.

    Raises:
        DataError: the file cannot be opened.
    """
    standard = name == STANDARD_INPUT
    with nullcontext(sys.stdin.buffer) if standard else open_file(name) as file:
        first = True
        while line := file.readline(MAX_LINE):
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield None
            else:
                line = line.removeprefix(_BOM) if first else line
                yield line.removesuffix(b"\n").removesuffix(b"\r")
            first = False


@dataclass(frozen=True, slots=True)
class LineReader:
    """A text file. A text's id is its line number from 0, a picture's the path as written.

    A blank line is a failed row of texts, and is passed over in a list of paths. Paths are
    relative to ``root``, the folder of the list.
    """

    kind: Kind
    name: str
    root: str

    def entries(self) -> Iterator[Entry]:
        """Every line."""
        for number, line in enumerate(byte_lines(self.name)):
            if line is None:
                problem = Problem("too-large", f"the line is above {MAX_LINE:,} bytes.")
                yield str(number), None, (), problem
            elif self.kind == "text":
                yield text_entry(str(number), line)
            elif line.strip():
                path = os.fsdecode(line)
                place, obstacle = place_of(self.root, path)
                yield readable(path), place, (), obstacle
