"""Progress of a run of `embed`: rows, speed, bottleneck, and the limit on failed rows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mwa_export.embed.pipeline import STAGES, TIMES, Clock, Stage
from mwa_export.embed.plan import Plan
from mwa_export.errors import OptionsError, TooManyErrorsError
from mwa_export.inputs.content import Kind
from mwa_export.vectors.entries import Entry
from mwa_export.vectors.job import FOLDERS
from mwa_export.vectors.manifest import Counts

_ENOUGH = 1000  # rows before a percentage of failures is checked


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Progress of a run at one moment."""

    done: int  # rows embedded or failed, including earlier runs
    total: int
    failed: int
    seconds: float  # since this run started
    rate: float  # rows per second in this run
    eta: float | None  # seconds left; None: unknown
    bottleneck: Stage | None  # None: too early to tell
    stages: dict[Stage, dict[str, float]]  # busy, starved and blocked seconds

    def to_json(self) -> dict[str, Any]:
        return {name: _rounded(getattr(self, name)) for name in self.__slots__}


class Watch(Protocol):
    """Callbacks that display a run. They are called from several threads."""

    def planned(self, plan: Plan, todo: int, shards: int) -> None:
        """Called when the plan is made; ``todo`` rows are left in a total of ``shards`` shards."""
        return

    def progress(self, snapshot: Snapshot) -> None:
        """Called after each batch."""
        return

    def shard(self, entry: Entry) -> None:
        """Called after each finished shard."""
        return


class Unwatched(Watch):
    """Callbacks that display nothing."""


@dataclass(frozen=True, slots=True)
class MaxErrors:
    """Limit on failed rows: a number, or a percentage of the rows done."""

    value: float
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> MaxErrors:
        """Parse a limit such as "20" or "0.5%".

        Raises:
            OptionsError: it is neither a number nor a percentage.
        """
        try:
            percent = text.endswith("%")
            value = float(text[:-1]) if percent else float(int(text))
            if not 0 <= value <= (100 if percent else math.inf):
                raise ValueError
        except (ValueError, OverflowError):
            expected = "a number such as 20, or a percentage such as 0.5%"
            raise OptionsError("max_errors", text, expected) from None
        return cls(value, percent)

    def check(self, done: int, failed: int, *, last: bool = False) -> None:
        """Raise TooManyErrorsError if too many rows failed.

        A percentage is checked only from 1,000 rows on, and at the end.
        """
        if self.percent:
            if done < _ENOUGH and not last:
                return
            allowed, over = f"{self.value:g}%", failed > self.value / 100 * done
        else:
            allowed, over = f"{self.value:g}", failed > self.value
        if over:
            raise TooManyErrorsError(
                f"{failed:,} of {done:,} rows failed, but `max_errors` allows {allowed}. Finished "
                "shards are kept. Check the input, or run the same command again with a larger "
                "`max_errors`."
            )


_USUAL = MaxErrors(10, percent=True)  # per kind: a wrong folder or column fails nearly all rows


def judge(found: Mapping[Kind, Counts], limit: MaxErrors | None, *, errors: str) -> None:
    """Raise TooManyErrorsError if so many rows of a finished output failed that it looks wrong.

    Args:
        found: counts per kind.
        limit: the caller's limit, already checked; None: 10% of each kind.
        errors: name of the file that lists the failed rows.
    """
    for kind, total in found.items():
        done = total.embedded + total.failed
        if (limit is None and total.failed > done * _USUAL.value / 100) or not total.embedded:
            allowed = f"more than {_USUAL.value:g}%" if total.embedded else "all of them"
            raise TooManyErrorsError(
                f"{total.failed:,} of {done:,} {FOLDERS[kind]} failed, {allowed}. The output is "
                f"complete, and its {errors} lists the reasons. Check the input. To try failed "
                "rows again, pass `retry_failed`"
                + ("; to accept the failures, pass `max_errors`" if total.embedded else "")
            )


@dataclass
class Meter:
    """Counts the rows of a run across its threads."""

    clock: Clock
    total: int
    earlier: int  # rows done by earlier runs
    earlier_failed: int
    watch: Watch
    limit: MaxErrors | None = None
    done: int = 0
    failed: int = 0
    started: float = field(default_factory=time.perf_counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def restart(self) -> None:
        """Restart the clock for rates, once the model is ready."""
        self.started = time.perf_counter()

    def advance(self, rows: int, failed: int) -> None:
        """Count ``rows`` more rows as done, ``failed`` of them as failed.

        Raises:
            TooManyErrorsError: more rows failed than `limit` allows.
        """
        with self._lock:
            self.done += rows
            self.failed += failed
        if self.limit is not None:
            self.limit.check(self.earlier + self.done, self.earlier_failed + self.failed)
        self.watch.progress(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Return the current progress."""
        seconds = time.perf_counter() - self.started
        rate = self.done / seconds if seconds > 0 else 0.0
        done = self.earlier + self.done
        clock = self.clock
        return Snapshot(
            done,
            self.total,
            self.earlier_failed + self.failed,
            seconds,
            rate,
            (self.total - done) / rate if rate > 0 else None,
            clock.bottleneck() if clock.busy["infer"] > 0 else None,
            {stage: {name: getattr(clock, name)[stage] for name in TIMES} for stage in STAGES},
        )


def failed_in(entries: Sequence[Entry]) -> int:
    """Count the failed rows of finished shards."""
    return sum(len(entry.errors) for entry in entries)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value
