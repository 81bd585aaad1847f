"""Parse report pages as readers and browsers see them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

VOID = {"meta", "link", "img", "br", "input", "hr", "wbr"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += [f"--disable-{part}" for part in ("background-networking", "component-update", "sync")]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


class Page(HTMLParser):
    """Every element with its attributes, the text inside it and what is around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[int, ...]]] = []
        self.texts: dict[int, str] = {}  # with the text of what is inside
        self.open: list[int] = []
        self.feed(html)
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} repeats"
        self.elements.append((tag, {k: v or "" for k, v in attrs}, tuple(self.open)))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            self.texts[element] = self.texts.get(element, "") + data

    def all(self, tag: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of every such element."""
        return [
            (attrs, " ".join(self.texts.get(i, "").split()))
            for i, (name, attrs, _) in enumerate(self.elements)
            if name == tag
        ]

    def inside(self, index: int) -> list[tuple[str, dict[str, str]]]:
        return [(tag, attrs) for tag, attrs, around in self.elements if index in around]

    @property
    def text(self) -> str:
        return self.all("body")[0][1]


def check_page(html: str) -> None:
    """Nothing is fetched or run, links lead somewhere, and tables and headings are labelled."""
    page = Page(html)
    assert html.startswith("<!doctype html>\n<html lang=")
    assert [len(page.all(tag)) for tag in ("h1", "main", "footer")] == [1, 1, 1]
    metas = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert metas == [POLICY]
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs, _ in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "audio", "video"}
        assert set(attrs.get("aria-labelledby", "").split()) <= set(ids)
        assert attrs.get("tabindex") != "0" or attrs.get("aria-label")
        for name, value in attrs.items():
            assert not name.startswith("on"), tag
            assert "url(" not in value.lower()
            if name == "href" and re.fullmatch(r"[\w.-]+/report\.html", value):
                continue  # of another page that was written with this one
            if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}:
                assert value.startswith("data:") or (value[:1] == "#" and value[1:] in ids), value
    css = "".join(text for _, text in page.all("style")).lower()
    assert not re.search(r"url\(|@import", css)
    assert not re.search(r"https?:", html)
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    for i, (tag, _, around) in enumerate(page.elements):
        if tag == "table":
            inside = page.inside(i)
            assert inside[0][0] == "caption"
            assert all(attrs.get("scope") for name, attrs in inside if name == "th")
            assert any("scroll" in page.elements[a][1].get("class", "") for a in around)


def measured(html: str, folder: Path) -> dict[int, tuple[int, int, int]]:
    """Width of the content, tables that are cut off, and charts that show, on screens by width."""
    widths = (390, 1280)
    frames = "".join(
        f'<iframe srcdoc="{escape(html)}" style="border:0;width:{width}px"></iframe>'
        for width in widths
    )
    script = (
        "onload = () => { document.title = JSON.stringify(Array.from(frames).map(f => {"
        "const all = what => [...f.document.querySelectorAll(what)];"
        "const cut = all('.scroll:not(.wide)').filter(x => x.scrollWidth > x.clientWidth);"
        "const charts = all('svg').filter(x => x.clientHeight > 50);"
        "return [f.document.documentElement.scrollWidth, cut.length, charts.length]; })) }"
    )
    path = folder / "frames.html"
    path.write_text(f"<meta charset=utf-8><script>{script}</script>{frames}", "utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, profile, "--hide-scrollbars", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    title = re.search("<title>(.*)</title>", done.stdout)
    assert title
    return dict(zip(widths, map(tuple, json.loads(title[1])), strict=True))
