"""What the library tells about its progress, to whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A display of steps; some have a known number of rows."""

    def __call__(self, text: str, total: int | None = None) -> None:
        """A step starts. ``total``: rows it will process, if known."""
        ...

    def advance(self, rows: int) -> None:
        """So many rows more are done in the current step."""
        ...


class Silent:
    """The display of those who do not watch."""

    def __call__(self, text: str, total: int | None = None) -> None:
        pass

    def advance(self, rows: int) -> None:
        pass
