"""A test set is read whole or refused: never a silently smaller one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mwa_export.errors import DataError
from mwa_export.retrieval_data import read_karpathy


def entry(
    imgid: int, captions: int = 2, split: str = "test", folder: str = "val"
) -> dict[str, Any]:
    return {
        "filepath": folder,
        "filename": f"{imgid}.jpg",
        "split": split,
        "imgid": imgid,
        "sentences": [{"raw": f"caption {n} of {imgid}"} for n in range(captions)],
    }


def write(folder: Path, entries: list[dict[str, Any]]) -> Path:
    for item in entries:
        file = folder / item["filepath"] / item["filename"]
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": entries}))
    return path


def test_split_is_read_in_order_with_uneven_captions(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(7, 1), entry(3, 3), entry(5, 2, split="train")])
    data = read_karpathy(path)
    assert data.image_ids.tolist() == [7, 3]
    assert data.caption_image_ids.tolist() == [7, 3, 3, 3]
    assert data.captions[1] == "caption 0 of 3"
    assert [file.name for file in data.image_paths] == ["7.jpg", "3.jpg"]
    assert data.image_ids.dtype == np.int64


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(1)])
    (tmp_path / "val").rename(tmp_path / "moved")
    (tmp_path / "other").mkdir()
    (tmp_path / "moved").rename(tmp_path / "other" / "val")
    assert read_karpathy(path, images=tmp_path / "other").image_paths[0].is_file()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(1, split="train")], r"no pictures in split 'test'. It has: train"),
        ([entry(1, captions=0)], r"1\.jpg has no captions"),
        ([entry(1), entry(1)], "1 imgid values occur more than once"),
    ],
)
def test_incomplete_sets_are_refused(
    tmp_path: Path, entries: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_karpathy(write(tmp_path, entries))


def test_missing_pictures_are_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(1), entry(2), entry(3)])
    (tmp_path / "val" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 pictures are missing, the first is .*2\.jpg"):
        read_karpathy(path)


@pytest.mark.parametrize("text", ["", "[]", '{"images": [{}]}', '{"pictures": []}'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match="not a Karpathy JSON"):
        read_karpathy(tmp_path / "dataset.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_karpathy(tmp_path / "absent.json")
