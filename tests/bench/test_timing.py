"""Interleaved timing: ratios within a round, fair order, complete windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_export.bench.timing import (
    Entry,
    Turn,
    interleave,
    percentile,
    quartiles,
    same_round_ratios,
)
from mwa_export.errors import UsageError


class FakeMachine:
    """A clock that only work moves on; a factor slows all work down in some rounds."""

    def __init__(self, slow: dict[int, float] | None = None) -> None:
        self.now = 0.0
        self.order: list[tuple[int, str]] = []
        self._slow = slow or {}

    def clock(self) -> float:
        return self.now

    def entry(self, name: str, seconds: float, batches: int = 1) -> Entry[int]:
        def run(part: tuple[int, int]) -> str:
            window, _batch = part
            self.now += seconds * self._slow.get(window, 1.0)
            self.order.append((window, name))
            return name

        return Entry(lambda window: [(window, batch) for batch in range(batches)], run)

    def times(self, entries: dict[str, Entry[int]], rounds: int, **more: Any) -> Any:
        return interleave(entries, range(rounds), settle=0, clock=self.clock, **more)


def test_slow_phase_of_the_machine_does_not_change_ratios() -> None:
    slow = FakeMachine({1: 7.0, 2: 7.0, 3: 7.0})
    turns = slow.times({"base": slow.entry("base", 3.0), "fast": slow.entry("fast", 1.0)}, 5)
    assert same_round_ratios(turns["base"], turns["fast"]) == pytest.approx([3.0] * 5)
    # Medians of times alone would have mixed phases if only one of them had been hit.
    assert [turn.seconds for turn in turns["fast"]] == [1, 7, 7, 7, 1]


def test_ratio_is_of_the_same_round_and_not_of_medians() -> None:
    def turns(*seconds: float) -> list[Turn]:
        return [Turn(value, (value,), ()) for value in seconds]

    ratios = same_round_ratios(turns(2, 20, 6), turns(1, 4, 6))
    assert ratios == [2, 5, 1]
    assert quartiles(ratios)[1] == 2  # 6 / 4 of the medians would be 1.5


def test_every_round_runs_each_contender_once_in_its_own_order() -> None:
    machine = FakeMachine()
    names = [f"c{i}" for i in range(6)]
    machine.times({name: machine.entry(name, 1.0) for name in names}, 20)
    orders = [[name for window, name in machine.order if window == r] for r in range(20)]
    assert all(sorted(order) == names for order in orders)
    assert [window for window, _ in machine.order] == sorted(w for w, _ in machine.order)
    assert len({tuple(order) for order in orders}) > 10


def test_order_follows_the_seed() -> None:
    def order(seed: int) -> list[tuple[int, str]]:
        machine = FakeMachine()
        machine.times({n: machine.entry(n, 1.0) for n in "abcdef"}, 5, seed=seed)
        return machine.order

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_window_time_covers_splitting_and_calls_cover_runs_only() -> None:
    machine = FakeMachine()

    def split(_window: int) -> list[int]:
        machine.now += 0.5
        return [1, 2]

    def run(batch: int) -> int:
        machine.now += batch
        return 10 * batch

    turns = machine.times({"a": Entry(split, run)}, 3)["a"]
    assert turns == [Turn(3.5, (1.0, 2.0), (10, 20))] * 3


def test_progress_hears_of_every_turn() -> None:
    machine, heard = FakeMachine(), []
    entries = {name: machine.entry(name, 1.0) for name in "ab"}
    machine.times(entries, 4, on_turn=lambda: heard.append(1))
    assert len(heard) == 8


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_too_few_rounds_are_refused_before_anything_runs(rounds: int) -> None:
    machine = FakeMachine()
    with pytest.raises(UsageError, match="at least 3"):
        machine.times({"a": machine.entry("a", 1.0)}, rounds)
    assert machine.order == []


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=60), st.floats(0.01, 1))
def test_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found == np.quantile(values, share, method="inverted_cdf")


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_percentile_of_no_share_is_a_bug_of_ours(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], share)


def test_settling_waits_before_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    sleep: Callable[[float], None] = waited.append
    monkeypatch.setattr("mwa_export.bench.timing.time.sleep", sleep)
    machine = FakeMachine()
    entries = {name: machine.entry(name, 1.0) for name in "ab"}
    interleave(entries, range(3), settle=0.25, clock=machine.clock)
    assert waited == [0.25] * 6
