"""HTML report of a quantization: verdict, trade-off, sensitivity and range of every layer.

It is made from tradeoff.json and calibration.json alone. The layout is
``assets/tradeoff.html.j2``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mwa_export.calib.calibration import CALIBRATION
from mwa_export.files import new_file
from mwa_export.report.numbers import DASH, estimate, interval, points, small, times
from mwa_export.report.page import Fact, rendered
from mwa_export.report.plots import Dot, Point, budget, dots, scatter
from mwa_export.report.table import MARKS, Table
from mwa_export.spec import TOWERS, Tower

TRADEOFF = "tradeoff"
FILES = (f"{TRADEOFF}.json", f"{TRADEOFF}.svg", f"{TRADEOFF}.html")
Json = Mapping[str, Any]


def write_page(folder: Path) -> None:
    """Write tradeoff.html from tradeoff.json and calibration.json in the same folder."""
    curve = json.loads((folder / f"{TRADEOFF}.json").read_text(encoding="utf-8"))
    calibration = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    with new_file(folder / f"{TRADEOFF}.html") as path:
        path.write_text(html_from_curve(curve, calibration), encoding="utf-8")


def html_from_curve(curve: Json, calibration: Json) -> str:
    """Render the document from the contents of tradeoff.json and calibration.json."""
    decision = curve.get("decision")
    return rendered(
        "tradeoff.html.j2",
        ["report.css"],
        {"small": small},
        mark=MARKS[decision["verdict"]] if decision else "?",
        headline=_headline(curve),
        facts=_facts(curve),
        decision=decision,
        calibration=calibration,
        charts=_charts(curve, calibration),
        tables={"points": _points_table(curve), "layers": _layers_table(curve, calibration)},
        kept=curve["kept"],
        towers=TOWERS,
    )


def _headline(curve: Json) -> str:
    decision, chosen = curve.get("decision"), _chosen(curve)
    said = f"{chosen['int8']} of {len(curve['layers'])} layers in INT8"
    if not decision:
        return f"No verdict: {said}; recall was not measured"
    words = f"{decision['verdict'].capitalize()}: {said}"
    if decision.get("objection"):
        return f"{words}; {decision['objection']}"
    needed = decision.get("pictures")
    return f"{words}; about {needed:,} images would probably decide it" if needed else words


def _facts(curve: Json) -> list[Fact]:
    decision = curve.get("decision")
    speedup = times(_chosen(curve)["estimated_speedup"])
    speed = Fact("Estimated speed", speedup, "relative to all layers in high precision")
    if not decision:
        return [speed]
    bounds = interval(decision["low"], decision["high"])
    allowed = points(0.0 - curve["max_recall_drop"])
    detail = f"{small(100 * decision['confidence'], 4)}% interval {bounds}, budget {allowed}"
    name = f"{decision['figure']}, worst of six recall figures"
    return [Fact(name, f"{estimate(decision['change'])} points", detail), speed]


def _charts(curve: Json, calibration: Json) -> dict[str, Any]:
    from markupsafe import Markup

    limit = 0.0 - curve["max_recall_drop"]
    found = {"points": _scatter(curve, limit)}
    if decision := curve.get("decision"):
        worst = Point("", 0.0, decision["change"], decision["low"], decision["high"])
        title = f"Change of {decision['figure']} against the budget"
        found["verdict"] = budget("verdict", title, worst, limit)
    for tower in TOWERS:
        sites = [site for site in calibration["sites"] if site["tower"] == tower]
        layers = _layers(curve, tower)
        sensitivity = [
            Dot(s["site"], layers[s["site"]]["sensitivity"], kind=_kind(layers[s["site"]]))
            for s in sites
            if s["site"] in layers
        ]
        ranges = [
            Dot(s["site"], s["amax"], top=s["histogram"]["amax"], kind=_kind(layers.get(s["site"])))
            for s in sites
        ]
        starts = _block_starts([dot.name for dot in sensitivity])
        title = f"Sensitivity of the layers of the {tower} tower"
        found[f"sensitivity-{tower}"] = dots(f"sensitivity-{tower}", title, sensitivity, starts)
        title = f"Activation ranges in the {tower} tower"
        starts = _block_starts([dot.name for dot in ranges])
        found[f"ranges-{tower}"] = dots(f"ranges-{tower}", title, ranges, starts)
    return {name: Markup(svg) for name, svg in found.items()}


def _scatter(curve: Json, limit: float) -> str:
    """Draw every assignment that was tried, and the interval of the decision on the chosen one."""
    decision = curve.get("decision") or {}
    placed = []
    for tried in curve["points"]:
        change = 0.0 - tried["recall_drop"]
        place = change, change, change
        if decision and tried["chosen"]:
            place = decision["change"], decision["low"], decision["high"]
        label, kind = ("chosen", "second") if tried["chosen"] else ("", "second open")
        placed.append(Point(label, tried["estimated_speedup"], *place, kind))
    axes = ("estimated speed, over high precision", "worst change of a recall figure, points")
    return scatter("points", "Recall and speed", placed, limit, axes, start=1.0)


def _points_table(curve: Json) -> Table:
    rows = [
        (
            f"{tried['int8']} of {len(curve['layers'])}",
            estimate(0.0 - tried["recall_drop"]),
            times(tried["estimated_speedup"]),
            "chosen" if tried["chosen"] else "",
        )
        for tried in curve["points"]
    ]
    head = ("Layers in INT8", "Worst change", "Estimated speed", "")
    return Table.of("Assignments that the search tried; change in points", head, rows, words=(3,))


def _layers_table(curve: Json, calibration: Json) -> Table:
    """Every layer, most sensitive first."""
    sites = {(site["tower"], site["site"]): site for site in calibration["sites"]}
    rows = []
    for layer in curve["layers"]:
        site = sites.get((layer["tower"], layer["name"]), {})
        observed = site.get("histogram", {}).get("amax")
        rows.append(
            (
                f"{layer['tower']} {layer['name']}",
                small(layer["sensitivity"]),
                small(1000 * layer["saved_ms_per_row"]),
                small(site.get("amax"), 3),
                small(observed, 3),
                site.get("method", DASH),
                "INT8" if layer["int8"] else "high",
            )
        )
    head = ("Layer", "Sensitivity", "Saves, µs", "Range", "Largest", "Method", "Precision")
    return Table.of("All layers, most sensitive first", head, rows, words=(5, 6), stacked=True)


def _chosen(curve: Json) -> Json:
    chosen: Json = next(tried for tried in curve["points"] if tried["chosen"])
    return chosen


def _layers(curve: Json, tower: Tower) -> dict[str, Json]:
    return {layer["name"]: layer for layer in curve["layers"] if layer["tower"] == tower}


def _kind(layer: Json | None) -> str:
    """CSS class of a layer's mark: hollow if the layer is not in INT8."""
    return "first" if layer is not None and layer["int8"] else "first open"


def _block_starts(names: list[str]) -> dict[int, str]:
    """Find the first layer of each block: position -> block number."""
    found: dict[str, int] = {}
    for position, name in enumerate(names):
        if match := re.match(r"blocks\.(\d+)\.", name):
            found.setdefault(match[1], position)
    return {position: block for block, position in found.items()}
