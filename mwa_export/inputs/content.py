"""What a row of images or texts can hold, and why one cannot be used."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from mwa_export.errors import ImageError

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
]
"""Why a row cannot be embedded, for programs."""


class Problem(NamedTuple):
    """Why a row cannot be used."""

    code: Code
    reason: str  # a sentence for people


class RowRefusedError(ImageError):
    """A row that cannot be embedded. ``code`` is for programs, the message for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def problem(self) -> Problem:
        """This error as a value."""
        return Problem(self.code, str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self))


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
