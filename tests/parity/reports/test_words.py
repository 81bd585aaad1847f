"""Words and numbers of the reports say neither more nor less than the figures do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from parity_samples import identical_parity, sample_parity

from mwa_export.parity.reports.words import also_failed, drift, headline
from mwa_export.parity.result import DirectionResult, GateResult, Parity, Stage
from mwa_export.report.numbers import DASH, MINUS, cosine, percent, points
from mwa_export.report.text import printable

sample = cache(sample_parity)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


def number(text: str) -> float:
    """What a reader takes the text for."""
    return float(text.replace(MINUS, "-"))


def with_drop(drop: float, *gates: GateResult) -> Parity:
    """A passing result of which every recall figure dropped that much."""
    result = sample(60)

    def dropped(d: DirectionResult) -> DirectionResult:
        return replace(d, recalls=tuple(replace(r, difference=-drop) for r in d.recalls))

    directions = tuple(dropped(d) for d in result.directions)
    return replace(result, directions=directions, gates=gates, passed=True)


def drop_gate(limit: float, found: float) -> GateResult:
    return GateResult("TR@1 drop", limit, found, True, "TR@1 drop: as allowed")


DROP = 100 * (0.5 - 0.498)  # one query in 500; as a float a hair more than 0.2
HEADLINES = {
    "a recall figure fell": sample(1000),
    "only a cosine fell": replace(
        sample(1000),
        gates=tuple(replace(g, passed="text" not in g.name) for g in sample(1000).gates),
    ),
    "a drop within the limit": with_drop(0.1, drop_gate(0.2, 0.1)),
    "a drop that floats put a hair over the limit": with_drop(DROP, drop_gate(0.2, DROP)),
    "no drop": with_drop(0.0, drop_gate(0.2, 0.0)),
    "a gain": with_drop(-1.0, drop_gate(0.2, -1.0)),
    "a tiny drop that no gate is for": with_drop(
        0.004, GateResult("text cosine", 0.9, 0.99, True, "text cosine: fine")
    ),
    "identical sides": identical_parity(100),
    "no gates": replace(sample(60), gates=(), passed=True),
    "no gates, identical sides": replace(identical_parity(60), gates=(), passed=True),
}
DRIFTS = (
    Stage("tokenizer", "same", "The same ids."),
    Stage("graph", "not measured", "Arrays were given."),
    Stage("tokenizer", "changed", "3 captions have other ids."),
    Stage("tokenizer", "changed", "", None, 1 - 2e-8, 0.004),
    Stage("precision", "changed", "", 0.98765),
    Stage("precision", "changed", "", 0.98765, None, -1.4, 0.0),
)


def test_headlines_are_as_expected(as_expected: Callable[[str, str], None]) -> None:
    said = {
        case: " / ".join(filter(None, (headline(result), also_failed(result))))
        for case, result in HEADLINES.items()
    }
    as_expected("headlines.txt", "".join(f"{case}: {text}\n" for case, text in said.items()))


def test_drifts_are_as_expected(as_expected: Callable[[str, str], None]) -> None:
    lines = [f"{s.name}, {s.state}: {drift(s)}\n" for s in DRIFTS]
    as_expected("drifts.txt", "".join(lines))


def test_headline_of_a_failure_is_the_largest_drop() -> None:
    result = sample(1000)
    drops = [g for g in result.gates if not g.passed and g.name.endswith(" drop")]
    worst = max(drops, key=lambda gate: gate.found)
    assert headline(result) == f"Fails: {worst.message.rstrip('.')}"
    assert worst.name not in also_failed(result)


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
