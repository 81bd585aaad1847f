"""The chart in the README shows the committed results."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import chart
from paths import ROOT


def test_committed_chart_is_what_the_results_give() -> None:
    assert chart.OUT.read_text(encoding="utf-8") == chart.chart()


def test_chart_is_an_svg_with_every_speed_and_the_instruction_set() -> None:
    words = " ".join(ElementTree.fromstring(chart.chart()).itertext())
    figures = json.loads((chart.RESULTS / "cpu_avx2.json").read_text())["bench"]
    for section in figures["sections"]:
        for row in chart.rows(section):
            assert f"{row.ratio:.2f}x" in words
    assert "AVX2" in words


def test_images_of_the_readme_are_small() -> None:
    for name in ("speed.svg", "speed.png", "report.png"):
        assert (ROOT / "docs" / "assets" / name).stat().st_size < 200_000
