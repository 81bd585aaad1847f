"""Recall@k matches the definition of the reference evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from paths import GOLDEN, SHARED_GOLDEN

from mwa_export.errors import RecallError
from mwa_export.metrics.ranking import KS
from mwa_export.metrics.recall import Pairs, Recall, rank_both, recall

Floats = NDArray[np.float32]


def naive(images: Floats, texts: Floats, owners: NDArray[np.int64]) -> dict[str, dict[int, float]]:
    """From the whole score matrix, sorted."""
    scores = images @ texts.T
    tr, ir = {}, {}
    for k in KS:
        best_texts = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        tr[k] = 100 * np.mean([(owners[best_texts[i]] == i).any() for i in range(len(images))])
        best_images = np.argsort(-scores.T, axis=1, kind="stable")[:, :k]
        ir[k] = 100 * np.mean([(best_images[j] == owners[j]).any() for j in range(len(texts))])
    return {"tr": tr, "ir": ir}


def random_case(
    rng: np.random.Generator, n_image: int, extra: int
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    owners = np.concatenate([np.arange(n_image), rng.integers(0, n_image, extra)])
    rng.shuffle(owners)
    images = rng.standard_normal((n_image, 6)).astype(np.float32)
    texts = (images[owners] + rng.standard_normal((len(owners), 6))).astype(np.float32)
    return images, texts, owners


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 50), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_blocks_give_the_same_as_the_whole_matrix(
    n_image: int, extra: int, block: int, seed: int
) -> None:
    images, texts, owners = random_case(np.random.default_rng(seed), n_image, extra)
    found, expected = recall(images, texts, owners, block=block), naive(images, texts, owners)
    assert found.tr == pytest.approx(expected["tr"])
    assert found.ir == pytest.approx(expected["ir"])


@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_order_of_the_captions_does_not_matter(n_image: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, texts, owners = random_case(rng, n_image, 7)
    order = rng.permutation(len(texts))
    assert recall(images, texts, owners) == recall(images, texts[order], owners[order])


def test_image_ids_need_not_be_row_numbers() -> None:
    images, texts, owners = random_case(np.random.default_rng(1), 20, 15)
    ids = np.random.default_rng(2).permutation(1000)[:20]
    assert recall(images, texts, ids[owners], image_ids=ids) == recall(images, texts, owners)


def test_perfect_embeddings_have_full_recall() -> None:
    eye = np.eye(12, dtype=np.float32)
    found = recall(eye, eye, np.arange(12))
    assert set(found.tr.values()) | set(found.ir.values()) == {100.0}
    assert found.average == 100.0


@pytest.mark.parametrize("golden", [GOLDEN, SHARED_GOLDEN], ids=["golden-recall", "shared-recall"])
def test_golden_recall_is_reproduced(golden: Path) -> None:
    if not golden.is_dir():
        pytest.skip(f"{golden} is not there")
    arrays = dict(np.load(golden / "recall" / "recall_1.npz"))
    expected = json.loads((golden / "recall" / "recall_1.json").read_text())
    found = recall(
        arrays["image_embeddings"], arrays["text_embeddings"], arrays["text_image_ids"], block=37
    )
    for k in KS:
        assert found.tr[k] == pytest.approx(expected[f"tr_r{k}"], abs=1e-4)
        assert found.ir[k] == pytest.approx(expected[f"ir_r{k}"], abs=1e-4)
    assert found.average == pytest.approx(expected["average_score"], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, t, o: (i, t[:, :3], o), "same D"),
        (lambda i, t, o: (i, t, o[:-1]), "one id per row"),
        (lambda i, t, o: (i[:0], t, o), "at least one"),
        (lambda i, t, o: (np.where(i == i[2], np.nan, i), t, o), "1 image .*row 2"),
        (lambda i, t, o: (i, t, o + 100), "belong to unknown images"),
        (lambda i, t, o: (i, t, np.zeros_like(o)), "have no caption"),
    ],
)
def test_impossible_input_is_refused(change: Any, message: str) -> None:
    images, texts, owners = random_case(np.random.default_rng(0), 5, 4)
    with pytest.raises(RecallError, match=message):
        recall(*change(images, texts, owners))


def test_repeated_image_ids_are_refused() -> None:
    images, texts, owners = random_case(np.random.default_rng(0), 5, 4)
    with pytest.raises(RecallError, match="1 image ids occur more than once"):
        recall(images, texts, owners, image_ids=np.array([0, 1, 2, 3, 3]))


# --- Pairs -----------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_rows_lead_from_captions_to_their_images(n_image: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, _, owners = random_case(rng, n_image, extra)
    ids = rng.permutation(10_000)[:n_image] - 5000
    found = Pairs.of(ids[owners], ids).rows()
    np.testing.assert_array_equal(found, owners)
    assert found.dtype == np.int64


def test_ids_may_be_names() -> None:
    pairs = Pairs.of(["b.jpg", "a.jpg", "b.jpg"], ["b.jpg", "a.jpg"])
    assert pairs.rows().tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", [list, np.array, lambda o: np.array(o, np.uint8)])
def test_without_ids_the_captions_name_rows(kind: Any) -> None:
    pairs = Pairs.of(kind([2, 0, 1, 1]))
    assert pairs.image_ids.tolist() == [0, 1, 2]
    assert pairs.rows().tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("owners", [[-1, 0], [0.0, 1.0], ["a", "b"], [True, False]])
def test_without_ids_only_rows_are_understood(owners: Any) -> None:
    with pytest.raises(RecallError, match=r"integers from 0.*pass image_ids"):
        Pairs.of(owners)


@pytest.mark.parametrize(
    ("owners", "ids", "message"),
    [
        ([0, 1], [[0, 1]], r"shape \(1, 2\) and the captions' image ids \(2,\)"),
        ([[0], [1]], [0, 1], "Expected two lists"),
        (0, [0], "Expected two lists"),
        ([], [0], "at least one entry"),
        ([0], [], "at least one entry"),
        ([5, 6, 5], [5, 6, 5, 5], "2 image ids occur more than once"),
        ([5, 6, 9, 9, 8], [5, 6], r"3 captions belong to unknown images, ids \[8, 9\]"),
        ([5], [7, 5, 6], r"2 images have no caption, ids \[6, 7\]"),
    ],
)
def test_ids_that_do_not_fit_each_other_are_refused(owners: Any, ids: Any, message: str) -> None:
    with pytest.raises(RecallError, match=message):
        Pairs.of(owners, ids)


def test_both_directions_rank_all_their_queries() -> None:
    images, texts, owners = random_case(np.random.default_rng(4), 15, 22)
    told = list[int]()
    tr, ir = rank_both(images, texts, Pairs.of(owners), block=4, on_rows=told.append)
    assert (len(tr.ranks), tr.gallery) == (15, 37)
    assert (len(ir.ranks), ir.gallery) == (37, 15)
    assert sum(told) == 15 + 37
    found = recall(images, texts, owners)
    assert found == Recall({k: tr.recall(k) for k in KS}, {k: ir.recall(k) for k in KS})


def test_average_weighs_the_six_figures_alike() -> None:
    assert Recall({1: 1.0, 5: 2.0, 10: 3.0}, {1: 10.0, 5: 20.0, 10: 30.0}).average == 11.0
