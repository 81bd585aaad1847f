"""`Encoder.embed_images` and `embed_texts`: any form of image, clear refusals, no torch."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mwa_export.encoder.encoder import Encoder, ImageLike
from mwa_export.encoder.open import load
from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.pictures import Picture
from mwa_export.runtimes.options import RuntimeOptions

ONNX = RuntimeOptions("onnxruntime", "float32")
TEXTS = ["abc de fg", "", "a much longer text of many words than the others", "abc de fg"]


@pytest.fixture
def encoder(files: Path) -> Encoder:
    return load(files / "bundle", ONNX)


@pytest.fixture
def pictures(files: Path) -> list[Path]:
    return sorted((files / "data").glob("*.png"))[:5]


def unit(rows: NDArray[Any]) -> bool:
    return rows.dtype == np.float32 and bool(
        np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    )


def test_images_are_what_the_backend_makes_of_their_files(
    encoder: Encoder, pictures: list[Path]
) -> None:
    found = encoder.embed_images(pictures)
    pixels = [encoder.pixels(Picture(path), str(path)) for path in pictures]
    expected = encoder.backend.embed_images(np.stack(pixels))
    assert found.shape == expected.shape
    assert unit(found)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.linalg.norm(found[0] - found[1]) > 1e-3  # the rows are told apart


def test_every_form_of_a_picture_gives_the_same_row(encoder: Encoder, pictures: list[Path]) -> None:
    path = pictures[1]
    forms: list[ImageLike] = [path, str(path), path.read_bytes(), Image.open(path)]
    rows = encoder.embed_images(forms)
    assert len(rows) == len(forms)
    np.testing.assert_allclose(rows, np.repeat(rows[:1], len(forms), axis=0), atol=1e-6)
    assert np.linalg.norm(rows[0] - encoder.embed_images(pictures[:1])[0]) > 1e-3


def test_order_is_kept_over_batches_and_a_generator_is_read_batch_by_batch(
    encoder: Encoder, pictures: list[Path]
) -> None:
    read = 0

    def generate() -> Iterator[Path]:
        nonlocal read
        for path in pictures:
            read += 1
            yield path

    ahead = []
    whole = encoder.embed_images(pictures)
    run = encoder.backend.embed_images

    def watched(pixels: NDArray[Any]) -> NDArray[Any]:
        ahead.append(read)
        return run(pixels)

    with mock.patch.object(encoder.backend, "embed_images", watched):
        found = encoder.embed_images(generate(), batch=2)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert ahead == [2, 4, 5]


def test_texts_come_back_in_their_order(encoder: Encoder) -> None:
    found = encoder.embed_texts(TEXTS)
    assert unit(found)
    single = [encoder.embed_texts([text]) for text in TEXTS]
    np.testing.assert_allclose(found, np.concatenate(single), atol=1e-5)
    assert np.linalg.norm(found[0] - found[2]) > 1e-3


def test_nothing_gives_no_rows_of_the_right_width(encoder: Encoder, pictures: list[Path]) -> None:
    width = encoder.embed_images(pictures[:1]).shape[1]
    for empty in (encoder.embed_images([]), encoder.embed_texts([])):
        assert empty.shape == (0, width)
        assert empty.dtype == np.float32


@pytest.mark.parametrize("one", ["a text", b"a text"])
def test_a_single_text_is_refused(encoder: Encoder, one: str | bytes) -> None:
    with pytest.raises(DataError, match=r"one (str|bytes).*embed_texts\(\[text\]\)"):
        encoder.embed_texts(one)  # type: ignore[arg-type]


def test_a_text_that_is_none_is_named(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="text 1: expected a str, got NoneType"):
        encoder.embed_texts(["a", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="text 1: is not valid Unicode"):
        encoder.embed_texts(["a", "\ud800"])


def test_a_single_picture_is_refused(encoder: Encoder, pictures: list[Path]) -> None:
    path = pictures[0]
    for one in (path, str(path), path.read_bytes(), Image.open(path)):
        with pytest.raises(ImageError, match=r"embed_images\(\[image\]\)"):
            encoder.embed_images(one)  # type: ignore[arg-type]


def test_the_picture_that_fails_is_named(
    encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(pictures[0].read_bytes()[:60])
    lazy = Image.open(io.BytesIO(pictures[0].read_bytes()[:90]))
    for bad, named in (
        (tmp_path / "missing.jpg", "missing.jpg: no such file"),
        (cut, r"image 1 \(.*cut.png\): cannot be decoded"),
        (b"<html>", r"image 1 \(bytes\): cannot be decoded"),
        (b"", r"image 1 \(bytes\): is empty"),
        (lazy, r"image 1 \(PngImageFile\): cannot be decoded"),
        (3, "image 1: expected .*, got int"),
    ):
        with pytest.raises(ImageError, match=named):
            encoder.embed_images([pictures[0], bad])  # type: ignore[list-item]


def test_float32_is_opened_when_it_is_asked_for_and_kept(encoder: Encoder) -> None:
    opened = mock.Mock(return_value=encoder.backend)
    reduced = replace(encoder, open_float32=opened)
    assert opened.call_count == 0
    exact = reduced.float32
    assert exact is not None
    assert exact is reduced.float32
    assert opened.call_count == 1
    assert (exact.info.precision, exact.float32) == ("float32", None)
    assert encoder.float32 is None


def test_embedding_from_python_needs_neither_torch_nor_onnx(
    files: Path, pictures: list[Path]
) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from mwa_export import RuntimeOptions, load\n"
        f"b = load({str(files / 'bundle')!r}, RuntimeOptions('onnxruntime', 'float32'))\n"
        f"print(b.embed_images([{str(pictures[0])!r}]).shape, b.embed_texts(['a b']).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(1, ") == 2
