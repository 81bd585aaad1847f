"""The JUnit report has one test case per gate, and stays valid with any file name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parity_samples import HOSTILE, identical_parity, sample_parity, undecided_parity, without_gates

from mwa_export.parity.reports.junit import junit_from_parity
from mwa_export.parity.result import Parity
from mwa_export.report.text import printable

sample = cache(sample_parity)
ANY_TEXT = st.text(
    st.characters(exclude_categories=())
    | st.sampled_from('\0\x08\x1b\x7f\ud800\udcff\ufffe\uffff<"&]\n\r\t')
)
SMALL = sample(60)


def parsed(result: Parity) -> ElementTree.Element:
    """The document as a CI reads it: from bytes."""
    return ElementTree.fromstring(junit_from_parity(result).encode("utf-8"))


def suite_of(result: Parity) -> ElementTree.Element:
    root = parsed(result)
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    for name in ("tests", "failures"):
        assert root.get(name) == suite.get(name)
    return suite


def properties_of(result: Parity) -> dict[str | None, str | None]:
    return {p.get("name"): p.get("value") for p in suite_of(result).iter("property")}


@pytest.mark.parametrize(
    "result",
    [sample(1000), undecided_parity(1000), identical_parity(100), without_gates(SMALL)],
)
def test_failed_gates_fail_and_undecided_ones_are_skipped(result: Parity) -> None:
    suite = suite_of(result)
    cases = list(suite.iter("testcase"))
    assert [case.get("name") for case in cases] == [gate.name for gate in result.gates]
    assert suite.get("tests") == str(len(result.gates))
    for element, count, verdict in (
        ("failure", "failures", "fails"),
        ("skipped", "skipped", "undecided"),
    ):
        wanted = [gate.message for gate in result.gates if gate.verdict == verdict]
        assert [found.get("message") for found in suite.iter(element)] == wanted
        assert suite.get(count) == str(len(wanted))
    for case, gate in zip(cases, result.gates, strict=True):
        assert bool(len(case)) == (gate.verdict != "passes")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_with_markup_stays_what_it_is(text: str) -> None:
    result = replace(SMALL, data=replace(SMALL.data, name=text))
    assert properties_of(result)["data"] == printable(text)


@settings(max_examples=100, deadline=None)
@given(ANY_TEXT)
@example("caf\udce9\0.jpg")
@example("\ud83d\ude00 apart")
def test_no_name_makes_the_document_invalid(text: str) -> None:
    gate = replace(SMALL.gates[0], name=text, message=text, verdict="fails")
    result = replace(
        SMALL,
        data=replace(SMALL.data, name=text),
        reference=replace(SMALL.reference, name=text),
        gates=(gate, *SMALL.gates[1:]),
    )
    root = parsed(result)
    found = [p.get("value") for p in root.iter("property") if p.get("name") == "data"]
    (failure, *_) = root.iter("failure")
    (case, *_) = root.iter("testcase")
    for value in (*found, failure.get("message"), case.get("name")):
        assert value is not None
        assert len(value) == len(text)
        assert all(a in (b, "\N{REPLACEMENT CHARACTER}") for a, b in zip(value, text, strict=True))


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_names_without_control_characters_survive(text: str) -> None:
    kept = text.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
    assert properties_of(replace(SMALL, data=replace(SMALL.data, name=text)))["data"] == kept
