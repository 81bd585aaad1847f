"""Images and texts that workers of a Ray cluster can read, and a row that kills its worker."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mwa_export.data.rows import Row, Scan
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind


@dataclass(frozen=True)
class DrawnSource:
    """Rows that are drawn from their number; every seventh cannot be read, and one id repeats."""

    kind: Kind
    count: int
    deadly: int = -1  # row that kills the process that reads it; not the one that scanned
    marker: Path | None = None  # after which it does so no more; None: it always does
    refused: int = -1  # row at which a part of the source is found to have changed
    spared: int = os.getpid()
    label: str = "drawn"  # its fingerprint

    @property
    def name(self) -> str:
        return f"drawn {self.kind}s"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("square",)

    def scan(self, work: Path) -> Scan:
        return Scan(self.count, self.label, np.array([9], np.int64))

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        for number in range(start, stop):
            self._die_at(number)
            if number == self.refused and start > 0:
                raise DataError(f"{self.name}: changed at row {number}.")
            id = f"{self.kind}-{8 if number == 9 else number}"
            yield Row(id, self._content(number), (number * number,))

    def _content(self, number: int) -> bytes | str:
        if self.kind == "text":
            return " ".join("abcdefgh"[digit % 8] for digit in range(number % 11)) + "x"
        if number % 7 == 3:
            return b"<html>"
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def _die_at(self, number: int) -> None:
        if number != self.deadly or os.getpid() == self.spared:
            return
        if self.marker is not None:
            if self.marker.exists():
                return
            self.marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
