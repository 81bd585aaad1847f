"""A table of text that pages, Markdown and terminals show alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mwa_export.report.text import markdown_table

MARKS = {"passes": "✓", "fails": "✗", "undecided": "?"}
"""What stands before a verdict, so that it can be told without colours."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text: its caption, its head and its rows. The first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset()  # columns of text, aligned left; the rest are numbers
    stacked: bool = False  # on narrow screens each row becomes a list, because it is too wide

    @classmethod
    def of(
        cls,
        caption: str,
        head: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        words: Iterable[int] = (),
        stacked: bool = False,
    ) -> Table:
        return cls(caption, head, list(rows), frozenset(words), stacked)

    def markdown(self) -> str:
        """The table in Markdown, or nothing if it has no rows."""
        return markdown_table(self.head, self.rows) if self.rows else ""
