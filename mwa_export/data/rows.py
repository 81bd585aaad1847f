"""Numbered rows of pictures or texts in a fixed order: the input of `embed`."""

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
    """One row of the input. It ends as an embedding or as a row of the errors, never as nothing."""

    id: str
    content: Content | TokenIds | None  # None: there is nothing to embed, see ``problem``
    columns: tuple[object, ...] = ()  # what is carried along, in the order of Source.columns
    problem: Problem | None = None  # why it cannot be embedded, as far as the reader knows
    place: Place | None = None  # of a picture in a file, relative to the source


@dataclass(frozen=True, slots=True)
class Scan:
    """Result of scanning a source: its row count, fingerprint and duplicate ids."""

    rows: int
    fingerprint: str  # hex; changes when the rows, their order or their files (size, time) do
    duplicates: NDArray[np.int64]  # rows whose id an earlier row has, ascending
    skipped: Mapping[str, int] = field(default_factory=dict)  # what is no row -> how many


class Source(Protocol):
    """A source of rows. Can be pickled once it is scanned, so that workers read their own part.

    The order is the same in every run over the same input. Memory does not grow with the rows, or
    by a few bytes each.
    """

    @property
    def kind(self) -> Kind:
        """Whether the rows hold images or texts."""
        ...

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are carried along."""
        ...

    def scan(self, work: Path) -> Scan:
        """Look at everything once, without decoding. An index for `rows` may be kept in ``work``.

        Raises:
            DataError: there is no such source, or it is malformed as a whole.
            BundleError: the disk of ``work`` refuses.
        """
        ...

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Rows ``start`` (from 0) to before ``stop``, at a cost that does not depend on ``start``.

        Raises:
            DataError: the source changed since the scan.
        """
        ...


@dataclass(frozen=True)
class SourceAround:
    """Base of a source that reads another one in its own way."""

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
