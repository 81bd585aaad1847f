"""Words and numbers in reports match the figures exactly."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from parity_samples import (
    LIMIT,
    identical_parity,
    sample_parity,
    undecided_parity,
    without_gates,
)

from mwa_export.parity.reports.tables import flips_table, gates_table, recall_table
from mwa_export.parity.reports.words import drift, figures, headline, not_passed
from mwa_export.parity.result import Parity, Stage
from mwa_export.report.numbers import DASH, MINUS, cosine, estimate, percent, points
from mwa_export.report.text import printable

sample = cache(sample_parity)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


def number(text: str) -> float:
    """What a reader takes the text for."""
    return float(text.replace(MINUS, "-"))


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (sample(1000), "Fails"),
        (sample(1000, damaged=False), "Passes"),
        (identical_parity(100), "Passes"),
        (undecided_parity(1000), "Undecided"),
        (without_gates(sample(60)), "No verdict"),
    ],
)
def test_headline_begins_with_the_verdict(result: Parity, verdict: str) -> None:
    assert headline(result).startswith(f"{verdict}: ")


def test_headline_of_an_undecided_result_says_how_many_pictures_decide() -> None:
    result = undecided_parity(1000)
    assert f"{result.pictures:,}" in headline(result)
    assert f"{result.data.images:,}" in headline(result)
    assert not re.search(r"\d", headline(replace(result, pictures=None)).partition("points")[2])


def test_headline_of_a_failure_is_the_largest_drop() -> None:
    result = sample(1000)
    drops = [g for g in result.gates if g.verdict == "fails" and g.name.endswith(" change")]
    worst = min(drops, key=lambda gate: gate.found)
    assert worst.message in headline(result)
    assert f" {worst.name.split()[0]}," not in not_passed(result)


@pytest.mark.parametrize("result", [sample(1000), undecided_parity(1000)])
def test_every_gate_that_does_not_pass_is_named(result: Parity) -> None:
    said = headline(result) + not_passed(result)
    for gate in result.gates:
        assert (gate.name.removesuffix(" change") in said) == (gate.verdict != "passes")


def test_drops_are_negative_in_every_table_and_rises_positive() -> None:
    result = sample(1000)
    rows = [*gates_table(result).rows, *recall_table(result).rows, *flips_table(result).rows]
    for name, n, change in figures(result):
        found = [row for row in rows if row[0].split()[0] == name]
        values = (estimate(change.smoothed.value), points(change.difference))
        for value in values:
            assert any(value in row for row in found), (name, n)
    limits = {row[3] for row in gates_table(result).rows if row[0].endswith("change")}
    assert limits == {f"{MINUS}{LIMIT:.2f}"}


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage("tokenizer", "same", "The same ids."), {"none"}),
        (Stage("graph", "not measured", "Arrays were given."), {"not measured"}),
        (Stage("tokenizer", "changed", "3 captions have other ids."), {"changed"}),
        (
            Stage("precision", "changed", "", 0.98765, None, -1.4, 0.0),
            {"vision cosine 0.9877", f"TR@1 {MINUS}1.40", "IR@1 0"},
        ),
    ],
)
def test_drift_says_what_was_measured_and_no_more(stage: Stage, said: set[str]) -> None:
    assert set(drift(stage).split(", ")) == said


@given(FINITE)
def test_points_are_zero_only_if_they_are(value: float) -> None:
    text = points(value)
    assert (text == "0") == (value == 0) == (number(text) == 0)


@given(FINITE)
def test_points_are_signed_and_symmetric(value: float) -> None:
    assume(value != 0)
    signs = {points(value)[0], points(-value)[0]}
    assert signs == {"+", MINUS}
    assert points(value)[1:] == points(-value)[1:]
    assert points(value).startswith("+") == (value > 0)


@given(st.floats(-100, 100))
def test_points_are_close(value: float) -> None:
    assert abs(number(points(value)) - value) <= 0.005 + 1e-9


@given(st.floats(-1, 1, exclude_max=True))
def test_cosine_below_one_never_looks_like_one(value: float) -> None:
    text = cosine(value)
    assert text != "1"
    if text.startswith("1 "):
        distance = text.removeprefix(f"1 {MINUS} ")
        assert float(distance) > 0
        assert float(distance) == pytest.approx(1 - value, rel=0.051)
    else:
        assert number(text) < 1
        assert number(text) == pytest.approx(value, abs=5.1e-5)


@given(st.floats(1, 1.001, exclude_min=True))
def test_cosine_above_one_is_told_from_one(value: float) -> None:
    assert cosine(value).startswith("1 + ") or number(cosine(value)) > 1


def test_cosine_of_one_is_one() -> None:
    assert cosine(1.0) == "1"


@given(st.integers(1, 4999), st.data())
def test_percent_has_one_decimal_and_is_close(queries: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, queries)) / queries * 100
    text = percent(value, queries)
    assert len(text.partition(".")[2]) == 1
    assert abs(float(text) - value) <= 0.05 + 1e-9


@given(st.integers(5000, 20_000), st.data())
def test_percent_of_many_queries_tells_every_hit(queries: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, queries))
    text = percent(hits / queries * 100, queries)
    assert len(text.partition(".")[2]) == 2
    if queries < 20_000:
        assert (float(text) == 0) == (hits == 0)
    assert abs(float(text) - hits / queries * 100) <= 0.005 + 1e-9


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_no_number_is_a_dash(value: float) -> None:
    assert points(value) == cosine(value) == percent(value, 1000) == DASH
    assert points(None) == cosine(None) == DASH


@given(st.text(st.characters(exclude_categories=())))
def test_printable_text_can_be_written_and_keeps_the_rest(text: str) -> None:
    shown = printable(text)
    assert shown.encode("utf-8")[:0] == b""
    assert len(shown) == len(text)
    assert "\x1b" not in shown
    assert printable(shown) == shown
    assert all(a in (b, "\N{REPLACEMENT CHARACTER}") for a, b in zip(shown, text, strict=True))


def test_printable_text_keeps_every_script() -> None:
    text = "قطة 猫 \N{DOG FACE} é <b> [red]"
    assert printable(text) == text
