"""Every member of a tar belongs to an image with captions, or the tar is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_export.data.test_sets import parse_data
from mwa_export.errors import DataError


def tar_bytes(members: list[tuple[str, Any]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in members:
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write(folder: Path, members: list[tuple[str, Any]], name: str = "a.tar") -> Path:
    path = folder / name
    path.write_bytes(tar_bytes(members))
    return path


PAIR: list[tuple[str, Any]] = [("1.jpg", b"one"), ("1.txt", "a caption")]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_pictures_are_found_at_their_bytes_with_all_their_captions(
    tmp_path: Path, kind: int
) -> None:
    long = "folder/" + "x" * 95
    path = tmp_path / "a.tar"
    members: list[tuple[str, Any]] = [
        ("b/2.v1.JPG", b"other extension"),
        ("b/2.png", b"second"),
        (long + ".txt", "\ufeffone \r\n\n two, 2.5\u2028\n"),
        (long + ".JPEG", b"first"),
        ("b/2.json", {"captions": ["three"], "width": 3}),
        ("c.d/.hidden.jpg", b""),
        ("c.d/README", b""),
        ("3.webp", b"third"),
        ("3.json", {"caption": "four"}),
    ]
    path.write_bytes(tar_bytes(members, kind))
    data = parse_data(path)
    assert [picture.read() for picture in data.pictures] == [b"second", b"first", b"third"]
    assert [picture.name for picture in data.pictures] == ["2.png", "x" * 95 + ".JPEG", "3.webp"]
    assert data.captions == ("three", "one", "two, 2.5", "four")
    assert data.image_ids.tolist() == [0, 1, 2]
    assert data.caption_image_ids.tolist() == [0, 1, 1, 2]
    assert data.name == str(path)


def test_tars_of_a_folder_are_one_set_in_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, [("2.jpg", b"two"), ("2.txt", "b")], "1.tar")
    write(tmp_path, PAIR, "0.tar")
    data = parse_data(tmp_path)
    assert [picture.read() for picture in data.pictures] == [b"one", b"two"]
    assert data.caption_image_ids.tolist() == [0, 1]
    write(tmp_path, PAIR, "2.tar")
    with pytest.raises(DataError, match=r"2\.tar:1: the id 1 already occurs in .*0\.tar:1"):
        parse_data(tmp_path)


def test_equal_captions_in_both_files_count_once(tmp_path: Path) -> None:
    path = write(tmp_path, [*PAIR, ("1.json", {"caption": "a caption", "key": "1"})])
    assert parse_data(path).captions == ("a caption",)
    path = write(tmp_path, [*PAIR, ("1.json", {"caption": None, "width": 3})])
    assert parse_data(path).captions == ("a caption",)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "has no images"),
        (
            [*PAIR, ("2.txt", "a")],
            r"a\.tar:2: has no image \(found \.txt\)\. Expected one, such as",
        ),
        ([*PAIR, ("1.png", b"")], r"a\.tar:1: has 2 images \(found \.jpg, \.txt, \.png\)"),
        (
            [*PAIR, ("b/2.jpg", b"")],
            r"tar:b/2: has no captions \(found \.jpg\)\. Expected b/2\.txt",
        ),
        ([("1.jpg", b""), ("1.txt", " \n ")], "has no captions"),
        ([("1.jpg", b""), ("1.json", {"width": 3})], "has no captions.*found .jpg, .json"),
        ([("1.jpg", b""), ("1.json", {"captions": []})], "has no captions"),
        ([("1.jpg", b""), ("1.json", {"captions": [" "]})], r"tar:1: \"captions\"\[0\] is blank"),
        ([("1.jpg", b""), ("1.json", {"caption": 3})], r"tar:1: \"caption\" is of type int"),
        ([("1.jpg", b""), ("1.json", b"{")], r"1\.json is not JSON"),
        ([("1.jpg", b""), ("1.txt", b"\xff")], r"1\.txt is not UTF-8"),
        (
            [*PAIR, ("1.json", {"captions": ["a", "b"]})],
            r"\.txt \(1 captions\) and its \.json \(2\) differ",
        ),
        ([*PAIR, ("1.JPG", b"")], r"a\.tar:1\.JPG: occurs twice"),
    ],
)
def test_incomplete_keys_are_named(
    tmp_path: Path, members: list[tuple[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        parse_data(write(tmp_path, members))


def test_links_are_refused_and_folders_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for kind in tarfile.DIRTYPE, tarfile.SYMTYPE:
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("0.jpg")
            info.type = kind
            tar.addfile(info)
            info = tarfile.TarInfo("1.jpg")
            tar.addfile(info)
            info = tarfile.TarInfo("1.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"a"))
        if kind == tarfile.DIRTYPE:
            assert parse_data(path).captions == ("a",)
        else:
            with pytest.raises(DataError, match=r"a\.tar:0: is a link"):
                parse_data(path)


WHOLE = tar_bytes([*PAIR, ("2.jpg", b"two" * 400), ("2.txt", "another")])
END = len(WHOLE.rstrip(b"\0"))


@given(st.integers(0, END))
def test_a_tar_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.tar"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(DataError, match=r"(not a complete tar|tar is truncated).*write it again"):
        parse_data(path)


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    path.write_bytes(tar_bytes(PAIR)[: 4 * tarfile.BLOCKSIZE])
    with pytest.raises(DataError, match="truncated at byte 2048"):
        parse_data(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    damaged = bytearray(WHOLE)
    damaged[4 * tarfile.BLOCKSIZE] ^= 1  # the header of 2.jpg
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="expected a header or the end at byte 2048"):
        parse_data(path)


def test_members_after_the_end_are_not_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(PAIR) + tar_bytes([("2.jpg", b""), ("2.txt", "b")]))
    with pytest.raises(DataError, match="another tar follows its end"):
        parse_data(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.tar: no such file"):
        parse_data(tmp_path / "absent.tar")


@given(st.binary(max_size=1500))
def test_random_bytes_are_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.tar"
    path.write_bytes(content)
    with pytest.raises(DataError):
        parse_data(path)


HEADERS = [tar_bytes([(name, b"x"), ("1.txt", "a")]) for name in ("1.jpg", "é" * 80 + ".jpg")]


@given(st.sampled_from(HEADERS), st.integers(0, 2), st.integers(0, 511), st.binary(max_size=12))
def test_headers_that_lie_are_read_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, tar: bytes, block: int, at: int, content: bytes
) -> None:
    start = block * tarfile.BLOCKSIZE
    header = bytearray(tar[start : start + tarfile.BLOCKSIZE])
    header[at : at + len(content)] = content
    del header[tarfile.BLOCKSIZE :]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)  # so that tarfile believes it
    path = tmp_path_factory.getbasetemp() / "lies.tar"
    path.write_bytes(tar[:start] + header + tar[start + tarfile.BLOCKSIZE :])
    try:
        data = parse_data(path)
    except DataError:
        return
    assert all(len(picture.read()) == getattr(picture, "size", -1) for picture in data.pictures)
