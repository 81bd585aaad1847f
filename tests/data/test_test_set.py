"""Excluding images keeps a test set consistent, and is reported."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mwa_export.data.test_set import Excluded, RetrievalData
from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.decode import decode_picture
from mwa_export.inputs.pictures import Picture


def make(counts: list[int]) -> RetrievalData:
    """A set whose picture at row n has id 10 n and ``counts[n]`` captions."""
    owners = [10 * row for row, count in enumerate(counts) for _ in range(count)]
    return RetrievalData(
        "set",
        np.arange(len(counts), dtype=np.int64) * 10,
        tuple(Picture(Path(f"{row}.jpg")) for row in range(len(counts))),
        tuple(f"caption {n} of {owner}" for n, owner in enumerate(owners)),
        np.asarray(owners, np.int64),
    )


@given(st.data())
def test_exactly_the_captions_of_kept_pictures_are_kept_and_counts_add_up(
    draw: st.DataObject,
) -> None:
    counts = draw.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    rows = draw.draw(st.sets(st.integers(0, len(counts) - 1), max_size=len(counts) - 1))
    whole = make(counts)
    data = whole.without(dict.fromkeys(rows, "why"))
    kept = [row for row in range(len(counts)) if row not in rows]
    assert data.image_ids.tolist() == [10 * row for row in kept]
    assert data.pictures == tuple(whole.pictures[row] for row in kept)
    expected = [
        (text, owner)
        for text, owner in zip(whole.captions, whole.caption_image_ids.tolist(), strict=True)
        if owner // 10 in kept
    ]
    assert list(zip(data.captions, data.caption_image_ids.tolist(), strict=True)) == expected
    assert [e.picture for e in data.excluded] == [f"{row}.jpg" for row in sorted(rows)]
    assert len(data.pictures) + len(data.excluded) == len(whole.pictures)
    assert len(data.captions) + sum(e.captions for e in data.excluded) == len(whole.captions)


def test_leaving_nothing_out_changes_nothing() -> None:
    data = make([1, 2])
    assert data.without({}) is data


def test_leaving_out_twice_lists_both() -> None:
    data = make([1, 2, 3]).without({1: "first"}).without({1: "second"})
    assert data.excluded == (Excluded("1.jpg", "first", 2), Excluded("2.jpg", "second", 3))


def test_leaving_all_out_is_refused() -> None:
    with pytest.raises(DataError, match=r"none of the 2 images can be used.*: no such"):
        make([1, 1]).without({0: "no such file", 1: "another"})


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_is_read_whole_from_a_file_or_from_within_a_tar(tmp_path: Path) -> None:
    png = encoded()
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "b.tar").write_bytes(b"before" + png + b"after")
    file = Picture(tmp_path / "a.png")
    member = Picture(tmp_path / "b.tar", "folder/a.png", 6, len(png))
    assert file.read() == member.read() == png
    assert (file.name, member.name) == ("a.png", "a.png")
    assert str(member) == f"{tmp_path / 'b.tar'}:folder/a.png"
    assert decode_picture(member).size == (4, 3)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(b"12345")
    with pytest.raises(ImageError, match=r"absent\.jpg: no such file"):
        Picture(tmp_path / "absent.jpg").read()
    with pytest.raises(ImageError, match="is not a regular file"):
        Picture(tmp_path).read()
    with pytest.raises(ImageError, match=r"cut\.tar:a\.jpg: has 3 of 9 bytes"):
        Picture(tmp_path / "cut.tar", "a.jpg", 2, 9).read()
