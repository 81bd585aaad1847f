"""Locks that allow one run per output, or one per part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mwa_export import files

LOCK = ".lock"


@contextmanager
def locked(folder: Path, part: str | None = None, *, wait: bool = False) -> Iterator[None]:
    """Lock an existing output folder, or one part of it, such as `1-of-4`.

    Different parts can be locked at once. ``wait``: wait for the part instead of raising.

    Raises:
        OutputBusyError: another run holds the lock; the message names its process.
        BundleError: the folder is not writable.
    """
    if part is None:
        with files.locked(folder / LOCK):
            yield
        return
    with (
        files.locked(folder / LOCK, shared=True),
        files.locked(folder / f"{LOCK}-{part}", wait=wait),
    ):
        yield
