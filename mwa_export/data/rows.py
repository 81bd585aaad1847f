"""Numbered rows of images or texts in a fixed order: the input of `embed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.fields import Place
from mwa_export.inputs.content import Content, Kind, Problem, TokenIds


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input. Each row becomes either an embedding or a row of the errors."""

    id: str
    content: Content | TokenIds | None  # None: nothing to embed, see ``problem``
    columns: tuple[object, ...] = ()  # values copied to the output, in the order of Source.columns
    problem: Problem | None = None  # why it cannot be embedded, if the reader knows
    place: Place | None = None  # of an image in a file, relative to the source


@dataclass(frozen=True, slots=True)
class Scan:
    """Result of scanning a source: its row count, fingerprint and duplicate ids."""

    rows: int
    fingerprint: str  # hex; changes when the rows, their order or their files (size, time) do
    duplicates: NDArray[np.int64]  # rows with the id of an earlier row, ascending
    skipped: Mapping[str, int] = field(default_factory=dict)  # kind of skipped file -> count


class Source(Protocol):
    """A source of rows. After the scan it can be pickled, so that workers read their own part.

    The order is the same in every run over the same input. Memory grows by at most a few bytes
    per row.
    """

    @property
    def kind(self) -> Kind:
        """Whether the rows are images or texts."""
        ...

    @property
    def name(self) -> str:
        """Name of the source, for messages."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are copied to the output."""
        ...

    def scan(self, work: Path) -> Scan:
        """Read everything once, without decoding. May store an index for `rows` in ``work``.

        Raises:
            DataError: the source does not exist or is malformed as a whole.
            BundleError: ``work`` cannot be written.
        """
        ...

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield rows ``start`` (0-based) to ``stop`` (exclusive), at a cost independent of start.

        Raises:
            DataError: the source has changed since the scan.
        """
        ...


@dataclass(frozen=True)
class SourceAround:
    """Base of a source that wraps another one."""

    source: Source

    @property
    def kind(self) -> Kind:
        return self.source.kind

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def columns(self) -> tuple[str, ...]:
        return self.source.columns

    def scan(self, work: Path) -> Scan:
        return self.source.scan(work)
