"""Write a benchmark as JSON, Markdown, SVG and HTML into one folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mwa_export.bench.chart import svg_from_bench
from mwa_export.bench.page import html_from_bench
from mwa_export.bench.report import markdown_from_bench
from mwa_export.bench.result import Bench
from mwa_export.files import new_folder

MARKER = "bench.json"  # marks a folder made here, which ``force`` may replace


def write_bench(result: Bench, out: Path, *, force: bool = False) -> Path:
    """Write bench.json, bench.svg, bench.md and bench.html. Returns the path of bench.html.

    Raises:
        BundleError: the folder already exists, or it cannot be written.
    """
    texts = {
        MARKER: json.dumps(_without_nan(result.to_json()), indent=2, allow_nan=False) + "\n",
        "bench.md": markdown_from_bench(result),
        "bench.svg": svg_from_bench(result),
        "bench.html": html_from_bench(result),
    }
    with new_folder(out, marker=MARKER, force=force) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return Path(out) / "bench.html"


def _without_nan(value: object) -> object:
    """Replace NaN and infinity with None, as JSON has neither."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
