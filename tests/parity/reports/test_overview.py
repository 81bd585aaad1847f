"""The overview of several candidates shows which pass and what each costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pages import Page, check_page, measured, needs_chromium
from parity_samples import identical_parity, sample_parity, undecided_parity, without_gates

from mwa_export.parity.reports.facts import worst_figure
from mwa_export.parity.reports.junit import junit_from_parities
from mwa_export.parity.reports.overview import (
    html_from_overview,
    json_from_overview,
    markdown_from_overview,
    overview_headline,
    overview_table,
)
from mwa_export.parity.result import Cost, Parity
from mwa_export.report.numbers import interval

FAILING, OPEN, GOOD = sample_parity(1000), undecided_parity(1000), identical_parity(1000)


def timed(result: Parity, ms: float) -> Parity:
    return replace(result, costs=(Cost("candidate", 1_000_000, ms, ms),))


RESULTS = {
    "onnxruntime-float32": timed(GOOD, 9.0),
    "openvino-float32": timed(GOOD, 5.0),
    "openvino-bfloat16": timed(OPEN, 4.0),
    "openvino-int8": timed(FAILING, 2.0),
}


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (("onnxruntime-float32", "openvino-float32"), "Passes"),
        (("openvino-float32", "openvino-bfloat16"), "Undecided"),
        (tuple(RESULTS), "Fails"),
    ],
)
def test_the_worst_verdict_decides(names: tuple[str, ...], verdict: str) -> None:
    results = {name: RESULTS[name] for name in names}
    assert overview_headline(results).startswith(f"{verdict}: ")
    assert json_from_overview(results)["verdict"] == verdict.lower()


def test_the_fastest_that_passes_is_named() -> None:
    said = overview_headline(RESULTS)
    assert "2 of 4" in said
    assert "openvino-float32" in said
    assert "openvino-int8" not in said


def test_without_gates_there_is_no_verdict() -> None:
    results = {name: without_gates(result) for name, result in RESULTS.items()}
    assert overview_headline(results).startswith("No verdict")


def test_every_candidate_is_a_row_a_point_and_a_link() -> None:
    html = html_from_overview(RESULTS)
    check_page(html)
    page = Page(html)
    cells = {text for tag in ("td", "th") for _, text in page.all(tag)}
    for name, result in RESULTS.items():
        _, change = worst_figure(result)
        assert interval(change.smoothed_low, change.smoothed_high).replace(" ", "") in {
            "".join(cell.split()) for cell in cells
        }
        assert {"href": f"{name}/report.html"} in [attrs for attrs, _ in page.all("a")]
    assert len([a for a, _ in page.all("circle") if a["class"] == "second"]) == len(RESULTS)


def test_candidate_that_was_not_timed_is_listed_but_not_drawn() -> None:
    results = RESULTS | {"cuda-float16": timed(GOOD, 1.0)}
    results["cuda-float16"] = replace(GOOD, costs=(Cost("candidate", None, None, None),))
    assert len(overview_table(results).rows) == len(results)
    assert Page(html_from_overview(results)).all("circle")[len(RESULTS) :] == []
    assert json_from_overview(results)["candidates"][-1]["image_ms"] is None


def test_markdown_and_junit_have_every_candidate() -> None:
    markdown, root = (
        markdown_from_overview(RESULTS),
        ElementTree.fromstring(junit_from_parities(RESULTS).encode()),
    )
    suites = [suite.get("name") or "" for suite in root]
    for name, suite in zip(RESULTS, suites, strict=True):
        assert name in markdown
        assert name in suite
    assert root.get("tests") == str(sum(len(result.gates) for result in RESULTS.values()))


@needs_chromium
def test_overview_fits_phones_and_desks_in_a_browser(tmp_path: Path) -> None:
    found = measured(html_from_overview(RESULTS), tmp_path)
    assert found == {390: (390, 0, 1), 1280: (1280, 0, 1)}
