"""Compute figures from timed turns: medians of same-round ratios, percentiles, peak shares."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mwa_export.bench.contenders import Contender, Kernel
from mwa_export.bench.ours import our_name
from mwa_export.bench.peers import PEERS
from mwa_export.bench.result import Figure, Peak
from mwa_export.bench.timing import Turn, percentile, quartiles, same_round_ratios

# What ratios and cosines refer to: the first of these that ran, else the first contender.
BASELINES = (PEERS["eager"].name, our_name("onnxruntime", "float32"))


@dataclass(frozen=True, slots=True)
class Timed:
    """A contender with its turns, round by round."""

    contender: Contender
    turns: Sequence[Turn]
    rows: Sequence[Sequence[Sequence[int]]]  # [round][call]: rows of the window
    operations: Sequence[int]  # of the GEMMs in each round


def figures_from_turns(
    timed: Sequence[Timed],
    kernels: Sequence[Kernel],
    turns: Mapping[str, Sequence[Turn]],
    *,
    rows: int,
    cosines: bool,
) -> tuple[tuple[Figure, ...], str, tuple[Peak, ...]]:
    """Return the figures of a section in the order of ``timed``, the baseline's name, the peaks.

    ``cosines``: whether the inputs are real, so that cosines are meaningful.
    """
    names = [item.contender.name for item in timed]
    baseline = timed[names.index(next((n for n in BASELINES if n in names), names[0]))]
    speeds = {k.name: [k.operations / turn.seconds for turn in turns[k.name]] for k in kernels}
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    best: dict[str, Kernel] = {}  # precision -> the kernel with the fastest median
    for kernel in kernels:
        best[kernel.precision] = max(
            best.get(kernel.precision, kernel), kernel, key=lambda k: medians[k.name]
        )
    right = _embeddings(baseline) if cosines else None
    figures = []
    for item in timed:
        peer = best.get(item.contender.precision)
        peak = None if peer is None else speeds[peer.name]
        expected = None if item is baseline else right
        figures.append(_figure(item, baseline, peak, expected, rows))
    peaks = tuple(Peak(k.precision, medians[k.name] / 1e9, k.tool, k.shape) for k in best.values())
    return tuple(figures), baseline.contender.name, peaks


def _figure(
    timed: Timed,
    baseline: Timed,
    peak: Sequence[float] | None,
    right: NDArray[np.float32] | None,
    rows: int,
) -> Figure:
    contender, turns = timed.contender, timed.turns
    low, ratio, high = quartiles(same_round_ratios(baseline.turns, turns))
    calls = [1000 * seconds for turn in turns for seconds in turn.calls]
    reached = [n / turn.seconds for n, turn in zip(timed.operations, turns, strict=True)]
    share = None
    if peak is not None:
        share = statistics.median(r / p for r, p in zip(reached, peak, strict=True))
    cosine = None if right is None else mean_cosine(_embeddings(timed), right)
    return Figure(
        name=contender.name,
        kind=contender.kind,
        runtime=contender.runtime,
        precision=contender.precision,
        rows_per_second=statistics.median(rows / turn.seconds for turn in turns),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        p50_ms=percentile(calls, 0.5),
        p99_ms=percentile(calls, 0.99),
        calls=len(calls),
        gops=statistics.median(reached) / 1e9,
        peak_share=share,
        cosine=cosine,
        cosine_rows=0 if right is None else len(right),
    )


def mean_cosine(found: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Mean cosine of the rows of two (n, D) arrays; NaN if an embedding is not finite."""
    one, other = found.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.mean((one * other).sum(1) / lengths))


def _embeddings(timed: Timed) -> NDArray[np.float32]:
    """Embeddings of all rounds, in the order of the windows' rows. (rounds * rows, D)."""
    rounds = []
    for turn, calls in zip(timed.turns, timed.rows, strict=True):
        order = [row for rows in calls for row in rows]
        together = np.concatenate(turn.results)
        placed = np.empty_like(together)
        placed[order] = together
        rounds.append(placed)
    return np.concatenate(rounds)
