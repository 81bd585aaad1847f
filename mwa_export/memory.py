"""Return freed memory to the operating system."""

from __future__ import annotations

import ctypes


def release() -> None:
    """Return what was freed to the system, where the C library (glibc) would keep it.

    Between the steps of an export this is hundreds of megabytes, and they would count in the peak
    of the next step. Does nothing where there is no `malloc_trim`.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS, or Windows
        return
    trim(0)
