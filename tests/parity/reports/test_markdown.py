"""The Markdown report fits a pull request comment, and captions in it are inert."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_samples import (
    HOSTILE,
    HOSTILE_PICTURE,
    identical_parity,
    sample_parity,
    undecided_parity,
    without_gates,
)

from mwa_export.data.test_set import Excluded
from mwa_export.parity.reports.markdown import markdown_from_parity
from mwa_export.parity.reports.words import drift, headline
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import cosine, estimate, interval, percent, points
from mwa_export.report.text import printable

sample = cache(sample_parity)
COMMENT = 65_536  # characters that GitHub accepts
BAR = r"(?<!\\)(?:\\\\)*\|"  # not escaped
TEMPTING = (
    "ask @octocat, @1 or mail me@example.com about #12 and owner/repo#3",
    "[click](https://evil.example) ![see](http://evil.example/x.png) www.evil.example WWW.x.yz",
    "<https://evil.example> | `code` | a \\| b \\\\| c **bold** _it_ ~~gone~~",
    "line\nbreak\r\n| --- | --- |\n\n# heading\n</details></sub><!-- -->\N{LINE SEPARATOR}> quote",
    "TR@1x IR@evil.example TR@1.evil.example &#64;octocat &commat;octocat ftp://evil.example",
    "caf\udce9\0\x1b[31m\ufffe.jpg",
    "@|" * 50_000,
    "",
)
SMALL = sample(60, examples=3)


def with_texts(result: Parity, *texts: str) -> Parity:
    """The same result; everything that comes from outside is one of the texts."""
    t = [texts[i % len(texts)] for i in range(16)]
    excluded = tuple(Excluded(t[i], t[i + 1], 5) for i in range(7))
    examples, improved = (
        tuple(
            replace(
                e,
                caption=t[i % 8],
                picture=t[(i + 1) % 8],
                winner_caption=t[(i + 2) % 8],
                winner_picture=t[(i + 3) % 8],
            )
            for i, e in enumerate(found)
        )
        for found in (result.examples, result.improved)
    )
    return replace(
        result,
        reference=replace(result.reference, name=t[8]),
        candidate=replace(result.candidate, name=t[9]),
        data=replace(result.data, name=t[10], excluded=excluded),
        stages=tuple(replace(s, detail=t[i]) for i, s in enumerate(result.stages)),
        examples=examples,
        improved=improved,
        warnings=(t[11], t[12]),
    )


def unescaped(markdown: str) -> str:
    """The text as people read it, without the breaks of no width."""
    text = re.sub(r"\\([\\`*_{}\[\]|#~])", r"\1", markdown.replace("&#8203;", ""))
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def check_inert(markdown: str) -> None:
    """No table is broken, and no tag, link, mention or reference of a text takes effect."""
    width, in_table = 0, False
    for line in markdown.splitlines():
        if line.startswith("| "):
            bars = len(re.findall(BAR, line))
            width = bars if not in_table else width
            assert bars == width, line
            assert line.endswith(" |")
        in_table = line.startswith("| ")
    tags = re.findall(r"<[^>]*>", markdown.replace("< 0.001", ""))
    assert set(tags) <= {f"<{end}{t}>" for t in ("details", "summary", "sub") for end in ("", "/")}
    assert markdown.count("<") - markdown.count("< 0.001") == len(tags)
    # After an entity is read it acts like the character, so only a break keeps it from acting.
    plain = markdown.replace("&#8203;", "\N{ZERO WIDTH SPACE}")
    plain = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", plain)
    plain = re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), plain)
    assert not re.search(r"(?<!\w)@\w", plain), "a mention"
    assert not re.search(r"\w@[\w-]+\.\w", plain), "a mail address"
    assert not re.search(r"#\d", plain), "an issue"
    assert not re.search(r"://|www\.", plain, re.IGNORECASE), "a link by itself"
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]`*_~]", markdown), "a link, code or emphasis"
    assert markdown.encode("utf-8")
    assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", markdown)


@pytest.mark.parametrize(
    ("result", "mark"),
    [
        (sample(1000), "❌"),
        (sample(25_000, damaged=False), "✅"),
        (identical_parity(100), "✅"),
        (without_gates(SMALL), "❔"),
        (undecided_parity(1000), "❔"),
    ],
)
def test_verdict_is_the_first_line(result: Parity, mark: str) -> None:
    first = markdown_from_parity(result).splitlines()[0]
    assert unescaped(first) == f"## {mark} {headline(result)}"


def test_every_gate_that_does_not_pass_is_listed_by_its_message() -> None:
    result = sample(1000)
    lines = markdown_from_parity(result).splitlines()
    listed = [unescaped(line[4:]) for line in lines if line.startswith(("- ❌", "- ❔"))]
    assert listed
    assert listed == [gate.message for gate in result.gates if gate.verdict != "passes"]


@pytest.mark.parametrize("texts", [HOSTILE, TEMPTING, ("@" * 100_000,), ("<|#" * 100_000,)])
def test_comment_stays_within_the_limit(texts: tuple[str, ...]) -> None:
    result = with_texts(sample(25_000, seed=5, examples=24), *texts)
    markdown = markdown_from_parity(result)
    assert len(markdown) <= COMMENT
    assert markdown.endswith("</sub>\n"), "nothing is cut off at the end"
    check_inert(markdown)


def test_long_caption_shows_that_it_was_cut() -> None:
    assert f"| {'w' * 199}… |" in markdown_from_parity(with_texts(SMALL, "w" * 201))
    assert f"| {'w' * 200} |" in markdown_from_parity(with_texts(SMALL, "w" * 200))


@pytest.mark.parametrize("text", [*HOSTILE, HOSTILE_PICTURE, *TEMPTING])
def test_hostile_texts_neither_break_tables_nor_act(text: str) -> None:
    markdown = markdown_from_parity(with_texts(SMALL, text))
    check_inert(markdown)
    if "w" * 200 not in text and "\0" not in text and len(text) < 1000:
        assert printable(" ".join(text.split())) in unescaped(markdown)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("|\\@#<>&[]()!`*_~:/w.TR1a \n\0\udcff")), min_size=1))
def test_no_text_at_all_breaks_a_table_or_acts(texts: list[str]) -> None:
    check_inert(markdown_from_parity(with_texts(SMALL, *texts)))


def test_warnings_and_excluded_pictures_stand_above_the_figures() -> None:
    result = sample(1000)
    markdown = markdown_from_parity(result)
    top = unescaped(markdown[: markdown.index("\n| ")])
    for warning in result.warnings:
        assert f"> ⚠️ {warning}" in top
    assert "2 images were left out, with 10 captions" in top
    for item in result.data.excluded:
        assert f"{item.picture} ({item.reason})" in top


@pytest.mark.parametrize("queries", [3, 1000, 25_000])
def test_every_figure_stage_and_cosine_appears(queries: int) -> None:
    result = sample(queries, seed=5, examples=24)
    lines = unescaped(markdown_from_parity(result)).splitlines()
    rows = [[cell.strip() for cell in x[2:-2].split(" | ")] for x in lines if x.startswith("| ")]
    for d in result.directions:
        for r in d.recalls:
            estimated, counted = [row for row in rows if row[0] == f"{d.direction.upper()}@{r.k}"]
            bounds = interval(r.smoothed_low, r.smoothed_high)
            assert estimated[1:4] == [
                estimate(r.smoothed.value),
                bounds,
                percent(r.reference, d.queries),
            ]
            assert estimated[-1] == percent(r.candidate, d.queries)
            bounds = interval(r.low, r.high)
            assert counted[1:5] == [points(r.difference), bounds, f"{r.won:,}", f"{r.lost:,}"]
    for c in result.cosines:
        assert [c.tower, cosine(c.mean), cosine(c.percentile_1), cosine(c.minimum)] in [
            row[:4] for row in rows
        ]
    for s in result.stages:
        assert [s.name, drift(s), s.detail] in rows


def test_only_the_queries_that_changed_most_are_shown_those_first() -> None:
    result = sample(1000, examples=24)
    tables = re.findall(r"<details>.*?</details>", markdown_from_parity(result), re.DOTALL)
    for table, examples in zip(tables, (result.examples, result.improved), strict=True):
        found = [(int(a), int(b)) for a, b in re.findall(r"(\d+) → (\d+)", table)]
        every = sorted(abs(math.log(e.rank_after / e.rank_before)) for e in examples)
        assert [abs(math.log(after / before)) for before, after in found] == every[:-4:-1]
