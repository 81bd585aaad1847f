"""A BEiT-3 index groups captions as BEiT-3's own evaluation does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mwa_export.data.test_sets import DataOptions, parse_data
from mwa_export.errors import DataError


def line(image_id: int, text: Any = "a caption", /, **changes: Any) -> dict[str, Any]:
    return {
        "image_path": f"val/{image_id}.jpg",
        "text_segment": text,
        "image_id": image_id,
        **changes,
    }


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in line(1).items() if name != key}


def write(folder: Path, lines: list[Any]) -> Path:
    path = folder / "index.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def test_lines_of_one_image_id_are_one_picture_wherever_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, [line(4, "one"), line(2, [7, 70_000]), line(4, [9])])
    data = parse_data(path)
    assert data.image_ids.tolist() == [4, 2]
    assert data.captions == ("one", (7, 70_000), (9,))
    assert data.caption_image_ids.tolist() == [4, 2, 4]
    assert [str(p) for p in data.pictures] == [
        str(path) for path in (tmp_path / "val/4.jpg", tmp_path / "val/2.jpg")
    ]


def test_two_ids_may_name_one_file_as_beit3_allows(tmp_path: Path) -> None:
    data = parse_data(write(tmp_path, [line(1), line(2, image_path="val/1.jpg")]))
    assert data.image_ids.tolist() == [1, 2]
    assert data.pictures[0] == data.pictures[1]


def test_pictures_may_lie_elsewhere_or_have_absolute_paths(tmp_path: Path) -> None:
    absolute = str(tmp_path / "2.jpg")
    path = write(tmp_path, [line(1), line(2, image_path=absolute)])
    (other := tmp_path / "other").mkdir()
    data = parse_data(path, DataOptions(images=other))
    assert [str(p) for p in data.pictures] == [str(tmp_path / "other/val/1.jpg"), absolute]


def test_a_byte_order_mark_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, [line(1), line(2)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert parse_data(path).image_ids.tolist() == [1, 2]


def test_unicode_line_ends_stay_within_captions(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    path.write_text(json.dumps(line(1, "a\u2028b\x85c"), ensure_ascii=False), encoding="utf-8")
    assert parse_data(path).captions == ("a\u2028b\x85c",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no images"),
        (
            [line(1), line(2), line(1, image_path="b.jpg")],
            r"jsonl:3: the id 1 is .*b\.jpg, but at .*jsonl:1 it is .*1\.jpg",
        ),
        ([line(2), without("text_segment")], r"jsonl:2: val/1\.jpg is an image without a caption"),
        ([line(1, None)], "jsonl:1: .*image without a caption"),
        ([line(1, [])], '"text_segment" is blank'),
        ([line(1, " \n")], '"text_segment" is blank'),
        ([line(1, 5)], '"text_segment" is of type int. Expected a text'),
        ([line(1, "\udcff")], "not UTF-8"),
        ([line(1, [3, -1])], r"jsonl:1: a token of \"text_segment\" is -1. Expected a non-neg"),
        ([line(1, [3, 2.0])], 'a token of "text_segment" is 2.0'),
        ([line(1, [True])], 'a token of "text_segment" is True'),
        ([line(1, [2**63])], 'a token of "text_segment" is 9223372036854775808'),
        ([line(1, [0, 9, 2])], "starts with BOS .0. and ends with EOS .2.*without"),
        ([without("image_id")], '"image_id" is missing'),
        ([line(-1)], '"image_id" is -1'),
        ([line(1, image_id="1")], "\"image_id\" is '1'"),
        ([without("image_path")], "has no column image_path"),
        ([line(1, image_path="")], '"image_path" is blank'),
        ([[1]], r"jsonl:1: is \[1\]. Expected a JSON object"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_data(write(tmp_path, lines))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"jsonl:2: is not JSON"),
        (b'{"a": "\xff"}', r"jsonl:2: has no \"image_path\""),
        (b"[" * 100_000, r"jsonl:2: is not JSON"),
    ],
)
def test_lines_that_are_not_json_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, [line(1)])
    path.write_bytes(path.read_bytes() + content)
    with pytest.raises(DataError, match=message):
        parse_data(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        parse_data(tmp_path / "absent.jsonl")


@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbf")
def test_random_bytes_are_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError):
        parse_data(path)


@given(
    st.sampled_from(["image_path", "text_segment", "image_id"]),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers() | st.none(), max_size=3),
)
def test_any_field_is_read_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
) -> None:
    path = write(tmp_path_factory.getbasetemp(), [line(1), line(2, **{field: value})])
    try:
        data = parse_data(path)
    except DataError:
        return
    assert len(data.captions) == len(data.caption_image_ids) == 2
