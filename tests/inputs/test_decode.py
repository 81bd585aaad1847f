"""A bad image or text has a reason; a good one has the reference's pixels."""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_formats import (
    EPS,
    GOOD,
    REFUSED,
    damaged,
    damaged_avif,
    eps_in_iptc,
    saved,
    unknown_dds,
)
from PIL import Image

from mwa_export.errors import ImageError
from mwa_export.inputs.decode import (
    MAX_CHARACTERS,
    MAX_SIDE,
    RowRefusedError,
    decode_picture,
    pixels_of,
    text_of,
)
from mwa_export.inputs.formats import FORMATS
from mwa_export.inputs.pictures import MAX_BYTES, Picture
from mwa_export.inputs.preprocess import pixels_from_image

STARTS_A_PROGRAM = {
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"),
    *("os.spawn", "os.startfile", "pty.spawn"),
}
_started: list[str] = []


def _audit(event: str, _arguments: object) -> None:
    if event in STARTS_A_PROGRAM:
        _started.append(event)


sys.addaudithook(_audit)  # cannot be taken away again


@pytest.fixture
def started() -> list[str]:
    """What started another program during the test."""
    _started.clear()
    return _started


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("JPEG", exif=exif)


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(41 * 57, dtype=np.uint16).reshape(41, 57) * 20).save(file, "PNG")
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large; its data are few."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


KINDS: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: saved("JPEG", "CMYK"),
    "palette": lambda: saved("PNG", "P"),
    "transparent palette": lambda: saved("PNG", "P", transparency=3),
    "16 bit": sixteen_bits,
    "grey and alpha": lambda: saved("PNG", "LA"),
    "transparent": lambda: saved("PNG", "RGBA"),
    "animated": lambda: saved("GIF", save_all=True, append_images=[Image.new("RGB", (24, 20))]),
    "turned by EXIF": turned,
    "webp": lambda: saved("WEBP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong-extension.bmp"
    path.write_bytes(KINDS[kind]())
    with Image.open(path) as opened:
        expected = pixels_from_image(opened, 24)
        for content in (path.read_bytes(), Picture(path), opened):
            found = pixels_of(content, "x", 24)
            assert found.shape == (24, 24, 3)
            assert found.dtype == np.uint8
            assert np.array_equal(found, expected)


def test_the_orientation_of_exif_is_not_applied() -> None:
    assert np.array_equal(pixels_of(turned(), "x", 24), pixels_of(saved("JPEG"), "x", 24))


# --- which formats ------------------------------------------------------------------------------


def test_every_format_of_the_list_is_read_and_has_a_sample() -> None:
    assert set(GOOD) == {*FORMATS, "MPO"}
    assert len(set(FORMATS)) == len(FORMATS)
    for name, make in GOOD.items():
        assert decode_picture(make(), name).mode == "RGB", name


@pytest.mark.parametrize("name", REFUSED)
def test_a_format_that_is_not_read_is_named_with_what_to_do(name: str, started: list[str]) -> None:
    with pytest.raises(ImageError, match=r"not supported\. Convert it to PNG or JPEG") as caught:
        decode_picture(REFUSED[name], "drawing")
    assert str(caught.value).startswith(f"drawing: cannot be decoded: {name}")
    assert caught.value.code == "not-a-picture"
    assert started == []


@pytest.mark.parametrize("suffix", [".ps", ".eps", ".jpg"])
def test_postscript_is_refused_whatever_the_file_is_called(
    suffix: str, tmp_path: Path, started: list[str]
) -> None:
    path = tmp_path / f"drawing{suffix}"
    path.write_bytes(EPS)
    with pytest.raises(ImageError, match="PostScript"):
        decode_picture(Picture(path))
    assert started == []


def test_postscript_that_a_caller_opened_is_not_run(tmp_path: Path, started: list[str]) -> None:
    for name, data in (("EPS", EPS), ("IPTC", eps_in_iptc())):
        (tmp_path / name).write_bytes(data)
        with Image.open(tmp_path / name) as opened:
            assert opened.format == name
            with pytest.raises(ImageError, match=rf"{name}.*start another program.*convert"):
                decode_picture(opened, "drawing")
    assert started == []


def test_audit_sees_what_pillow_starts_for_postscript(tmp_path: Path, started: list[str]) -> None:
    """The other tests of this kind would pass with a hook that sees nothing."""
    (tmp_path / "in.iptc").write_bytes(eps_in_iptc())
    with (
        mock.patch.dict(os.environ, {"PATH": str(tmp_path)}),
        mock.patch("PIL.EpsImagePlugin.gs_binary", "gs"),
        Image.open(tmp_path / "in.iptc") as opened,
        pytest.raises(OSError),  # noqa: PT011 -- there is no Ghostscript on this PATH
    ):
        opened.load()
    assert started == ["subprocess.Popen"]


def test_no_allowed_plugin_can_start_a_process_or_open_another_format() -> None:
    """Read in the plugins themselves, so that a new version of Pillow is looked at again."""
    forbidden = re.compile(r"subprocess\.|os\.(system|popen|exec|spawn|posix_spawn)|Image\.open$")
    Image.init()
    modules = {Image.OPEN[name][0].__module__ for name in FORMATS} | {"PIL.MpoImagePlugin"}
    found = set()
    for module in modules:
        path = Path(sys.modules[module].__file__ or "")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
                if any(forbidden.match(ast.unparse(call)) for call in calls):
                    found.add((path.stem, function.name))
    assert found <= {  # not called by open or load
        ("JpegImagePlugin", "load_djpeg"),
        ("GifImagePlugin", "_save_netpbm"),
        ("SpiderImagePlugin", "loadImageSeries"),
    }


# --- damage -------------------------------------------------------------------------------------


def refusal(data: bytes) -> ImageError | None:
    """The one error that may come; None: it could be decoded."""
    try:
        assert pixels_of(data, "photo", 8).shape == (8, 8, 3)
    except ImageError as error:
        return error
    return None


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_picture_is_pixels_or_one_error(name: str, started: list[str]) -> None:
    errors = [error for data in damaged(name, GOOD[name]()) if (error := refusal(data))]
    assert len(errors) >= 2
    assert all(str(error).startswith("photo: ") for error in errors)
    assert {e.code for e in errors} <= {"not-a-picture", "truncated", "too-large", "unreadable"}
    assert started == []


@given(st.sampled_from(sorted(GOOD)), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_no_header_gets_past_the_decoder(name: str, draw: st.DataObject) -> None:
    data = bytearray(GOOD[name]())
    for place in draw.draw(st.lists(st.integers(0, min(len(data), 200) - 1), max_size=6)):
        data[place] = draw.draw(st.integers(0, 255))
    error = refusal(bytes(data))
    assert error is None or str(error).startswith("photo: ")


@pytest.mark.parametrize("make", [unknown_dds, damaged_avif])
def test_errors_of_unusual_types_are_image_errors(make: Callable[[], bytes]) -> None:
    with pytest.raises(ImageError, match=r"photo: cannot be decoded \((NotImpl|Runtime)") as caught:
        decode_picture(make(), "photo")
    assert caught.value.code == "unreadable"
    assert pickle.loads(pickle.dumps(caught.value)).code == "unreadable"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (struct.error("x"), "unreadable"),
        (OverflowError("x"), "unreadable"),
        (SyntaxError("x"), "unreadable"),
        (zlib.error("x"), "unreadable"),
        (RecursionError("x"), "unreadable"),
        (EOFError(), "truncated"),
        (OSError("image file is truncated"), "truncated"),
        (MemoryError(), "too-large"),
    ],
)
def test_whatever_a_decoder_raises_is_one_error(raised: Exception, code: str) -> None:
    with (
        mock.patch("PIL.PngImagePlugin.PngImageFile.load", side_effect=raised),
        pytest.raises(ImageError) as caught,
    ):
        decode_picture(saved("PNG"), "photo")
    assert caught.value.code == code
    assert caught.value.__cause__ is raised


def test_interrupts_and_our_own_bugs_are_let_through() -> None:
    with (
        mock.patch("PIL.PngImagePlugin.PngImageFile.load", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        decode_picture(saved("PNG"), "photo")

    class Broken:
        name = "broken"

        def read(self) -> bytes:
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        decode_picture(Broken(), "photo")


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated jpeg": (lambda: saved("JPEG")[:-200], "truncated"),
    "truncated png": (lambda: saved("PNG")[:-900], "truncated"),
    "empty": (lambda: b"", "empty"),
    "html": (lambda: b"<!doctype html><html>not found</html>", "not-a-picture"),
    "header only": (lambda: saved("PNG")[:8], "truncated"),
    "bomb": (lambda: png_header(60_000, 60_000), "too-large"),
    "above the limit": (lambda: png_header(13_000, 13_800), "too-large"),
    "one endless line": (lambda: png_header(MAX_SIDE + 1, 1), "too-large"),
    "no pixels": (lambda: png_header(0, 5), "not-a-picture"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_picture_has_its_code(name: str) -> None:
    make, code = BAD[name]
    with pytest.raises(ImageError) as caught:
        pixels_of(make(), "photo.jpg", 24)
    assert caught.value.code == code
    assert "photo.jpg" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).code == code


def test_a_warning_that_is_raised_is_an_image_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="DecompressionBombWarning"):
            decode_picture(png_header(10_000, 9_000), "photo")


def test_the_limit_of_pixels_can_be_chosen() -> None:
    data = saved("PNG")
    assert pixels_of(data, "x", 8, max_pixels=24 * 20).shape == (8, 8, 3)
    with pytest.raises(ImageError, match=r"24 x 20\. Expected at most 479 pixels"):
        pixels_of(data, "x", 8, max_pixels=24 * 20 - 1)


@given(st.binary(max_size=200))
def test_bytes_that_are_not_a_picture_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ImageError, match="odd: cannot be decoded"):
        decode_picture(b"\0" + data, "odd")


# --- where it lies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [("none", "missing"), ("pipe", "unreadable"), ("folder", "unreadable"), ("loop", "unreadable")],
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    kind: str, code: str, tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    with pytest.raises(ImageError, match=r"photo\.jpg") as caught:
        decode_picture(Picture(path))
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["/dev/null", "a\0b.jpg"])
def test_a_device_and_an_impossible_name_are_refused(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_picture(Picture(Path(name)))
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("size", [1 << 62, 1 << 80])
def test_a_member_of_absurd_size_is_refused(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"12345")
    with pytest.raises(ImageError, match=r"a\.tar:a\.jpg"):
        decode_picture(Picture(tmp_path / "a.tar", "a.jpg", 0, size))


def test_a_file_that_no_memory_holds_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match=r"huge\.png: has 2,147,483,649 bytes") as caught:
        decode_picture(Picture(path))
    assert caught.value.code == "too-large"


def test_a_text_is_not_a_picture() -> None:
    with pytest.raises(ImageError, match="is a text") as caught:
        pixels_of("a red bus", "row 3", 8)
    assert caught.value.code == "not-a-picture"


# --- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "null"),
        ("", "empty-text"),
        (" \n", "empty-text"),
        (3, "not-text"),
        (b"\xff\xfe", "not-text"),
        ("a\0b", "not-text"),
        ("\udcff", "not-text"),
        ("x" * (MAX_CHARACTERS + 1), "too-large"),
    ],
)
def test_a_bad_text_has_its_code(content: object, code: str) -> None:
    with pytest.raises(RowRefusedError) as caught:
        text_of(content)
    assert caught.value.code == caught.value.problem.code == code
    assert pickle.loads(pickle.dumps(caught.value)).problem == caught.value.problem


def test_a_good_text_is_kept_as_it_is() -> None:
    for text in (" a cat ", "ein Bär", "x" * MAX_CHARACTERS):
        assert text_of(text) == text
    assert text_of("ein Bär".encode()) == "ein Bär"
