"""Hostile file names cannot move the cursor or break lines wherever they are shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from parity_samples import sample_parity

from mwa_export.cli import console, parity_view
from mwa_export.parity.reports.junit import junit_from_parity
from mwa_export.parity.reports.markdown import markdown_from_parity
from mwa_export.parity.reports.page import html_from_parity
from mwa_export.parity.result import Parity
from mwa_export.search.page import html_from_search
from mwa_export.search.result import Found, Hit

NAME = "photo\u202egpj.exe\u2069\u2066 \u061c\x1b]0;owned\x07\x9b2J\u2028\u0085end"
FORBIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def result() -> Parity:
    """A result whose every name is hostile."""
    made = sample_parity(50)
    return replace(
        made,
        reference=replace(made.reference, name=NAME),
        candidate=replace(made.candidate, name=NAME),
        data=replace(made.data, name=NAME),
        stages=tuple(replace(stage, detail=NAME) for stage in made.stages),
        examples=tuple(replace(example, picture=NAME) for example in made.examples),
        warnings=(NAME,),
    )


@pytest.mark.parametrize("write", [html_from_parity, markdown_from_parity, junit_from_parity])
def test_reports_hold_printable_text_only(write: Callable[[Parity], str], result: Parity) -> None:
    text = write(result)
    assert "gpj.exe" in text
    assert not FORBIDDEN.search(text)


def test_pages_hold_printable_text_only() -> None:
    hit = Hit(1, 0.5, NAME, {NAME: NAME}, None)
    page = html_from_search(Found(NAME, None, "images", (hit,), 1, NAME, NAME, NAME, "", (NAME,)))
    assert "gpj.exe" in page
    assert not FORBIDDEN.search(page)


def test_the_terminal_gets_printable_text_only(
    result: Parity, capsys: pytest.CaptureFixture[str]
) -> None:
    parity_view.show(result)
    console.table([[NAME]], [NAME], title=NAME)
    console.say(NAME)
    console.warn(NAME)
    with console.steps() as step:
        step(NAME, 3)
        step.advance(3)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "gpj.exe" in text
        assert not FORBIDDEN.search(text)


def test_a_cell_of_a_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.table([["a\nb", "c"]])
    assert len(capsys.readouterr().out.splitlines()) == 1
