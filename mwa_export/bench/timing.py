"""Time contenders side by side. Knows no model and no runtime.

Each round runs every contender once in a newly shuffled order, and contenders are only compared
within a round. A machine that slows down for a while therefore slows all of them alike, and no
contender always runs after the same neighbour.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mwa_export.errors import UsageError

W = TypeVar("W")

FEWEST_ROUNDS = 3  # with fewer, a median is meaningless
SETTLE = 0.05  # seconds between contenders, in which idle threads of the last one stop spinning


@dataclass(frozen=True, slots=True)
class Entry(Generic[W]):
    """A function to time, and how a window is cut into batches for it."""

    split: Callable[[W], Sequence[Any]]
    run: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """Times and results of one contender in one round."""

    seconds: float  # for the window: splitting and all calls
    calls: tuple[float, ...]  # seconds of each call of ``run``
    results: tuple[Any, ...]  # return value of each call


def interleave(
    entries: Mapping[str, Entry[W]],
    windows: Sequence[W],
    *,
    seed: int = 0,
    settle: float = SETTLE,
    clock: Callable[[], float] = time.perf_counter,
    on_turn: Callable[[], None] = lambda: None,
) -> dict[str, list[Turn]]:
    """Time every entry on every window, one window per round. Returns the turns by entry.

    Args:
        entries: what to time, by name, already warmed up.
        windows: the work of each round, shared by all entries.
        settle: seconds to wait before each turn.

    Raises:
        UsageError: fewer windows than FEWEST_ROUNDS.
    """
    if len(windows) < FEWEST_ROUNDS:
        raise UsageError(f"`rounds={len(windows)}`: expected at least {FEWEST_ROUNDS}.")
    shuffle = random.Random(seed)
    turns: dict[str, list[Turn]] = {name: [] for name in entries}
    for window in windows:
        order = list(entries)
        shuffle.shuffle(order)
        for name in order:
            if settle:
                time.sleep(settle)
            turns[name].append(one_turn(entries[name], window, clock=clock))
            on_turn()
    return turns


def one_turn(entry: Entry[W], window: W, *, clock: Callable[[], float] = time.perf_counter) -> Turn:
    """Run one window and time it as a whole and call by call."""
    calls, results = [], []
    start = clock()
    for batch in entry.split(window):
        before = clock()
        results.append(entry.run(batch))
        calls.append(clock() - before)
    return Turn(clock() - start, tuple(calls), tuple(results))


def same_round_ratios(baseline: Sequence[Turn], turns: Sequence[Turn]) -> list[float]:
    """Speed relative to the baseline in each round."""
    return [b.seconds / t.seconds for b, t in zip(baseline, turns, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def percentile(values: Sequence[float], share: float) -> float:
    """Smallest value that at least ``share`` (0 to 1) of the values do not exceed."""
    if not 0 < share <= 1:
        raise ValueError(f"share {share}")
    ordered = sorted(values)
    needed = share * len(ordered)
    return ordered[max(0, -int(-needed // 1) - 1)]  # the ceiling, counted from 0
