"""Write every form of a parity report into one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mwa_export.errors import ImageError
from mwa_export.files import new_folder
from mwa_export.inputs.content import Readable
from mwa_export.parity.reports.junit import junit_from_parity
from mwa_export.parity.reports.markdown import markdown_from_parity
from mwa_export.parity.reports.page import html_from_parity, thumbnail_rows
from mwa_export.parity.result import Parity
from mwa_export.report.page import THUMBNAIL, thumbnail

MARKER = "report.json"  # of a folder that was made here, and may be replaced when forced


def write_reports(
    result: Parity,
    out: Path,
    *,
    pictures: tuple[Readable, ...] = (),
    force: bool = False,
) -> Path:
    """Make a folder with report.json, .md and .html and junit.xml. Returns the page's path.

    ``pictures``: of the test set, in its order; thumbnails of a few go into the page.

    Raises:
        BundleError: the folder exists, or the disk refuses.
    """
    texts = {
        MARKER: json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n",
        "report.md": markdown_from_parity(result),
        "junit.xml": junit_from_parity(result),
        "report.html": html_from_parity(result, _thumbnails(result, pictures)),
    }
    with new_folder(out, marker=MARKER, force=force) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return Path(out) / "report.html"


def _thumbnails(result: Parity, pictures: tuple[Readable, ...]) -> Mapping[int, bytes]:
    """JPEG bytes of the pictures that the gallery shows; none where one cannot be read any more."""
    found: dict[int, bytes] = {}
    for row in thumbnail_rows(result) if pictures else ():
        try:
            found[row] = thumbnail(pictures[row], THUMBNAIL)
        except ImageError:
            continue  # the gallery shows its name instead
    return found
