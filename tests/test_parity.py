"""Known damage is reported with its right size, and no damage as none at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export import __version__
from mwa_export.errors import MwaExportError, OptionsError, RecallError
from mwa_export.gates import Gates
from mwa_export.parity import CompareOptions, Vectors, compare
from mwa_export.parity_result import Parity, RecallChange
from mwa_export.pictures import Picture
from mwa_export.recall import KS, recall
from mwa_export.retrieval_data import Caption, Excluded, RetrievalData

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SEEDS = st.integers(0, 2**32 - 1)
FAST = CompareOptions(resamples=500)


def unit(rows: NDArray[Any]) -> Floats:
    values = rows.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray((values / lengths).astype(np.float32))


def noisy(rng: np.random.Generator, rows: NDArray[Any], strength: float) -> Floats:
    """The rows with noise that is ``strength`` times as long as they are."""
    noise = rng.standard_normal(rows.shape) / rows.shape[1] ** 0.5
    return unit(rows.astype(np.float64) + strength * noise)


def random_owners(rng: np.random.Generator, images: int, extra: int) -> Ints:
    """Rows of the captions' images: one caption each, and others as they fall, in any order."""
    owners = np.concatenate([np.arange(images), rng.integers(0, images, extra)])
    rng.shuffle(owners)
    return owners


def random_side(rng: np.random.Generator, owners: Ints, *, noise: float, width: int) -> Vectors:
    """Images, and captions that are found more or less."""
    images = unit(rng.standard_normal((int(owners.max()) + 1, width)))
    return Vectors(images, noisy(rng, images[owners], noise))


def damaged(rng: np.random.Generator, side: Vectors, strength: float) -> Vectors:
    return Vectors(noisy(rng, side.images, strength), noisy(rng, side.texts, strength))


def perfect(images: int, captions: int) -> tuple[Vectors, Ints]:
    """Every image at right angles to the others and equal to its captions."""
    owners = np.repeat(np.arange(images), captions)
    eye = np.eye(images, dtype=np.float32)
    return Vectors(eye, eye[owners]), owners


def changes(result: Parity) -> Iterator[tuple[int, RecallChange]]:
    """The number of queries and the change of each of the six figures."""
    for direction in result.directions:
        for change in direction.recalls:
            yield direction.queries, change


def first(result: Parity) -> tuple[RecallChange, RecallChange]:
    """Recall@1 in both directions."""
    return result.directions[0].recalls[0], result.directions[1].recalls[0]


def naive_order(queries: Floats, gallery: Floats) -> Ints:
    return np.argsort(-(queries @ gallery.T), axis=1, kind="stable")


def naive_ranks(order: Ints, right: list[set[int]]) -> list[int]:
    return [
        next(place for place, item in enumerate(row, 1) if item in mine)
        for row, mine in zip(order.tolist(), right, strict=True)
    ]


# --- No damage -------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 30), st.integers(0, 40), st.floats(0.1, 3))
@settings(deadline=None, max_examples=30)
def test_identical_embeddings_differ_by_exactly_nothing(
    seed: int, images: int, extra: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    owners = random_owners(rng, images, extra)
    side = random_side(rng, owners, noise=noise, width=8)
    strict = CompareOptions(Gates(0.0, 1.0, on_bound=True))
    result = compare(side, Vectors(*(array.copy() for array in side)), owners, options=strict)
    for _, change in changes(result):
        assert change.candidate == change.reference
        assert (change.difference, change.low, change.high) == (0.0, 0.0, 0.0)
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
    assert result.passed
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
    assert result.passed == all(change.difference >= -0.2 - 1e-9 for _, change in changes(result))

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
    assert not result.passed
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
    assert result.passed
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
    assert result.passed
    assert result.examples == ()
    assert all(gate.found <= 0 for gate in result.gates)


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
    assert not result.passed


@pytest.mark.parametrize("allowed", [True, False])
def test_one_lost_query_of_500_passes_a_gate_of_a_fifth_of_a_point(allowed: bool) -> None:
    before, owners = perfect(500, 1)
    texts = before.texts.copy()
    rows = [499] if allowed else [498, 499]
    texts[rows] = before.images[[3, 4][: len(rows)]]
    result = compare(before, Vectors(before.images, texts), owners, options=FAST)
    assert result.direction("ir").recalls[0].lost == len(rows)
    assert result.passed == allowed
    assert not compare(
        before,
        Vectors(before.images, texts),
        owners,
        options=CompareOptions(Gates(on_bound=True), resamples=500),
    ).passed


# --- Options ---------------------------------------------------------------------------------


def example_case(seed: int = 0) -> tuple[Vectors, Vectors, Ints]:
    rng = np.random.default_rng(seed)
    owners = random_owners(rng, 40, 60)
    before = random_side(rng, owners, noise=0.7, width=8)
    return before, damaged(rng, before, 0.5), owners


def test_seed_decides_the_intervals_and_nothing_else() -> None:
    def run(seed: int) -> dict[str, Any]:
        options = CompareOptions(seed=seed, resamples=1000)
        found = compare(*example_case(), options=options).to_json()
        assert found.pop("seed") == seed
        found.pop("created")
        return found

    def without_intervals(found: dict[str, Any]) -> dict[str, Any]:
        for direction in found["directions"]:
            for change in direction["recalls"]:
                del change["low"], change["high"]
        return found

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert without_intervals(run(1)) == without_intervals(run(2))


def test_options_are_kept_in_the_result() -> None:
    options = CompareOptions(Gates(5.0, 0.1), confidence=0.8, resamples=200, seed=9)
    result = compare(*example_case(), options=options)
    assert (result.confidence, result.resamples, result.seed) == (0.8, 200, 9)
    assert {gate.limit for gate in result.gates} == {5.0, 0.1}
    assert result.version == __version__


def test_more_confidence_widens_every_interval() -> None:
    narrow, wide = (
        compare(*example_case(), options=CompareOptions(confidence=c, resamples=1000))
        for c in (0.8, 0.99)
    )
    for (_, a), (_, b) in zip(changes(narrow), changes(wide), strict=True):
        assert b.low < a.low < a.high < b.high


@pytest.mark.parametrize("count", [0, 1, 5])
def test_so_many_examples_are_listed_per_direction(count: int) -> None:
    result = compare(*example_case(), options=CompareOptions(examples=count, resamples=100))
    assert [e.direction for e in result.examples] == ["tr"] * count + ["ir"] * count
    for direction in ("tr", "ir"):
        factors = [
            e.rank_after / e.rank_before for e in result.examples if e.direction == direction
        ]
        assert factors == sorted(factors, reverse=True)


def test_without_gates_everything_passes() -> None:
    options = CompareOptions(Gates(max_recall_drop=None), resamples=100)
    result = compare(*example_case(), options=options)
    assert result.passed
    assert result.gates == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 0.49}, "confidence is 0.49"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": 95}, "confidence is 95. Expected 0.5 to below 1"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"resamples": 99}, "99 resamples. Expected at least 100"),
        ({"examples": -1}, "-1 examples"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        CompareOptions(**options)


class Watch:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None]] = []
        self.rows: list[int] = []

    def __call__(self, text: str, total: int | None = None) -> None:
        self.steps.append((text, total))
        self.rows.append(0)

    def advance(self, rows: int) -> None:
        self.rows[-1] += rows


@pytest.mark.parametrize("same", [True, False])
def test_progress_reaches_the_total_it_announced(same: bool) -> None:
    before, after, owners = example_case()
    watch = Watch()
    compare(before, before if same else after, owners, options=FAST, progress=watch)
    announced = [(total, rows) for (_, total), rows in zip(watch.steps, watch.rows, strict=True)]
    assert (140 * (1 if same else 4),) * 2 in announced
    assert all(rows == (total or 0) for total, rows in announced)


# --- Data ------------------------------------------------------------------------------------


def test_result_is_json_without_nan() -> None:
    for after in example_case()[:2]:
        before, _, owners = example_case()
        found = compare(before, after, owners, options=FAST).to_json()
        text = json.dumps(found, allow_nan=False)
        assert json.loads(text)["schema"] == 1
        assert json.dumps(json.loads(text)) == text
        assert json.loads(text)["data"]["name"] == "arrays"


def test_single_pair_is_compared() -> None:
    """Everything is right at rank 1 and there is nothing wrong to measure a margin to."""
    side = Vectors(np.array([[1.0, 0.0]], np.float32), np.array([[0.6, 0.8]], np.float32))
    other = Vectors(side.texts, side.images)
    result = compare(side, other, [0])
    assert result.passed
    assert result.direction("tr").margins.all_median == 2.0
    json.dumps(result.to_json(), allow_nan=False)


def test_arrays_may_be_pairs_and_lists_and_half_precision() -> None:
    before, after, owners = example_case()
    halves = [array.astype(np.float16) for array in after]
    result = compare(list(before), halves, owners.tolist(), options=FAST)
    singles = Vectors(*(array.astype(np.float32) for array in halves))
    expected = compare(before, singles, owners, options=FAST)
    assert replace(result, created="") == replace(expected, created="")


def picture_set(captions: tuple[Caption, ...], owners: list[int]) -> RetrievalData:
    """Images 30, 10, 20, in this order; one lies in a tar."""
    return RetrievalData(
        "test split",
        np.array([30, 10, 20]),
        (Picture(Path("a/x.jpg")), Picture(Path("b.tar"), "in/y.png", 512, 9), Picture(Path("z"))),
        captions,
        np.array(owners),
        (Excluded("w.jpg", "it is missing", 2),),
    )


def test_examples_name_pictures_and_captions_of_the_data() -> None:
    data = picture_set(("a dog", (5, 6), "a cat", "a cow"), [10, 20, 30, 30])
    rows = np.array([1, 2, 0, 0])
    eye = np.eye(3, dtype=np.float32)
    after = Vectors(eye[[0, 2, 1]], eye[rows])  # 10 and 20 are swapped
    result = compare(Vectors(eye, eye[rows]), after, data)
    found = [
        (e.direction, e.query, e.image, e.picture, e.caption)
        for e in sorted(result.examples, key=lambda e: (e.direction, e.query))
    ]
    assert found == [
        ("ir", 0, 1, "y.png", "a dog"),
        ("ir", 1, 2, "z", "token ids 5 6"),
        ("tr", 1, 1, "y.png", "a dog"),
        ("tr", 2, 2, "z", "token ids 5 6"),
    ]
    for example in result.examples:
        winner = 3 - example.image
        assert example.winner_image == winner
        assert example.winner_picture == ("", "y.png", "z")[winner]
        assert example.winner_caption == ("", "a dog", "token ids 5 6")[winner]
    assert (result.data.name, result.data.images, result.data.captions) == ("test split", 3, 4)
    assert (result.data.fewest_captions, result.data.most_captions) == (1, 2)
    assert [(e.picture, e.reason, e.captions) for e in result.data.excluded] == [
        ("w.jpg", "it is missing", 2)
    ]
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("captions", "repeated"),
    [
        (("a", "b", "c", "d"), 0),
        (("a", "b", "a", "a"), 3),  # of 10, and both of 30
        (("a", "b", "c", "c"), 0),  # twice with one image is no matter
        (("a", "a", "a", "d"), 3),
        (((1, 2), (1, 2), (3,), "a"), 2),
    ],
)
def test_captions_that_another_image_has_too_are_counted(
    captions: tuple[Caption, ...], repeated: int
) -> None:
    data = picture_set(captions, [10, 20, 30, 30])
    eye = np.eye(3, dtype=np.float32)
    side = Vectors(eye, eye[[1, 2, 0, 0]])
    assert compare(side, side, data, options=FAST).data.repeated_captions == repeated


def test_data_and_rows_give_the_same_figures() -> None:
    data = picture_set(("a", "b", "c", "d", "e"), [10, 20, 30, 30, 20])
    rng = np.random.default_rng(5)
    rows = np.array([1, 2, 0, 0, 2])
    before = random_side(rng, rows, noise=1.0, width=3)
    after = damaged(rng, before, 1.0)
    one, other = (compare(before, after, d, options=FAST) for d in (data, rows))
    assert one.directions == other.directions
    assert one.cross == other.cross
    assert one.cosines == other.cosines


# --- What is refused -------------------------------------------------------------------------


def with_nan(array: Floats) -> Floats:
    array = array.copy()
    array[4, 2] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, c, o: ("a.pth", c, o), "mixture of embeddings and paths"),
        (lambda r, c, o: (r, Path("bundle"), o), "mixture of embeddings and paths"),
        (lambda r, c, o: (r, c, "test.json"), "mixture of embeddings and paths"),
        (
            lambda r, c, o: (r, tuple(unit(a[:, :7]) for a in c), o),
            r"widths: reference 8 \(images\) and 8 \(texts\), candidate 7 and 7",
        ),
        (lambda r, c, o: (r, (c[0], unit(c[1][:, :7])), o), "candidate 8 and 7"),
        (lambda r, c, o: (r, (c[0][:-1], c[1]), o), "candidate image embeddings: 39 rows.*40"),
        (lambda r, c, o: ((r[0], r[1][1:]), c, o), "reference text embeddings: 99 rows.*100"),
        (lambda r, c, o: (r, (with_nan(c[0]), c[1]), o), "candidate image .*not finite.*row 4"),
        (lambda r, c, o: ((r[0], with_nan(r[1])), c, o), "reference text .*not finite.*row 4"),
        (lambda r, c, o: (r, (c[0], 2 * c[1]), o), "candidate text .*not of unit length"),
        (lambda r, c, o: (r, (c[0] > 0, c[1]), o), "candidate image embeddings: bool"),
        (lambda r, c, o: (r, (c[0][0], c[1]), o), r"candidate image embeddings: .*\(8,\)"),
        (lambda r, c, o: (r, c, np.where(o == 3, 4, o)), r"1 images have no caption, ids \[3\]"),
        (lambda r, c, o: (r, c, o - 1), "Expected rows of the images"),
        (lambda r, c, o: (r, c, o.astype(float)), "Expected rows of the images"),
        (lambda r, c, o: (r, c, [str(owner) for owner in o]), "Expected rows of the images"),
        (lambda r, c, o: (r, c, []), "Expected two lists with at least one entry"),
        (lambda r, c, o: (r, c[:1], o), "given a tuple for a side. Expected a pair"),
        (lambda r, c, o: (3, c, o), "given a int for a side. Expected a pair"),
        (lambda r, c, o: (r, c, o[:, None]), "Expected two lists"),
    ],
)
def test_impossible_input_is_refused(change: Any, message: str) -> None:
    with pytest.raises(MwaExportError, match=message) as caught:
        compare(*change(*example_case()))
    assert isinstance(
        caught.value,
        OptionsError if "mixture" in message or "for a side" in message else RecallError,
    )


def test_picture_without_caption_in_the_data_is_refused() -> None:
    data = picture_set(("a", "b"), [10, 30])
    eye = np.eye(3, dtype=np.float32)
    side = Vectors(eye, eye[:2])
    with pytest.raises(RecallError, match=r"1 images have no caption, ids \[20\]"):
        compare(side, side, data)
