"""Simulate how often the interval of a recall difference covers the true difference.

Each trial draws a test set: every caption is a query that is won, lost or unchanged with known
probabilities, either independently or correlated within an image. Three intervals are computed:
ours (`bootstrap_interval` of `mwa_export.metrics.significance`: images are resampled, one query won
and one lost are added), the plain percentile bootstrap of images without the added queries, and
ours with captions resampled instead of images. A good interval covers the truth in 95% of the
trials, and its lower bound, which a gate may use, is above the truth in 2.5%.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --trials 200 --images 100 500

Seeded: the same options give the same figures, with any number of processes. Results go to --out
as JSON; the last line of the output is its path.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name
from numpy.typing import NDArray

from mwa_export.metrics.significance import bootstrap_interval

CONFIDENCE = 0.95
CAPTIONS = (1, 5)  # per image
RATES = ((0.05, 0.1), (0.2, 0.4), (1.0, 2.0), (3.0, 3.0), (0.0, 2.0))  # percent won, lost
CORRELATION = 0.5  # between captions of an image, in the correlated cases
ROUNDING = 1e-9  # points: bound and truth are often equal, as multiples of one query

Ints = NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Case:
    """A population from which test sets are drawn."""

    images: int
    captions: int  # per image
    won: float  # percent of the queries
    lost: float
    correlation: float  # between outcomes of two captions of an image

    @property
    def truth(self) -> float:
        """The true difference, in points."""
        return self.won - self.lost


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of one method's intervals in one case, in percent of the trials."""

    covered: float
    above: float  # lower bound above the truth: a gate on it would pass a bad model
    below: float  # upper bound below the truth
    width: float  # mean, points


def main() -> None:
    options = parse()
    cases = grid(options.images)
    started = time.perf_counter()
    results = []
    simulate_one = partial(
        simulate, trials=options.trials, resamples=options.resamples, seed=options.seed
    )
    with ProcessPoolExecutor(options.processes) as pool:
        for case, result in zip(cases, pool.map(simulate_one, cases), strict=True):
            results.append(result)
            note = f"{len(results)} of {len(cases)}, {time.perf_counter() - started:.0f} s: {case}"
            print(note, file=sys.stderr, flush=True)
    print(table(results))
    print(summary(results, options.trials))
    report = {
        "machine": machine(),
        "options": {
            "trials": options.trials,
            "resamples": options.resamples,
            "seed": options.seed,
            "confidence": CONFIDENCE,
        },
        "seconds": round(time.perf_counter() - started, 1),
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000, help="test sets drawn per case")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap samples per set")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 500, 1000, 5000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.json"))
    options = parser.parse_args()
    if min(options.trials, options.resamples, options.processes, *options.images) < 1:
        parser.error("expected positive numbers")
    options.images = list(dict.fromkeys(options.images))
    return options


def grid(images: list[int]) -> list[Case]:
    """Return every combination, but correlation only with several captions per image."""
    return [
        Case(number, captions, won, lost, correlation)
        for number, captions, correlation, (won, lost) in itertools.product(
            images, CAPTIONS, (0.0, CORRELATION), RATES
        )
        if captions > 1 or not correlation
    ]


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


# --- simulation ------------------------------------------------------------------------------


def simulate(case: Case, *, trials: int, resamples: int, seed: int) -> dict[str, Any]:
    """Draw test sets and measure the coverage of each method's intervals."""
    # Random streams depend only on the case, so other cases do not change its figures.
    key = [seed, case.images, case.captions, round(1000 * case.won), round(1000 * case.lost)]
    key.append(round(1000 * case.correlation))
    rng, bootstrap = (np.random.default_rng([*key, stream]) for stream in range(2))
    intervals: dict[str, list[Interval]] = {name: [] for name in methods(case)}
    unchanged = 0
    for _ in range(trials):
        outcomes = draw(case, rng)
        unchanged += not outcomes.any()
        for name, made in intervals.items():
            made.append(METHODS[name](outcomes, resamples, bootstrap))
    return {
        **asdict(case),
        "truth": round(case.truth, 6),
        "trials_without_change": 100 * unchanged / trials,
        "methods": {name: asdict(judge(made, case.truth)) for name, made in intervals.items()},
    }


def draw(case: Case, rng: np.random.Generator) -> Ints:
    """Draw outcomes (images, captions): 1 for won, -1 for lost, 0 for unchanged.

    With correlation, each caption takes the outcome of its image with probability
    sqrt(correlation), and an independent one otherwise. This keeps the rates and gives two captions
    of an image the requested correlation.
    """
    shape = case.images, case.captions
    own = _outcomes(case, shape, rng)
    if not case.correlation:
        return own
    common = _outcomes(case, (case.images, 1), rng)
    return np.where(rng.random(shape) < case.correlation**0.5, common, own)


def _outcomes(case: Case, shape: tuple[int, int], rng: np.random.Generator) -> Ints:
    drawn = 100 * rng.random(shape)
    won, lost = drawn < case.won, drawn >= 100 - case.lost
    return won.astype(np.int64) - lost


def judge(intervals: list[Interval], truth: float) -> Coverage:
    low, high = np.array(intervals).T
    above, below = low > truth + ROUNDING, high < truth - ROUNDING
    return Coverage(
        covered=100 * float((~above & ~below).mean()),
        above=100 * float(above.mean()),
        below=100 * float(below.mean()),
        width=float((high - low).mean()),
    )


# --- methods ---------------------------------------------------------------------------------
# Each takes outcomes (images, captions), the number of resamples and a generator, and returns an
# interval in points.

Method = Callable[[Ints, int, np.random.Generator], Interval]


def ours(outcomes: Ints, resamples: int, rng: np.random.Generator) -> Interval:
    sizes = np.full(len(outcomes), outcomes.shape[1])
    return bootstrap_interval(
        outcomes.sum(axis=1), sizes, confidence=CONFIDENCE, resamples=resamples, rng=rng
    )


def plain(outcomes: Ints, resamples: int, rng: np.random.Generator) -> Interval:
    """Percentile bootstrap of images, without added queries."""
    gains, counts = np.unique(outcomes.sum(axis=1), return_counts=True)
    drawn = rng.multinomial(len(outcomes), counts / len(outcomes), size=resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(100.0 * (drawn @ gains) / outcomes.size, [tail, 1 - tail])
    return float(low), float(high)


def of_captions(outcomes: Ints, resamples: int, rng: np.random.Generator) -> Interval:
    """Our interval, treating every caption as a separate image."""
    return ours(outcomes.reshape(-1, 1), resamples, rng)


METHODS: dict[str, Method] = {"ours": ours, "plain": plain, "captions": of_captions}


def methods(case: Case) -> list[str]:
    """Return the methods to run; with one caption per image, "captions" equals "ours"."""
    return [name for name in METHODS if name != "captions" or case.captions > 1]


# --- results ---------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> str:
    head = ["images", "captions", "alike", "won / lost %"]
    head += [f"{name} {figure}" for name in METHODS for figure in ("covers %", "above %", "width")]
    lines = [" | ".join(head), " | ".join(["---:"] * len(head))]
    for row in results:
        cells = [f"{row['images']:,}", str(row["captions"]), "yes" if row["correlation"] else "no"]
        cells.append(f"{row['won']:g} / {row['lost']:g}")
        for name in METHODS:
            if name in row["methods"]:
                found = row["methods"][name]
                cells += [f"{found['covered']:.1f}", f"{found['above']:.1f}"]
                cells.append(f"{found['width']:.3f}")
            else:
                cells += [""] * 3
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def summary(results: list[dict[str, Any]], trials: int) -> str:
    """Summarize the worst case of each method."""
    error = 100 * (CONFIDENCE * (1 - CONFIDENCE) / trials) ** 0.5
    lines = [f"By chance alone, coverage at {100 * CONFIDENCE:g} % varies by {error:.1f} points."]
    for name in METHODS:
        found = [row["methods"][name] for row in results if name in row["methods"]]
        worst = min(each["covered"] for each in found)
        above = max(each["above"] for each in found)
        low = sum(each["covered"] < 100 * CONFIDENCE - 3 * error for each in found)
        lines.append(
            f"{name}: covers {worst:.1f} % at worst, too rarely in {low} of {len(found)} cases; "
            f"lower bound above the truth in {above:.1f} % at worst"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
