"""Inputs that a benchmark gives to each contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mwa_export.bench.inputs import (
    CALIBRATION,
    COCO_LEAST,
    COCO_MOST,
    Pool,
    caption_pool,
    captions_by_length,
    captions_padded,
    picture_pool,
    pictures_in_order,
)
from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import DataError, UsageError
from mwa_export.inputs.tokenizer import BOS, EOS

pytestmark = pytest.mark.slow

WINDOW = [[BOS, 5, EOS], [BOS, 5, 6, 7, 8, EOS], [BOS, 9, 9, EOS]]


@pytest.fixture(scope="module")
def bundle(files: Path) -> Bundle:
    return Bundle.open(files / "bundle")


def test_ours_sorts_by_length_and_pads_to_the_longest_of_a_batch() -> None:
    parts = captions_by_length(2)(WINDOW)
    assert [list(rows) for rows, _ in parts] == [[0, 2], [1]]
    assert [batch[0].shape for _, batch in parts] == [(2, 4), (1, 6)]
    assert parts[0][1][1].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


def test_peers_keep_the_order_and_pad_to_the_whole_length() -> None:
    parts = captions_padded(2, 10)(WINDOW)
    assert [list(rows) for rows, _ in parts] == [[0, 1], [2]]
    assert [batch[0].shape for _, batch in parts] == [(2, 10), (1, 10)]
    ids, mask = parts[0][1]
    assert ids[0].tolist() == [0, 5, 2, 1, 1, 1, 1, 1, 1, 1]
    assert mask.sum(1).tolist() == [7, 4]


def test_pictures_are_cut_in_order_and_the_rest_is_not_lost() -> None:
    window = [np.full((2, 2, 3), i, np.uint8) for i in range(5)]
    parts = pictures_in_order(2)(window)
    assert [list(rows) for rows, _ in parts] == [[0, 1], [2, 3], [4]]
    assert [batch[0][:, 0, 0, 0].tolist() for _, batch in parts] == [[0, 1], [2, 3], [4]]


def test_windows_go_on_where_the_last_one_ended_and_start_again() -> None:
    pool = Pool([10, 20, 30], [], True, "")
    assert pool.windows(2, 3) == [[10, 20], [30, 10], [20, 30]]


def test_coco_lengths_are_plausible_and_seeded(bundle: Bundle) -> None:
    pool = caption_pool(bundle, None, "coco", 2000, 0)
    lengths = [len(row) for row in pool.rows]
    assert COCO_LEAST <= min(lengths) <= 9
    assert 20 <= max(lengths) <= COCO_MOST
    assert 12.7 < np.mean(lengths) < 13.3
    assert all(row[0] == BOS and row[-1] == EOS for row in pool.rows)
    vocabulary = bundle.manifest.model.backbone.vocab_size
    assert max(max(row) for row in pool.rows) < vocabulary
    assert not pool.real
    assert pool.rows == caption_pool(bundle, None, None, 2000, 0).rows
    assert pool.rows != caption_pool(bundle, None, None, 2000, 1).rows


def test_fixed_lengths_are_fixed(bundle: Bundle) -> None:
    pool = caption_pool(bundle, None, "17", 40, 0)
    assert {len(row) for row in pool.rows} == {17}
    assert len(pool.calibration) == CALIBRATION


@pytest.mark.parametrize("lengths", ["2", "63", "many", "-5", "1.5", ""])
def test_impossible_lengths_are_refused(bundle: Bundle, lengths: str) -> None:
    if lengths == "":
        assert caption_pool(bundle, None, lengths, 4, 0).rows  # not given
        return
    with pytest.raises(UsageError, match="from 3 to 62"):
        caption_pool(bundle, None, lengths, 4, 0)


def test_captions_of_the_data_are_tokenized_and_some_held_back(
    bundle: Bundle, data: RetrievalData
) -> None:
    pool = caption_pool(bundle, data, None, 6, 0)
    tokenizer = bundle.tokenizer()
    texts: Any = data.captions
    assert pool.rows == [tokenizer.encode(text) for text in texts[:6]]
    assert pool.calibration == [tokenizer.encode(text) for text in texts[-len(pool.calibration) :]]
    assert pool.real


def test_given_lengths_win_over_the_data_and_are_not_called_real(
    bundle: Bundle, data: RetrievalData
) -> None:
    pool = caption_pool(bundle, data, "9", 6, 0)
    assert {len(row) for row in pool.rows} == {9}
    assert not pool.real


def test_calibration_pictures_are_not_the_timed_ones(bundle: Bundle, data: RetrievalData) -> None:
    pool = picture_pool(bundle, data, 100, 0)
    assert pool.real
    assert len(pool.rows) + len(pool.calibration) == len(data.pictures)
    timed = {row.tobytes() for row in pool.rows}
    assert not timed & {row.tobytes() for row in pool.calibration}
    assert pool.rows[0].shape == (32, 32, 3)


def test_stored_ids_of_another_vocabulary_are_refused(bundle: Bundle, data: RetrievalData) -> None:
    from dataclasses import replace

    foreign = replace(data, captions=((5, 64009),) * len(data.captions))
    with pytest.raises(DataError, match="64009"):
        caption_pool(bundle, foreign, None, 4, 0)
    known = replace(data, captions=((5, 6),) * len(data.captions))
    assert caption_pool(bundle, known, None, 4, 0).rows[0] == [BOS, 5, 6, EOS]
