"""Delay signals while TensorRT calls Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_later() -> Iterator[list[int]]:
    """Collect the signals that Python handles, including Ctrl-C, and raise the first at the end.

    Without this, they would raise in TensorRT's callbacks, and TensorRT would ignore the exception
    and continue to build. Yields the list of signals that have arrived.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    handlers = {kind: signal.getsignal(kind) for kind in signal.valid_signals()}
    heard = {kind: handler for kind, handler in handlers.items() if callable(handler)}
    for kind in heard:
        signal.signal(kind, lambda number, _frame: arrived.append(number))
    try:
        yield arrived
    finally:
        for kind, handler in heard.items():
            signal.signal(kind, handler)
        for number in arrived[:1]:
            signal.raise_signal(number)
