"""Known damage is reported with its true size, and no damage as exactly none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_arrays import (
    FAST,
    Floats,
    Ints,
    changes,
    damaged,
    random_owners,
    random_side,
    unit,
)

from mwa_export import __version__
from mwa_export.data.test_set import Excluded, RetrievalData
from mwa_export.errors import MwaExportError, RecallError, UsageError
from mwa_export.inputs.content import Caption
from mwa_export.inputs.pictures import Picture
from mwa_export.parity.gates import Gates
from mwa_export.parity.measure import CompareOptions, compare
from mwa_export.parity.result import Vectors


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
    assert {gate.limit for gate in result.gates} == {-5.0, 0.1}
    assert result.version == __version__


def test_more_confidence_widens_every_interval() -> None:
    narrow, wide = (
        compare(*example_case(), options=CompareOptions(confidence=c, resamples=1000))
        for c in (0.8, 0.99)
    )
    for (_, a), (_, b) in zip(changes(narrow), changes(wide), strict=True):
        assert b.low < a.low < a.high < b.high
        assert b.smoothed_low < a.smoothed_low < a.smoothed_high < b.smoothed_high


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
    assert result.verdict == "passes"
    assert result.gates == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 0.49}, "confidence=0.49"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"confidence": 95}, "confidence=95`: expected 0.5 to below 1"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"resamples": 99}, "resamples=99`: expected at least 100"),
        ({"examples": -1}, "examples=-1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
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
        assert json.loads(text)["schema"] == 2
        assert json.dumps(json.loads(text)) == text
        assert json.loads(text)["data"]["name"] == "arrays"


def test_single_pair_is_compared() -> None:
    """Everything is right at rank 1 and there is nothing wrong to measure a margin to."""
    side = Vectors(np.array([[1.0, 0.0]], np.float32), np.array([[0.6, 0.8]], np.float32))
    other = Vectors(side.texts, side.images)
    result = compare(side, other, [0])
    assert result.verdict == "undecided"
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
        (lambda r, c, o: ("a.pth", c, o), "for each side, got str"),
        (lambda r, c, o: (r, Path("bundle"), o), "for each side, got .*Path.*compare_models"),
        (lambda r, c, o: (r, c, "test.json"), "Expected image rows"),
        (
            lambda r, c, o: (r, tuple(unit(a[:, :7]) for a in c), o),
            r"widths: reference 8 \(images\) and 8 \(texts\), candidate 7 and 7",
        ),
        (lambda r, c, o: (r, (c[0], unit(c[1][:, :7])), o), "candidate 8 and 7"),
        (lambda r, c, o: (r, (c[0][:-1], c[1]), o), "candidate image embeddings: .*39 rows.*40"),
        (lambda r, c, o: ((r[0], r[1][1:]), c, o), "reference text embeddings: found 99 rows.*100"),
        (lambda r, c, o: (r, (with_nan(c[0]), c[1]), o), "candidate image .*not finite.*row 4"),
        (lambda r, c, o: ((r[0], with_nan(r[1])), c, o), "reference text .*not finite.*row 4"),
        (lambda r, c, o: (r, (c[0], 2 * c[1]), o), "candidate text .*not of unit length"),
        (lambda r, c, o: (r, (c[0] > 0, c[1]), o), "candidate image embeddings: found bool"),
        (lambda r, c, o: (r, (c[0][0], c[1]), o), r"candidate image embeddings: .*\(8,\)"),
        (lambda r, c, o: (r, c, np.where(o == 3, 4, o)), r"1 images have no caption, ids \[3\]"),
        (lambda r, c, o: (r, c, o - 1), "Expected image rows"),
        (lambda r, c, o: (r, c, o.astype(float)), "Expected image rows"),
        (lambda r, c, o: (r, c, [str(owner) for owner in o]), "Expected image rows"),
        (lambda r, c, o: (r, c, []), "Expected two lists with at least one entry"),
        (lambda r, c, o: (r, c[:1], o), "expects a pair.*for each side, got tuple"),
        (lambda r, c, o: (3, c, o), "expects a pair.*for each side, got int"),
        (lambda r, c, o: (r, c, o[:, None]), "Expected two lists"),
    ],
)
def test_impossible_input_is_refused(change: Any, message: str) -> None:
    with pytest.raises(MwaExportError, match=message) as caught:
        compare(*change(*example_case()))
    assert isinstance(
        caught.value,
        UsageError if "mixture" in message or "for each side" in message else RecallError,
    )


def test_picture_without_caption_in_the_data_is_refused() -> None:
    data = picture_set(("a", "b"), [10, 30])
    eye = np.eye(3, dtype=np.float32)
    side = Vectors(eye, eye[:2])
    with pytest.raises(RecallError, match=r"1 images have no caption, ids \[20\]"):
        compare(side, side, data)
