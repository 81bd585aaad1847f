"""A table of text for HTML, Markdown and terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mwa_export.report.text import markdown_table

MARKS = {"passes": "✓", "fails": "✗", "undecided": "?"}
"""The mark before a verdict, so that the verdict does not depend on colour."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text: caption, head and rows. The first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset()  # columns of text, aligned left; the rest are numbers
    stacked: bool = False  # a wide table: on narrow screens each row becomes a list

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
        """Return the table in Markdown, or an empty string if it has no rows."""
        return markdown_table(self.head, self.rows) if self.rows else ""
