"""A report folder is written as a whole or not at all, whatever the images are called."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import files_below
from parity_samples import identical_parity, sample_parity
from paths import ROOT
from PIL import Image

from mwa_export.data.test_set import Excluded
from mwa_export.errors import BundleError
from mwa_export.inputs.pictures import Picture
from mwa_export.parity.reports import write as report_write
from mwa_export.parity.reports.page import thumbnail_rows
from mwa_export.parity.reports.write import write_reports
from mwa_export.parity.result import Parity
from mwa_export.report.page import THUMBNAIL

FILES = ["junit.xml", "report.html", "report.json", "report.md"]
SMALL = sample_parity(60, examples=4)
SHOWN = len(SMALL.examples) + len(SMALL.improved)
ODD = os.fsdecode(b"caf\xe9\xff.jpg")  # a name that is no UTF-8


def saved(path: Path, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Picture:
    """A picture on disk; what it is called does not matter."""
    Image.new(mode, size, 90).save(path, "PNG")
    return Picture(path)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Picture, ...]:
    """One per image of the sample."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return tuple(saved(folder / f"{row}.jpg", (400, 300)) for row in range(SMALL.data.images))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the report goes, alone in its folder so that everything left behind is seen."""
    (tmp_path / "reports").mkdir()
    return tmp_path / "reports" / "parity"


def thumbnails_in(html: str) -> list[bytes]:
    """The JPEG files in the page."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [base64.b64decode(text, validate=True) for text in found]


def test_four_files_are_written_and_nothing_else(out: Path) -> None:
    assert write_reports(SMALL, out) == out / "report.html"
    assert sorted(os.listdir(out)) == FILES
    assert os.listdir(out.parent) == [out.name]
    assert all((out / name).stat().st_size for name in FILES)


def test_folders_above_are_made(out: Path) -> None:
    write_reports(SMALL, out / "a" / "b")
    assert sorted(os.listdir(out / "a" / "b")) == FILES


@pytest.mark.parametrize("name", ["markdown_from_parity", "junit_from_parity", "html_from_parity"])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_stays_when_a_report_cannot_be_made(
    name: str, force: bool, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if force:
        write_reports(SMALL, out)
    before = files_below(out.parent)

    def fail(*_: object) -> str:
        raise RuntimeError("no report")

    monkeypatch.setattr(report_write, name, fail)
    with pytest.raises(RuntimeError, match="no report"):
        write_reports(identical_parity(60), out, force=force)
    assert files_below(out.parent) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("force", [False, True])
def test_nothing_stays_when_the_disk_is_full(
    name: str, force: bool, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if force:
        write_reports(SMALL, out)
    before = files_below(out.parent)
    write_text = Path.write_text

    def full(path: Path, data: str, encoding: str | None = None) -> int:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, data, encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BundleError, match="no space left"):
        write_reports(identical_parity(60), out, force=force)
    assert files_below(out.parent) == before


def test_existing_report_is_kept_without_force(out: Path) -> None:
    write_reports(SMALL, out)
    before = files_below(out)
    with pytest.raises(BundleError, match="exists"):
        write_reports(identical_parity(60), out)
    assert files_below(out) == before


def test_force_replaces_an_earlier_report_as_a_whole(out: Path) -> None:
    write_reports(SMALL, out)
    (out / "stale.txt").write_text("of the earlier run")
    write_reports(identical_parity(60), out, force=True)
    assert sorted(os.listdir(out)) == FILES
    assert json.loads((out / "report.json").read_bytes())["verdict"] == "passes"
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("force", [False, True])
def test_foreign_folder_is_never_replaced(out: Path, force: bool) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match=r"report\.json is missing" if force else "exists"):
        write_reports(SMALL, out, force=force)
    assert os.listdir(out) == ["thesis.tex"]


@pytest.mark.parametrize(
    "result", [SMALL, sample_parity(3, seed=5), identical_parity(60), replace(SMALL, gates=())]
)
def test_json_is_strict_and_is_the_result(result: Parity, out: Path) -> None:
    write_reports(result, out)

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads((out / "report.json").read_bytes(), parse_constant=refuse)
    assert found["schema"] == 2
    assert found == json.loads(json.dumps(result.to_json()))
    assert list(found) == list(result.to_json())


def test_docs_describe_every_field_of_the_json() -> None:
    docs = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    described = docs[docs.index("## report.json") :]
    result = SMALL.to_json()
    (first, *_), (cost, *_), (gate, *_) = (
        result["directions"][0]["recalls"],
        result["costs"],
        result["gates"],
    )
    for field in (*result, *first, *first["smoothed"], *cost, *gate, *result["examples"][0]):
        assert f"`{field}`" in described, field


def test_pictures_of_the_examples_are_in_the_page(out: Path, pictures: tuple[Picture, ...]) -> None:
    html = write_reports(SMALL, out, pictures=pictures).read_text(encoding="utf-8")
    found = thumbnails_in(html)
    assert len(found) == 2 * SHOWN
    for data in found:
        image = Image.open(io.BytesIO(data))
        assert image.format == "JPEG"
        assert image.size == (THUMBNAIL, THUMBNAIL * 3 // 4)
    assert 'class="placeholder"' not in html
    assert str(pictures[0].path.parent) not in html


def test_without_pictures_there_are_placeholders(out: Path) -> None:
    html = write_reports(SMALL, out).read_text(encoding="utf-8")
    assert thumbnails_in(html) == []
    assert html.count('class="placeholder"') == 2 * SHOWN


def test_picture_that_is_gone_leaves_its_name(out: Path, pictures: tuple[Picture, ...]) -> None:
    example = SMALL.examples[0]
    gone, broken = example.image, example.winner_image
    pictures[gone].path.unlink()
    pictures[broken].path.write_bytes(b"no picture any more")
    html = write_reports(SMALL, out, pictures=pictures).read_text(encoding="utf-8")
    shown = [row for e in (*SMALL.examples, *SMALL.improved) for row in (e.image, e.winner_image)]
    missing = sum(row in (gone, broken) for row in shown)
    assert html.count('class="placeholder"') == missing >= 2
    assert len(thumbnails_in(html)) == len(shown) - missing
    assert sorted(os.listdir(out)) == FILES


def test_only_pictures_that_are_shown_are_read(out: Path, pictures: tuple[Picture, ...]) -> None:
    rows = thumbnail_rows(SMALL)
    assert len(rows) < len(pictures)
    for row, picture in enumerate(pictures):
        if row not in rows:
            picture.path.unlink()
    html = write_reports(SMALL, out, pictures=pictures).read_text(encoding="utf-8")
    assert len(thumbnails_in(html)) == 2 * SHOWN


def test_names_that_are_no_text_stop_no_report(out: Path, tmp_path: Path) -> None:
    odd = saved(tmp_path / ODD)
    name = odd.name
    assert "\udcff" in name
    examples = tuple(replace(e, picture=name, winner_picture=name) for e in SMALL.examples)
    result = replace(
        SMALL,
        reference=replace(SMALL.reference, name=name, source=str(odd)),
        candidate=replace(SMALL.candidate, name=name, source=str(odd)),
        data=replace(SMALL.data, name=name, excluded=(Excluded(name, str(odd), 5),)),
        stages=tuple(replace(s, detail=name) for s in SMALL.stages),
        examples=examples,
        warnings=(f"{odd}: odd",),
    )
    write_reports(result, out, pictures=(odd,) * SMALL.data.images)
    assert sorted(os.listdir(out)) == FILES
    for file in FILES:
        text = (out / file).read_bytes().decode("utf-8")
        assert "caf" in text
        assert ".jpg" in text
    found = json.loads((out / "report.json").read_bytes())
    assert found["data"]["name"] == name, "the way back to the file"
