"""Calibration samples: a seeded choice, hashed, separate from held-back data, without noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parity_files import write_test_set
from PIL import Image

from mwa_export.calib.samples import LEAST, split_data, take_samples
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import read_data
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import CalibrationError, ImageError

Sides = tuple[Encoder, Encoder]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> RetrievalData:
    return read_data(write_test_set(tmp_path_factory.mktemp("many"), pictures=40))


def test_same_seed_gives_the_same_samples_and_another_seed_others(
    sides: Sides, many: RetrievalData
) -> None:
    first, again, other = (take_samples(sides[1], many, 16, seed) for seed in (3, 3, 4))
    assert first.sha256 == again.sha256 != other.sha256
    assert np.array_equal(first.pixels, again.pixels)
    assert first.sequences == again.sequences
    assert first.count("vision") == first.count("text") == 16


def test_hash_is_of_what_was_seen(sides: Sides, many: RetrievalData) -> None:
    before = take_samples(sides[1], many, 40, 0)
    captions = ("abcd", *many.captions[1:])
    both = replace(many, captions=(captions[0], captions[0], *many.captions[2:]))
    assert take_samples(sides[1], both, 40, 0).sha256 != before.sha256
    assert take_samples(sides[1], replace(many, name="moved"), 40, 0).sha256 == before.sha256


def test_batches_hold_every_sample_once(sides: Sides, many: RetrievalData) -> None:
    samples = take_samples(sides[1], many, 19, 0)
    pixels = np.concatenate([batch[0] for batch in samples.batches("vision")])
    assert np.array_equal(pixels, samples.pixels)
    found = [
        tuple(row[mask == 0].tolist())
        for ids, masks in samples.batches("text")
        for row, mask in zip(ids, masks, strict=True)
    ]
    assert sorted(found) == sorted(samples.sequences)
    few = samples.first(3)
    assert (few.count("vision"), few.count("text")) == (3, 3)


def test_held_back_pictures_and_captions_are_not_samples(many: RetrievalData) -> None:
    chosen, rest = split_data(many, 20, seed=1)
    assert len(chosen.pictures) == len(rest.pictures) == 20
    ids = set(chosen.image_ids.tolist()), set(rest.image_ids.tolist())
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(many.image_ids.tolist())
    for part, own in zip((chosen, rest), ids, strict=True):
        assert set(part.caption_image_ids.tolist()) == own
        assert len(part.captions) == 40
    assert split_data(many, 20, seed=1)[0].captions == chosen.captions
    assert split_data(many, 20, seed=2)[0].captions != chosen.captions


@pytest.mark.parametrize("samples", [LEAST - 1, 25])
def test_too_few_pictures_say_how_many_are_needed(many: RetrievalData, samples: int) -> None:
    with pytest.raises(CalibrationError, match="at least 16"):
        split_data(many, samples, 0)


def test_too_few_samples_are_refused(sides: Sides, many: RetrievalData) -> None:
    with pytest.raises(CalibrationError, match=r"`samples=15`: too few\. Expected at least 16"):
        take_samples(sides[1], many, 15, 0)


def _noise(folder: Path, source: RetrievalData, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def test_pictures_of_noise_are_refused(sides: Sides, tmp_path: Path) -> None:
    data = read_data(write_test_set(tmp_path))
    _noise(tmp_path, data, 10)
    assert take_samples(sides[1], data, 20, 0).count("vision") == 20, "half may be"
    _noise(tmp_path, data, 20)
    with pytest.raises(CalibrationError, match="20 of 20 images are noise"):
        take_samples(sides[1], data, 20, 0)


def test_random_tokens_are_refused(sides: Sides, many: RetrievalData) -> None:
    rng = np.random.default_rng(0)

    class RandomIds:
        def encode(self, text: str, on_cut: object = None) -> list[int]:
            return [0, *rng.integers(4, 64000, 20).tolist(), 2]

    encoder = replace(sides[1], tokenizer=RandomIds())  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="captions look random"):
        take_samples(encoder, many, 20, 0)


def test_unreadable_picture_is_named(sides: Sides, tmp_path: Path) -> None:
    data = read_data(write_test_set(tmp_path))
    (tmp_path / "004.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"004\.png.*Remove it from the data"):
        take_samples(sides[1], data, 20, 0)
