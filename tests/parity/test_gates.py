"""Gates compare measurements with limits, and messages state both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mwa_export.errors import UsageError
from mwa_export.metrics.agreement import CosineSummary
from mwa_export.metrics.recall import MAX_RECALL_DROP
from mwa_export.metrics.smoothed import SmoothedChange
from mwa_export.parity.gates import Gates, check_gates, pictures_for_verdict
from mwa_export.parity.result import Direction, DirectionResult, GateResult, Margins, RecallChange
from mwa_export.spec import Tower

SURE = SmoothedChange(0.0, 0.02, 1000.0, 0.1, 0.0, 0.05, 0.0, 1.0, 1.0)


def change(
    k: int = 1, value: float = 0.0, *, error: float = 0.02, flips: float = 0.0, odds: float = 0.0
) -> RecallChange:
    """``flips``: what the count of flips says, and ``odds``: how far that is from the margins."""
    noise = error**2 * 5000
    smoothed = replace(SURE, value=value, error=error, noise=noise, flips=flips, disagreement=odds)
    low, high = smoothed.interval(0.95)
    return RecallChange(
        k, 80.0, 80.0 + flips, flips, flips - 0.1, flips + 0.1, smoothed, low, high, 0, 0, 1.0
    )


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


def not_passed(results: dict[str, GateResult]) -> dict[str, str]:
    return {name: gate.verdict for name, gate in results.items() if gate.verdict != "passes"}


def test_default_allows_a_fifth_of_a_point_for_each_recall_and_any_cosine() -> None:
    assert Gates() == Gates(max_recall_drop=0.2, min_cosine=None)
    assert MAX_RECALL_DROP == 0.2
    results = check_gates(Gates(), 0.95, both(), [cosine("vision", -1.0)])
    assert [gate.name for gate in results] == [
        f"{name}@{k} change" for name in ("TR", "IR") for k in (1, 5, 10)
    ]
    assert {gate.verdict for gate in results} == {"passes"}


@pytest.mark.parametrize("name", ["tr1", "tr5", "tr10", "ir1", "ir5", "ir10"])
@pytest.mark.parametrize(("value", "verdict"), [(-0.5, "fails"), (-0.19, "undecided")])
def test_each_figure_has_its_own_gate(name: str, value: float, verdict: str) -> None:
    results = judge(Gates(), both(**{name: change(int(name[2:]), value)}))
    assert not_passed(results) == {f"{name[:2].upper()}@{name[2:]} change": verdict}


def test_message_of_a_recall_gate_names_the_figure_and_all_numbers() -> None:
    gate = judge(Gates(0.25), both(ir5=change(5, -0.8)))["IR@5 change"]
    for part in ("IR@5", "-0.80", "[-0.84, -0.76]", "0.25"):
        assert part in gate.message
    assert gate.found == pytest.approx(-0.8)
    assert (gate.limit, gate.verdict, gate.pictures) == (-0.25, "fails", None)


@pytest.mark.parametrize(("value", "verdict"), [(0.0, "undecided"), (-0.5, "fails")])
def test_data_that_are_no_evidence_cannot_pass(value: float, verdict: str) -> None:
    directions = both(tr1=change(value=value))
    found = check_gates(Gates(), 0.95, directions, [], "the sun was in my eyes")
    assert found[0].verdict == verdict
    assert {gate.verdict for gate in found[1:]} == {"undecided"}
    assert "the sun was in my eyes" in found[1].message


def test_undecided_gate_names_the_pictures_that_would_decide_it() -> None:
    gate = judge(Gates(0.2), both(tr1=change(value=-0.1, error=0.2)))["TR@1 change"]
    assert gate.verdict == "undecided"
    assert gate.pictures is not None
    assert gate.pictures > 5000
    assert f"{gate.pictures:,} images" in gate.message


def test_figure_at_its_limit_is_decided_by_no_number() -> None:
    gate = judge(Gates(0.2), both(tr1=change(value=-0.2)))["TR@1 change"]
    assert (gate.verdict, gate.pictures) == ("undecided", None)


@pytest.mark.parametrize("flips", [-3.0, 3.0])
def test_estimates_that_contradict_each_other_decide_nothing(flips: float) -> None:
    loss = both(tr1=change(value=-flips, flips=flips, odds=9.0))
    gate = judge(Gates(), loss)["TR@1 change"]
    assert gate.verdict == "undecided"
    assert "contradicts" in gate.message
    assert f"{flips:+.2f}" in gate.message


def test_estimates_that_differ_and_say_the_same_decide() -> None:
    loss = both(tr1=change(value=-5.0, flips=-3.0, odds=9.0))
    assert not_passed(judge(Gates(), loss)) == {"TR@1 change": "fails"}


def gate(verdict: str, found: float, pictures: int | None) -> GateResult:
    return GateResult("TR@1 change", -0.2, found, verdict, "", pictures)  # type: ignore[arg-type]  # a name


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ([], None),
        ([gate("passes", 0.0, None)], None),
        ([gate("undecided", -0.1, 900), gate("undecided", 0.0, 400)], 900),  # all have to pass
        ([gate("undecided", -0.1, 900), gate("undecided", 0.0, None)], None),
        (
            [gate("undecided", -0.4, 900), gate("undecided", -0.5, 700)],
            700,
        ),  # one that fails is enough
        ([gate("undecided", -0.4, 900), gate("undecided", -0.1, None)], 900),
    ],
)
def test_pictures_for_the_whole(gates: list[GateResult], expected: int | None) -> None:
    assert pictures_for_verdict(gates) == expected


def test_no_drop_is_zero_and_not_minus_zero() -> None:
    found = judge(Gates(0.5), both())["TR@1 change"]
    assert math.copysign(1, found.found) == 1
    assert "-0.00 points" not in found.message


def test_without_gates_there_are_no_results() -> None:
    everything_lost = both(tr1=change(value=-80.0))
    gates = Gates(max_recall_drop=None)
    assert check_gates(gates, 0.95, everything_lost, [cosine("text", -1.0)]) == ()


@pytest.mark.parametrize(("minimum", "passed"), [(0.999, True), (0.9991, True), (0.99899, False)])
def test_cosine_gate_holds_the_worst_row_of_each_tower(minimum: float, passed: bool) -> None:
    gates = Gates(max_recall_drop=None, min_cosine=0.999)
    cosines = [cosine("vision", 1.0), cosine("text", minimum, row=41)]
    vision, text = check_gates(gates, 0.95, both(), cosines)
    assert (vision.name, vision.verdict) == ("vision cosine", "passes")
    assert (text.name, text.verdict) == ("text cosine", "passes" if passed else "fails")
    assert (text.limit, text.found) == (0.999, minimum)
    said = f"text cosine has a minimum of {minimum:.6f} (row 41), expected at least 0.999"
    assert text.message == said


def test_rounding_never_hides_that_a_limit_is_missed() -> None:
    gates = Gates(max_recall_drop=None, min_cosine=0.999)
    (_, text) = check_gates(gates, 0.95, both(), [cosine("vision", 1), cosine("text", 0.99899999)])
    assert text.verdict == "fails"
    assert "0.99899999" in text.message


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
