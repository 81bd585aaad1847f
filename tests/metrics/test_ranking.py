"""Ranking in blocks equals sorting the whole score matrix, including ties.

Vectors contain small integers, so every score is exact for any order of summation: a difference
from the oracle is a bug, never rounding, and equal scores are equal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.metrics import ranking
from mwa_export.metrics.ranking import KS, NO_WRONG_ITEM, TOP, Ranking, rank

Floats = NDArray[np.float32]
SEEDS = st.integers(0, 2**32 - 1)
SPREADS = st.sampled_from([0, 1, 2, 300])  # of the integers: from nothing but ties to hardly any
GROUPED = 64 * 21  # the smallest gallery whose columns are grouped


class Case(NamedTuple):
    queries: Floats
    gallery: Floats
    query_ids: NDArray[np.int64]
    gallery_ids: NDArray[np.int64]

    def scores(self) -> Floats:
        return np.asarray(self.queries @ self.gallery.T)

    def rank(self, block: int | None = None) -> Ranking:
        return rank(*self, block=block)


class Naive(NamedTuple):
    ranks: list[int]
    right: list[int]
    margins: list[list[float]]
    top: NDArray[np.int64]


def naive(case: Case) -> Naive:
    """Sort every row of the whole score matrix."""
    scores = case.scores()
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks, right, margins = [], [], []
    for row, query in enumerate(case.query_ids):
        hits = case.gallery_ids[order[row]] == query
        first = int(np.flatnonzero(hits)[0])
        ranks.append(first + 1)
        right.append(int(order[row, first]))
        wrong = scores[row, order[row][~hits]]
        best = float(scores[row, right[-1]])
        rivals = [float(wrong[k - 1]) if len(wrong) >= k else best - NO_WRONG_ITEM for k in KS]
        margins.append([best - rival for rival in rivals])
    return Naive(ranks, right, margins, order[:, :TOP])


def integers(rng: np.random.Generator, rows: int, spread: int, width: int = 5) -> Floats:
    """Products of them are below 2**24 and thus exact in float32."""
    return rng.integers(-spread, spread + 1, (rows, width)).astype(np.float32)


def random_case(seed: int, n_query: int, n_gallery: int, n_id: int, spread: int) -> Case:
    """Uneven numbers of right items per id; some items belong to no query."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(10 * n_id)[:n_id] - 3  # not 0 .. n - 1, not sorted
    gallery_ids = names[(n_id * rng.random(n_gallery) ** 2).astype(int)]
    return Case(
        integers(rng, n_query, spread),
        integers(rng, n_gallery, spread),
        rng.choice(gallery_ids, n_query),
        gallery_ids,
    )


def check_ranks(found: Ranking, expected: Naive) -> None:
    assert found.ranks.tolist() == expected.ranks
    assert found.right.tolist() == expected.right
    assert found.margins.tolist() == expected.margins


@given(
    SEEDS, st.integers(1, 40), st.integers(1, 60), st.integers(1, 30), st.integers(1, 50), SPREADS
)
@settings(deadline=None)
def test_small_gallery_ranks_as_the_sorted_matrix(
    seed: int, n_query: int, n_gallery: int, n_id: int, block: int, spread: int
) -> None:
    case = random_case(seed, n_query, n_gallery, n_id, spread)
    found, expected = case.rank(block), naive(case)
    check_ranks(found, expected)
    assert found.top.tolist() == expected.top.tolist()
    assert found.gallery == n_gallery


@given(
    SEEDS,
    st.integers(1, 12),
    st.integers(GROUPED - 70, 3 * GROUPED),
    st.integers(1, 700),
    st.integers(1, 14),
    SPREADS,
)
@settings(deadline=None, max_examples=60)
def test_large_gallery_ranks_as_the_sorted_matrix(
    seed: int, n_query: int, n_gallery: int, n_id: int, block: int, spread: int
) -> None:
    case = random_case(seed, n_query, n_gallery, n_id, spread)
    found, expected = case.rank(block), naive(case)
    check_ranks(found, expected)
    # which of many equal items are listed may differ, the scores of those listed may not
    scores = case.scores()
    assert found.top.shape == (n_query, TOP)
    np.testing.assert_array_equal(
        np.take_along_axis(scores, found.top, 1), np.take_along_axis(scores, expected.top, 1)
    )
    assert all(len(set(row)) == TOP for row in found.top.tolist())
    for row in range(n_query):
        kth = scores[row, expected.top[row, -1]]
        above = [int(c) for c in expected.top[row] if scores[row, c] > kth]
        assert found.top[row, : len(above)].tolist() == above


@given(SEEDS, st.integers(GROUPED, 3 * GROUPED))
@settings(deadline=None, max_examples=30)
def test_top_of_a_large_gallery_without_ties_is_exact(seed: int, n_gallery: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(
        np.array([[1.0], [-1.0]], np.float32),
        rng.permutation(n_gallery).astype(np.float32)[:, None],
        np.array([0, 1]),
        rng.permutation(n_gallery),
    )
    assert case.rank().top.tolist() == naive(case).top.tolist()


@pytest.mark.parametrize(
    "n_gallery", [GROUPED - 1, GROUPED, GROUPED + 1, GROUPED + 63, 2 * GROUPED]
)
def test_best_items_are_found_wherever_they_lie(n_gallery: int) -> None:
    """In one group, one in each group, at the end that belongs to no group."""
    groups = n_gallery // 64
    for places in (
        np.arange(TOP) * groups,  # all of one group
        np.arange(TOP),  # of neighbouring groups
        n_gallery - 1 - np.arange(TOP),  # at the end
        np.array([0, groups - 1, groups, 64 * groups - 1, n_gallery - 1, 7, 77, 177, 277, 377]),
    ):
        places = np.unique(places)[::-1]
        gallery = np.zeros((n_gallery, 1), np.float32)
        gallery[places, 0] = 100 - np.arange(len(places))
        found = rank(np.ones((1, 1), np.float32), gallery, places[-1:], np.arange(n_gallery))
        assert found.top[0, : len(places)].tolist() == places.tolist()
        assert found.ranks.tolist() == [len(places)]


@pytest.mark.slow
@given(SEEDS, st.integers(2, 30), st.integers(0, 40))
@settings(deadline=None)
def test_block_size_changes_nothing(seed: int, n_query: int, extra: int) -> None:
    case = random_case(seed, n_query, n_query + extra, 9, 2)
    whole = case.rank()
    for block in (1, n_query - 1, n_query, n_query + 1):
        part = case.rank(block)
        for name in ("ranks", "right", "margins", "top"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))


@given(SEEDS, st.integers(2, 60))
@settings(deadline=None)
def test_order_of_the_gallery_does_not_matter_without_ties(seed: int, n_gallery: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(
        np.array([[1.0], [-1.0], [3.0]], np.float32),
        rng.permutation(n_gallery).astype(np.float32)[:, None],
        np.array([0, 1, 1]),
        np.concatenate([[0, 1], rng.integers(0, 5, n_gallery - 2)]),
    )
    order = rng.permutation(n_gallery)  # new row i is old row order[i]
    shuffled = case._replace(gallery=case.gallery[order], gallery_ids=case.gallery_ids[order])
    before, after = case.rank(), shuffled.rank()
    np.testing.assert_array_equal(after.ranks, before.ranks)
    np.testing.assert_array_equal(after.margins, before.margins)
    np.testing.assert_array_equal(order[after.right], before.right)
    np.testing.assert_array_equal(order[after.top], before.top)


@given(SEEDS, st.integers(2, 60))
@settings(deadline=None)
def test_order_of_the_gallery_moves_a_tied_item_only_within_its_tie(
    seed: int, n_gallery: int
) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(seed, 8, n_gallery, 6, 1)
    order = rng.permutation(n_gallery)
    shuffled = case._replace(gallery=case.gallery[order], gallery_ids=case.gallery_ids[order])
    before, after, scores = case.rank(), shuffled.rank(), case.scores()
    np.testing.assert_array_equal(after.margins, before.margins)
    for row, query in enumerate(case.query_ids):
        wrong = scores[row, case.gallery_ids != query]
        best = scores[row, case.gallery_ids == query].max()
        least, most = 1 + (wrong > best).sum(), 1 + (wrong >= best).sum()
        assert least <= before.ranks[row] <= most
        assert least <= after.ranks[row] <= most


def test_exact_duplicates_rank_in_the_order_of_the_gallery() -> None:
    gallery = np.array([[1, 0], [2, 0], [2, 0], [2, 0], [3, 0]], np.float32)
    query = np.array([[1, 0]], np.float32)
    for row, expected in ((0, 5), (1, 2), (2, 3), (3, 4), (4, 1)):
        found = rank(query, gallery, np.array([row]), np.arange(5))
        assert found.ranks.tolist() == [expected]
        assert found.top.tolist() == [[4, 1, 2, 3, 0]]


def test_first_of_equal_right_items_is_the_best_one() -> None:
    gallery = np.array([[1], [2], [2], [2]], np.float32)
    found = rank(np.ones((1, 1), np.float32), gallery, np.array([7]), np.array([0, 0, 7, 7]))
    assert found.right.tolist() == [2]
    assert found.ranks.tolist() == [2]
    assert found.margins[0, 0] == 0.0


@pytest.mark.parametrize("n_gallery", [50, 1000, 2 * GROUPED + 5])
@pytest.mark.parametrize("vector", ["integers", "unit"])
def test_collapsed_model_gets_the_recall_of_chance(n_gallery: int, vector: str) -> None:
    row: NDArray[np.float32] = np.ones(48, np.float32)
    if vector == "unit":  # scores are rounded, alike for all
        row = np.random.default_rng(0).standard_normal(48).astype(np.float32)
        row /= np.linalg.norm(row)
    same = np.tile(row, (n_gallery, 1))
    found = rank(same, same, np.arange(n_gallery), np.arange(n_gallery))
    assert sorted(found.ranks.tolist()) == list(range(1, n_gallery + 1))
    for k in (1, 5, 10):
        assert found.recall(k) == pytest.approx(100 * k / n_gallery)
    assert (found.margins == 0).all()


@pytest.mark.parametrize("n_gallery", [1, 4, 12, GROUPED + 3])
def test_margin_is_the_largest_there_is_when_every_item_is_right(n_gallery: int) -> None:
    rng = np.random.default_rng(n_gallery)
    found = rank(
        integers(rng, 3, 2),
        integers(rng, n_gallery, 2),
        np.zeros(3, np.int64),
        np.zeros(n_gallery, np.int64),
    )
    assert (found.margins == 2).all()
    assert found.ranks.tolist() == [1] * 3
    assert found.top.shape == (3, min(TOP, n_gallery))
    assert (found.top[:, 0] == found.right).all()


@given(SEEDS, st.integers(1, 30), st.integers(1, 40))
@settings(deadline=None)
def test_item_listed_first_is_right_exactly_at_rank_1(seed: int, n_query: int, n_id: int) -> None:
    case = random_case(seed, n_query, 50, n_id, 2)
    found = case.rank()
    listed = case.gallery_ids[found.top] == case.query_ids[:, None]
    for rank_, row, is_right in zip(found.ranks, found.top, listed, strict=True):
        assert is_right.any() == (rank_ <= TOP)
        if rank_ <= TOP:
            assert int(np.flatnonzero(is_right)[0]) == rank_ - 1
        assert len(set(row.tolist())) == len(row)


@given(st.integers(1, 30), st.one_of(st.none(), st.integers(1, 40)))
@settings(deadline=None)
def test_progress_adds_up_to_the_queries(n_query: int, block: int | None) -> None:
    rng, told = np.random.default_rng(n_query), list[int]()
    ids = np.arange(n_query)
    vectors = integers(rng, n_query, 3)
    rank(vectors, vectors, ids, ids, block=block, on_rows=told.append)
    assert sum(told) == n_query
    assert len(told) == -(-n_query // (block or n_query))


@pytest.mark.parametrize(
    "names", [np.array(["b", "a", "d", "c"]), np.array([7, -1, 2**40, 0]), np.arange(4)]
)
def test_ids_are_only_compared(names: NDArray[Any]) -> None:
    rng = np.random.default_rng(0)
    owners = np.array([3, 0, 1, 2, 0, 1, 1])
    queries, gallery = integers(rng, 4, 9), integers(rng, 7, 9)
    found = rank(queries, gallery, names, names[owners])
    check_ranks(found, naive(Case(queries, gallery, np.arange(4), owners)))


def test_embeddings_are_left_as_they_were() -> None:
    case = random_case(3, 20, 30, 9, 2)
    queries, gallery = case.queries.copy(), case.gallery.copy()
    case.rank(7)
    np.testing.assert_array_equal(case.queries, queries)
    np.testing.assert_array_equal(case.gallery, gallery)


def test_recall_counts_ranks_up_to_k() -> None:
    none = np.zeros(0, np.int64)
    found = Ranking(np.array([1, 2, 5, 6]), none, none.astype(np.float32), none, 9)
    assert [found.recall(k) for k in (1, 2, 4, 5, 10)] == [25.0, 50.0, 50.0, 75.0, 100.0]


def test_first_of_many_equal_items_are_on_top() -> None:
    """More equal items than the groups that are searched hold."""
    gallery = np.zeros((1600, 1), np.float32)
    equal = np.arange(13, 1600, 21)
    gallery[equal] = 1
    found = rank(np.ones((1, 1), np.float32), gallery, equal[1:2], np.arange(1600))
    assert found.ranks.tolist() == [2]
    assert found.top[0].tolist() == equal[:10].tolist()


def test_repeated_gallery_rows_are_found_with_the_row_that_they_repeat() -> None:
    gallery = np.array([[1, 2], [3, 4], [1, 2], [1, 2], [3, 4]], np.float32)
    gallery[3, 1] = np.nextafter(np.float32(2), np.float32(3))  # not a repeat, only near
    later, earlier = ranking._twins(gallery)
    assert later.tolist() == [2, 4]
    assert earlier.tolist() == [0, 1]
