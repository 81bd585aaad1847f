"""Reference embeddings are computed once, and a changed input never hits a stale entry."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import encoder_on
from numpy.typing import NDArray
from parity_files import write_test_set

from mwa_export.data.test_sets import read_data
from mwa_export.encoder import cache
from mwa_export.encoder.cache import Cache, default_cache, hash_pictures
from mwa_export.errors import ImageError
from mwa_export.inputs.pictures import Picture
from mwa_export.spec import Embeddings, Tower

SIZE = 8
SPEC = {"size": SIZE}


class Counting:
    """A backend that counts rows, and can fail after some."""

    name = "counting"
    image_size = SIZE

    def __init__(self, limit: int | None = None) -> None:
        self.rows, self.limit = 0, limit

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._count(np.asarray(pixels.reshape(len(pixels), -1)[:, :4], np.float32))

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        real = token_ids * (padding_mask == 0)
        return self._count(np.stack([real.sum(1), (padding_mask == 0).sum(1)], 1))

    def probe(self, tower: Tower) -> None:
        """Nothing to see."""

    def _count(self, embeddings: Any) -> Embeddings:
        if self.limit is not None and self.rows + len(embeddings) > self.limit:
            raise KeyboardInterrupt
        self.rows += len(embeddings)
        return np.asarray(embeddings, np.float32)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Picture, ...]:
    monkeypatch.setattr(cache, "_PICTURES", 8)  # three chunks
    monkeypatch.setattr(cache, "_TEXTS", 8)
    data = read_data(write_test_set(tmp_path / "data"))
    return tuple(picture for picture in data.pictures if isinstance(picture, Picture))


TEXTS = [[0, *range(4, 4 + n % 7), 2] for n in range(30)]
DIFFERENT = 7  # texts that are not equal to an earlier one


def images_of(
    cache: Cache, backend: Counting, pictures: tuple[Picture, ...], spec: dict[str, Any] = SPEC
) -> tuple[Embeddings, dict[int, str]]:
    return cache.pictures(encoder_on(backend, image=spec), pictures)


def test_second_run_computes_nothing_and_gives_the_same(
    tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    cache, first, second = Cache(tmp_path / "cache", {"model": 1}), Counting(), Counting()
    ours, _ = images_of(cache, first, pictures)
    texts = cache.texts(first, TEXTS)
    assert first.rows == len(pictures) + DIFFERENT
    assert np.array_equal(images_of(cache, second, pictures)[0], ours)
    assert np.array_equal(cache.texts(second, TEXTS), texts)
    assert second.rows == 0
    assert texts[:, 1].tolist() == [len(ids) for ids in TEXTS]  # in the order they came in


def test_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    cache = Cache(tmp_path / "cache", {"model": 1})
    with pytest.raises(KeyboardInterrupt):
        images_of(cache, Counting(limit=16), pictures)
    rest = Counting()
    found, _ = images_of(cache, rest, pictures)
    assert rest.rows == len(pictures) - 16
    whole, _ = images_of(Cache(tmp_path / "other", {"model": 1}), Counting(), pictures)
    assert np.array_equal(found, whole)


@pytest.mark.parametrize("change", ["picture", "order", "identity", "preprocessing", "one less"])
def test_changed_input_is_computed_again(
    tmp_path: Path, pictures: tuple[Picture, ...], change: str
) -> None:
    images_of(Cache(tmp_path / "cache", {"model": 1}), Counting(), pictures)
    identity = {"model": 1}
    spec: dict[str, Any] = SPEC
    if change == "picture":  # same name, size and date; one bit differs
        path = pictures[3].path
        data, stat = bytearray(path.read_bytes()), path.stat()
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "order":
        pictures = (pictures[1], pictures[0], *pictures[2:])
    elif change == "identity":
        identity = {"model": 2}
    elif change == "preprocessing":
        spec = {"size": SIZE, "resize": "bilinear"}
    else:
        pictures = pictures[:-1]
    again = Counting()
    images_of(Cache(tmp_path / "cache", identity), again, pictures, spec)
    assert again.rows == len(pictures)


def test_changed_token_ids_are_computed_again(
    tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    cache = Cache(tmp_path / "cache", {"model": 1})
    cache.texts(Counting(), TEXTS)
    again = Counting()
    cache.texts(again, [*TEXTS[:-1], [0, 9, 2]])
    assert again.rows == DIFFERENT + 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "other rows"])
def test_damaged_chunk_is_noticed_and_computed_again(
    tmp_path: Path,
    pictures: tuple[Picture, ...],
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = Cache(tmp_path / "cache", {"model": 1})
    before, _ = images_of(cache, Counting(), pictures)
    chunk = sorted((tmp_path / "cache").rglob("*.chunk"))[1]
    data = chunk.read_bytes()
    if damage == "cut":
        chunk.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        middle = data.index(b"\x93NUMPY") + 200
        chunk.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    elif damage == "emptied":
        chunk.write_bytes(b"")
    else:
        chunk.write_bytes(sorted((tmp_path / "cache").rglob("*.chunk"))[2].read_bytes())
    again = Counting()
    with caplog.at_level(logging.WARNING):
        found, _ = images_of(cache, again, pictures)
    assert np.array_equal(found, before)
    assert again.rows == 8
    assert "computed again" in caplog.text


def test_unreadable_picture_is_remembered_with_its_reason(
    tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    pictures[9].path.write_bytes(b"no picture")
    cache = Cache(tmp_path / "cache", {"model": 1})
    embeddings, failures = images_of(cache, Counting(), pictures)
    assert list(failures) == [9]
    assert np.isnan(embeddings[9]).all()
    assert np.isfinite(np.delete(embeddings, 9, 0)).all()
    again = Counting()
    assert images_of(cache, again, pictures)[1] == failures
    assert again.rows == 0


def test_chunk_in_which_every_picture_fails_keeps_the_rest(
    tmp_path: Path, pictures: tuple[Picture, ...]
) -> None:
    for picture in pictures[:8]:
        picture.path.write_bytes(b"")
    cache = Cache(tmp_path / "cache", {"model": 1})
    for _ in range(2):
        embeddings, failures = images_of(cache, Counting(), pictures)
        assert list(failures) == list(range(8))
        assert embeddings.shape == (len(pictures), 4)


def test_cache_lies_where_the_desktop_standard_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "mwa-export" / "parity"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "mwa-export" / "parity"


@pytest.mark.parametrize("bad", [1, 8])
def test_read_that_failed_for_a_moment_is_not_remembered(
    bad: int, tmp_path: Path, pictures: tuple[Picture, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache", {"model": 1})
    expected, _ = images_of(Cache(tmp_path / "other", {"model": 1}), Counting(), pictures)
    read, left = Picture.read, {picture.path: 1 for picture in pictures[:bad]}

    def flaky(self: Picture) -> bytes:
        if hashed and left.get(self.path):
            left[self.path] -= 1
            raise ImageError(f"{self}: cannot be read (Stale file handle).")
        return read(self)

    hashed = False
    real = hash_pictures

    def hash_then_fail(*arguments: Any) -> str:
        nonlocal hashed
        found = real(*arguments)
        hashed = True
        return found

    monkeypatch.setattr("mwa_export.encoder.cache.hash_pictures", hash_then_fail)
    monkeypatch.setattr(Picture, "read", flaky)
    for _ in range(2):
        embeddings, failures = images_of(cache, Counting(), pictures)
        assert failures == {}
        assert np.array_equal(embeddings, expected)


def test_a_folder_that_cannot_be_written_costs_a_warning(
    pictures: tuple[Picture, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    backend = Counting()
    for _ in range(2):  # nothing is found, either
        found, _ = images_of(Cache(tmp_path / "file" / "cache", {}), backend, pictures)
        assert np.isfinite(found).all()
    assert backend.rows == 2 * len(pictures)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Not a directory" in caplog.text


def test_without_a_home_folder_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache() is None
    assert "not cached" in caplog.text
