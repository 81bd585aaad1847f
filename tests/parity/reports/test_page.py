"""The HTML report starts with the verdict, fetches nothing, escapes everything, is readable."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from pages import Page, check_page, measured, needs_chromium
from parity_samples import (
    HOSTILE,
    HOSTILE_PICTURE,
    LIMIT,
    identical_parity,
    sample_parity,
    undecided_parity,
    without_gates,
)

from mwa_export.parity.reports import charts as draw
from mwa_export.parity.reports.facts import cost_sentence, facts, worst_figure
from mwa_export.parity.reports.page import html_from_parity, thumbnail_rows
from mwa_export.parity.reports.words import drift, headline
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import cosine, estimate, interval, percent, points
from mwa_export.report.text import printable

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
Sample = tuple[Parity, str, Page]
KINDS: dict[str, Callable[[], Parity]] = {
    "3 queries": lambda: sample_parity(3, seed=5),
    "1,000 queries": lambda: sample_parity(1000),
    "25,000 queries": lambda: sample_parity(25_000),
    "undamaged": lambda: sample_parity(1000, damaged=False, layers=False),
    "identical": lambda: identical_parity(100),
    "undecided": lambda: undecided_parity(1000),
    "recall only": lambda: replace(
        without_gates(sample_parity(60)),
        cosines=(),
        cross=(),
        stages=(),
        layers=(),
        costs=(),
        examples=(),
        improved=(),
    ),
}


@cache
def made(kind: str) -> Sample:
    """A result, its page, and the page read."""
    result = KINDS[kind]()
    html = html_from_parity(result)
    return result, html, Page(html)


@pytest.fixture(params=KINDS)
def sample(request: pytest.FixtureRequest) -> Sample:
    """Every kind of result with its page."""
    return made(request.param)


def test_verdict_comes_first_and_names_every_gate_that_does_not_pass() -> None:
    result, _, page = made("1,000 queries")
    (_, heading), *_ = page.all("h1")
    assert heading == f"✗ {headline(result)}"
    first = page.text[: page.text.index("reference:")]
    left = [g.name.removesuffix(" change") for g in result.gates if g.verdict != "passes"]
    assert all(name in first for name in left)
    assert page.all("title")[0][1].startswith("Fails: ")


@pytest.mark.parametrize("kind", ["1,000 queries", "undecided", "identical"])
def test_estimate_budget_and_gains_stand_above_the_sections(kind: str) -> None:
    result, _, page = made(kind)
    top = page.text[: page.text.index("Examples")]
    name, worst = worst_figure(result)
    for text in (name, estimate(worst.smoothed.value), points(-LIMIT), *facts(result)[1]):
        assert text in top
    header = next(i for i, (tag, _, _) in enumerate(page.elements) if tag == "header")
    (chart,) = [attrs for tag, attrs in page.inside(header) if tag == "svg"]
    assert chart["aria-labelledby"] == "chart-verdict"


def test_change_is_the_second_column_of_recall_and_of_flips(sample: Sample) -> None:
    page = sample[2]
    cells = [
        (around, page.texts[j]) for j, (tag, _, around) in enumerate(page.elements) if tag == "th"
    ]
    heads = [
        [text for around, text in cells if i in around][:2]
        for i, (tag, _, _) in enumerate(page.elements)
        if tag == "thead"
    ]
    assert [head for head in heads if head[0] == "Recall"] == [["Recall", "Change"]] * 2


def test_cached_reference_is_said_to_be_untimed() -> None:
    result, _, page = made("1,000 queries")
    assert result.costs[0].image_ms is None
    assert cost_sentence(result) in page.text
    assert "cache" in cost_sentence(result)
    assert "cache" not in cost_sentence(made("undamaged")[0])


def test_wins_stand_beside_losses_and_most_of_both_are_folded() -> None:
    result, _, page = made("1,000 queries")
    articles = [i for i, (tag, _, _) in enumerate(page.elements) if tag == "article"]
    ranks = [tuple(map(int, re.findall(r"rank (\d+).* (\d+)", page.texts[i])[0])) for i in articles]
    assert len(ranks) == len(result.examples) + len(result.improved)
    folded = {i for i in articles for a in page.elements[i][2] if page.elements[a][0] == "details"}
    shown = [rank for i, rank in zip(articles, ranks, strict=True) if i not in folded]
    assert [after > before for before, after in shown] == [True] * 3 + [False] * 3


def test_identical_inputs_show_no_signed_zeros() -> None:
    page = made("identical")[2]
    cells = [text for _, text in page.all("td")]
    assert not [text for text in cells if re.fullmatch(rf"[+{MINUS}]0(\.0+)?", text)]


def test_warnings_and_excluded_pictures_stand_before_the_figures(sample: Sample) -> None:
    result, _, page = sample
    top = page.text[: page.text.index("TR (text retrieval)")]
    for warning in result.warnings:
        assert warning in top
    for picture in result.data.excluded:
        assert picture.picture in top
        assert picture.reason in top


def test_page_fetches_and_runs_nothing_and_can_be_read_without_seeing_it(sample: Sample) -> None:
    check_page(sample[1])


def test_hostile_strings_stay_text() -> None:
    _, html, page = made("1,000 queries")
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "bundle <b>int8</b>" in page.text
    hostile = [printable(text) for text in (*HOSTILE, HOSTILE_PICTURE)]
    assert all(text in page.text for text in hostile)
    captions = [attrs for attrs, text in page.all("p") if text in hostile]
    assert captions
    assert all(attrs["dir"] == "auto" for attrs in captions)


def test_text_that_is_no_unicode_can_be_written() -> None:
    result = sample_parity(60)
    example = replace(result.examples[0], picture="caf\udce9\0.jpg")
    html = html_from_parity(replace(result, examples=(example,)))
    assert (
        "caf\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.jpg" in html.encode("utf-8").decode()
    )


def test_every_recall_figure_and_gate_message_appears(sample: Sample) -> None:
    result, _, page = sample
    cells = {text for tag in ("td", "th") for _, text in page.all(tag)}
    for d in result.directions:
        for r in d.recalls:
            assert {percent(v, d.queries) for v in (r.reference, r.candidate)} <= cells
            assert {points(r.difference), interval(r.low, r.high)} <= cells
            bounds = interval(r.smoothed_low, r.smoothed_high)
            assert {estimate(r.smoothed.value), bounds} <= cells
            assert {f"{d.direction.upper()}@{r.k}", f"{r.won:,}", f"{r.lost:,}"} <= cells
    for gate in result.gates:
        assert {gate.message, gate.name} <= cells
    for c in result.cosines:
        assert {cosine(c.mean), cosine(c.percentile_1), cosine(c.minimum)} <= cells
    for stage in result.stages:
        assert {stage.name, drift(stage), stage.detail} <= cells


def test_numbers_are_neither_too_fine_nor_too_coarse() -> None:
    assert [percent(51.6789, n) for n in (1000, 5000)] == ["51.7", "51.68"]
    assert [points(v) for v in (0.0, 0.404, None, math.nan)] == ["0", "+0.40", DASH, DASH]
    assert [points(v) for v in (-1.4, -0.004)] == [f"{MINUS}1.40", f"{MINUS}0.004"]
    assert [cosine(v) for v in (1.0, 1 + 1.2e-7, 0.98765)] == ["1", "1 + 1.2e-7", "0.9877"]
    assert [cosine(v) for v in (1 - 3.1e-8, -0.5)] == [f"1 {MINUS} 3.1e-8", f"{MINUS}0.5000"]


def test_images_have_alt_text_and_missing_thumbnails_the_name() -> None:
    result = made("1,000 queries")[0]
    rows = thumbnail_rows(result)
    assert len(rows) == len(set(rows))
    shown = (*result.examples, *result.improved)
    assert set(rows) == {row for e in shown for row in (e.image, e.winner_image)}
    with_picture = Page(html_from_parity(result, dict.fromkeys(rows, b"\xff\xd8\xff")))
    images = with_picture.all("img")
    assert len(images) == 2 * len([*result.examples, *result.improved])
    assert all(attrs["alt"] for attrs, _ in images)
    assert {attrs["src"] for attrs, _ in images} == {"data:image/jpeg;base64,/9j/"}
    without = made("1,000 queries")[2]
    placeholders = [(a, t) for a, t in without.all("div") if a.get("class") == "placeholder"]
    assert len(placeholders) == 2 * len([*result.examples, *result.improved])
    assert all(text and text in attrs["aria-label"] for attrs, text in placeholders)


def test_every_chart_has_a_title_and_its_figures_as_a_table(sample: Sample) -> None:
    result, _, page = sample
    charts = [i for i, (tag, _, _) in enumerate(page.elements) if tag == "svg"]
    assert len(charts) == 3 + len(result.cosines) + bool(result.layers)
    for i in charts:
        attrs = page.elements[i][1]
        assert attrs["role"] == "img"
        title = page.inside(i)[0]
        assert title == ("title", {"id": attrs["aria-labelledby"]})
    cells = {text for _, text in page.all("td")}
    for layer in result.layers:
        assert ("no noise" if layer.snr_db is None else f"{layer.snr_db:.1f}") in cells
    for c in result.cosines:
        assert {f"{n:,}" for n in c.counts if n} <= cells


def test_text_has_enough_contrast_in_light_dark_and_print() -> None:
    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    themes = re.findall(r":root \{(.*?)\}", made("identical")[2].all("style")[0][1])
    assert len(themes) == 3
    for theme in themes:
        colours = {name: light(c) for name, c in re.findall(r"--([\w-]+): (#\w+)", theme)}
        for text in ("ink", "soft", "link", "good", "bad", "second"):
            for ground in ("paper", "card", "notice"):
                low, high = sorted((colours[text], colours[ground]))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_page_stays_under_five_megabytes() -> None:
    result = sample_parity(25_000, examples=24)
    page = html_from_parity(result, {row: bytes(12_000) for row in thumbnail_rows(result)})
    assert len(page.encode()) < 5_000_000


@pytest.mark.parametrize(
    "values", [[0.0] * 3, [math.nan, math.inf, 1.0], [-1e30, 0.0, 1e30], [-5.0, -4.0, -3.0], []]
)
def test_charts_survive_any_numbers(values: list[float]) -> None:
    bars = [draw.Bars("a", v, v, v - 1, v + 1, "<", "&") for v in values]
    intervals = [draw.Interval("a", v, v - 1, v, "x", v) for v in values]
    lines = [draw.Curve("a", [f"block {i}" for i in range(len(values))], [*values[:2], None])]
    charts = [draw.curves("k", "<t>", lines), draw.curves("k", "<t>", [])]
    charts += [draw.grouped_bars("k", "<t>", bars), draw.forest("k", "<t>", intervals)]
    for counts in ([0] * len(values), [7] * len(values)):
        bins = draw.filled_bins([counts])
        charts.append(draw.histogram("k", "<t>", [*values, 1.0], counts, bins))
    for svg in charts:
        assert Page(svg).all("title") == [({"id": "chart-k"}, "<t>")]
        assert not re.search(r'="[^"]*(nan|inf)', svg)
        assert len(svg) < 20_000


@needs_chromium
def test_page_fits_phones_and_desks_in_a_browser(tmp_path: Path) -> None:
    assert measured(made("1,000 queries")[1], tmp_path) == {390: (390, 0, 6), 1280: (1280, 0, 6)}
