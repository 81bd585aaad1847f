"""Allow one run per output, or one per part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mwa_export import files

LOCK = ".lock"


@contextmanager
def locked(folder: Path, part: str | None = None, *, wait: bool = False) -> Iterator[None]:
    """Hold an output folder, which exists, or one part of several, such as `1-of-4`.

    Runs of other parts may run beside it. ``wait`` for another holder of the same part.

    Raises:
        OutputBusyError: another run holds it; the message names its process.
        BundleError: the folder cannot be written.
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
