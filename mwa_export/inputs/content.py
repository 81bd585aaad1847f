"""Content of a row, an image or a text, and the reason if it cannot be used."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Kind = Literal["image", "text"]
TokenIds = tuple[int, ...]
"""Token ids without BOS and EOS, as stored in BEiT-3 index files."""
Caption = str | TokenIds
"""A text or its token ids."""
Code = Literal[
    "missing",
    "empty",
    "null",
    "malformed",
    "empty-text",
    "not-text",
    "not-a-picture",
    "truncated",
    "too-large",
    "unreadable",
    # For remote files:
    "timeout",
    "forbidden",
    "unreachable",
    "not-allowed",
]
"""Machine-readable reason why a row cannot be embedded."""


class Problem(NamedTuple):
    """Why a row cannot be used."""

    code: Code
    reason: str  # a sentence for messages


class Readable(Protocol):
    """Encoded bytes that have not been read: a file, a member of a tar, or a remote file."""

    @property
    def name(self) -> str:
        """Last part of the name, for messages; `str()` returns the full name."""
        ...

    def read(self) -> bytes:
        """Read all bytes.

        Raises:
            ImageError: they cannot be read; the message becomes the row's reason.
        """
        ...


Content = Readable | bytes | str
"""An encoded image, read or not yet read, or a text."""
