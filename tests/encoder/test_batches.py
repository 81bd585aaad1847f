"""Rows come out in the order they went in, whatever the batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import spm_model
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mwa_export.encoder.batches import embed_captions, embed_image_files
from mwa_export.errors import ImageError
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.spec import Embeddings


class Fake:
    """A backend whose embeddings tell what it was given."""

    name = "fake"
    image_size = 8

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return np.asarray(pixels.reshape(len(pixels), -1).mean(1, keepdims=True), np.float32)

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        real = token_ids * (padding_mask == 0)
        return np.stack([real.sum(1), (padding_mask == 0).sum(1)], 1).astype(np.float32)


@given(st.lists(st.text("abc de", max_size=40), min_size=1, max_size=30), st.integers(1, 9))
def test_captions_keep_their_order_whatever_the_batch(captions: list[str], batch: int) -> None:
    tokenizer = Tokenizer(spm_model(40))
    rows: list[int] = []
    found = embed_captions(Fake(), tokenizer, captions, batch=batch, on_rows=rows.append)
    ids = [tokenizer.encode(caption) for caption in captions]
    assert found.tolist() == [[sum(row), len(row)] for row in ids]
    assert sum(rows) == len(captions)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_pictures_keep_their_order_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    paths = []
    for level in (90, 10, 50, 70, 30):
        paths.append(tmp_path / f"{level}.png")
        Image.new("L", (12, 9), level).save(paths[-1])
    found = embed_image_files(Fake(), paths, batch=batch)
    assert found[:, 0].tolist() == [90, 10, 50, 70, 30]


def test_broken_picture_stops_the_run_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"x\.jpg: cannot be decoded"):
        embed_image_files(Fake(), [tmp_path / "x.jpg"])
