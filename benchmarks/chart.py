"""Draw docs/assets/speed.svg, the chart in the README, from committed results.

Speed and cosine come from benchmarks/results/cpu_avx2.json, recall from int8_recall.json.
`--png` also renders docs/assets/speed.png with Chromium.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from screenshot import render

from mwa_export.report.numbers import MINUS
from mwa_export.report.svg import Scale, line, rect, text, whisker

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OUT = ROOT / "docs" / "assets" / "speed.svg"
WIDTH, LEFT, RIGHT, ROW = 600.0, 216.0, 440.0, 25.0
ROWS = (  # label, names in the results (the fastest is drawn), precision
    ("mwa-export, INT8", ("mwa-export, ORT int8",)),
    ("mwa-export, float32", ("mwa-export, ORT float32", "mwa-export, OpenVINO float32")),
    ("ORT quantize_dynamic, INT8", ("ORT quantize_dynamic",)),
    ("ORT quantize_static, INT8", ("ORT quantize_static uint8",)),
    ("plain ONNX export, float32", ("plain ONNX, ORT float32", "plain ONNX, OpenVINO float32")),
    ("torch.compile, float32", ("torch.compile float32",)),
    ("PyTorch eager, float32", ("PyTorch eager float32",)),
)
STYLE = """
svg { --paper: #ffffff; --ink: #1b1f24; --soft: #565d68; --line: #d8dbe0; --ours: #1f67b1;
  --other: #a9b1bc; --whisker: #1b1f24; }
@media (prefers-color-scheme: dark) { svg { --paper: #161b22; --ink: #e7e9ec; --soft: #a4acb7;
  --line: #373d45; --ours: #5b9be0; --other: #5d6673; --whisker: #e7e9ec; } }
text { font: 13.5px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
.title { font-weight: 600; font-size: 15px; } .ours-name, .ours-value { font-weight: 600; }
.note, .head { font-size: 12.5px; fill: var(--soft); }
.paper { fill: var(--paper); } .ours { fill: var(--ours); } .other { fill: var(--other); }
.one { stroke: var(--soft); stroke-dasharray: 3 3; }
.range { stroke: var(--whisker); stroke-width: 1.2; fill: none; opacity: .75; }
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A contender: speed, its range over the rounds, and cosine with PyTorch."""

    label: str
    ours: bool
    ratio: float
    low: float
    high: float
    cosine: float | None


def rows(section: dict[str, Any]) -> list[Row]:
    """Return the contenders of one tower in the order of ROWS."""
    figures = {figure["name"]: figure for figure in section["figures"]}
    found = []
    for label, names in ROWS:
        best = max((figures[name] for name in names), key=lambda figure: figure["ratio"])
        speed = (best["ratio"], best["ratio_low"], best["ratio_high"])
        found.append(Row(label, best["kind"] == "ours", *speed, best["cosine"]))
    return found


def panel(title: str, contenders: list[Row], top: float) -> list[str]:
    """Draw a title and a bar per contender, starting at the y coordinate ``top``."""
    x = Scale(0.0, 1.06 * max(row.high for row in contenders), LEFT, RIGHT)
    base = top + 34 + ROW * len(contenders)
    parts = [
        text(16, top + 14, title, "start", "title"),
        text(WIDTH - 16, top + 14, "cosine", "end", "head"),
        text(WIDTH - 84, top + 14, "speed", "end", "head"),
        line(x(1.0), top + 26, x(1.0), base - 4, "one"),
    ]
    for i, row in enumerate(contenders):
        middle = top + 26 + ROW * (i + 0.5)
        kind = "ours" if row.ours else "other"
        parts += [
            text(LEFT - 10, middle + 4.5, row.label, "end", f"{kind}-name"),
            rect(LEFT, middle - 8, x(row.ratio) - LEFT, 16, kind),
            text(WIDTH - 84, middle + 4.5, f"{row.ratio:.2f}x", "end", f"{kind}-value"),
        ]
        if row.high > row.low:
            parts.append(whisker(x(row.low), x(row.high), middle, 4, "range"))
        cosine = "" if row.cosine is None else f"{row.cosine:.4f}"
        parts.append(text(WIDTH - 16, middle + 4.5, cosine, "end", f"{kind}-value"))
    return parts


def chart() -> str:
    """Return the chart as SVG."""
    speed = json.loads((RESULTS / "cpu_avx2.json").read_text(encoding="utf-8"))["bench"]
    recall = json.loads((RESULTS / "int8_recall.json").read_text(encoding="utf-8"))
    sections = {section["tower"]: rows(section) for section in speed["sections"]}
    height = 34 + ROW * len(ROWS)
    parts = panel("Texts per second, against PyTorch", sections["text"], 14)
    parts += panel("Images per second, against PyTorch", sections["vision"], 14 + height + 12)
    change = recall["runtimes"]["onnxruntime"]["galleries_of_500"]["TR@1"]
    low, high, value = (signed(change[key]) for key in ("low", "high", "difference"))
    ir = signed(recall["runtimes"]["onnxruntime"]["galleries_of_500"]["IR@1"]["difference"])
    machine = speed["machine"]
    sets = ", ".join(name.upper() for name in machine["instruction_sets"])
    notes = (
        "BEiT-3 base with adapters, random weights, 224 pixels, batch 8; "
        f"{machine['cores']} cores, {sets}, no VNNI.",
        f"Median and range of {speed['settings']['rounds']} interleaved rounds. Cosine: mean, "
        "against PyTorch eager.",
        f"Recall of INT8 on the trained demo model, {recall['pictures']:,} images:",
        f"TR@1 {value} points (95% interval {low} to {high}), IR@1 {ir}.",
    )
    top = 14 + 2 * (height + 12) + 10
    parts += [text(16, top + 17 * i, note, "start", "note") for i, note in enumerate(notes)]
    bottom = top + 17 * len(notes)
    words = "Speed of mwa-export and other tools against PyTorch eager, with cosines. " + " ".join(
        f"{tower}: " + ", ".join(f"{row.label} {row.ratio:.2f}x" for row in contenders) + "."
        for tower, contenders in sections.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {bottom:g}" '
        f'width="{WIDTH:g}" height="{bottom:g}" role="img"><title>{words}</title>'
        f"<style>{STYLE}</style>"
        f'<rect class="paper" width="{WIDTH:g}" height="{bottom:g}" rx="8"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def signed(value: float) -> str:
    """Format a change in points with its sign."""
    return f"{value:+.2f}".replace("-", MINUS)


def write_png(svg: Path) -> None:
    """Render the chart as PNG at 1.5 times its size."""
    width, height = (int(float(svg_size(svg, key))) for key in ("width", "height"))
    render(svg, svg.with_suffix(".png"), (width, height), scale=1.5)


def svg_size(svg: Path, key: str) -> str:
    """Return an attribute of the first element."""
    return svg.read_text(encoding="utf-8").split(f' {key}="')[1].split('"')[0]


def main() -> None:
    """Write the chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--png", action="store_true")
    arguments = parser.parse_args()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(chart(), encoding="utf-8")
    if arguments.png:
        write_png(OUT)


if __name__ == "__main__":
    main()
