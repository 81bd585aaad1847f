"""The documentation site builds without a warning and fetches nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from paths import ROOT

import mwa_export
from mwa_export.cli.flags import flags_of
from mwa_export.cli.main import _COMMANDS

pytestmark = pytest.mark.slow
pytest.importorskip("mkdocs", reason="the extra docs is not installed")

BUILD = """
import sys
from mkdocs.__main__ import cli
try:
    cli(["build", "--strict", "--site-dir", sys.argv[1]], standalone_mode=False)
finally:
    heavy = {"torch", "onnx", "onnxruntime", "openvino"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link, anchor or page of the menu ends the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> Iterator[tuple[Path, str]]:
    for page in sorted(site.rglob("*.html")):
        yield page, page.read_text(encoding="utf-8")


def test_commands_page_has_every_command_and_option(site: Path) -> None:
    page = unescape((site / "commands" / "index.html").read_text(encoding="utf-8"))
    for name in _COMMANDS:
        assert f'id="mwa-export-{name}"' in page
        section = page.split(f'id="mwa-export-{name}"')[1].split("<h2")[0]
        for flag in flags_of(name):
            if flag.startswith("--"):
                assert re.search(rf"{flag}\b", section), f"{name} {flag}"


def test_api_page_has_every_public_name(site: Path) -> None:
    page = (site / "api-reference" / "index.html").read_text(encoding="utf-8")
    for name in mwa_export.__all__:
        if name != "__version__":
            assert f">{name}</" in page or f"mwa_export.{name}" in page, name
    for name in vars(mwa_export.errors):
        if name.endswith("Error"):
            assert f"<code>{name}</code>" in page, name


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loads = r'<(?:script|img|iframe|source)\b[^>]*?\bsrc="(https?:[^"]+)"'
    sheets = r'<link\b[^>]*?rel="(?:stylesheet|preconnect|preload|icon)"[^>]*?href="(https?:[^"]+)"'
    for page, html in pages(site):
        found = re.findall(loads, html) + re.findall(sheets, html)
        own = "https://mwa-export.github.io/mwa-export/"
        assert [url for url in found if not url.startswith(own)] == [], page


def test_links_of_the_readme_stay_on_the_site(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="tutorial/"' in home
    assert 'src="assets/speed.svg"' in home
    assert "blob/main/docs/" not in re.sub(r'<a[^>]*title="[^"]*"[^>]*>', "", home)


def test_no_marker_of_generated_text_is_left(site: Path) -> None:
    for page, html in pages(site):
        assert not re.search(r"<!-- (?:include|commands|api|exceptions)", html), page
