"""The benchmark page shows every contender and agrees with the files beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench_samples import sample
from pages import Page, check_page, measured, needs_chromium

from mwa_export.bench.chart import heading
from mwa_export.bench.page import html_from_bench
from mwa_export.bench.report import method, skipped_lines, table_of


def test_page_has_every_contender_its_figures_and_what_did_not_run() -> None:
    result = sample()
    html = html_from_bench(result)
    check_page(html)
    page = Page(html)
    cells = {text for tag in ("td", "th") for _, text in page.all(tag)}
    for section in result.sections:
        for row in table_of(section)[1:]:
            assert set(row) <= cells
    for line in (*skipped_lines(result), *method(result)):
        assert " ".join(line.split()) in page.text
    drawn = [text for _, text in page.all("svg")]
    for section, text in zip(result.sections, drawn, strict=True):
        assert all(figure.name in text for figure in section.figures)


def test_fastest_of_ours_stands_at_the_top_even_if_a_peer_is_faster() -> None:
    result = sample()
    section = result.sections[0]
    figures = [replace(f, ratio=9.9) if f.kind == "peer" else f for f in section.figures]
    ours = max((f for f in figures if f.kind == "ours"), key=lambda f: f.ratio)
    section = replace(section, figures=tuple(figures))
    page = Page(html_from_bench(replace(result, sections=(section,))))
    top = page.text[: page.text.index(heading(section))]
    assert ours.name in top


def test_hostile_names_stay_text() -> None:
    html = html_from_bench(replace(sample(), model="<script>alert(1)</script>"))
    check_page(html)


@needs_chromium
def test_page_fits_phones_and_desks_in_a_browser(tmp_path: Path) -> None:
    sections = len(sample().sections)
    found = measured(html_from_bench(sample()), tmp_path)
    assert found == {390: (390, 0, sections), 1280: (1280, 0, sections)}
