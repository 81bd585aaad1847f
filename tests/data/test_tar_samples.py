"""Every image in a tar has a row, and the member that is the image can be chosen."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from embed_samples import png

from mwa_export.data import tars
from mwa_export.data.rows import Row, Scan
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import DataOptions, parse_data
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind


def write(folder: Path, members: Sequence[tuple[str, bytes | str]]) -> Path:
    with tarfile.open(folder / "t.tar", "w") as tar:
        for name, data in members:
            info, content = (
                tarfile.TarInfo(name),
                data if isinstance(data, bytes) else data.encode(),
            )
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / "t.tar"


def scanned(kind: Kind, path: Path, **options: str) -> tuple[list[Row], Scan]:
    source = open_source(kind, str(path), SourceOptions(**options))  # type: ignore[arg-type]
    scan = source.scan(path.parent)
    return list(source.rows(0, scan.rows)), scan


def ids(rows: list[Row]) -> list[str]:
    assert not [row.problem for row in rows if row.problem]
    return [row.id for row in rows]


def test_pictures_whose_names_have_dots_are_a_sample_each(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("v1.2.jpe", png(1)),
        ("v1.3.jpe", png(2)),
        ("v1.3.txt", "b"),
        ("v1.2.txt", "a"),
    ]
    path = write(tmp_path, members)
    assert ids(scanned("image", path)[0]) == ["v1.2", "v1.3"]
    assert [row.content for row in scanned("text", path)[0]] == ["a", "b"]
    assert parse_data(path).captions == ("a", "b")


def test_members_of_every_extension_and_of_none_are_pictures(tmp_path: Path) -> None:
    names = ["a.jpe", "b.PNM", "c.pcx", "d.j2k", "e.jxl", "f.avif", "g/plain"]
    extra: list[tuple[str, bytes | str]] = [
        ("README", "text"),
        ("g/.hidden", png(1)),
        ("a.cls", "3"),
        ("a.txt", "a"),
    ]
    path = write(tmp_path, [*((name, png(1)) for name in names), *extra])
    rows, scan = scanned("image", path)
    assert ids(rows) == ["a", "b", "c", "d", "e", "f", "g/plain"]
    assert scan.skipped == {"without extension": 1, "hidden": 1, ".cls": 1}


def test_which_member_is_the_picture_can_be_said(tmp_path: Path) -> None:
    members = list[tuple[str, bytes | str]]()
    for key in "ab":
        members += [(f"{key}.left.jpg", png(1)), (f"{key}.jpg", png(2)), (f"{key}.txt", key)]
    path = write(tmp_path, members)
    rows, scan = scanned("image", path)
    assert [row.content.read() for row in rows] == [png(2)] * 2  # type: ignore[union-attr]
    assert scan.skipped == {".left.jpg": 2}
    rows, scan = scanned("image", path, image_column="left.jpg")
    assert [row.content.read() for row in rows] == [png(1)] * 2  # type: ignore[union-attr]
    assert scan.skipped == {".jpg": 2}
    data = parse_data(path, DataOptions(image_column="left.jpg"))
    assert [picture.read() for picture in data.pictures] == [png(1)] * 2


def test_two_plain_pictures_are_one_failed_row_that_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path, [("a.jpg", png(1)), ("a.png", png(2)), ("a.txt", "a")])
    [row] = scanned("image", path)[0]
    assert row.problem is not None
    assert "has 2 images" in row.problem.reason
    assert "`image_column`" in row.problem.reason
    assert ids(scanned("image", path, image_column="png")[0]) == ["a"]


def test_a_named_caption_is_not_replaced_by_another(tmp_path: Path) -> None:
    first, second = {"alt": "x", "caption": "y"}, {"caption": "z"}
    members = [("a.json", json.dumps(first)), ("a.txt", "t"), ("b.json", json.dumps(second))]
    rows, _ = scanned("text", write(tmp_path, members), text_column="alt")
    assert rows[0].content == "x"
    assert rows[1].problem is not None
    assert 'has no "alt"' in rows[1].problem.reason


def test_ids_of_samples_may_come_from_a_field(tmp_path: Path) -> None:
    members = [(f"{n}.{e}", d) for n in "ab" for e, d in (("jpg", png(1)), ("txt", n),
               ("json", json.dumps({"sku": f"s-{n}"})))]  # fmt: skip
    path = write(tmp_path, members)
    assert ids(scanned("image", path, id_column="sku")[0]) == ["s-a", "s-b"]
    with pytest.raises(DataError, match="no sample has absent"):
        scanned("image", path, id_column="absent")


def test_members_too_far_from_their_sample_fail_and_the_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "_OPEN", 3)
    pictures = [(f"{n}.jpg", png(n)) for n in range(6)]
    path = write(tmp_path, [*pictures, *((f"{n}.txt", f"t{n}") for n in range(6))])
    assert ids(scanned("image", path)[0]) == [str(n) for n in range(6)]
    rows, _ = scanned("text", path)
    late = {row.id for row in rows if row.problem and "Sort the tar" in row.problem.reason}
    assert late == {"0.txt", "1.txt", "2.txt"}
    assert [row.content for row in rows if row.content] == ["t3", "t4", "t5"]
