"""Return freed memory to the operating system."""

from __future__ import annotations

import ctypes


def release() -> None:
    """Return freed memory that the C library (glibc) would otherwise keep.

    Between the steps of an export these are hundreds of megabytes, which would add to the peak of
    the next step. Does nothing without `malloc_trim`.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS, or Windows
        return
    trim(0)
