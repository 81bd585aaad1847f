"""Exact search equals sorting the full score matrix, for any split into blocks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.errors import DataError
from mwa_export.search import scan as module
from mwa_export.search.scan import Block, best_rows


def blocks_of(block: Block, sizes: list[int]) -> Iterator[Block]:
    """The rows in blocks of these sizes, the rest in a last one."""
    start = 0
    for stop in [*np.cumsum(sizes).tolist(), len(block.vectors)]:
        part = slice(start, max(start, stop))
        yield Block(block.vectors[part], None if block.scales is None else block.scales[part])
        start = max(start, stop)


def stored(dtype: str, rows: int, width: int, seed: int) -> Block:
    """Random rows, some of them repeated, as an output of that type holds them."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, width)).astype(np.float32)
    vectors[rng.integers(0, rows, rows // 2)] = vectors[rng.integers(0, rows, rows // 2)]
    if dtype != "int8":
        return Block(vectors.astype(dtype))
    scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
    return Block(np.rint(vectors / scales[:, None]).astype(np.int8), scales)


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "float16", "int8"]),
    rows=st.integers(1, 60),
    width=st.sampled_from([1, 3, 16, 67]),
    k=st.integers(1, 70),
    sizes=st.lists(st.integers(0, 20), max_size=6),
    part=st.integers(1, 9),
    seed=st.integers(0, 1 << 16),
)
def test_search_is_argsort_of_the_full_matrix(
    dtype: str, rows: int, width: int, k: int, sizes: list[int], part: int, seed: int
) -> None:
    whole = stored(dtype, rows, width, seed)
    query = np.random.default_rng(seed + 1).standard_normal(width).astype(np.float32)
    values = whole.vectors.astype(np.float64)
    if whole.scales is not None:
        values *= whole.scales.astype(np.float64)[:, None]
    exact = values @ query.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", part)
        best = best_rows(query, blocks_of(whole, sizes), k)
    assert best.searched == rows
    full = module.score(query, whole.vectors, whole.scales)
    np.testing.assert_allclose(full, exact, atol=1e-4)
    order = np.argsort(-full, kind="stable")[:k]
    assert best.rows.tolist() == order.tolist()
    assert best.scores.tolist() == full[order].tolist()
    np.testing.assert_allclose(exact[best.rows], np.sort(exact)[::-1][:k], atol=1e-4)


def test_equal_rows_rank_in_their_order_at_every_position() -> None:
    row = np.random.default_rng(0).standard_normal(129).astype(np.float32)
    vectors = np.repeat(row[None], 1000, axis=0)
    best = best_rows(row, blocks_of(Block(vectors), [1, 333, 7]), 500)
    assert best.rows.tolist() == list(range(500))
    assert len(set(best.scores.tolist())) == 1


def test_memory_is_that_of_a_block_and_not_of_all_rows() -> None:
    width, rows, count = 64, 4096, 64
    size = width * rows * 4

    def blocks() -> Iterator[Block]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield Block(rng.standard_normal((rows, width), dtype=np.float32))

    query = np.ones(width, np.float32)
    tracemalloc.start()
    best = best_rows(query, blocks(), 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert best.searched == rows * count
    assert peak < 4 * size


def test_no_rows_find_nothing() -> None:
    best = best_rows(np.ones(3, np.float32), [], 5)
    assert (len(best.rows), best.searched) == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(bad: float) -> None:
    vectors: NDArray[np.float32] = np.ones((3, 2), np.float32)
    vectors[1, 1] = bad
    with pytest.raises(DataError, match="not finite"):
        best_rows(np.ones(2, np.float32), [Block(vectors)], 2)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(DataError, match="expected rows of 3 values"):
        best_rows(np.ones(3, np.float32), [Block(np.ones((2, 4), np.float32))], 2)
