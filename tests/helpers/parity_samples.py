"""Plausible parity results without a model: ranks are drawn, and all else follows from them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.test_set import Excluded
from mwa_export.encoder.encoder import EncoderInfo
from mwa_export.metrics.agreement import CosineSummary
from mwa_export.metrics.smoothed import SmoothedChange
from mwa_export.metrics.verdict import whole
from mwa_export.parity.gates import Gates, check_gates, pictures_for_verdict
from mwa_export.parity.result import (
    Cost,
    CrossCell,
    DataInfo,
    Direction,
    DirectionResult,
    Example,
    LayerSnr,
    Margins,
    Parity,
    RecallChange,
    Stage,
    Which,
)
from mwa_export.spec import Tower

KS = (1, 5, 10)
LIMIT = 0.2
GATES = Gates(LIMIT, 0.9)
Ranks = NDArray[np.int64]
HOSTILE = (
    "<script>alert('caption')</script> & a \"quoted\" dog",
    "قطة صغيرة تجلس على السجادة الحمراء 123",
    "\N{DOG FACE}\N{SKATEBOARD} two dogs & one 'skateboard' \N{RIGHT-TO-LEFT OVERRIDE}desrever",
    "w" * 400,
)
HOSTILE_PICTURE = '"><img src=x onerror=alert(1)>.jpg'
PLAIN = (
    "three red circles above a blue square",
    "a man in a yellow jacket is repairing a bicycle in front of a closed shop",
    "two children",
    "a train crosses a stone bridge while a river runs below it",
)


def sample_parity(
    queries: int, *, seed: int = 0, damaged: bool = True, layers: bool = True, examples: int = 12
) -> Parity:
    """A result with that many captions; without damage it is what a good export gives."""
    rng = np.random.default_rng(seed)
    per_image = 5 if queries >= 50 else 1
    images = queries // per_image
    noise = 0.25 if damaged else 0.0004
    sizes: dict[Direction, tuple[int, int, int]] = {
        "tr": (images, queries, 1),
        "ir": (queries, images, per_image),
    }
    ranks = {name: _ranks(rng, *sizes[name][:2], noise) for name in sizes}
    directions = tuple(_direction(rng, name, *sizes[name], noise, *ranks[name]) for name in sizes)
    if damaged:
        directions = tuple(_with_float32(d) for d in directions)
    cosines = (_cosine(rng, "vision", images, damaged), _cosine(rng, "text", queries, damaged))
    gates = check_gates(GATES, 0.95, directions, cosines)
    return Parity(
        verdict=whole(gate.verdict for gate in gates),
        objection=None,
        pictures=pictures_for_verdict(gates),
        reference=EncoderInfo(
            "checkpoint-29.pth on PyTorch float32",
            "checkpoint-29.pth",
            "PyTorch 2.13.0",
            "float32",
            "9f2c" * 16,
        ),
        candidate=EncoderInfo(
            "bundle <b>int8</b>" if damaged else "bundle on ONNX Runtime float32",
            "runs/2024-11-24/mwa-base-retrieval/bundle",
            "ONNX Runtime 1.32.0",
            "vision int8, text float32" if damaged else "float32",
            "9f2c" * 16,
        ),
        data=_data(images, queries, per_image, damaged),
        confidence=0.95,
        resamples=2000,
        seed=seed,
        gates=gates,
        directions=directions,
        cosines=cosines,
        cross=_cross(directions, damaged),
        stages=_stages(directions, cosines, damaged),
        layers=_layers(rng, damaged) if layers else (),
        costs=_costs(damaged),
        examples=_examples(rng, ranks, per_image, examples, 1),
        improved=_examples(rng, ranks, per_image, examples, -1),
        cut_captions=None,
        warnings=("The candidate was calibrated on 64 pictures; 512 are usual.",)
        if damaged
        else (),
        created="2024-11-24T02:12:00Z",
        version="0.1.0",
    )


def _with_float32(direction: DirectionResult) -> DirectionResult:
    recalls = tuple(replace(r, float32=r.reference) for r in direction.recalls)
    return replace(direction, recalls=recalls)


def identical_parity(queries: int) -> Parity:
    """Both sides are the same vectors."""
    result = sample_parity(queries, damaged=False)
    directions = tuple(
        replace(
            d,
            recalls=tuple(_unchanged(r) for r in d.recalls),
            mean_rank=(d.mean_rank[0],) * 2,
            median_rank=(d.median_rank[0],) * 2,
            changed_ranks=0,
            overlap=1.0,
            margins=Margins(0, None, None, d.margins.all_median),
        )
        for d in result.directions
    )
    cosines = tuple(
        replace(
            c,
            identical=c.rows,
            mean=1.0,
            percentile_1=1.0,
            minimum=1.0,
            minimum_row=0,
            counts=(c.rows,) + (0,) * (len(c.counts) - 1),
        )
        for c in result.cosines
    )
    return replace(
        result,
        directions=directions,
        cosines=cosines,
        cross=_cross(directions, False),
        stages=_stages(directions, cosines, False),
        gates=check_gates(GATES, 0.95, directions, cosines),
        examples=(),
        improved=(),
        layers=tuple(replace(layer, snr_db=None) for layer in result.layers),
        verdict="passes",
    )


def without_gates(result: Parity) -> Parity:
    """The same result, with nothing to pass or fail."""
    return replace(result, gates=(), verdict="passes", pictures=None)


def undecided_parity(queries: int) -> Parity:
    """A result whose intervals are too wide for a verdict."""
    result = sample_parity(queries, damaged=False)
    directions = tuple(
        replace(d, recalls=tuple(_blurred(r) for r in d.recalls)) for d in result.directions
    )
    gates = check_gates(GATES, result.confidence, directions, result.cosines)
    return replace(
        result,
        directions=directions,
        gates=gates,
        verdict=whole(gate.verdict for gate in gates),
        pictures=pictures_for_verdict(gates),
    )


def _blurred(change: RecallChange) -> RecallChange:
    smoothed = replace(change.smoothed, value=0.05, error=0.4, noise=32.0)
    return replace(change, smoothed=smoothed, smoothed_low=-0.74, smoothed_high=0.84)


def _unchanged(change: RecallChange) -> RecallChange:
    return replace(
        change,
        candidate=change.reference,
        smoothed=_smoothed(0.0, 0.0, 0.0),
        difference=0.0,
        low=0.0,
        high=0.0,
        smoothed_low=0.0,
        smoothed_high=0.0,
        won=0,
        lost=0,
        p_value=1.0,
    )


def _smoothed(difference: float, low: float, high: float) -> SmoothedChange:
    """An estimate from margins that is surer than the count of flips."""
    error = (high - low) / 12 + 0.01
    return SmoothedChange(
        0.9 * difference, error, 200.0, 0.05, difference, 4 * error, 0.3, 1.0, 0.0
    )


def _costs(damaged: bool) -> tuple[Cost, ...]:
    reduced = (Cost("float32", 905_000_000, 21.4, 3.1),) if damaged else ()
    size = 236_000_000 if damaged else 905_000_000
    return (
        Cost("reference", 890_000_000, None if damaged else 44.0, None if damaged else 9.0),
        *reduced,
        Cost("candidate", size, 9.2, 1.4),
    )


def _ranks(rng: np.random.Generator, count: int, gallery: int, noise: float) -> tuple[Ranks, Ranks]:
    hardness = rng.gamma(1.0, 1.4, count) - 0.5
    moved = hardness + noise * rng.normal(0.15, 1.0, count)
    before, after = (np.exp(h).astype(np.int64) for h in (hardness, moved))
    return np.clip(before, 1, gallery), np.clip(after, 1, gallery)


def _direction(
    rng: np.random.Generator,
    name: Direction,
    count: int,
    gallery: int,
    group: int,
    noise: float,
    before: Ranks,
    after: Ranks,
) -> DirectionResult:
    margins = np.abs(rng.normal(0.06, 0.04, count))
    flipped = (before == 1) != (after == 1)
    margins[flipped] *= 0.3
    found = margins[flipped]
    return DirectionResult(
        direction=name,
        queries=count,
        gallery=gallery,
        recalls=tuple(_change(rng, before, after, k, group) for k in KS),
        mean_rank=(float(before.mean()), float(after.mean())),
        median_rank=(float(np.median(before)), float(np.median(after))),
        changed_ranks=int((before != after).sum()),
        overlap=max(0.0, 1.0 - noise * 0.7),
        margins=Margins(
            int(flipped.sum()),
            float(np.median(found)) if len(found) else None,
            float(found.max()) if len(found) else None,
            float(np.median(margins)),
        ),
    )


def _change(
    rng: np.random.Generator, before: Ranks, after: Ranks, k: int, group: int
) -> RecallChange:
    hit, kept = before <= k, after <= k
    won, lost = int((kept & ~hit).sum()), int((hit & ~kept).sum())
    delta = (kept.astype(float) - hit).reshape(-1, group).mean(1)
    draws = rng.multinomial(len(delta), np.full(len(delta), 1 / len(delta)), 200)
    low, high = np.percentile(draws @ delta / len(delta) * 100, [2.5, 97.5])
    smoothed = _smoothed((won - lost) / len(hit) * 100, float(low), float(high))
    smoothed_low, smoothed_high = smoothed.interval(0.95)
    return RecallChange(
        k=k,
        reference=float(hit.mean() * 100),
        candidate=float(kept.mean() * 100),
        difference=(won - lost) / len(hit) * 100,
        low=float(low),
        high=float(high),
        smoothed=smoothed,
        smoothed_low=smoothed_low,
        smoothed_high=smoothed_high,
        won=won,
        lost=lost,
        p_value=_mcnemar(won, lost),
    )


def _mcnemar(won: int, lost: int) -> float:
    tail = sum(math.comb(won + lost, i) for i in range(min(won, lost) + 1))
    ways: int = 2 ** (won + lost)
    return min(1.0, 2 * tail / ways)


def _cosine(rng: np.random.Generator, tower: Tower, rows: int, damaged: bool) -> CosineSummary:
    size = 10 ** rng.normal(-2.2 if damaged and tower == "vision" else -7.6, 0.35, rows)
    size[size < 3e-9] = 0.0
    edges = (0.0, *(10 ** (e / 4) for e in range(-36, 2)), 2.0)
    counts, _ = np.histogram(size, edges)
    return CosineSummary(
        tower=tower,
        rows=rows,
        identical=int((size == 0).sum()),
        mean=float(1 - size.mean()),
        percentile_1=float(1 - np.percentile(size, 99)),
        minimum=float(1 - size.max()),
        minimum_row=int(size.argmax()),
        edges=edges,
        counts=tuple(int(n) for n in counts),
    )


def _cross(directions: tuple[DirectionResult, ...], damaged: bool) -> tuple[CrossCell, ...]:
    sides: tuple[Which, Which] = ("reference", "candidate")
    tr, ir = ([(r.reference, r.candidate) for r in d.recalls] for d in directions)
    cells = []
    for i, images in enumerate(sides):
        for j, texts in enumerate(sides):
            steps = [100 / d.queries * math.ceil(0.009 * d.queries) for d in directions]
            losses = steps if damaged and i != j else [0.0, 0.0]
            cells.append(
                CrossCell(
                    images,
                    texts,
                    tuple(max(pair[i & j] - losses[0], 0.0) for pair in tr),
                    tuple(max(pair[i & j] - losses[1], 0.0) for pair in ir),
                )
            )
    return tuple(cells)


def _stages(
    directions: tuple[DirectionResult, ...], cosines: tuple[CosineSummary, ...], damaged: bool
) -> tuple[Stage, ...]:
    drops = [d.recalls[0].difference for d in directions]
    graph = Stage(
        "graph",
        "changed",
        "Both towers, float32, the same inputs.",
        1 - 2.1e-8,
        1 - 1.7e-8,
        0.0,
        0.0,
    )
    if not damaged:
        same = cosines[0].identical == cosines[0].rows
        last = Stage("precision", "not measured", "Both sides run in float32.")
        graph = Stage("graph", "same", "Bit by bit.") if same else graph
    else:
        last = Stage(
            "precision", "changed", "The vision tower runs in int8.", cosines[0].mean, None, *drops
        )
    return (
        Stage("tokenizer", "same", "The same ids for all captions."),
        Stage("preprocessing", "same", "The same pixels for all pictures."),
        graph,
        last,
    )


def _layers(rng: np.random.Generator, damaged: bool) -> tuple[LayerSnr, ...]:
    found = []
    for tower in ("vision", "text"):
        level = 62.0 if damaged and tower == "vision" else 128.0
        found.append(LayerSnr(tower, "embedding", None))
        for block in range(12):
            level -= abs(rng.normal(1.2, 0.8)) + (13.0 if tower == "vision" and block == 7 else 0)
            value = None if tower == "text" and block < 2 else level
            found.append(LayerSnr(tower, f"block {block}", value))
    return tuple(found)


def _examples(
    rng: np.random.Generator,
    ranks: dict[Direction, tuple[Ranks, Ranks]],
    group: int,
    most: int,
    sign: int,
) -> tuple[Example, ...]:
    """Queries whose rank rose (sign 1) or fell (-1), those that moved furthest first."""
    moved = [
        (float((after[row] / before[row]) ** sign), name, int(row))
        for name, (before, after) in ranks.items()
        for row in np.flatnonzero(sign * (after - before) > 0)
    ]
    found = []
    captions = HOSTILE + PLAIN
    for i, (_, name, row) in enumerate(sorted(moved, reverse=True)[:most]):
        image = row if name == "tr" else row // group
        winner = (image + int(rng.integers(1, len(ranks["tr"][0])))) % len(ranks["tr"][0])
        found.append(
            Example(
                direction=name,
                query=row,
                rank_before=int(ranks[name][0][row]),
                rank_after=int(ranks[name][1][row]),
                image=image,
                caption=captions[i % 8],
                winner_image=winner,
                winner_caption=captions[(i + 5) % 8],
                picture=HOSTILE_PICTURE if i == 1 else f"COCO_val2014_{image:012d}.jpg",
                winner_picture=f"COCO_val2014_{winner:012d}.jpg",
            )
        )
    return tuple(found)


def _data(images: int, captions: int, per_image: int, damaged: bool) -> DataInfo:
    excluded = (
        Excluded("<broken> & co.jpg", "it cannot be decoded (truncated file)", per_image),
        Excluded("COCO_val2014_000000000042.jpg", "the file is missing", per_image),
    )
    return DataInfo(
        name="COCO 5k <test>" if damaged else "COCO 5k",
        images=images,
        captions=captions,
        fewest_captions=per_image,
        most_captions=per_image,
        repeated_captions=captions // 60,
        excluded=excluded if damaged else (),
    )
