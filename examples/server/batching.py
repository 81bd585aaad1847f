"""Micro-batching: rows of requests that arrive together share one model call."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["text", "image"]
Vector = NDArray[np.float32]
RunModel = Callable[[Kind, list[Any]], NDArray[np.float32]]
"""Kind and prepared inputs -> (n, D) float32."""


class QueueFullError(Exception):
    """There is no room for the rows of a request."""


@dataclass(slots=True, eq=False)
class Row:
    """One input that waits for its vector."""

    kind: Kind
    value: Any  # token ids with BOS and EOS, or pixels
    truncated: bool = False  # a text longer than the model reads
    arrived: float = 0.0  # seconds of the event loop's clock
    vector: asyncio.Future[Vector] = field(init=False)


class Batcher:
    """A bounded queue in front of a model that runs in a thread of its own.

    A call takes the kind of the oldest row, and up to ``max_batch`` rows of that kind. It starts
    when that many are waiting, or when the oldest has waited for ``max_wait`` seconds. Rows that
    arrive while the model is busy share the next call.
    """

    def __init__(
        self, run_model: RunModel, *, max_batch: int, max_wait: float, max_queue: int
    ) -> None:
        self._run_model = run_model
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._waiting: deque[Row] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")  # one call at a time
        self._worker: asyncio.Task[None] | None = None
        self.calls: Counter[Kind] = Counter()
        self.rows: Counter[Kind] = Counter()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether the worker runs, busy or idle."""
        return self._worker is not None and not self._worker.done()

    def start(self) -> None:
        """Begin to take rows. Needs a running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Finish the call that is running. Rows that still wait are given up."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        for row in self._waiting:
            row.vector.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def embed(self, rows: Sequence[Row]) -> list[Vector]:
        """Queue rows and wait for their vectors. Cancel it, and rows that still wait are dropped.

        Raises:
            QueueFullError: there is no room for all of them, so none was queued.
        """
        if len(self._waiting) + len(rows) > self._max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        for row in rows:
            row.arrived, row.vector = loop.time(), loop.create_future()
        self._waiting.extend(rows)
        self._arrived.set()
        try:
            return await asyncio.gather(*(row.vector for row in rows))
        finally:  # a no-op unless the request was cancelled
            gone = {row for row in rows if row.vector.cancelled()}
            if gone:
                self._waiting = deque(row for row in self._waiting if row not in gone)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            kind = batch[0].kind
            self.calls[kind] += 1
            self.rows[kind] += len(batch)
            values = [row.value for row in batch]
            try:
                vectors = await loop.run_in_executor(self._thread, self._run_model, kind, values)
            except Exception as error:
                for row in batch:
                    if not row.vector.done():
                        row.vector.set_exception(error)
            else:
                for row, vector in zip(batch, vectors, strict=True):
                    if not row.vector.done():
                        row.vector.set_result(vector)

    async def _next_batch(self) -> list[Row]:
        while True:
            self._arrived.clear()
            batch = self._oldest_batch()
            if len(batch) == self._max_batch:
                break
            left = None  # an empty queue waits for as long as it takes
            if batch:
                left = batch[0].arrived + self._max_wait - asyncio.get_running_loop().time()
                if left <= 0:
                    break
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
        taken = set(batch)
        self._waiting = deque(row for row in self._waiting if row not in taken)
        return batch

    def _oldest_batch(self) -> list[Row]:
        same = (row for row in self._waiting if row.kind == self._waiting[0].kind)
        return [row for row, _ in zip(same, range(self._max_batch), strict=False)]
