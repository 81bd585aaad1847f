"""Embed shards of images: threads decode into reused buffers while the model runs.

A batch is a fixed range of a shard's rows, including those that fail, so it depends only on the
shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.remote.access import stop_with
from mwa_export.data.rows import Row, Source
from mwa_export.embed.pipeline import Channel, Clock, Line, StoppedError
from mwa_export.embed.room import Room
from mwa_export.embed.rows import Collected, Setup, checked_rows, stable
from mwa_export.errors import ImageError
from mwa_export.inputs.decode import pixels_of
from mwa_export.runtimes.backend import Backend
from mwa_export.vectors.job import RowError, Shard
from mwa_export.vectors.shards import Embedded

_SLOTS = 3  # batches: one in the model, one ready, one being filled


@dataclass(slots=True)
class _Batch:
    """A batch of a shard's rows in the pipeline."""

    shard: Shard
    buffer: NDArray[np.uint8]  # (batch, size, size, 3); rows[i] is decoded into buffer[i]
    rows: list[tuple[int, Row]] = field(default_factory=list)  # rows to decode
    decoded: list[Future[RowError | None]] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    last: bool = False  # the last batch of its shard


def embed_picture_shards(
    setup: Setup, source: Source, shards: Iterable[Shard]
) -> Iterator[Embedded]:
    """Embed shards in order, without a pause between them.

    Raises:
        DataError: the source has changed since its scan.
    """
    size, batch, clock = setup.backend.image_size, setup.batch, setup.clock
    clock.threads |= {"read": setup.workers, "decode": setup.workers}
    room = Room(setup.workers)
    with Line(clock) as line:
        pool = ThreadPoolExecutor(setup.workers, "decode", stop_with, (line.give_up,))
        free: Channel[NDArray[np.uint8]] = Channel(line, _SLOTS, None, None)
        ready: Channel[_Batch] = Channel(line, _SLOTS, None, "infer")
        for _ in range(_SLOTS):
            free.put(np.empty((batch, size, size, 3), np.uint8))

        def decode(row: int, item: Row, target: NDArray[np.uint8]) -> RowError | None:
            line.give_up()
            return _decode(row, item, target, clock, room)

        def read() -> None:
            for shard in shards:
                entry = _Batch(shard, free.take())
                for position, (row, item, error) in enumerate(checked_rows(setup, source, shard)):
                    if position and position % batch == 0:
                        ready.put(entry)
                        entry = _Batch(shard, free.take())
                    if error is not None:
                        entry.errors.append(error)
                        continue
                    target = entry.buffer[len(entry.rows)]
                    entry.rows.append((row, item))
                    entry.decoded.append(pool.submit(decode, row, item, target))
                entry.last = True
                ready.put(entry)
            ready.close()

        line.start(read, "read")
        try:
            collected = Collected()
            for entry in ready:
                failed = _infer(setup.backend, entry, collected, clock)
                free.put(entry.buffer)
                setup.on_rows(len(entry.rows) + len(entry.errors), failed)
                if entry.last:
                    yield collected.finish(entry.shard)
                    collected = Collected()
            line.check()
        except StoppedError:  # decoding was cancelled because another stage failed
            raise line.failure or StoppedError from None
        finally:
            line.stop()
            pool.shutdown(wait=True, cancel_futures=True)


def _infer(backend: Backend, entry: _Batch, collected: Collected, clock: Clock) -> int:
    """Wait for a batch's images and embed the decoded ones. Returns the number of failed rows."""
    before = len(collected.errors)
    waiting = time.perf_counter()
    outcomes = [future.result() for future in entry.decoded]
    clock.add(clock.starved, "infer", time.perf_counter() - waiting)
    good = [index for index, error in enumerate(outcomes) if error is None]
    collected.errors += entry.errors
    collected.errors += [error for error in outcomes if error is not None]
    if not good:
        return len(collected.errors) - before
    whole = len(good) == len(outcomes)
    pixels = entry.buffer[: len(good)] if whole else entry.buffer[good]
    with clock.working("infer"):
        vectors = backend.embed_images(pixels)
    rows = [entry.rows[index] for index in good]
    numbers = [number for number, _row in rows]
    collected.add(numbers, [r.id for _, r in rows], [r.columns for _, r in rows], vectors)
    return len(collected.errors) - before


def _decode(
    row: int, item: Row, target: NDArray[np.uint8], clock: Clock, room: Room
) -> RowError | None:
    """Decode an image into ``target`` (size, size, 3), uint8. Returns the error if that fails."""
    try:
        content: Any = item.content
        if not isinstance(content, bytes | str):
            with clock.working("read"):
                content = content.read()
        with clock.working("decode"):
            size = target.shape[0]
            target[:] = pixels_of(content, item.id, size, room=room, on_loss=clock.lose)
    except ImageError as error:
        return RowError(row, item.id, error.code, stable(str(error)))
    except MemoryError:
        return RowError(row, item.id, "too-large", f"{item.id}: does not fit in memory.")
    return None
