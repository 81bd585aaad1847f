"""Figures from turns: ratios, shares, percentiles and cosines of each contender."""

from __future__ import annotations

import numpy as np
import pytest

from mwa_export.bench.contenders import Contender, Kernel, reason_of
from mwa_export.bench.figures import Timed, figures_from_turns, mean_cosine
from mwa_export.bench.ours import our_name
from mwa_export.bench.peers import PEERS
from mwa_export.bench.result import Kind
from mwa_export.bench.timing import Turn
from mwa_export.errors import BundleError

EAGER, ORT = PEERS["eager"].name, our_name("onnxruntime", "float32")
RIGHT = np.eye(4, dtype=np.float32)  # embeddings of a window of 4 rows


def timed(
    name: str,
    seconds: tuple[float, ...],
    *,
    kind: Kind = "peer",
    precision: str = "float32",
    order: tuple[int, ...] = (0, 1, 2, 3),
    operations: int = 10**9,
    scale: float = 1.0,
) -> Timed:
    """Two calls of two rows per round; ``order`` says in which order the rows were embedded."""
    results = (scale * RIGHT[list(order[:2])], scale * RIGHT[list(order[2:])])
    turns = [Turn(value, (value / 4, value / 2), results) for value in seconds]
    rows = [[order[:2], order[2:]]] * len(seconds)

    def never(_tower: object) -> object:
        raise AssertionError

    contender = Contender(name, kind, "x", precision, never)  # type: ignore[arg-type]
    return Timed(contender, turns, rows, [operations] * len(seconds))


def test_figures_are_worked_out_from_the_rounds() -> None:
    eager, ours = timed(EAGER, (4, 8, 4)), timed(ORT, (1, 4, 2), kind="ours", operations=10**10)
    figures, baseline, peaks = figures_from_turns([eager, ours], [], {}, rows=4, cosines=True)
    assert baseline == EAGER
    assert peaks == ()
    assert (figures[0].ratio, figures[0].cosine) == (1.0, None)
    found = figures[1]
    assert (found.ratio_low, found.ratio, found.ratio_high) == (2.0, 2.0, 3.0)
    assert found.rows_per_second == 2.0
    assert (found.p50_ms, found.p99_ms, found.calls) == (500.0, 2000.0, 6)
    assert found.gops == 5.0
    assert found.peak_share is None
    assert found.cosine == pytest.approx(1.0)
    assert found.cosine_rows == 12


def test_share_of_the_peak_is_of_the_same_round_and_the_same_precision() -> None:
    def kernel(precision: str, tool: str) -> Kernel:
        return Kernel(precision, tool, (1000, 1000, 1000), lambda: None)

    slow, fast, other = kernel("int8", "slow"), kernel("int8", "fast"), kernel("float32", "fast")
    turns = {
        slow.name: [Turn(9.0, (9.0,), ())] * 3,
        fast.name: [Turn(s, (s,), ()) for s in (1.0, 2.0, 1.0)],
        other.name: [Turn(0.5, (0.5,), ())] * 3,
    }
    quick = timed("q", (4, 8, 4), precision="int8", operations=4 * 10**9)
    figures, _, peaks = figures_from_turns(
        [quick, timed("none", (1, 1, 1), precision="float16")],
        [slow, fast, other],
        turns,
        rows=4,
        cosines=False,
    )
    assert figures[0].peak_share == pytest.approx(0.5)  # in the slow round too
    assert figures[1].peak_share is None
    assert {(p.precision, p.tool, p.gops) for p in peaks} == {
        ("int8", "fast", 2.0),
        ("float32", "fast", 4.0),
    }


def test_rows_that_were_sorted_by_length_are_put_back_before_cosines() -> None:
    sorted_rows = timed(ORT, (1, 1, 1), kind="ours", order=(2, 0, 3, 1), scale=5.0)
    figures, _, _ = figures_from_turns(
        [timed(EAGER, (1, 1, 1)), sorted_rows], [], {}, rows=4, cosines=True
    )
    assert figures[1].cosine == pytest.approx(1.0)


def test_baseline_is_eager_then_ours_in_float32_then_the_first() -> None:
    def baseline(*names: str) -> str:
        items = [timed(name, (1, 1, 1)) for name in names]
        return figures_from_turns(items, [], {}, rows=4, cosines=False)[1]

    assert baseline("x", ORT, EAGER) == EAGER
    assert baseline("x", ORT) == ORT
    assert baseline("x", "y") == "x"


def test_cosine_of_something_broken_is_not_a_number_or_low() -> None:
    assert mean_cosine(RIGHT[[1, 0, 2, 3]], RIGHT) == pytest.approx(0.5)
    assert np.isnan(mean_cosine(np.full((4, 4), np.nan, np.float32), RIGHT))


def test_random_inputs_give_no_cosines() -> None:
    items = [timed(EAGER, (1, 1, 1)), timed(ORT, (1, 1, 1))]
    figures, _, _ = figures_from_turns(items, [], {}, rows=4, cosines=False)
    assert {f.cosine for f in figures} == {None}


def test_reason_is_one_line_without_folders() -> None:
    error = RuntimeError("no file\n  /tmp/abc/def/vision.onnx here, see https://example.org/x/y")
    reason = reason_of(error)
    assert reason == "RuntimeError: no file vision.onnx here, see https://example.org/x/y"
    assert reason_of(BundleError("has no int8 graph")) == "has no int8 graph"
    assert len(reason_of(ValueError("x" * 999))) == 300
    assert reason_of(ValueError("'C:\\Users\\me\\a.onnx' is bad")) == "ValueError: 'a.onnx' is bad"


def test_reason_tells_what_went_wrong_behind_a_lazy_import() -> None:
    error = ModuleNotFoundError("Could not import 'Q'")
    error.__cause__ = RuntimeError("operator x does not exist")
    expected = "RuntimeError: operator x does not exist (so ModuleNotFoundError: Could not import"
    assert reason_of(error) == f"{expected} 'Q')"
