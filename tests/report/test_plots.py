"""Plots accept any numbers and show the given data."""

from __future__ import annotations

import math
import re

import pytest
from pages import Page

from mwa_export.report.plots import Bar, Dot, Point, bars, budget, dots, scatter

AXES = ("right", "up")


@pytest.mark.parametrize(
    "values", [[0.0] * 3, [math.nan, math.inf, 1.0], [-1e30, 0.0, 1e30], [-5.0, -4.0, -3.0], []]
)
@pytest.mark.parametrize("limit", [None, -0.2, 0.0])
def test_plots_survive_any_numbers(values: list[float], limit: float | None) -> None:
    points = [Point("<a>", v, v, v - 1, v + 1) for v in values]
    plots = [budget("k", "<t>", point, limit) for point in points]
    plots.append(scatter("k", "<t>", points, limit, AXES))
    plots.append(bars("k", "<t>", [Bar("<a>", v, v, v, "&") for v in values], "x"))
    plots.append(dots("k", "<t>", [Dot("<a>", v, top=v) for v in values], {0: "0"}))
    for svg in plots:
        assert Page(svg).all("title")[0] == ({"id": "chart-k"}, "<t>")
        assert not re.search(r'="[^"]*(nan|inf)', svg)


def place(svg: str, cls: str, name: str) -> float:
    return float(re.search(rf'class="{cls}"[^>]* {name}="([\d.]+)"', svg)[1])  # type: ignore[index]


@pytest.mark.parametrize(("change", "left"), [(-0.5, True), (0.1, False)])
def test_estimate_lies_on_its_side_of_the_budget(change: float, left: bool) -> None:
    svg = budget("k", "t", Point("a", 0.0, change, change - 0.1, change + 0.1), -0.2)
    assert (place(svg, "second", "cx") < place(svg, "limit", "x1")) == left


def test_faster_is_further_left_and_a_loss_is_lower() -> None:
    points = [Point("a", 2.0, -0.5, -0.6, -0.4), Point("b", 4.0, 0.1, 0.0, 0.2)]
    svg = scatter("k", "t", points, -0.2, AXES)
    (ax, ay), (bx, by) = (
        tuple(map(float, found)) for found in re.findall(r'<circle[^>]* cx="(.+?)" cy="(.+?)"', svg)
    )
    assert ax < bx
    assert ay > place(svg, "limit", "y1") > by


def test_ranges_lead_up_to_what_was_observed() -> None:
    svg = dots("k", "t", [Dot("a", 1.0, top=50.0)], {})
    assert place(svg, "stem", "y1") > place(svg, "stem", "y2")


def test_slow_candidate_does_not_squeeze_the_others_together() -> None:
    points = [Point(str(v), v, 0.0, -0.1, 0.1) for v in (2.0, 4.0, 200.0)]
    found = re.findall(r'<circle[^>]* cx="(.+?)"', scatter("k", "t", points, -0.2, AXES))
    a, b, c = map(float, found)
    assert c - b > b - a > 25
