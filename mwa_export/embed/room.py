"""A limit on the pixels that decoding threads hold at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mwa_export.inputs.decode import MAX_PIXELS

_EACH = 1 << 24  # pixels of a thread: photographs of usual size never wait


class Room:
    """Memory for decoded images (about 8 bytes a pixel), shared by all decoding threads.

    The largest accepted image fits. A thread that waits for much memory is served in turn.
    """

    def __init__(self, threads: int) -> None:
        self.pixels = self._free = max(MAX_PIXELS, threads * _EACH)
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many pixels, and take it."""
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
