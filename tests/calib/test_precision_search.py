"""The precision search keeps its budget, chooses only measured options, and records reasons."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recall_changes import smoothed, trial

from mwa_export.calib.precision_search import (
    SearchResult,
    SiteKey,
    Trial,
    rank_sites,
    savings,
    search,
    speedup,
)
from mwa_export.progress import Silent
from mwa_export.spec import Tower

TOWERS: tuple[Tower, ...] = ("vision", "text")


def keys(count: int) -> list[SiteKey]:
    return [SiteKey(TOWERS[index % 2], f"blocks.{index}.qkv") for index in range(count)]


class Recorder:
    """Answers with a fixed drop per layer, plus noise that depends on the assignment."""

    def __init__(self, drops: dict[SiteKey, float], noise: dict[int, float] | None = None) -> None:
        self.drops, self.noise = drops, noise or {}
        self.asked: list[frozenset[SiteKey]] = []

    def __call__(self, int8: frozenset[SiteKey]) -> Trial:
        self.asked.append(int8)
        drop = sum(self.drops[site] for site in int8)
        if int8:
            drop += self.noise.get(len(int8) % 5, 0.0)
        return trial(int8, drop)


def run(
    drops: list[float],
    saved: list[float] | None = None,
    *,
    budget: float = 0.2,
    points: int = 0,
    noise: dict[int, float] | None = None,
) -> tuple[SearchResult, Recorder]:
    sites = keys(len(drops))
    evaluate = Recorder(dict(zip(sites, drops, strict=True)), noise)
    sensitivity = {site: abs(drop) for site, drop in zip(sites, drops, strict=True)}
    saving = dict(zip(sites, saved or [1.0] * len(drops), strict=True))
    result = search(
        sensitivity,
        saving,
        evaluate,
        max_drop=budget,
        pictures=None,
        points=points,
        progress=Silent(),
    )
    return result, evaluate


LAYERS = st.lists(st.tuples(st.floats(-0.1, 0.5), st.floats(0, 5)), min_size=1, max_size=16)
NOISE = st.dictionaries(st.integers(0, 4), st.floats(-0.3, 0.3))


@settings(max_examples=150, deadline=None)
@given(LAYERS, st.floats(0, 1), st.integers(0, 6), NOISE)
def test_choice_was_measured_inside_the_budget(
    layers: list[tuple[float, float]], budget: float, points: int, noise: dict[int, float]
) -> None:
    drops, saved = [drop for drop, _ in layers], [saving for _, saving in layers]
    result, evaluate = run(drops, saved, budget=budget, points=points, noise=noise)
    assert result.chosen.int8 in evaluate.asked
    assert result.chosen.expected(None) <= budget or not result.chosen.int8
    assert len(set(evaluate.asked)) == len(evaluate.asked) == len(result.measured)
    assert {kept.site for kept in result.kept} == set(result.sensitivity) - result.chosen.int8

    def worth(measured: Trial) -> float:
        return sum(result.saving[site] for site in measured.int8)

    passing = [m for m in result.measured if m.expected(None) <= budget]
    assert worth(result.chosen) >= max(map(worth, passing), default=0.0)


def test_everything_is_int8_where_that_passes() -> None:
    result, evaluate = run([0.01] * 8)
    assert len(result.chosen.int8) == 8
    assert result.kept == ()
    assert evaluate.asked[0] == frozenset(keys(8))


def test_only_the_layer_that_loses_recall_is_kept() -> None:
    drops = [0.0] * 9
    drops[4] = 3.0
    result, _evaluate = run(drops)
    assert [kept.site for kept in result.kept] == [keys(9)[4]]
    reason = result.kept[0].reason
    assert "3.0e+00 (100% of all)" in reason
    assert "11% of the time saved by INT8" in reason
    assert "3.00 points, allowed 0.20" in reason


def test_nothing_is_int8_where_nothing_passes() -> None:
    result, _evaluate = run([5.0] * 6)
    assert result.chosen.int8 == frozenset()
    assert len(result.kept) == 6


def test_loss_within_its_error_is_no_reason_to_keep_layers() -> None:
    """The search must not follow the noise of small data."""
    noisy = trial(keys(3), 0.9, error=1.0)
    assert noisy.expected(None) == 0
    assert trial(keys(3), 0.9, error=0.1).expected(None) == pytest.approx(0.9, rel=0.02)


def test_interval_of_the_decision_needs_room_in_the_budget() -> None:
    noise = smoothed(0.0, error=1.0)  # of one picture: 1 point
    known = replace(trial(keys(3), 0.0), changes={"TR@1": noise})
    assert known.expected(100) == pytest.approx(1.96 / 10, rel=0.05)
    assert known.expected(10_000) == pytest.approx(1.96 / 100, rel=0.05)


def test_time_budget_stops_the_search_at_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    drops = [0.5] * 3 + [0.0] * 29
    sites = keys(len(drops))
    found = {}
    for seconds in (1000.0, 2.5):
        evaluate = Recorder(dict(zip(sites, drops, strict=True)))
        found[seconds] = search(
            dict(zip(sites, range(32, 0, -1), strict=True)),
            dict.fromkeys(sites, 1.0),
            evaluate,
            max_drop=0.2,
            pictures=None,
            points=5,
            progress=Silent(),
            seconds=seconds,
        )
        assert len(evaluate.asked) == len(set(evaluate.asked))
    assert (found[1000.0].stopped, found[2.5].stopped) == (False, True)
    assert len(found[1000.0].kept) == 3
    assert len(found[2.5].kept) == 8, "the best that fits, of three that were tried"


def test_points_are_measured_beside_the_search() -> None:
    few, many = run([0.01] * 12)[0], run([0.01] * 12, points=4)[0]
    assert len(many.measured) >= len(few.measured) + 4
    assert many.chosen.int8 == few.chosen.int8


def test_order_is_error_by_time_saved_and_error_alone_where_time_is_unknown() -> None:
    a, b, c = keys(3)
    error = {a: 3.0, b: 2.0, c: 1.0}
    assert rank_sites(error, {a: 6.0, b: 1.0, c: 1.0}) == [b, c, a]
    assert rank_sites(error, {a: 6.0, b: 0.0, c: 1.0}) == [a, b, c]


def test_saving_of_a_tower_is_shared_by_work_and_adds_up() -> None:
    sites = keys(4)
    macs = dict(zip(sites, [1.0, 10.0, 3.0, 10.0], strict=True))
    high: dict[Tower, float] = {"vision": 10.0, "text": 4.0}
    int8: dict[Tower, float] = {"vision": 6.0, "text": 5.0}
    saved = savings(macs, high, int8)
    assert saved[sites[0]] == pytest.approx(1.0)
    assert saved[sites[2]] == pytest.approx(3.0)
    assert saved[sites[1]] == saved[sites[3]] == 0.0, "INT8 was slower there"
    assert speedup(sites, saved, high, "vision") == pytest.approx(10 / 6)
    assert speedup(sites, saved, high, "text") == 1.0
    assert speedup([], saved, high, "vision") == 1.0
