"""Text that is safe to print and to embed in reports, and Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Control characters, direction marks, line separators, surrogates, noncharacters.
_NOT_TEXT = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """Replace control characters and lone surrogates, which file names may contain."""
    return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of escaped cells; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
