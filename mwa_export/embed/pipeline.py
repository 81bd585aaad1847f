"""Concurrent pipeline stages, connected by bounded channels, with times per stage.

A stage that fails or is stopped wakes all others, so nothing hangs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from mwa_export.data.remote.access import stop_with

Stage = Literal["read", "decode", "infer", "write"]
STAGES: tuple[Stage, ...] = ("read", "decode", "infer", "write")
TIMES = ("busy", "starved", "blocked")  # fields of Clock with seconds per stage
T = TypeVar("T")


class StoppedError(Exception):
    """The run is ending because another stage failed or was interrupted."""


@dataclass
class Clock:
    """Seconds that each stage worked and waited, summed over its threads, and decoding losses."""

    busy: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    starved: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    blocked: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    threads: dict[Stage, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 1))
    losses: Counter[str] = field(default_factory=Counter)  # "picture: what was lost" -> rows
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lose(self, what: str, rows: int = 1) -> None:
        """Count rows that lose content before the model, such as "text: more than 64 tokens"."""
        with self._lock:
            self.losses[what] += rows

    @contextmanager
    def working(self, stage: Stage) -> Iterator[None]:
        """Count the time spent in the context as work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(self.busy, stage, time.perf_counter() - start)

    def add(self, where: dict[Stage, float], stage: Stage, seconds: float) -> None:
        """Add seconds to ``busy``, ``starved`` (no input) or ``blocked`` (next stage is full)."""
        with self._lock:
            where[stage] += seconds

    def bottleneck(self) -> Stage:
        """Return the stage that limits the run.

        That is inference, unless it waits: then it is "write" if writing blocks it, otherwise
        "read" or "decode", whichever has more work per thread.
        """
        infer = self.busy["infer"]
        if self.blocked["infer"] > max(0.1 * infer, self.starved["infer"]):
            return "write"
        if self.starved["infer"] > 0.1 * infer:
            per_thread = {s: self.busy[s] / self.threads[s] for s in ("read", "decode")}
            return "read" if per_thread["read"] > per_thread["decode"] else "decode"
        return "infer"


class Line:
    """Channels and threads of one pipeline. Leaving the context stops all its threads."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.stopped = False
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[], None], name: str) -> None:
        """Run ``work`` in a thread; if it fails, the whole line fails."""

        def run() -> None:
            stop_with(self.give_up)
            try:
                work()
            except StoppedError:
                pass
            except BaseException as error:
                self.stop(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self, failure: BaseException | None = None) -> None:
        """Stop the line and wake all waiting threads. Only the first failure is kept."""
        with self.changed:
            self.failure = self.failure or failure
            self.stopped = True
            self.changed.notify_all()

    def join(self) -> None:
        """Wait for all threads, then raise the first failure, if any."""
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.2)  # signal handlers run in between
        self.check()

    def give_up(self) -> None:
        """Raise StoppedError if the line was stopped."""
        if self.stopped:
            raise StoppedError

    def check(self) -> None:
        """Raise the failure of another stage, or StoppedError, if the line was stopped."""
        if self.stopped:
            raise self.failure or StoppedError

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()


class Channel(Generic[T]):
    """Bounded queue between two stages of a line. Iteration ends once it is closed and empty."""

    def __init__(self, line: Line, size: int, giver: Stage | None, taker: Stage | None) -> None:
        self._line, self._size = line, size
        self._giver, self._taker = giver, taker  # stages whose waiting is counted
        self._items: deque[T] = deque()
        self._closed = False

    def put(self, item: T) -> None:
        """Add an item, waiting while the channel is full.

        Raises:
            StoppedError: the line was stopped.
        """
        clock = self._line.clock
        with self._line.changed:
            self._wait(lambda: len(self._items) < self._size, clock.blocked, self._giver)
            self._items.append(item)
            self._line.changed.notify_all()

    def close(self) -> None:
        """Declare that no more items will be put."""
        with self._line.changed:
            self._closed = True
            self._line.changed.notify_all()

    def take(self) -> T:
        """Remove and return the next item, waiting for it.

        Raises:
            StoppedError: the line was stopped.
            StopIteration: the channel is closed and empty.
        """
        clock = self._line.clock
        with self._line.changed:
            self._wait(lambda: bool(self._items) or self._closed, clock.starved, self._taker)
            if not self._items:
                raise StopIteration
            item = self._items.popleft()
            self._line.changed.notify_all()
            return item

    def __iter__(self) -> Channel[T]:
        return self

    __next__ = take

    def _wait(
        self, ready: Callable[[], bool], waiting: dict[Stage, float], stage: Stage | None
    ) -> None:
        """Wait until ``ready``, with the line's lock held, and count the time for ``stage``."""
        line = self._line
        line.check()
        if ready():
            return
        start = time.perf_counter()
        while not ready():
            # Signal handlers run between waits, never during one.
            line.changed.wait(0.2)
            line.check()
        if stage is not None:
            line.clock.add(waiting, stage, time.perf_counter() - start)
