"""Limit on the pixels that decoding threads hold at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mwa_export.inputs.decode import MAX_PIXELS

_EACH = 1 << 24  # pixels per thread: photographs of usual size never wait


class Room:
    """Budget of pixels for decoded images (about 8 bytes each), shared by all decoding threads.

    The largest accepted image fits. Threads are served in order, so a large image is not starved.
    """

    def __init__(self, threads: int) -> None:
        self.pixels = self._free = max(MAX_PIXELS, threads * _EACH)
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        """Wait until ``pixels`` are free, and hold them within the context."""
        with self._turn, self._changed:
            while self._free < pixels:
                self._changed.wait()
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()
