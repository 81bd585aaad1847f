"""The verdict: what is measured is held against what is allowed, and the message says both."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mwa_export.errors import UsageError
from mwa_export.metrics.agreement import CosineSummary
from mwa_export.metrics.recall import MAX_RECALL_DROP
from mwa_export.parity.gates import Gates, check_gates
from mwa_export.parity.result import Direction, DirectionResult, GateResult, Margins, RecallChange
from mwa_export.spec import Tower


def change(
    k: int = 1,
    *,
    won: int = 0,
    lost: int = 0,
    queries: int = 500,
    low: float | None = None,
    right: int = 400,
) -> RecallChange:
    difference = 100.0 * (won - lost) / queries
    before, after = 100.0 * right / queries, 100.0 * (right + won - lost) / queries
    low = difference if low is None else low
    return RecallChange(k, before, after, difference, low, difference, won, lost, 1.0)


def direction(name: Direction, *changes: RecallChange) -> DirectionResult:
    nothing = Margins(0, None, None, 0.1)
    return DirectionResult(name, 500, 500, changes, (1.0, 1.0), (1.0, 1.0), 0, 1.0, nothing)


def both(**changes: RecallChange) -> list[DirectionResult]:
    """Six figures: unchanged, except those named as `tr1`."""
    names: tuple[Direction, Direction] = ("tr", "ir")
    return [
        direction(name, *(changes.get(f"{name}{k}", change(k)) for k in (1, 5, 10)))
        for name in names
    ]


def cosine(tower: Tower, minimum: float, row: int = 7) -> CosineSummary:
    return CosineSummary(tower, 10, 0, 1.0, 1.0, minimum, row, (0.0, 2.0), (10,))


def judge(gates: Gates, directions: list[DirectionResult]) -> dict[str, GateResult]:
    return {gate.name: gate for gate in check_gates(gates, 0.95, directions, [])}


def failed(results: dict[str, GateResult]) -> list[str]:
    return [name for name, gate in results.items() if not gate.passed]


def test_default_allows_a_fifth_of_a_point_for_each_recall_and_any_cosine() -> None:
    assert Gates() == Gates(max_recall_drop=0.2, min_cosine=None, on_bound=False)
    assert MAX_RECALL_DROP == 0.2
    results = check_gates(Gates(), 0.95, both(), [cosine("vision", -1.0)])
    assert [gate.name for gate in results] == [
        f"{name}@{k} drop" for name in ("TR", "IR") for k in (1, 5, 10)
    ]
    assert all(gate.passed for gate in results)


@pytest.mark.parametrize("name", ["tr1", "tr5", "tr10", "ir1", "ir5", "ir10"])
def test_each_figure_has_its_own_gate(name: str) -> None:
    k = int(name[2:])
    results = judge(Gates(), both(**{name: change(k, lost=2)}))
    assert failed(results) == [f"{name[:2].upper()}@{k} drop"]


def test_drop_of_exactly_the_limit_passes_and_one_query_more_fails() -> None:
    at_limit = judge(Gates(0.2), both(tr1=change(lost=1, queries=500)))
    assert failed(at_limit) == []
    assert at_limit["TR@1 drop"].found == pytest.approx(0.2)
    assert failed(judge(Gates(0.2), both(tr1=change(lost=2, queries=500)))) == ["TR@1 drop"]


@given(st.sampled_from([100, 500, 1000, 5000, 25_000]), st.integers(0, 100), st.integers(0, 50))
@settings(deadline=None)
def test_limit_that_is_a_whole_number_of_queries_lets_exactly_so_many_be_lost(
    queries: int, allowed: int, won: int
) -> None:
    """Whatever floats make of 100 * 3 / 1000."""
    limit = float(f"{100 * allowed / queries:.6f}")  # as a person writes it
    lost = change(won=won, lost=won + allowed, queries=queries, right=queries - won)
    assert failed(judge(Gates(limit), both(tr1=lost))) == []
    if allowed < queries:
        lost = change(won=won, lost=won + allowed + 1, queries=queries, right=queries - won)
        assert failed(judge(Gates(limit), both(tr1=lost))) == ["TR@1 drop"]


def test_gain_passes_a_limit_of_zero() -> None:
    results = judge(Gates(0.0), both(ir1=change(won=5)))
    assert failed(results) == []
    assert results["IR@1 drop"].found == -1.0


def test_no_drop_is_zero_and_not_minus_zero() -> None:
    gate = judge(Gates(0.0), both())["TR@1 drop"]
    assert math.copysign(1, gate.found) == 1
    assert "is the same (80.00%)" in gate.message
    assert "-0.00" not in gate.message


def test_message_of_a_recall_gate_names_the_figure_and_all_numbers() -> None:
    gate = judge(Gates(0.25), both(ir5=change(5, lost=4)))["IR@5 drop"]
    assert gate.message == (
        "IR@5 dropped by 0.80 points (80.00% to 79.20%), allowed to drop by 0.25"
    )
    assert gate.found == pytest.approx(0.8)
    assert (gate.limit, gate.passed) == (0.25, False)


def test_bound_gate_holds_the_interval_against_the_limit() -> None:
    unsure = both(tr1=change(lost=1, low=-0.7), ir1=change(lost=0, low=-0.15))
    assert failed(judge(Gates(0.2), unsure)) == []
    results = judge(Gates(0.2, on_bound=True), unsure)
    assert failed(results) == ["TR@1 drop"]
    assert results["TR@1 drop"].found == 0.7
    assert results["TR@1 drop"].message == (
        "TR@1 may have dropped by 0.70 points with 95% confidence "
        "(measured: 80.00% to 79.80%), allowed 0.2"
    )


def test_rounding_never_hides_that_a_limit_is_missed() -> None:
    drop = RecallChange(1, 100.0, 100 - 100 / 498, -100 / 498, -1.0, 0.5, 0, 1, 1.0)
    result = judge(Gates(0.2), both(tr1=drop))["TR@1 drop"]
    assert not result.passed
    assert result.message.startswith("TR@1 dropped by 0.201 points")


def test_bound_of_exactly_the_limit_passes() -> None:
    assert failed(judge(Gates(0.3, on_bound=True), both(tr1=change(low=-(0.1 + 0.2))))) == []
    assert failed(judge(Gates(0.3, on_bound=True), both(tr1=change(low=-0.3001)))) != []


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0, 5), st.floats(0, 100))
@settings(deadline=None)
def test_bound_gate_is_never_more_lenient(won: int, lost: int, below: float, limit: float) -> None:
    difference = 100.0 * (won - lost) / 500
    directions = both(tr1=change(won=won, lost=lost, low=difference - below))
    if not failed(judge(Gates(limit, on_bound=True), directions)):
        assert not failed(judge(Gates(limit), directions))


def test_without_gates_there_are_no_results() -> None:
    everything_lost = both(tr1=change(lost=400))
    gates = Gates(max_recall_drop=None)
    assert check_gates(gates, 0.95, everything_lost, [cosine("text", -1.0)]) == ()


@pytest.mark.parametrize(("minimum", "passed"), [(0.999, True), (0.9991, True), (0.99899, False)])
def test_cosine_gate_holds_the_worst_row_of_each_tower(minimum: float, passed: bool) -> None:
    gates = Gates(max_recall_drop=None, min_cosine=0.999)
    cosines = [cosine("vision", 1.0), cosine("text", minimum, row=41)]
    vision, text = check_gates(gates, 0.95, both(), cosines)
    assert (vision.name, vision.passed) == ("vision cosine", True)
    assert (text.name, text.passed) == ("text cosine", passed)
    assert (text.limit, text.found) == (0.999, minimum)
    said = f"text cosine is {minimum:.6f} at its smallest (row 41), allowed 0.999"
    assert text.message == said


def test_identical_embeddings_pass_a_cosine_of_one() -> None:
    gates = Gates(min_cosine=1.0)
    assert all(g.passed for g in check_gates(gates, 0.95, both(), [cosine("text", 1.0)]))


def test_both_kinds_of_gates_are_listed() -> None:
    cosines = [cosine("vision", 1.0), cosine("text", 1.0)]
    names = [g.name for g in check_gates(Gates(min_cosine=0.9), 0.95, both(), cosines)]
    assert names[-2:] == ["vision cosine", "text cosine"]
    assert len(names) == 8


@pytest.mark.parametrize("limit", [-0.1, -1e-12, 100.1, math.inf, math.nan])
def test_impossible_drop_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match=r"max_recall_drop=.*expected 0 to 100"):
        Gates(max_recall_drop=limit)


@pytest.mark.parametrize("limit", [-1.1, 1.0001, 99.9, math.nan])
def test_impossible_cosine_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match=r"min_cosine=.*expected -1 to 1"):
        Gates(min_cosine=limit)


@pytest.mark.parametrize("limit", [0.0, 100.0])
def test_extreme_drops_are_allowed(limit: float) -> None:
    assert Gates(max_recall_drop=limit, min_cosine=-1.0).max_recall_drop == limit
