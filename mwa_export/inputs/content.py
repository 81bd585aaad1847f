"""What a row can hold, and why one cannot be used."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from mwa_export.inputs.pictures import Picture

Caption = str | tuple[int, ...]
"""A text, or token ids without BOS and EOS, as the indexes of BEiT-3 store them."""

Kind = Literal["image", "text"]

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
]
"""Why a row cannot be embedded, for programs."""

Content = Picture | Readable | bytes | str
"""A picture, read or not, or a text."""


class Problem(NamedTuple):
    """Why a row cannot be embedded."""

    code: Code
    reason: str  # a sentence for people


class Readable(Protocol):
    """Encoded bytes that are not read yet: a file, a member of a tar, something remote."""

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ImageError: they cannot be read; the message is the row's reason.
        """
        ...
