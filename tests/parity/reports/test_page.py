"""The HTML report says the verdict first, fetches nothing, escapes everything and can be read."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from parity_samples import HOSTILE, HOSTILE_PICTURE, identical_parity, sample_parity

from mwa_export.data.test_set import Excluded
from mwa_export.parity.reports import charts as draw
from mwa_export.parity.reports.page import html_from_parity, thumbnail_rows
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import cosine, percent, points
from mwa_export.report.text import printable

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
VOID = {"meta", "link", "img", "br", "input", "hr", "wbr"}
BLOCKS = {
    "title",
    "h1",
    "h2",
    "h3",
    "p",
    "li",
    "dt",
    "dd",
    "div",
    "summary",
    "caption",
    "figcaption",
}
BLOCKS |= {"td", "th", "svg", "style"}
CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += [f"--disable-{part}" for part in ("background-networking", "component-update", "sync")]
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """Every element with its attributes, the text inside it and what is around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[int, ...]]] = []
        self.texts: dict[int, str] = {}  # with the text of what is inside
        self.own: dict[int, str] = {}  # of blocks, without that of blocks inside
        self.open: list[int] = []
        self.feed(html)
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} repeats"
        self.elements.append((tag, {k: v or "" for k, v in attrs}, tuple(self.open)))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            self.texts[element] = self.texts.get(element, "") + data
        block = next((e for e in reversed(self.open) if self.elements[e][0] in BLOCKS), None)
        if block is not None:
            self.own[block] = self.own.get(block, "") + data

    def all(self, tag: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of every such element."""
        return [
            (attrs, " ".join(self.texts.get(i, "").split()))
            for i, (name, attrs, _) in enumerate(self.elements)
            if name == tag
        ]

    def inside(self, index: int) -> list[tuple[str, dict[str, str]]]:
        return [(tag, attrs) for tag, attrs, around in self.elements if index in around]

    @property
    def text(self) -> str:
        return self.all("body")[0][1]


Sample = tuple[Parity, str, Page]
KINDS: dict[str, Callable[[], Parity]] = {
    "3 queries": lambda: sample_parity(3, seed=5),
    "1,000 queries": lambda: sample_parity(1000),
    "25,000 queries": lambda: sample_parity(25_000),
    "undamaged": lambda: sample_parity(1000, damaged=False, layers=False),
    "identical": lambda: identical_parity(100),
    "recall only": lambda: replace(
        sample_parity(60), cosines=(), cross=(), stages=(), layers=(), gates=(), examples=()
    ),
}


@cache
def made(kind: str) -> Sample:
    """A result, its page, and the page read."""
    result = KINDS[kind]()
    html = html_from_parity(result)
    return result, html, Page(html)


def outline(page: Page) -> str:
    """What the page says, a line for each title, paragraph, item or row, without its layout."""
    lines: list[str] = []
    row = None
    for i, (tag, _, around) in enumerate(page.elements):
        text = " ".join(page.own.get(i, "").split())
        if tag in ("td", "th"):
            if around[-1] != row:
                lines.append("")
                row = around[-1]
            lines[-1] += f"| {text} "
        elif text and tag not in ("svg", "style"):
            lines.append(f"{tag}: {text}")
    return "".join(f"{line.rstrip()}\n" for line in lines)


@pytest.mark.parametrize("kind", ["1,000 queries", "undamaged", "identical", "recall only"])
def test_page_says_what_is_expected(kind: str, as_expected: Callable[[str, str], None]) -> None:
    name = kind.replace(",", "").replace(" ", "_")
    as_expected(f"page_{name}.txt", outline(made(kind)[2]))


def variants() -> dict[str, Parity]:
    """Results that differ in one thing that the page puts into words."""
    result = sample_parity(1000)
    gate = result.gates[0]
    good = made("identical")[0]
    pictures = tuple(Excluded(f"{i}.jpg", "truncated", 5) for i in range(40))
    d = result.directions[0]
    found = {
        "a gate that allows more": replace(
            result, gates=(replace(gate, passed=True, limit=0.1),), passed=True
        ),
        "a gate missed by little": replace(
            result, gates=(replace(gate, limit=0.2, found=0.2004, passed=False),)
        ),
        "many pictures left out": replace(good, data=replace(good.data, excluded=pictures)),
    }
    for median in (0.002, 0.02, 0.05):
        margins = replace(d.margins, flipped=37, flipped_median=median, all_median=0.061)
        directions = (replace(d, margins=margins), result.directions[1])
        found[f"a median margin of {median}"] = replace(result, directions=directions)
    return found


@pytest.mark.slow
def test_variants_say_what_is_expected(as_expected: Callable[[str, str], None]) -> None:
    usual = {name: set(outline(made(name)[2]).splitlines()) for name in KINDS}
    text = ""
    for name, result in variants().items():
        lines = outline(Page(html_from_parity(result))).splitlines()
        other = "identical" if "pictures" in name else "1,000 queries"
        text += f"{name}:\n" + "".join(f"  {x}\n" for x in lines if x not in usual[other])
    as_expected("page_variants.txt", text)


@pytest.fixture(params=KINDS)
def sample(request: pytest.FixtureRequest) -> Sample:
    """Every kind of result with its page."""
    return made(request.param)


def test_verdict_comes_first_and_names_the_failed_gate() -> None:
    result, _, page = made("1,000 queries")
    drops = [g for g in result.gates if not g.passed and g.name.endswith("drop")]
    worst = max(drops, key=lambda gate: gate.found)
    (_, heading), *_ = page.all("h1")
    assert heading == f"✗ Fails: {worst.message.rstrip('.')}"
    others = [gate.name for gate in result.gates if not gate.passed and gate is not worst]
    first = page.text[: page.text.index("reference:")]
    assert all(name in first for name in others)
    assert page.all("title")[0][1].startswith("Fails: ")


def test_identical_inputs_show_no_signed_zeros() -> None:
    page = made("identical")[2]
    cells = [text for _, text in page.all("td")]
    assert not [text for text in cells if re.fullmatch(rf"[+{MINUS}]0(\.0+)?", text)]


def test_warnings_and_excluded_pictures_stand_before_the_figures(sample: Sample) -> None:
    result, _, page = sample
    top = page.text[: page.text.index("Gates", page.text.index("Examples"))]
    for warning in result.warnings:
        assert warning in top
    for picture in result.data.excluded:
        assert picture.picture in top
        assert picture.reason in top


def test_nothing_is_fetched_and_nothing_runs(sample: Sample) -> None:
    _, html, page = sample
    metas = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert metas == [POLICY]
    for tag, attrs, _ in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "audio", "video"}
        for name, value in attrs.items():
            assert not name.startswith("on"), tag
            if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}:
                assert value.startswith(("data:", "#")), value
            assert "url(" not in value.lower()
    css = "".join(text for _, text in page.all("style")).lower()
    assert not re.search(r"url\(|@import", css)
    assert not re.search(r"https?:", html)


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
            assert {points(r.difference), f"{points(r.low)} to {points(r.high)}"} <= cells
            assert {f"{d.direction.upper()}@{r.k}", f"{r.won:,}", f"{r.lost:,}"} <= cells
    for gate in result.gates:
        assert {gate.message, gate.name} <= cells
    for c in result.cosines:
        assert {cosine(c.mean), cosine(c.percentile_1), cosine(c.minimum)} <= cells
    for stage in result.stages:
        assert {stage.name, stage.state, stage.detail} <= cells


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
    assert set(rows) == {row for e in result.examples for row in (e.image, e.winner_image)}
    with_picture = Page(html_from_parity(result, dict.fromkeys(rows, b"\xff\xd8\xff")))
    images = with_picture.all("img")
    assert len(images) == 2 * len(result.examples)
    assert all(attrs["alt"] for attrs, _ in images)
    assert {attrs["src"] for attrs, _ in images} == {"data:image/jpeg;base64,/9j/"}
    without = made("1,000 queries")[2]
    placeholders = [(a, t) for a, t in without.all("div") if a.get("class") == "placeholder"]
    assert len(placeholders) == 2 * len(result.examples)
    assert all(text and text in attrs["aria-label"] for attrs, text in placeholders)


def test_page_can_be_read_without_seeing_it(sample: Sample) -> None:
    _, html, page = sample
    assert html.startswith("<!doctype html>\n<html lang=")
    assert [len(page.all(tag)) for tag in ("h1", "main", "nav", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs, _ in page.elements:
        assert set(attrs.get("aria-labelledby", "").split()) <= set(ids)
        target = attrs.get("href", "")
        assert not target.startswith("#") or target[1:] in ids
        if attrs.get("tabindex") == "0":
            assert attrs.get("aria-label")


def test_every_table_has_a_caption_and_scopes(sample: Sample) -> None:
    _, _, page = sample
    for i, (tag, _, around) in enumerate(page.elements):
        if tag != "table":
            continue
        inside = page.inside(i)
        assert inside[0][0] == "caption"
        assert all(attrs.get("scope") for name, attrs in inside if name == "th")
        assert any("scroll" in page.elements[a][1].get("class", "") for a in around)


def test_every_chart_has_a_title_and_its_figures_as_a_table(sample: Sample) -> None:
    result, _, page = sample
    charts = [i for i, (tag, _, _) in enumerate(page.elements) if tag == "svg"]
    assert len(charts) == 2 + len(result.cosines) + bool(result.layers)
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


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_page_fits_phones_and_desks_in_a_browser(tmp_path: Path) -> None:
    page = escape(made("1,000 queries")[1])
    sizes = "border:0;width:390px", "border:0;width:1280px"
    frames = "".join(f'<iframe srcdoc="{page}" style="{size}"></iframe>' for size in sizes)
    measure = (
        "onload = () => { document.title = JSON.stringify(Array.from(frames).map(f => {"
        "const e = f.document.documentElement, s = [...f.document.querySelectorAll('svg')];"
        "return [e.clientWidth, e.scrollWidth, s.filter(x => x.clientHeight > 50).length]; })) }"
    )
    path = tmp_path / "frames.html"
    path.write_text(f"<meta charset=utf-8><script>{measure}</script>{frames}", "utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, profile, "--hide-scrollbars", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "<title>[[390,390,5],[1280,1280,5]]</title>" in done.stdout
