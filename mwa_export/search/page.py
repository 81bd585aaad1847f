"""The contact sheet of a search: one HTML file with embedded images, no scripts, no requests.

``assets/search.html.j2`` defines the layout. It shares ``report.css`` with the parity report and
adds ``search.css``.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

from mwa_export.errors import BundleError, ImageError
from mwa_export.files import check_writable, disk_errors, new_file
from mwa_export.inputs.content import Readable
from mwa_export.inputs.pictures import Picture
from mwa_export.report.numbers import DASH
from mwa_export.report.page import rendered, thumbnail
from mwa_export.search.result import Found

THUMBNAIL = 320  # pixels of the longer side


def check_page(path: Path) -> None:
    """Raise BundleError if ``path`` cannot be written, or exists and is not an HTML file."""
    with disk_errors(path):
        check_writable(path.parent)
    if path.is_dir():
        raise BundleError(f"{path}: expected a file such as found.html, found a folder.")
    if path.exists() and not path.read_bytes()[:15].lower() == b"<!doctype html>":
        raise BundleError(f"{path}: exists and is not an HTML file. Choose another name.")


def write_page(found: Found, path: Path) -> None:
    """Write the page atomically.

    Raises:
        BundleError: the file exists and is not an HTML file, or writing failed.
    """
    check_page(path)
    with new_file(path) as partial:
        partial.write_text(html_from_search(found), encoding="utf-8")


def html_from_search(found: Found) -> str:
    """Render the page. An unreadable image is replaced by its name and the reason."""
    return rendered(
        "search.html.j2",
        ["report.css", "search.css"],
        {"cell": lambda value: DASH if value is None else str(value)},
        found=found,
        title=found.query if found.query_picture is not None else f"“{found.query}”",
        asked=None if found.query_picture is None else _shown(found.query_picture),
        shown=[None if hit.picture is None else _shown(hit.picture) for hit in found.hits],
    )


def _shown(picture: Picture | Readable | bytes) -> tuple[str, str]:
    """Return the thumbnail as base64 and "", or "" and the reason why it cannot be made."""
    try:
        return b64encode(thumbnail(picture, THUMBNAIL)).decode(), ""
    except ImageError as error:
        return "", str(error)
