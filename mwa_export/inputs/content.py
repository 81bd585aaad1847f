"""Content of a row of images or texts, and the reason why one cannot be used."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Kind = Literal["image", "text"]
TokenIds = tuple[int, ...]
"""Token ids without BOS and EOS, as the indexes of BEiT-3 store them."""
Caption = str | TokenIds
"""A text, or the token ids of one."""
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
    # Of what is remote:
    "timeout",
    "forbidden",
    "unreachable",
    "not-allowed",
]
"""Why a row cannot be embedded, for programs."""


class Problem(NamedTuple):
    """Why a row cannot be used."""

    code: Code
    reason: str  # a sentence for people


class Readable(Protocol):
    """Encoded bytes that are not read yet: a file, a member of a tar, something remote."""

    @property
    def name(self) -> str:
        """The last part of the name, for people; `str()` gives all of it."""
        ...

    def read(self) -> bytes:
        """Read all bytes.

        Raises:
            ImageError: they cannot be read; the message is the row's reason.
        """
        ...


Content = Readable | bytes | str
"""An encoded picture, read or not, or a text."""
