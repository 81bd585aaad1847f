"""Known damage to embeddings is reported with its true size, and no damage as exactly none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_arrays import (
    FAST,
    SEEDS,
    changes,
    damaged,
    first,
    naive_order,
    naive_ranks,
    noisy,
    perfect,
    random_owners,
    random_side,
    unit,
)

from mwa_export.metrics.ranking import KS
from mwa_export.metrics.recall import recall
from mwa_export.parity.gates import Gates
from mwa_export.parity.measure import CompareOptions, compare
from mwa_export.parity.result import Vectors


@given(SEEDS, st.integers(1, 30), st.integers(0, 40), st.floats(0.1, 3))
@settings(deadline=None, max_examples=30)
def test_identical_embeddings_differ_by_exactly_nothing(
    seed: int, images: int, extra: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    owners = random_owners(rng, images, extra)
    side = random_side(rng, owners, noise=noise, width=8)
    strict = CompareOptions(Gates(100.0, 1.0))
    result = compare(side, Vectors(*(array.copy() for array in side)), owners, options=strict)
    for _, change in changes(result):
        assert change.candidate == change.reference
        assert change.difference == change.smoothed.value == 0.0
        assert change.smoothed_low < 0 < change.smoothed_high
        assert (change.won, change.lost, change.p_value) == (0, 0, 1.0)
    for direction in result.directions:
        assert direction.changed_ranks == direction.margins.flipped == 0
        assert direction.mean_rank[0] == direction.mean_rank[1]
        assert direction.overlap == 1.0
        assert direction.margins.flipped_median is direction.margins.flipped_largest is None
    for cosine in result.cosines:
        assert (cosine.mean, cosine.percentile_1, cosine.minimum) == (1.0, 1.0, 1.0)
        assert cosine.identical == cosine.rows
    assert len(result.cross) == 4
    assert len({(cell.tr, cell.ir) for cell in result.cross}) == 1
    assert result.examples == ()
    assert len(result.gates) == 8


def test_one_bit_of_difference_is_not_taken_for_certainty() -> None:
    """Nothing was won or lost, but something may be with other images."""
    side, owners = perfect(60, 2)
    other = side.texts.copy()
    other[17, 3] = np.float32(1e-6)
    result = compare(side, Vectors(side.images, other), owners)
    for _, change in changes(result):
        assert (change.difference, change.won, change.lost) == (0.0, 0, 0)
        assert change.low < 0 < change.high
    assert [cosine.identical for cosine in result.cosines] == [60, 119]


# --- Against oracles -------------------------------------------------------------------------


@given(SEEDS, st.integers(2, 30), st.integers(0, 50), st.floats(0.2, 2), st.floats(0, 2))
@settings(deadline=None, max_examples=40)
def test_every_figure_agrees_with_the_others_and_with_plain_sorting(
    seed: int, images: int, extra: int, noise: float, strength: float
) -> None:
    rng = np.random.default_rng(seed)
    owners = random_owners(rng, images, extra)
    before = random_side(rng, owners, noise=noise, width=8)
    after = damaged(rng, before, strength)
    result = compare(before, after, owners, options=FAST)

    assert result.data.fewest_captions == np.bincount(owners).min()
    assert result.data.most_captions == np.bincount(owners).max()
    assert (result.data.images, result.data.captions) == (images, len(owners))
    for n, change in changes(result):
        assert change.won - change.lost == pytest.approx(change.difference * n / 100)
        assert change.difference == pytest.approx(change.candidate - change.reference)
        assert change.low - 1e-9 <= change.difference <= change.high + 1e-9
        assert 0 <= change.p_value <= 1
    verdicts = {gate.verdict for gate in result.gates}
    assert (result.verdict == "fails") == ("fails" in verdicts)
    assert (result.verdict == "passes") == (verdicts == {"passes"})

    sides = {"reference": before, "candidate": after}
    for cell in result.cross:
        alone = recall(sides[cell.images].images, sides[cell.texts].texts, owners)
        assert dict(zip(KS, cell.tr, strict=True)) == alone.tr
        assert dict(zip(KS, cell.ir, strict=True)) == alone.ir

    captions_of = [set(np.flatnonzero(owners == row).tolist()) for row in range(images)]
    for name, right, orders in (
        ("tr", captions_of, [naive_order(side.images, side.texts) for side in (before, after)]),
        (
            "ir",
            [{row} for row in owners.tolist()],
            [naive_order(s.texts, s.images) for s in (before, after)],
        ),
    ):
        found = result.directions[0 if name == "tr" else 1]
        old, new = (np.array(naive_ranks(order, right)) for order in orders)
        assert found.direction == name
        assert (found.queries, found.gallery) == orders[0].shape
        for change in found.recalls:
            assert change.reference == pytest.approx(100 * (old <= change.k).mean())
            assert change.candidate == pytest.approx(100 * (new <= change.k).mean())
            assert change.won == ((new <= change.k) & (old > change.k)).sum()
            assert change.lost == ((old <= change.k) & (new > change.k)).sum()
        assert found.mean_rank == pytest.approx((old.mean(), new.mean()))
        assert found.median_rank == pytest.approx((np.median(old), np.median(new)))
        assert found.changed_ranks == (old != new).sum()
        tops = [[set(row) for row in order[:, :10].tolist()] for order in orders]
        shared = [len(a & b) / len(a) for a, b in zip(*tops, strict=True)]
        assert found.overlap == pytest.approx(np.mean(shared))
        assert found.margins.flipped == ((old == 1) != (new == 1)).sum()
        worse = sorted(old[new > old] / new[new > old])[:12]
        mine = [e for e in result.examples if e.direction == name]
        assert [e.rank_before / e.rank_after for e in mine] == pytest.approx(worse)
        for example in mine:
            assert example.rank_before == old[example.query]
            assert example.rank_after == new[example.query]


def test_margins_are_those_of_the_reference() -> None:
    """Caption 0 is right by 0.8 and flips, caption 1 is right by 1.0 and stays."""
    images = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    texts = np.array([[0.8, 0.6, 0], [0, 0, 1]], np.float32)
    lost = np.array([[0, 0.8, 0.6], [0, 0, 1]], np.float32)
    result = compare(Vectors(images, texts), Vectors(images, lost), [0, 1])
    found = result.direction("ir").margins
    assert found.flipped == 1
    assert found.flipped_median == found.flipped_largest == pytest.approx(0.8)
    assert found.all_median == pytest.approx(0.9)


# --- Known damage ----------------------------------------------------------------------------


@given(SEEDS, st.floats(0.01, 2))
@settings(deadline=None, max_examples=10)
def test_noise_of_known_strength_has_its_cosine(seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    owners = np.arange(150)
    before = random_side(rng, owners, noise=0.5, width=256)
    result = compare(before, damaged(rng, before, strength), owners, options=FAST)
    for cosine in result.cosines:
        # a row's cosine spreads by at most 0.06 (1 / sqrt(256)), the mean of 150 by 0.005; the
        # curvature of 1 / sqrt adds less than 0.003
        assert cosine.mean == pytest.approx(1 / np.sqrt(1 + strength**2), abs=0.025)
        assert cosine.minimum < cosine.percentile_1 < cosine.mean


@given(st.integers(3, 40), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=40)
def test_mixed_up_captions_lose_exactly_their_queries(
    images: int, captions: int, draw: st.DataObject
) -> None:
    """The captions' embeddings of m images are handed on in a circle."""
    mixed = draw.draw(st.lists(st.integers(0, images - 1), unique=True, min_size=2), "mixed")
    before, owners = perfect(images, captions)
    moved = np.arange(images)
    moved[mixed] = np.roll(mixed, 1)
    result = compare(
        before, Vectors(before.images, before.images[moved[owners]]), owners, options=FAST
    )
    m = len(mixed)
    for change, per_image in zip(first(result), (1, captions), strict=True):
        assert change.reference == 100.0
        assert (change.won, change.lost) == (0, per_image * m)
        assert change.difference == pytest.approx(-100 * m / images)
        assert change.p_value == pytest.approx(2.0 ** (1 - per_image * m))
    assert result.verdict != "passes"
    assert {e.image for e in result.examples} <= set(mixed)
    assert [cosine.identical for cosine in result.cosines] == [images, (images - m) * captions]
    assert result.cosines[1].minimum == pytest.approx(0.0, abs=1e-9)


def test_interval_of_image_retrieval_takes_captions_of_an_image_as_one() -> None:
    """All five captions of ten images are lost: as sure as ten images, not as fifty captions."""
    before, owners = perfect(200, 5)
    moved = np.arange(200)
    moved[:10] = np.roll(moved[:10], 1)
    after = Vectors(before.images, before.images[moved[owners]])
    tr, ir = first(compare(before, after, owners))
    assert tr.difference == ir.difference == -5.0
    # of 10,000 resamples each; captions on their own would give 0.45 of the width
    assert ir.high - ir.low == pytest.approx(tr.high - tr.low, rel=0.1)


@given(st.integers(3, 40), st.integers(1, 3), st.data())
@settings(deadline=None, max_examples=40)
def test_two_swapped_images_are_found(images: int, captions: int, draw: st.DataObject) -> None:
    rows = st.integers(0, images - 1)
    one, other = draw.draw(st.lists(rows, unique=True, min_size=2, max_size=2), "swapped")
    before, owners = perfect(images, captions)
    swapped = before.images.copy()
    swapped[[one, other]] = swapped[[other, one]]
    result = compare(before, Vectors(swapped, before.texts), owners, options=FAST)
    tr, ir = first(result)
    assert (tr.won, tr.lost) == (0, 2)
    assert (ir.won, ir.lost) == (0, 2 * captions)
    assert tr.difference == pytest.approx(-200 / images)
    assert ir.difference == pytest.approx(-200 / images)
    assert result.cosines[0].identical == images - 2
    assert result.cosines[0].minimum_row == min(one, other)
    assert len(result.examples) == 2 + 2 * captions
    partner = {one: other, other: one}
    for example in result.examples:
        row = example.query if example.direction == "tr" else example.query // captions
        winner = partner[row]
        caption = row * captions if example.direction == "tr" else example.query
        assert example.rank_before == 1 < example.rank_after
        assert (example.image, example.winner_image) == (row, winner)
        assert (example.picture, example.winner_picture) == (f"image {row}", f"image {winner}")
        assert example.caption == f"caption {caption}"
        assert example.winner_caption == f"caption {winner * captions}"


def test_index_that_cannot_be_mixed_shows_in_the_cross_matrix() -> None:
    """A candidate turned in both towers retrieves as well alone, and not with the reference."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(300), 3)
    before = random_side(rng, owners, noise=0.7, width=64)
    rotation, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    after = Vectors(*(unit(array.astype(np.float64) @ rotation) for array in before))
    result = compare(before, after, owners)
    assert result.verdict == "undecided"  # 300 pictures say nothing of a fifth of a point
    for _, change in changes(result):
        assert change.won == change.lost == 0
        assert change.reference > 95
    cells = {(cell.images, cell.texts): cell for cell in result.cross}
    alone = cells["reference", "reference"]
    assert cells["candidate", "candidate"] == replace(alone, images="candidate", texts="candidate")
    for pair in (("reference", "candidate"), ("candidate", "reference")):
        mixed = cells[pair]
        # chance is 0.33, 1.7 and 3.3 %; of 300 independent queries 3.3 % have an error of 1 %
        assert max(*mixed.tr, *mixed.ir) < 8
        assert max(mixed.tr[0], mixed.ir[0]) < 2.5
    assert all(abs(cosine.mean) < 0.1 for cosine in result.cosines)


@given(SEEDS)
@settings(deadline=None, max_examples=15)
def test_improvement_is_won_and_passes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    after, owners = perfect(60, 3)
    before = Vectors(after.images, noisy(rng, after.texts, 4.0))
    result = compare(before, after, owners, options=FAST)
    for change in first(result):
        assert change.lost == 0 < change.won
        assert change.candidate == 100.0
        assert 0 < change.difference <= change.high
        assert change.low > 0
        assert change.p_value < 0.001
    assert {gate.verdict for gate in result.gates if gate.name.endswith("@1 change")} == {"passes"}
    assert result.examples == ()
    assert all(gate.found >= 0 for gate in result.gates)


@given(SEEDS, st.floats(0.1, 2))
@settings(deadline=None, max_examples=15)
def test_swapping_the_sides_turns_the_differences_round(seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    owners = random_owners(rng, 25, 30)
    one = random_side(rng, owners, noise=0.7, width=8)
    other = damaged(rng, one, strength)
    there, back = (compare(*p, owners, options=FAST) for p in ((one, other), (other, one)))
    for (_, a), (_, b) in zip(changes(there), changes(back), strict=True):
        assert (a.won, a.lost, a.difference) == (b.lost, b.won, -b.difference)
        assert a.p_value == b.p_value
    for c, d in zip(there.cosines, back.cosines, strict=True):
        assert (c.mean, c.minimum_row, c.counts) == (d.mean, d.minimum_row, d.counts)


def test_collapsed_candidate_has_the_recall_of_chance() -> None:
    before, owners = perfect(50, 2)
    collapsed = Vectors(*(np.tile(before.images[:1], (len(array), 1)) for array in before))
    result = compare(before, collapsed, owners)
    tr, ir = first(result)
    assert (tr.candidate, ir.candidate) == (2.0, 2.0)
    assert result.verdict == "fails"
