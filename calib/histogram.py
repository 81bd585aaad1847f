"""Histogram of the magnitudes of a tensor in 2048 bins. Knows nothing about graphs or ranges.

The range of the bins is a power of two that doubles when a larger value arrives: neighbouring bins
are merged in pairs, which loses no counts. The result therefore depends neither on the order of the
values nor on how they were cut into batches.
"""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import CalibrationError

BINS = 2048
SMALLEST_LIMIT = 2.0**-30
_CHUNK = 1 << 17  # values counted at a time, so that temporaries stay in the CPU cache


class Histogram:
    """Histogram of magnitudes |x| in constant memory.

    Bin i counts i * width <= |x| < (i + 1) * width. A value equal to the limit is outside and
    doubles it, so ``limit`` is above ``amax``, at most twice ``amax``, and at least SMALLEST_LIMIT.
    """

    __slots__ = ("_counts", "amax", "limit")

    def __init__(self) -> None:
        self.limit = SMALLEST_LIMIT  # upper end of the last bin, a power of two
        self.amax = 0.0  # the largest magnitude seen, exact
        self._counts = np.zeros(BINS, np.int64)

    @property
    def width(self) -> float:
        """Width of one bin."""
        return self.limit / BINS

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counts of all bins, (BINS,), read-only; the next `add` may replace the array."""
        view: NDArray[np.int64] = self._counts.view()
        view.flags.writeable = False
        return view

    @property
    def count(self) -> int:
        """Number of values seen."""
        return int(self._counts.sum())

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape.

        Raises:
            CalibrationError: a value is not finite. Nothing is counted then.
        """
        values = np.asarray(values, np.float32)
        if not values.size:
            return
        largest = max(float(values.max()), -float(values.min()))  # either is NaN if any value is
        if not math.isfinite(largest):
            nans, infinities = np.isnan(values).sum(), np.isinf(values).sum()
            raise CalibrationError(
                f"found {nans} NaN and {infinities} infinite values among {values.size}. Expected "
                "finite values."
            )
        self.amax = max(self.amax, largest)
        self._make_room(_limit_for(largest))
        flat = values.ravel(order="K")  # copies only if the values have gaps in memory
        scale = np.float32(1 / self.width)  # a power of two: the product below is exact
        buffer = np.empty(min(_CHUNK, flat.size), np.float32)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            part = buffer[: len(chunk)]
            np.abs(chunk, out=part)
            part *= scale
            self._counts += np.bincount(part.astype(np.intp), minlength=BINS)

    def _make_room(self, limit: float) -> None:
        if limit <= self.limit:
            return
        merged = min(int(limit / self.limit), BINS)  # old bins that become one
        counts = np.zeros(BINS, np.int64)
        counts[: BINS // merged] = self._counts.reshape(-1, merged).sum(axis=1)
        self._counts, self.limit = counts, limit

    def digest(self) -> str:
        """Hash of the histogram, 16 hex digits."""
        numbers = struct.pack("<dd", self.limit, self.amax)
        return hashlib.sha256(numbers + self._counts.astype("<i8").tobytes()).hexdigest()[:16]


def _limit_for(value: float) -> float:
    """Smallest power of two above a magnitude, but at least SMALLEST_LIMIT."""
    if value < SMALLEST_LIMIT:  # 0 as well, which has no exponent
        return SMALLEST_LIMIT
    _fraction, exponent = math.frexp(value)  # the fraction is below 1
    return math.ldexp(1.0, exponent)
