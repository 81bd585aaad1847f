"""A Karpathy split is read completely or refused, never silently truncated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_export.data.test_sets import DataOptions, parse_data
from mwa_export.errors import DataError
from mwa_export.inputs.pictures import Picture


def entry(imgid: int, captions: int = 2, /, split: str = "test", **changes: Any) -> dict[str, Any]:
    return {
        "filepath": "val",
        "filename": f"{imgid}.jpg",
        "split": split,
        "imgid": imgid,
        "sentences": [
            {"raw": f"caption {n} of {imgid}", "tokens": ["caption"]} for n in range(captions)
        ],
        **changes,
    }


def write(folder: Path, entries: list[Any]) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": entries}))
    return path


def test_a_split_is_read_in_order_with_uneven_captions(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(7, 1), entry(5, 2, split="train"), entry(3, 3)])
    data = parse_data(path)
    assert data.image_ids.tolist() == [7, 3]
    assert data.caption_image_ids.tolist() == [7, 3, 3, 3]
    assert data.captions[1] == "caption 0 of 3"
    assert [str(p) for p in data.pictures] == [
        str(path) for path in (tmp_path / "val/7.jpg", tmp_path / "val/3.jpg")
    ]
    assert data.image_ids.dtype == data.caption_image_ids.dtype == np.int64
    assert data.name == f"{path}, split test"
    assert parse_data(path, DataOptions(split=None)).captions == data.captions
    assert parse_data(path, DataOptions(split="train")).image_ids.tolist() == [5]


def test_flickr30k_has_no_subfolder(tmp_path: Path) -> None:
    flickr = entry(1)
    del flickr["filepath"]
    assert parse_data(write(tmp_path, [flickr])).pictures[0] == Picture(tmp_path / "1.jpg")


def test_pictures_may_lie_elsewhere_or_have_absolute_paths(tmp_path: Path) -> None:
    absolute = str(tmp_path / "far" / "2.jpg")
    path = write(tmp_path, [entry(1), entry(2, filename=absolute)])
    (other := tmp_path / "other").mkdir()
    data = parse_data(path, DataOptions(images=other))
    assert [str(p) for p in data.pictures] == [str(tmp_path / "other/val/1.jpg"), absolute]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "has no images"),
        ([entry(1, split="train"), entry(2, split="val")], r"split 'test'\. It has: train, val\."),
        ([entry(1), entry(2, 0)], r"1 of 2 images have no captions.*2\.jpg.*images\[1\]"),
        ([entry(1), entry(1)], r"images\[1\].*the id 1 already occurs in .*images\[0\]"),
        (
            [entry(1, sentences=[{"raw": " "}])],
            r"images\[0\], 1\.jpg: \"raw\" of sentence 0 is blank",
        ),
        ([entry(1, sentences=[{}])], '"raw" of sentence 0 is null'),
        ([entry(1, sentences=[{"raw": "\ud800"}])], "not valid Unicode"),
        ([entry(1, sentences=["a"])], r"not a Karpathy JSON \(\"sentences\"\[0\] is 'a'"),
        ([entry(1, imgid="1")], r"images\[0\], 1\.jpg: \"imgid\" is '1'\. Expected a non-neg"),
        ([entry(1, imgid=True)], '"imgid" is True'),
        ([entry(1, imgid=2**63)], '"imgid" is 9223372036854775808'),
        ([entry(1, filename=None)], '"filename" is missing'),
        ([entry(1, filepath=3)], '"filepath" is 3'),
        ([entry(1), {}], r"images\[1\]: has no \"split\""),
        ([3], "not a Karpathy JSON"),
    ],
)
def test_incomplete_sets_are_refused(tmp_path: Path, entries: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_data(write(tmp_path, entries))


def test_other_splits_are_not_checked(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(1), entry(2, 0, split="train")])
    assert len(parse_data(path).pictures) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"pictures": []}', '{"images": 3}', "[" * 100_000])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"not a Karpathy JSON.*Expected an object with \"images\""):
        parse_data(tmp_path / "dataset.json")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: no such file"):
        parse_data(tmp_path / "absent.json")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@given(
    st.sampled_from(["filename", "filepath", "split", "imgid", "sentences"]),
    scalars | st.lists(scalars | st.fixed_dictionaries({"raw": scalars}), max_size=2),
)
def test_any_wrong_field_is_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
) -> None:
    wrong: dict[str, Any] = {field: value}
    path = write(tmp_path_factory.getbasetemp(), [entry(1), entry(2, **wrong)])
    try:
        data = parse_data(path)
    except DataError:
        return
    assert len(data.captions) == len(data.caption_image_ids)
    assert not any(str(picture) == "" for picture in data.pictures)


@given(st.binary(max_size=60))
def test_random_bytes_are_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a Karpathy JSON"):
        parse_data(path)
