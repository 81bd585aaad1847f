"""The contact sheet fetches nothing, shows the images, escapes everything, and is readable."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mwa_export.inputs.pictures import Picture
from mwa_export.search.page import THUMBNAIL, html_from_search
from mwa_export.search.result import Found, Hit

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>\0\ud800 {{ 7*7 }}"
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """The page's elements with their attributes, its text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def pictures(self) -> list[tuple[str, bytes]]:
        """Alternative text and bytes of every picture."""
        found = []
        for tag, attrs in self.elements:
            if tag == "img":
                source = str(attrs["src"])
                assert source.startswith("data:image/jpeg;base64,")
                found.append((str(attrs["alt"]), b64decode(source.partition(",")[2])))
        return found


def sample(*hits: Hit) -> Found:
    return Found(
        "a red bus", None, "images", hits, 12345, "vectors", "bundle", "ONNX Runtime", "ab" * 32
    )


def save(path: Path, mode: str, size: tuple[int, int], colour: object) -> Picture:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return Picture(path)


def test_pictures_are_in_the_page_small_and_in_their_order(tmp_path: Path) -> None:
    red = save(tmp_path / "red.png", "RGB", (900, 300), (255, 0, 0))
    blue = save(tmp_path / "blue.tif", "CMYK", (40, 80), (255, 255, 0, 0))
    page = Page(html_from_search(sample(Hit(1, 0.5, "r", {}, red), Hit(2, 0.4, "b", {}, blue))))
    (first, one), (second, two) = page.pictures()
    assert (first, second) == ("r", "b")
    pictures = [Image.open(io.BytesIO(data)) for data in (one, two)]
    assert [image.size for image in pictures] == [(THUMBNAIL, 107), (40, 80)]
    left, right = (image.getpixel((5, 5)) for image in pictures)
    assert isinstance(left, tuple)
    assert isinstance(right, tuple)
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > right[0]
    assert "Best 2 of 12,345 images in vectors" in " ".join(page.text.split())
    assert "score 0.5000" in page.text


def test_bytes_of_a_picture_are_shown_too(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "P", (10, 10), 3)
    html = html_from_search(sample(Hit(1, 0.5, "a", {}, (tmp_path / "a.png").read_bytes())))
    assert len(Page(html).pictures()) == 1


def test_a_query_picture_stands_above(tmp_path: Path) -> None:
    asked = save(tmp_path / "asked.png", "L", (20, 20), 9)
    found = replace(sample(), query="asked.png", query_picture=asked)
    page = Page(html_from_search(found))
    assert [name for name, _ in page.pictures()] == ["Query: asked.png"]
    assert "“" not in page.text
    assert "contains no embedded images" in " ".join(page.text.split())


def test_a_picture_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    hits = (
        Hit(1, 0.5, "gone", {}, Picture(tmp_path / "gone.jpg")),
        Hit(2, 0.4, "broken", {}, Picture(tmp_path / "broken.jpg")),
        Hit(3, 0.3, "lost", {}, None),
    )
    page = Page(html_from_search(sample(*hits)))
    assert page.pictures() == []
    for reason in ("no such file", "cannot be decoded", "is unknown"):
        assert page.text.count(reason) == 1


def test_nothing_is_fetched_run_or_taken_for_markup(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", "RGB", (4, 4), 0)
    hit = Hit(1, 0.5, HOSTILE, {HOSTILE: HOSTILE, "n": None, "list": [1, 2]}, picture)
    found = replace(sample(hit), query=HOSTILE, output=HOSTILE, bundle=HOSTILE, warnings=(HOSTILE,))
    html = html_from_search(found)
    html.encode("utf-8")
    assert "\0" not in html
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "form"})
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    policy = [a["content"] for tag, a in page.elements if "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    sources = [v for _, attrs in page.elements for k, v in attrs.items() if k in ("src", "href")]
    assert all(str(source).startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\(|@import|https?:", html)
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("<script>alert(1)</script>") == 8  # also in the title


def test_what_was_not_searched_is_said_first(tmp_path: Path) -> None:
    html = html_from_search(replace(sample(Hit(1, 1.0, "x", {})), warnings=("2 of 5 shards",)))
    page = Page(html)
    assert page.text.index("2 of 5 shards") < page.text.index("score 1.0000")


@pytest.mark.parametrize("where", ["images", "texts"])
def test_texts_have_no_frames_for_pictures(where: str) -> None:
    hit = Hit(1, 1.0, "x", {"caption": "a red bus\nin the rain"})
    html = html_from_search(replace(sample(hit), where=where))  # type: ignore[arg-type]
    assert ('class="frame"' in html) == (where == "images")
    assert "in the rain" in Page(html).text
