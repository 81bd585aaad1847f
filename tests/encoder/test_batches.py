"""Rows keep their order for any batch size."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import spm_model
from encoders import Telling, encoder_on
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mwa_export.errors import ImageError
from mwa_export.inputs.tokenizer import Tokenizer


@given(st.lists(st.text("abc de", max_size=40), min_size=1, max_size=30), st.integers(1, 9))
def test_captions_keep_their_order_whatever_the_batch(captions: list[str], batch: int) -> None:
    tokenizer = Tokenizer(spm_model(40))
    rows: list[int] = []
    encoder = encoder_on(Telling(), tokenizer)
    found = encoder.embed_captions(captions, batch=batch, on_rows=rows.append)
    ids = [tokenizer.encode(caption) for caption in captions]
    assert found.tolist() == [[sum(row), len(row)] for row in ids]
    assert sum(rows) == len(captions)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_pictures_keep_their_order_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    paths = []
    for level in (90, 10, 50, 70, 30):
        paths.append(tmp_path / f"{level}.png")
        Image.new("L", (12, 9), level).save(paths[-1])
    found = encoder_on(Telling()).embed_images(paths, batch=batch)
    assert found[:, 0].tolist() == [90, 10, 50, 70, 30]


def test_broken_picture_stops_the_run_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"x\.jpg\): cannot be decoded"):
        encoder_on(Telling()).embed_images([tmp_path / "x.jpg"])
