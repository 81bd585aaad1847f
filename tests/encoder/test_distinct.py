"""Equal captions have equal vectors, whatever they are embedded with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.batches import distinct, embed_token_ids
from mwa_export.encoder.cache import Cache
from mwa_export.inputs.noise import random_texts
from mwa_export.runtimes.onnxrt import OnnxBackend

SEQUENCES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=20)


@given(SEQUENCES)
def test_distinct_sequences_give_all_back(sequences: list[list[int]]) -> None:
    different, which = distinct(sequences)
    assert [list(different[place]) for place in which] == sequences
    assert len(set(map(tuple, different))) == len(different)


@pytest.mark.parametrize("cached", [False, True])
def test_equal_captions_have_the_same_bits(cached: bool, files: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(files / "bundle")
    backend, rng = OnnxBackend(bundle, check=False), np.random.default_rng(0)
    ids, mask = random_texts(rng, 40, 12, bundle.manifest.model.backbone.vocab_size)
    rows = [row[keep == 0].tolist() for row, keep in zip(ids, mask, strict=True)]
    sequences = [rows[n] for n in rng.integers(0, 40, 300)]
    seen: list[int] = []
    if cached:
        found = Cache(tmp_path, {"model": 1}).texts(backend, sequences)
    else:
        found = embed_token_ids(backend, sequences, batch=7, on_rows=seen.append)
        assert sum(seen) == len(sequences)
    first: dict[tuple[int, ...], int] = {}
    for row, sequence in enumerate(sequences):
        assert np.array_equal(found[row], found[first.setdefault(tuple(sequence), row)])
