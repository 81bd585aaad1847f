"""The type of a path selects the reader; anything that does not fit is refused, not ignored."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_export.data.test_set import Excluded
from mwa_export.data.test_sets import DataOptions, read_data
from mwa_export.errors import DataError

PAIRS = [("a.jpg", "one"), ("b.jpg", "two"), ("a.jpg", "three")]


def table(path: Path, image: str = "image", caption: str = "caption") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[image, caption], *PAIRS])
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def json_table(path: Path) -> Path:
    return lines(path, [{"image": image, "caption": caption} for image, caption in PAIRS])


def index(path: Path) -> Path:
    rows = [{"image_path": i, "text_segment": c, "image_id": ord(i[0]) - 97} for i, c in PAIRS]
    return lines(path, rows)


def karpathy(path: Path) -> Path:
    images = [
        {"filename": name, "split": "test", "imgid": n, "sentences": [{"raw": c} for c in captions]}
        for n, (name, captions) in enumerate([("a.jpg", ["one", "three"]), ("b.jpg", ["two"])])
    ]
    path.write_text(json.dumps({"images": images}))
    return path


def tar(path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in [
            ("a.jpg", b""),
            ("a.txt", b"one\nthree"),
            ("b.jpg", b""),
            ("b.txt", b"two"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with both pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "a.jpg", "b.jpg":
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (table, "t.csv"),
        (table, "t.CSV"),
        (table, "t.tsv"),
        (json_table, "t.jsonl"),
        (index, "i.jsonl"),
        (karpathy, "k.json"),
        (tar, "w.tar"),
    ],
)
def test_every_form_gives_the_same_set(
    pictures: Path, make: Callable[[Path], Path], name: str
) -> None:
    data = read_data(make(pictures / name))
    assert [picture.name for picture in data.pictures] == ["a.jpg", "b.jpg"]
    captions = zip(data.captions, data.caption_image_ids.tolist(), strict=True)
    assert sorted(captions, key=str) == [("one", 0), ("three", 0), ("two", 1)]
    assert data.excluded == ()


@pytest.mark.parametrize(("make", "name"), [(table, "t.csv"), (index, "i.jsonl"), (tar, "w.tar")])
def test_a_folder_with_one_form_is_read(
    tmp_path: Path, pictures: Path, make: Callable[[Path], Path], name: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder / name)
    (folder / ".DS_Store").write_bytes(b"")
    assert (
        len(read_data(folder, DataOptions(images=None if make is tar else pictures)).captions) == 3
    )


def test_naming_columns_makes_json_lines_a_table(pictures: Path) -> None:
    path = index(pictures / "i.jsonl")
    data = read_data(path, DataOptions("image_path", "text_segment", "image_id"))
    assert data.captions == ("one", "two", "three")
    assert data.image_ids.tolist() == [0, 1]


def test_an_index_without_texts_is_told_so(tmp_path: Path) -> None:
    path = lines(tmp_path / "i.jsonl", [{"image_path": "a.jpg", "image_id": 0}])
    with pytest.raises(DataError, match=r"i\.jsonl:1: a\.jpg is an image without a caption"):
        read_data(path)


def test_missing_pictures_are_counted_and_named_and_nothing_is_left_out(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "caption": "c"} for n in range(5)]
    path = lines(tmp_path / "t.jsonl", rows)
    (tmp_path / "2.jpg").write_bytes(b"")
    message = (
        r"t\.jsonl: 4 of 5 images are missing, such as .*0\.jpg, .*1\.jpg, .*3\.jpg\. "
        r"Pass their folder with `images`, or pass `max_excluded=4` to leave"
    )
    with pytest.raises(DataError, match=message):
        read_data(path)
    with pytest.raises(DataError, match=message):
        read_data(path, DataOptions(max_excluded=3))


def test_missing_pictures_are_left_out_and_listed_when_allowed(pictures: Path) -> None:
    (pictures / "a.jpg").unlink()
    data = read_data(karpathy(pictures / "k.json"), DataOptions(max_excluded=1))
    assert data.captions == ("two",)
    assert data.image_ids.tolist() == [1]
    assert data.excluded == (Excluded(str(pictures / "a.jpg"), "no such file", 2),)
    (pictures / "b.jpg").unlink()
    with pytest.raises(DataError, match="none of the 2 images can be used"):
        read_data(pictures / "k.json", DataOptions(max_excluded=9))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "."])
def test_names_no_file_can_have_are_missing_pictures(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "t.jsonl", [{"image": name, "caption": "c"}])
    with pytest.raises(DataError, match="1 of 1 images are missing"):
        read_data(path)


@pytest.mark.parametrize(
    ("make", "name", "options", "message"),
    [
        (
            index,
            "i.jsonl",
            {"split": "test"},
            "has no splits.*Leave `split` out",
        ),
        (tar, "w.tar", {"split": "test"}, "has no splits"),
        (karpathy, "k.json", {"split": "dev"}, "nothing in split 'dev'. It has: test"),
        (table, "t.csv", {"split": "test"}, "has no splits"),
        (tar, "w.tar", {"images": Path()}, "contains images, not paths.*Leave `images` out"),
        (tar, "w.tar", {"image_column": "x"}, r"has no image .*Expected one, \.x"),
        (karpathy, "k.json", {"image_column": "x"}, "has no columns"),
        (table, "t.csv", {"image_column": "x"}, "no column x. It has: image, caption"),
        (table, "t.csv", {"images": Path("absent")}, "absent: no such folder"),
    ],
)
def test_options_a_form_does_not_have_are_refused(
    pictures: Path,
    make: Callable[[Path], Path],
    name: str,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        read_data(make(pictures / name), DataOptions(**options))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("set.docx", r"is a \.docx file\. Expected one of: a Karpathy or COCO JSON"),
        ("set", r"has no extension\. Expected one of"),
        ("set.zip", "is a .zip file"),
        ("set.jsonl", "has no images"),
        ("set.parquet", "not a complete Parquet file"),
        ("set.json", "not a Karpathy JSON"),
        ("set.tar", "not a complete tar"),
    ],
)
def test_other_files_are_refused_with_the_forms_there_are(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=message):
        read_data(tmp_path / name)
    with pytest.raises(DataError, match=r"absent: no such file or folder\. Expected one of"):
        read_data(tmp_path / "absent")


def test_ambiguous_folders_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without a table or tars \(files: none\)"):
        read_data(tmp_path)
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"without a table or tars \(files: 1\.jpg\)\. Expected"):
        read_data(tmp_path)
    table(tmp_path / "t.csv")
    index(tmp_path / "i.jsonl")
    with pytest.raises(DataError, match=r"has 2 tables: i\.jsonl, t\.csv\. Pass one"):
        read_data(tmp_path)
    tar(tmp_path / "w.tar")
    with pytest.raises(DataError, match=r"has 1 .tar files and other files: 1\.jpg, i"):
        read_data(tmp_path)


@given(st.sampled_from(["r.json", "r.jsonl", "r.csv", "r.tsv", "r.tar"]), st.binary(max_size=40))
def test_random_bytes_are_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_data(path)
