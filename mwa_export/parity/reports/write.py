"""Write a parity report in all formats (HTML, Markdown, JSON, JUnit) into one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mwa_export.errors import ImageError
from mwa_export.files import new_folder
from mwa_export.inputs.content import Readable
from mwa_export.parity.reports.junit import junit_from_parities, junit_from_parity
from mwa_export.parity.reports.markdown import markdown_from_parity
from mwa_export.parity.reports.overview import (
    html_from_overview,
    json_from_overview,
    markdown_from_overview,
)
from mwa_export.parity.reports.page import html_from_parity, thumbnail_rows
from mwa_export.parity.result import Parity
from mwa_export.parity.run import Finished
from mwa_export.report.page import THUMBNAIL, thumbnail

MARKER = "report.json"  # marks a folder made here, which ``force`` may replace


def write_reports(
    result: Parity,
    out: Path,
    *,
    pictures: tuple[Readable, ...] = (),
    force: bool = False,
) -> Path:
    """Write report.json, report.md, report.html and junit.xml. Returns the path of report.html.

    Args:
        out: the folder to create.
        pictures: all images of the test set, in order; a few become thumbnails in the page.
        force: replace a folder that an earlier run wrote.

    Raises:
        BundleError: the folder already exists, or it cannot be written.
    """
    with new_folder(out, marker=MARKER, force=force) as folder:
        _write(result, folder, pictures)
    return Path(out) / "report.html"


def write_overview(
    results: Mapping[str, Finished],
    out: Path,
    *,
    force: bool = False,
) -> Path:
    """Write an overview of several candidates. Returns the path of index.html.

    The folder gets index.html, report.json, report.md and junit.xml for all candidates, and a
    subfolder with the full report of each.

    Raises:
        BundleError: the folder already exists, or it cannot be written.
    """
    parities = {name: done.result for name, done in results.items()}
    texts = {
        MARKER: _json(json_from_overview(parities)),
        "report.md": markdown_from_overview(parities),
        "junit.xml": junit_from_parities(parities),
        "index.html": html_from_overview(parities),
    }
    with new_folder(out, marker=MARKER, force=force) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name, done in results.items():
            (folder / name).mkdir()
            _write(done.result, folder / name, done.data.pictures)
    return Path(out) / "index.html"


def _write(result: Parity, folder: Path, pictures: tuple[Readable, ...]) -> None:
    texts = {
        MARKER: _json(result.to_json()),
        "report.md": markdown_from_parity(result),
        "junit.xml": junit_from_parity(result),
        "report.html": html_from_parity(result, _thumbnails(result, pictures)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _thumbnails(result: Parity, pictures: tuple[Readable, ...]) -> Mapping[int, bytes]:
    """JPEGs of the images that the gallery shows, except those that can no longer be read."""
    found: dict[int, bytes] = {}
    for row in thumbnail_rows(result) if pictures else ():
        try:
            found[row] = thumbnail(pictures[row], THUMBNAIL)
        except ImageError:
            continue  # the gallery shows the image's name instead
    return found
