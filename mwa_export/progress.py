"""Callbacks through which the library reports progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A display of steps; some have a known number of rows."""

    def __call__(self, text: str, total: int | None = None) -> None:
        """Start a step. ``total``: rows it will process, if known."""
        return

    def advance(self, rows: int) -> None:
        """Count rows that are done in the current step."""
        return


class Silent(Progress):
    """A display that shows nothing."""


def ignore(_rows: int) -> None:
    """Count nothing: the default of callbacks that are told about rows."""


def ignore_step(_text: str) -> None:
    """Show nothing: the default of callbacks that are told about steps."""
