"""Data that cannot reveal a drop of recall are refused as evidence."""

from __future__ import annotations

import numpy as np
import pytest

from mwa_export.metrics.evidence import (
    FEWEST_PICTURES,
    objection_to_data,
    objection_to_reference,
    repeated_captions,
)
from mwa_export.metrics.ranking import Ranking, rank


def test_captions_of_two_pictures_are_counted_and_those_of_one_are_not() -> None:
    captions = ["a dog", "a dog", "a cat", "a bird", "a cat"]
    assert repeated_captions(captions, [0, 0, 1, 2, 2]) == 2


@pytest.mark.parametrize(
    ("pictures", "captions", "repeated", "word"),
    [
        (FEWEST_PICTURES - 1, 500, 0, "too few"),
        (1, 5, 0, "too few"),
        (300, 1500, 151, "another image"),
        (300, 300, 300, "another image"),
    ],
)
def test_data_that_say_nothing(pictures: int, captions: int, repeated: int, word: str) -> None:
    assert word in (objection_to_data(pictures, captions, repeated) or "")


def test_usual_data_are_evidence() -> None:
    assert objection_to_data(FEWEST_PICTURES, 250, 25) is None


def image_retrieval(rng: np.random.Generator, noise: float, *, shuffled: bool = False) -> Ranking:
    """200 pictures with three captions each."""
    pictures = rng.standard_normal((200, 32)).astype(np.float32)
    owners = np.repeat(np.arange(200), 3)
    texts = pictures[owners] + noise * rng.standard_normal((600, 32)).astype(np.float32)
    if shuffled:
        owners = rng.permutation(owners)
    return rank(texts, pictures, owners, np.arange(200))


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_reference_that_finds_something_is_evidence(noise: float) -> None:
    assert objection_to_reference(image_retrieval(np.random.default_rng(0), noise)) is None


@pytest.mark.parametrize(("noise", "shuffled"), [(0.1, True), (100.0, False)])
def test_reference_near_chance_is_none(noise: float, shuffled: bool) -> None:
    found = image_retrieval(np.random.default_rng(1), noise, shuffled=shuffled)
    assert "near chance" in (objection_to_reference(found) or "")
