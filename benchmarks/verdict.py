"""Simulate how often the verdict of `parity` is right, and how often its intervals cover the truth.

Test sets are drawn from populations with a known true change of recall, as margins of a reference
and of a candidate. Four tables:

- estimates: one figure, margins of several distributions, small and large changes. The change is
  estimated by counting flips (`bootstrap_interval`) and by margins (`smoothed_change`). The table
  has the standard deviation, how often the 95% interval covers the truth, and how often it is above
  it (the model loses more than the interval says).
- rates: the populations of `coverage.py`, where queries are won and lost at given rates. Margins
  change much where a query is won or lost, and little elsewhere, like a fault in a few images.
- verdicts: six figures of one test set, and how often the whole passes, fails or is undecided at a
  budget of 0.2 points: by the project's procedure, by Holm's procedure for passing too, and by the
  largest of six statistics (bootstrap) for both.
- real: with --real FOLDER, made by `mwa-export demo`: test sets drawn from float32 and INT8
  embeddings of its model on images that it has not seen.

    python benchmarks/verdict.py
    python benchmarks/verdict.py --real demo --trials 100

Seeded: the same options give the same figures, with any number of processes. Results go to --out
as JSON; the last line of the output is its path.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import coverage
import numpy as np
from numpy.typing import NDArray

from mwa_export.data.test_sets import read_data
from mwa_export.demo.scenes import write_scenes
from mwa_export.encoder.open import open_bundle
from mwa_export.metrics import smoothed
from mwa_export.metrics.ranking import KS
from mwa_export.metrics.recall import Pairs, rank_both
from mwa_export.metrics.significance import bootstrap_interval
from mwa_export.metrics.smoothed import SmoothedChange, ranking_change, smoothed_change
from mwa_export.metrics.verdict import CONFIDENCE, Verdict, verdicts, whole
from mwa_export.runtimes.options import RuntimeOptions

Array = NDArray[np.float64]
BUDGET = 0.2  # points
POPULATION = 2_000_000  # queries from which a true change is computed
SPREAD = 0.7  # spread of the margins, in arbitrary units
OFFSETS = {("tr", 1): 0.05, ("tr", 5): 0.6, ("tr", 10): 0.9, ("ir", 1): -0.1, ("ir", 5): 0.5}
OFFSETS["ir", 10] = 0.8
REAL_PICTURES, REAL_SEED = 6000, 777


class Sides(NamedTuple):
    """Margins of one figure, (n_query,)."""

    before: Array
    after: Array


# --- one figure ------------------------------------------------------------------------------


def _t5(rng: np.random.Generator, n: int) -> Array:
    return SPREAD * rng.standard_t(5, n) + 0.05  # recall near 52%


def _normal(rng: np.random.Generator, n: int) -> Array:
    return SPREAD * rng.standard_normal(n) + 1.4  # recall near 98%


def _gamma(rng: np.random.Generator, n: int) -> Array:
    return rng.gamma(2, 0.3, n) - 0.25  # recall near 80%, and a steep edge


SHAPES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "t5": _t5,
    "normal": _normal,
    "gamma": _gamma,
}
CHANGES: dict[str, tuple[str, float, float]] = {
    # kind of change to the margins, shift, and standard deviation or share
    "noise, 0.02": ("noise", 0.0, 0.02),
    "noise, 0.04": ("noise", 0.0, 0.04),
    "shift, 0.02": ("noise", -0.01, 0.02),
    "shift, 0.04": ("noise", -0.01, 0.04),
    "wide, 0.1": ("noise", 0.0, 0.1),
    "wide, 0.2": ("noise", -0.02, 0.2),
    "heavy tails": ("tails", -0.005, 0.02),
    "some pictures": ("fault", 0.0, 0.005),
    "lost adapter": ("lost", -0.2, 0.4),
}


def change(rng: np.random.Generator, margins: Array, name: str) -> Array:
    """Compute the candidate's margins (n,)."""
    kind, shift, size = CHANGES[name]
    n = len(margins)
    if kind == "noise":  # a little more for right answers, as in real models
        return margins + rng.normal(shift, size, n) * (1 + 0.3 * np.tanh(margins))
    if kind == "tails":
        return margins + shift + size * rng.standard_t(2, n)
    if kind == "lost":
        return 0.5 * margins + rng.normal(shift, size, n)
    broken = rng.random(n) < size
    noise: Array = rng.normal(0, 0.01, n)
    return np.where(broken, rng.normal(-0.8, 0.5, n), margins + noise)


def estimate(shape: str, name: str, images: int, *, trials: int, seed: int) -> dict[str, Any]:
    """Judge both estimates of one figure on test sets with one query per image."""
    streams = [*SHAPES].index(shape), [*CHANGES].index(name)
    rng = np.random.default_rng([seed, *streams, images])
    margins = SHAPES[shape](rng, POPULATION)
    after = change(rng, margins, name)
    truth = 100 * float((after > 0).mean() - (margins > 0).mean())
    found = []
    for _ in range(trials):
        before = SHAPES[shape](rng, images)
        found.append(_both(Sides(before, change(rng, before, name)), np.arange(images), rng))
    case = {"population": shape, "change": name, "images": images, "truth": round(truth, 4)}
    return {**case, **_judged(found, truth)}


def rate(case: coverage.Case, *, trials: int, seed: int) -> dict[str, Any]:
    """Judge both estimates where queries are won and lost at the rates of `coverage.py`."""
    key = [round(1000 * x) for x in (case.won, case.lost, case.correlation)]
    rng = np.random.default_rng([seed, case.images, case.captions, *key])
    owners = np.repeat(np.arange(case.images), case.captions)
    found = [_both(_sides_of(coverage.draw(case, rng), rng), owners, rng) for _ in range(trials)]
    name = f"{case.won:g} % won, {case.lost:g} % lost"
    kind = f"{case.captions} caption{'s' * (case.captions > 1)}"
    kind += ", alike" if case.correlation else ""
    about = {"population": kind, "change": name, "images": case.images, "truth": case.truth}
    return {**about, **_judged(found, case.truth)}


def _sides_of(outcomes: NDArray[np.int64], rng: np.random.Generator) -> Sides:
    """Draw margins with given outcomes: won and lost queries change much, others little."""
    common = rng.standard_t(5, (len(outcomes), 1))
    before = SPREAD * (common + rng.standard_t(5, outcomes.shape)) / 2**0.5 + 0.3
    before = np.where(outcomes == 0, before, -outcomes * np.abs(before))
    little = before + rng.normal(0, 0.003, outcomes.shape)
    little = np.where(np.sign(little) == np.sign(before), little, before)
    much = np.abs(rng.normal(0, 0.5, outcomes.shape))
    return Sides(before.ravel(), np.where(outcomes == 0, little, outcomes * much).ravel())


class _Both(NamedTuple):
    """A change estimated by flips and by margins, with intervals."""

    flips: float
    flips_interval: tuple[float, float]
    margins: float
    margins_interval: tuple[float, float]


def _both(sides: Sides, owners: NDArray[np.int64], rng: np.random.Generator) -> _Both:
    hits = sides.before > 0, sides.after > 0
    gains = np.bincount(owners, hits[1].astype(float) - hits[0]).astype(np.int64)
    sizes = np.bincount(owners)
    found = smoothed_change(sides, hits, owners)
    interval = bootstrap_interval(gains, sizes, confidence=CONFIDENCE, resamples=1000, rng=rng)
    return _Both(100 * gains.sum() / sizes.sum(), interval, found.value, found.interval(CONFIDENCE))


def _judged(found: Sequence[_Both], truth: float) -> dict[str, Any]:
    judged: dict[str, Any] = {}
    for name in ("flips", "margins"):
        values = np.array([getattr(each, name) for each in found])
        low, high = np.array([getattr(each, f"{name}_interval") for each in found]).T
        above, below = low > truth + 1e-9, high < truth - 1e-9
        judged[name] = {
            "bias": round(float(values.mean() - truth), 4),
            "deviation": round(float(values.std()), 4),
            "width": round(float((high - low).mean()), 4),
            "covered": round(100 * float((~above & ~below).mean()), 1),
            "above": round(100 * float(above.mean()), 1),
        }
    return judged


# --- six figures -----------------------------------------------------------------------------


class Six(NamedTuple):
    """A test set: images, captions per image, and how the margins change."""

    images: int
    captions: int
    noise: float
    loss: float  # loss of the worst figure in points


def six_sides(case: Six, shift: float, rng: np.random.Generator) -> dict[Any, Sides]:
    """Draw margins of the six figures, correlated within an image and within a query."""
    found: dict[Any, Sides] = {}
    images = case.images
    common = rng.standard_t(5, (images, 1))
    for direction, count in (("tr", 1), ("ir", case.captions)):
        own = SPREAD * (common + rng.standard_t(5, (images, count))) / 2**0.5
        moved = rng.normal(0, case.noise, (images, count))
        for k in KS:
            before = own + OFFSETS[direction, k] + 0.1 * rng.standard_normal(own.shape)
            little = moved + 0.3 * rng.normal(0, case.noise, own.shape) + shift
            after = before + little * (1 + 0.3 * np.tanh(before))
            found[direction, k] = Sides(before.ravel(), after.ravel())
    return found


def six(case: Six, *, trials: int, seed: int) -> dict[str, Any]:
    """Count verdicts on test sets of one population."""
    rng = np.random.default_rng(
        [seed, case.images, case.captions, round(1e4 * case.noise), round(1e4 * case.loss)]
    )
    shift, worst = _planted(case._replace(images=POPULATION // case.captions))
    said: dict[str, list[Verdict]] = {"ours": [], "holm": [], "largest": []}
    for _ in range(trials):
        sides = six_sides(case, shift, rng)
        changes, rests = [], []
        for each in sides.values():
            owners = np.repeat(np.arange(case.images), len(each.before) // case.images)
            changes.append(smoothed_change(each, (each.before > 0, each.after > 0), owners))
            rests.append(_contributions(each, changes[-1], owners))
        said["ours"].append(whole(verdicts(changes, BUDGET)))
        said["holm"].append(_by_holm(changes))
        said["largest"].append(_by_largest(changes, np.stack(rests), rng))
    share = {
        name: {v: round(100 * found.count(v) / trials, 1) for v in ("passes", "fails", "undecided")}
        for name, found in said.items()
    }
    return {**case._asdict(), "worst true change": round(worst, 3), "verdicts": share}


@cache
def _planted(population: Six) -> tuple[float, float]:
    """Find the shift of margins that gives the worst figure the requested loss. Returns both."""

    def worst(shift: float) -> float:
        sides = six_sides(population, shift, np.random.default_rng(1))
        return min(
            100 * float((s.after > 0).mean() - (s.before > 0).mean()) for s in sides.values()
        )

    low, high = -0.5, 0.5
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if worst(middle) < -population.loss else (low, middle)
    return high, worst(high)


def _contributions(sides: Sides, change: SmoothedChange, owners: NDArray[np.int64]) -> Array:
    flips = (sides.after > 0).astype(float) - (sides.before > 0)
    values = flips
    if change.width:
        values = smoothed._smooth_flips(sides.before, sides.after, flips, change.width)[0]
    return smoothed._mean(values, owners, np.bincount(owners))[1]


def _by_holm(changes: Sequence[SmoothedChange]) -> Verdict:
    """Use Holm's procedure for passing as well, so that each figure's verdict holds separately."""
    level = (1 - CONFIDENCE) / 2
    sigmas = sorted((change.sigmas_above(-BUDGET) for change in changes), reverse=True)
    needed = [NormalDist().inv_cdf(1 - level / (len(sigmas) - i)) for i in range(len(sigmas))]
    if all(s >= n for s, n in zip(sigmas, needed, strict=True)):
        return "passes"
    return "fails" if "fails" in verdicts(changes, BUDGET) else "undecided"


def _by_largest(
    changes: Sequence[SmoothedChange], rests: Array, rng: np.random.Generator
) -> Verdict:
    """Use simultaneous intervals from the largest of six statistics, by multiplier bootstrap."""
    scaled = rests / np.sqrt((rests**2).sum(axis=1, keepdims=True))
    drawn = rng.standard_normal((400, rests.shape[1])) @ scaled.T
    reach = float(np.quantile(drawn.max(axis=1), 1 - (1 - CONFIDENCE) / 2))
    sigmas = [change.sigmas_above(-BUDGET) for change in changes]
    if min(sigmas) >= reach:
        return "passes"
    return "fails" if min(sigmas) <= -reach else "undecided"


# --- real embeddings -------------------------------------------------------------------------


def real(demo: Path, images: int, *, trials: int, seed: int) -> list[dict[str, Any]]:
    """Judge both estimates on images drawn from the demo's population, searched in all of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_scenes(
            Path(folder) / "data", family="target", count=REAL_PICTURES, seed=REAL_SEED
        )
        data = read_data(file)
        rankings = []
        pairs = Pairs(data.image_ids, data.caption_image_ids)
        for precision in ("float32", "int8"):
            how = RuntimeOptions("onnxruntime", precision, allow_slow=True)
            encoder = open_bundle(demo / "bundle", runtime=how)
            pictures, _ = encoder.embed_pictures(data.pictures)
            rankings.append(rank_both(pictures, encoder.embed_captions(data.captions), pairs))
    rng = np.random.default_rng([seed, images])
    owners = {"tr": np.arange(REAL_PICTURES), "ir": pairs.rows()}
    found: list[dict[str, Any]] = []
    for direction, old, new in zip(("tr", "ir"), *rankings, strict=True):
        whole_set = owners[direction]
        for column, k in enumerate(KS):
            sides = Sides(*(r.margins[:, column].astype(float) for r in (old, new)))
            truth = new.recall(k) - old.recall(k)
            drawn = []
            for _ in range(trials):
                rows = np.sort(rng.choice(REAL_PICTURES, images, replace=False))
                kept = np.isin(whole_set, rows)
                part = Sides(sides.before[kept], sides.after[kept])
                drawn.append(_both(part, np.searchsorted(rows, whole_set[kept]), rng))
            about = {"population": f"{direction.upper()}@{k}", "change": "demo's INT8"}
            all_of_it = ranking_change(old, new, k, whole_set).value
            truths = {"truth": round(truth, 4), "by margins on all": round(all_of_it, 4)}
            found.append({**about, "images": images, **truths, **_judged(drawn, truth)})
    return found


# --- run -------------------------------------------------------------------------------------


def main() -> None:
    options = parse()
    started = time.perf_counter()
    how = {"trials": options.trials, "seed": options.seed}
    report: dict[str, Any] = {
        "machine": coverage.machine(),
        "options": how | {"images": options.images},
    }
    with ProcessPoolExecutor(options.processes) as pool:
        one = [(s, c, n) for s in SHAPES for c in CHANGES for n in options.images]
        report["estimates"] = list(pool.map(partial(estimate, **how), *zip(*one, strict=True)))
        print(table(report["estimates"]), file=sys.stderr, flush=True)
        report["rates"] = list(pool.map(partial(rate, **how), coverage.grid(options.images)))
        print(table(report["rates"]), file=sys.stderr, flush=True)
        cases = [
            Six(images, 5, noise, loss)
            for images in options.images
            for noise in (0.02, 0.04, 0.1)
            for loss in (0.0, 0.2, 0.5, 1.0)
        ]
        report["verdicts"] = list(pool.map(partial(six, **how), cases))
    if options.real:
        report["real"] = real(options.real, 500, **how)
    for name in ("estimates", "rates", "real"):
        if name in report:
            print(f"\n{name}\n\n{table(report[name])}\n{summary(report[name])}")
    print(f"\nverdicts\n\n{verdict_table(report['verdicts'])}")
    report["seconds"] = round(time.perf_counter() - started, 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=300, help="test sets drawn per case")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 500, 1000, 5000])
    parser.add_argument("--real", type=Path, help="a folder made by `mwa-export demo`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/verdict.json"))
    options = parser.parse_args()
    if min(options.trials, options.processes, *options.images) < 1:
        parser.error("expected positive numbers")
    return options


def table(results: Sequence[dict[str, Any]]) -> str:
    head = [
        "margins",
        "change",
        "images",
        "true change",
        "deviation, flips",
        "margins",
        "covers, %",
    ]
    head += ["margins", "above, %", "margins"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for row in results:
        cells = [row["population"], row["change"], f"{row['images']:,}", f"{row['truth']:+.2f}"]
        for figure in ("deviation", "covered", "above"):
            digits = 3 if figure == "deviation" else 1
            cells += [f"{row[name][figure]:.{digits}f}" for name in ("flips", "margins")]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in ("flips", "margins"):
        covered = [row[name]["covered"] for row in results]
        above = [row[name]["above"] for row in results]
        few = sum(c < 90 for c in covered)
        lines.append(
            f"{name}: covers {np.mean(covered):.1f} % on average, {min(covered):.1f} % at worst, "
            f"below 90 % in {few} of {len(covered)}; above the truth in {max(above):.1f} % at worst"
        )
    ratios = [row["flips"]["deviation"] / row["margins"]["deviation"] for row in results]
    lines.append(f"deviation, flips over margins: median {np.median(ratios):.2f}")
    return "\n".join(lines)


def verdict_table(results: Sequence[dict[str, Any]]) -> str:
    head = ["images", "noise", "worst true change", "passes, %", "fails", "undecided"]
    head += ["Holm both ways: passes", "largest of six: passes", "fails"]
    lines = [head, ["---:"] * len(head)]
    for row in results:
        said = row["verdicts"]
        cells = [f"{row['images']:,}", f"{row['noise']:g}", f"{row['worst true change']:+.2f}"]
        cells += [f"{said['ours'][v]:.1f}" for v in ("passes", "fails", "undecided")]
        cells += [f"{said['holm']['passes']:.1f}", f"{said['largest']['passes']:.1f}"]
        lines.append([*cells, f"{said['largest']['fails']:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
