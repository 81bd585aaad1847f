"""Equal captions get equal vectors, whichever captions are embedded with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.encoder.batches import distinct, embed_token_ids
from mwa_export.encoder.cache import Cache
from mwa_export.spec import Embeddings, Tower

SEQUENCES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=20)


@given(SEQUENCES)
def test_distinct_sequences_give_all_back(sequences: list[list[int]]) -> None:
    different, which = distinct(sequences)
    assert [list(different[place]) for place in which] == sequences
    assert len(set(map(tuple, different))) == len(different)


class NoisyBackend:
    """A backend whose results differ from batch to batch, as the last bits of real ones may."""

    name, image_size = "noisy", 8

    def __init__(self) -> None:
        self.calls = 0

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        self.calls += 1
        sums = (token_ids * (padding_mask == 0)).sum(1)
        return np.stack([sums, np.full(len(sums), self.calls)], 1).astype(np.float32)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        raise NotImplementedError

    def probe(self, tower: Tower) -> None:
        """Nothing to see."""


@pytest.mark.parametrize("cached", [False, True])
def test_equal_captions_have_the_same_bits(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = [[0, *rng.integers(4, 90, 1 + n % 8).tolist(), 2] for n in range(40)]
    sequences = [rows[n] for n in rng.integers(0, 40, 300)]
    seen: list[int] = []
    if cached:
        monkeypatch.setattr("mwa_export.encoder.cache._TEXTS", 7)
        found = Cache(tmp_path, {"model": 1}).texts(NoisyBackend(), sequences)
    else:
        found = embed_token_ids(NoisyBackend(), sequences, batch=7, on_rows=seen.append)
        assert sum(seen) == len(sequences)
    first: dict[tuple[int, ...], int] = {}
    for row, sequence in enumerate(sequences):
        assert found[row, 0] == sum(sequence)
        assert np.array_equal(found[row], found[first.setdefault(tuple(sequence), row)])
