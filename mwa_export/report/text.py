"""Text that is safe to print and to embed in reports."""

from __future__ import annotations

import re

_NOT_TEXT = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Without what no file and no terminal should get, such as a file name may hold."""
    return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)
