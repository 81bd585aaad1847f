"""The Markdown report fits a pull request comment, and no caption acts on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_samples import HOSTILE, HOSTILE_PICTURE, identical_parity, sample_parity

from mwa_export.data.test_set import Excluded
from mwa_export.parity.reports.markdown import markdown_from_parity
from mwa_export.parity.reports.words import drift, headline
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import cosine, percent, points
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
    examples = tuple(
        replace(
            e,
            caption=t[i % 8],
            picture=t[(i + 1) % 8],
            winner_caption=t[(i + 2) % 8],
            winner_picture=t[(i + 3) % 8],
        )
        for i, e in enumerate(result.examples)
    )
    return replace(
        result,
        reference=replace(result.reference, name=t[8]),
        candidate=replace(result.candidate, name=t[9]),
        data=replace(result.data, name=t[10], excluded=excluded),
        stages=tuple(replace(s, detail=t[i]) for i, s in enumerate(result.stages)),
        examples=examples,
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


EXCLUDED = tuple(Excluded(f"{i}.jpg", "truncated", 5) for i in range(40))
REPORTS = {
    "failing": sample(1000),
    "passing": sample(25_000, damaged=False),
    "identical": identical_parity(100),
    "many_excluded": replace(SMALL, data=replace(SMALL.data, excluded=EXCLUDED)),
    "recall_only": replace(
        SMALL, cosines=(), cross=(), stages=(), layers=(), gates=(), examples=(), passed=True
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_as_expected(name: str, as_expected: Callable[[str, str], None]) -> None:
    as_expected(f"{name}.md", markdown_from_parity(REPORTS[name]))


@pytest.mark.parametrize(
    ("result", "mark"),
    [
        (sample(1000), "❌"),
        (sample(25_000, damaged=False), "✅"),
        (identical_parity(100), "✅"),
        (replace(SMALL, gates=(), passed=True), "❔"),
    ],
)
def test_verdict_is_the_first_line(result: Parity, mark: str) -> None:
    first = markdown_from_parity(result).splitlines()[0]
    assert unescaped(first) == f"## {mark} {headline(result)}"


def test_every_failed_gate_is_listed_by_its_message() -> None:
    result = sample(1000)
    lines = markdown_from_parity(result).splitlines()
    listed = [unescaped(line[2:]) for line in lines if line.startswith("- ")]
    assert listed
    assert listed == [gate.message for gate in result.gates if not gate.passed]


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
    assert "2 pictures were left out, with 10 captions" in top
    for item in result.data.excluded:
        assert f"{item.picture} ({item.reason})" in top


@pytest.mark.parametrize("queries", [3, 1000, 25_000])
def test_every_figure_stage_and_cosine_appears(queries: int) -> None:
    result = sample(queries, seed=5, examples=24)
    lines = unescaped(markdown_from_parity(result)).splitlines()
    rows = [[cell.strip() for cell in x[2:-2].split(" | ")] for x in lines if x.startswith("| ")]
    for d in result.directions:
        for r in d.recalls:
            name = f"{d.direction.upper()}@{r.k}"
            (row,) = [row for row in rows if row[0] == name]
            assert row[1:4] == [
                percent(r.reference, d.queries),
                percent(r.candidate, d.queries),
                points(r.difference),
            ]
            assert row[4:7] == [
                f"{points(r.low)} to {points(r.high)}",
                f"{r.won:,}",
                f"{r.lost:,}",
            ]
    for c in result.cosines:
        assert [c.tower, cosine(c.mean), cosine(c.percentile_1), cosine(c.minimum)] in rows
    for s in result.stages:
        assert [s.name, drift(s), s.detail] in rows


def test_only_the_worst_examples_are_shown_worst_first() -> None:
    result = sample(1000, examples=24)
    lines = markdown_from_parity(result).splitlines()
    shown = lines[lines.index("| direction | query | rank | now first |") + 2 :][:5]
    found = [re.findall(r"(\d+) → (\d+)", line)[-1] for line in shown]
    ratios = [int(after) / int(before) for before, after in found]
    every = sorted((e.rank_after / e.rank_before for e in result.examples), reverse=True)
    assert ratios == every[:5]
