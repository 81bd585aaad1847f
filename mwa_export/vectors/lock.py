"""Allow one run per output, with a lock that the kernel releases when the process dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mwa_export.errors import BundleError, OutputBusyError

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
        with _held(folder / LOCK, shared=False):
            yield
        return
    with (
        _held(folder / LOCK, shared=True),
        _held(folder / f"{LOCK}-{part}", shared=False, wait=wait),
    ):
        yield


@contextmanager
def _held(path: Path, *, shared: bool, wait: bool = False) -> Iterator[None]:
    import fcntl  # not on Windows

    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BundleError(f"{path.parent}: cannot be written: {error.strerror}.") from error
    try:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise BundleError(
                    f"{path}: cannot be locked ({error.strerror}). Two runs on one output would "
                    "disturb each other, so the output must lie on a disk with locks."
                ) from error
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            who = f"process {holder}" if holder else "runs of other parts"
            raise OutputBusyError(
                f"{path.parent}: is being written by {who}. Wait for it or stop it: a finished or "
                "dead process holds no lock."
            ) from error
        if not shared:
            _say(handle, f"{os.getpid()}\n")
        try:
            yield
        finally:
            if not shared:
                _say(handle, "")
    finally:
        os.close(handle)


def _say(handle: int, text: str) -> None:
    """Record the holder's PID. Informational, so write errors are ignored."""
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
    except OSError:
        pass
