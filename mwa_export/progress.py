"""Callbacks that report progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Display of steps, some with a known number of rows."""

    def __call__(self, text: str, total: int | None = None) -> None:
        """Start a step. ``total``: rows to process, if known."""
        return

    def advance(self, rows: int) -> None:
        """Add ``rows`` to the rows done in the current step."""
        return


class Silent(Progress):
    """Progress display that shows nothing."""


def ignore(_rows: int) -> None:
    """Do nothing: the default for callbacks that count rows."""


def ignore_step(_text: str) -> None:
    """Do nothing: the default for callbacks that announce steps."""
