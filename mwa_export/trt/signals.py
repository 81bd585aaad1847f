"""Hold signals back while TensorRT calls Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_later() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM, and let them act at the end.

    They would act in TensorRT's callbacks, whose exceptions it swallows, and build on.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    heard = {kind: how for kind, how in before.items() if how not in (signal.SIG_IGN, None)}
    for kind in heard:
        signal.signal(kind, lambda number, _frame: arrived.append(number))
    try:
        yield arrived
    finally:
        for kind, handler in heard.items():
            signal.signal(kind, handler)
        for number in arrived[:1]:
            signal.raise_signal(number)
