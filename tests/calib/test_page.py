"""The page of a quantization shows the verdict, the trade-off and every layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pages import Page, check_page, measured, needs_chromium

from mwa_export.calib.page import html_from_curve

NAMES = ("blocks.0.qkv", "blocks.0.out", "blocks.1.qkv", "blocks.1.out")
LAYERS = [(tower, name) for tower in ("vision", "text") for name in NAMES]


def point(int8: int, drop: float, *, chosen: bool = False) -> dict[str, Any]:
    return {"int8": int8, "estimated_speedup": 1 + int8 / 20, "recall_drop": drop, "chosen": chosen}


CURVE: dict[str, Any] = {
    "max_recall_drop": 0.3,
    "decision": {
        "verdict": "undecided",
        "figure": "IR@5",
        "change": -0.21,
        "low": -0.64,
        "high": 0.22,
        "confidence": 0.95,
        "pictures": 3100,
        "objection": None,
    },
    "points": [point(0, 0.0), point(8, 0.9), point(7, -0.1, chosen=True)],
    "layers": [
        {
            "tower": tower,
            "name": name,
            "sensitivity": 10.0**-number if number else 0.0,
            "saved_ms_per_row": 0.002,
            "int8": number != 3,
        }
        for number, (tower, name) in enumerate(LAYERS)
    ],
    "kept": [{"tower": "vision", "name": "blocks.1.out", "reason": "too <sensitive>"}],
}
CALIBRATION: dict[str, Any] = {
    "data": {"name": "calibration set", "pictures": 128, "captions": 130},
    "sites": [
        {
            "tower": tower,
            "site": name,
            "amax": 2.5,
            "method": "percentile",
            "histogram": {"amax": 4.25},
        }
        for tower, name in LAYERS
    ],
}


def changed(**values: Any) -> dict[str, Any]:
    return copy.deepcopy(CURVE) | values


@pytest.mark.parametrize("verdict", ["passes", "undecided", "fails"])
def test_verdict_interval_and_budget_come_first(verdict: str) -> None:
    curve = changed(decision=CURVE["decision"] | {"verdict": verdict})
    page = Page(html_from_curve(curve, CALIBRATION))
    (_, heading), *_ = page.all("h1")
    assert verdict.capitalize() in heading
    assert "7 of 8" in heading
    top = page.text[: page.text.index("Layer sensitivity")]
    for text in ("IR@5", "\N{MINUS SIGN}0.21", "\N{MINUS SIGN}0.64 to +0.22", "\N{MINUS SIGN}0.30"):
        assert text in top


def test_without_a_decision_nothing_is_claimed() -> None:
    html = html_from_curve(changed(decision=None), CALIBRATION)
    check_page(html)
    page = Page(html)
    assert "No verdict" in page.all("h1")[0][1]
    assert len(page.all("svg")) == 5


def test_objection_to_the_data_is_named() -> None:
    decision = CURVE["decision"] | {"objection": "every caption is the same", "pictures": None}
    page = Page(html_from_curve(changed(decision=decision), CALIBRATION))
    assert "every caption is the same" in page.all("h1")[0][1]


def test_every_layer_is_drawn_and_hollow_where_it_is_not_in_int8() -> None:
    html = html_from_curve(CURVE, CALIBRATION)
    check_page(html)
    page = Page(html)
    marks = [(a["class"], text) for a, text in page.all("circle") if text]
    assert len(marks) == 2 * len(LAYERS)  # sensitivity, and range
    hollow = [text for cls, text in marks if "open" in cls]
    assert all(text.startswith("blocks.1.out") for text in hollow)
    assert len(hollow) == 2
    cells = {text for _, text in page.all("td")}
    assert {"2.5", "4.25", "percentile"} <= cells
    assert "too <sensitive>" in page.text


def test_changes_of_assignments_are_signed() -> None:
    cells = {text for _, text in Page(html_from_curve(CURVE, CALIBRATION)).all("td")}
    assert {"\N{MINUS SIGN}0.90", "+0.10"} <= cells


@needs_chromium
def test_page_fits_phones_and_desks_in_a_browser(tmp_path: Path) -> None:
    found = measured(html_from_curve(CURVE, CALIBRATION), tmp_path)
    assert found == {390: (390, 0, 6), 1280: (1280, 0, 6)}
