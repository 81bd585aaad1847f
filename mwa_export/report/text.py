"""Text that is safe to print and to embed in reports, and tables of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Control characters, those of direction and of lines, halves of characters, and no characters.
_NOT_TEXT = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """Replace what no file and no terminal should get, but a name may hold."""
    return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are escaped; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
