"""Sentences about the verdict and the figures, shared by all reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from mwa_export.metrics.recall import SLACK
from mwa_export.parity.result import (
    DIRECTION_NAMES,
    DirectionResult,
    Example,
    GateResult,
    Parity,
    RecallChange,
    Stage,
)
from mwa_export.report.numbers import (
    DASH,
    cosine,
    counted,
    estimate,
    finite,
    points,
    small,
)
from mwa_export.spec import TOWERS, Tower

CHANGE = " change"  # suffix of the name of a recall gate
COIN_TOSS, DAMAGE = 0.25, 0.5  # median margin of flipped queries / median margin of all
FEW = 5  # fewer flipped queries than this are too few to judge


def figures(result: Parity) -> list[tuple[str, int, RecallChange]]:
    """Return name ("TR@1"), number of queries and change of every recall figure."""
    return [
        (f"{d.direction.upper()}@{change.k}", d.queries, change)
        for d in result.directions
        for change in d.recalls
    ]


def has_float32(result: Parity) -> bool:
    """Whether the candidate's recall in float32, before quantization, is known too."""
    return all(change.float32 is not None for *_, change in figures(result))


def headline(result: Parity) -> str:
    """The verdict in one sentence."""
    limits = drop_limits(result)
    if not result.gates:
        return "No verdict: no gate was set"
    if result.verdict == "fails":
        return f"Fails: {worst.message.rstrip('. ')}" if (worst := _worst(result)) else "Fails"
    smallest = min(limits.values(), default=0)
    limit = f"{smallest:g} point{'' if smallest == 1 else 's'}"
    if result.verdict == "undecided" and result.objection:
        return f"Undecided: {result.objection}"
    if result.verdict == "undecided":
        said = f"{counted(result.data.images, 'image')} cannot show whether recall drops by more"
        more = f"; about {result.pictures:,} probably could" if result.pictures else ""
        return f"Undecided: {said} than {limit}{more}"
    return f"Passes: no recall figure drops by more than {limit}" if limits else _ALL_HOLD


_ALL_HOLD = "Passes: every gate passes"


def not_passed(result: Parity) -> str:
    """The gates that fail besides the one in the headline, and those that are undecided."""
    worst, said = _worst(result), []
    for verdict, words in (("fails", "Also failed"), ("undecided", "Undecided")):
        left = [gate for gate in result.gates if gate.verdict == verdict and gate is not worst]
        names = [gate.name.removesuffix(CHANGE) for gate in left]
        said += [f"{words}: {_list(names)}."] if names else []
    return " ".join(said)


def is_identical(result: Parity) -> bool:
    """Whether the embeddings of the two sides are bit-identical."""
    return bool(result.cosines) and all(c.identical == c.rows for c in result.cosines)


def by_change(examples: Iterable[Example]) -> list[Example]:
    """Sort examples of both directions by the factor that their rank changed, largest first."""
    return sorted(examples, key=lambda e: -abs(math.log(e.rank_after / e.rank_before)))


def left_out(result: Parity) -> str:
    """Sentence on images that were excluded from the test set; empty if there are none."""
    excluded = result.data.excluded
    if not excluded:
        return ""
    captions = counted(sum(item.captions for item in excluded), "caption")
    were = "was" if len(excluded) == 1 else "were"
    return f"{counted(len(excluded), 'image')} {were} left out, with {captions}"


def certain_changes(result: Parity) -> str:
    """Sentence on the changes whose interval excludes zero."""
    changed = [name for name, _, r in figures(result) if r.smoothed_low > 0 or r.smoothed_high < 0]
    if all(r.won == r.lost == 0 for *_, r in figures(result)):
        return "No query was won or lost."
    if not changed:
        return "Every interval contains zero: the changes may be due to chance."
    if len(changed) == 1:
        return f"The interval of {changed[0]} excludes zero: the change is unlikely to be chance."
    return (
        f"The intervals of {_list(changed)} exclude zero: these changes are unlikely to be chance."
    )


def stage_sentence(stages: tuple[Stage, ...]) -> str:
    """Sentence on the stage that loses most recall at rank 1."""
    measured = [(min(n), s) for s in stages if (n := finite([s.tr1, s.ir1]))]
    if not measured:
        return ""
    loss, worst = min(measured, key=lambda pair: pair[0])
    if loss >= 0:
        return "No measured stage loses recall at rank 1."
    return (
        f"The most costly stage is {worst.name}: TR@1 {points(worst.tr1)}, "
        f"IR@1 {points(worst.ir1)} points."
    )


def layer_sentences(result: Parity) -> list[str]:
    """Sentences on the layer that adds most noise, and where noise starts in each tower."""
    found, falls = list[str](), list[tuple[float, str]]()
    for tower in TOWERS:
        layers = [layer for layer in result.layers if layer.tower == tower]
        noisy = [layer for layer in layers if layer.snr_db is not None]
        if layers and not noisy:
            found.append(f"There is no noise in the {tower} tower.")
        elif noisy and noisy[0] is not layers[0]:
            start = noisy[0]
            found.append(f"In the {tower} tower, noise starts at {start.layer}.")
        for a, b in pairwise(layers):
            if a.snr_db is not None and b.snr_db is not None and a.snr_db > b.snr_db:
                where = f"{tower} {b.layer}, from {a.snr_db:.1f} to {b.snr_db:.1f} dB"
                falls.append((a.snr_db - b.snr_db, where))
    worst = [f"The largest drop is at {max(falls)[1]}."] if falls else []
    return worst + found


def layer_rows(result: Parity) -> list[tuple[str, list[str]]]:
    """Every layer with its signal-to-noise ratio in both towers, as text."""
    found = {(layer.tower, layer.layer): layer.snr_db for layer in result.layers}

    def cell(tower: Tower, name: str) -> str:
        value = found.get((tower, name), math.nan)
        return "no noise" if value is None else f"{value:.1f}" if math.isfinite(value) else DASH

    names = dict.fromkeys(layer.layer for layer in result.layers)
    return [(name, [cell(tower, name) for tower in TOWERS]) for name in names]


def cross_sentence(result: Parity) -> str:
    """Sentence on whether vectors of the two sides may be mixed in one search."""
    cells = {(cell.images, cell.texts): cell for cell in result.cross}
    if not cells:
        return ""
    own = cells["reference", "reference"]
    mixed = [cells["reference", "candidate"], cells["candidate", "reference"]]
    loss = max(max(own.tr[0] - cell.tr[0], own.ir[0] - cell.ir[0]) for cell in mixed)
    said = f"costs at most {points(loss)[1:]} points of R@1 compared with the reference alone"
    said = said if loss > 0 else "costs no R@1"
    limit = min(drop_limits(result).values(), default=None)
    if limit is None:
        return f"Searching one side's index with the other side's queries {said}."
    if loss <= limit + SLACK:
        return f"An index built with one side can be searched with the other: mixing {said}."
    return (
        f"Rebuild an index before you search it with the other side: mixing {said}; "
        f"the budget is {limit:g}."
    )


def margin_sentence(d: DirectionResult) -> str:
    """Sentence on whether the flips at rank 1 are near-ties or damage."""
    m, name = d.margins, DIRECTION_NAMES[d.direction].capitalize()
    if not m.flipped or m.flipped_median is None:
        return f"{name}: no query flipped."
    ratio = m.flipped_median / m.all_median if m.all_median > 0 else math.inf
    verdict = (
        "too few to judge"
        if m.flipped < FEW
        else "near-ties, decided by chance"
        if ratio <= COIN_TOSS
        else "damage, because clear answers were overturned"
        if ratio >= DAMAGE
        else "closer calls than most, but not all near-ties"
    )
    noun = "query" if m.flipped == 1 else "queries"
    return (
        f"{name}: {m.flipped:,} {noun} flipped ({verdict}). Margins of flipped queries: median "
        f"{small(m.flipped_median)}, largest {small(m.flipped_largest)}. "
        f"Median of all queries: {small(m.all_median)}."
    )


def _worst(result: Parity) -> GateResult | None:
    """The failed gate for the headline: the largest drop of recall if a recall gate failed."""
    failed = [gate for gate in result.gates if gate.verdict == "fails"]
    drops = [gate for gate in failed if gate.name.endswith(CHANGE)]
    return min(drops, key=lambda gate: gate.found, default=next(iter(failed), None))


def drop_limits(result: Parity) -> dict[str, float]:
    """Points that each recall figure may drop, by figure name."""
    changes = [gate for gate in result.gates if gate.name.endswith(CHANGE)]
    return {gate.name.removesuffix(CHANGE): abs(gate.limit) for gate in changes}


def drift(stage: Stage) -> str:
    """Summarize what a stage changed."""
    if stage.state != "changed":
        return "none" if stage.state == "same" else stage.state
    parts = (
        ("vision cosine", cosine, stage.vision_cosine),
        ("text cosine", cosine, stage.text_cosine),
        ("TR@1", points, stage.tr1),
        ("IR@1", points, stage.ir1),
    )
    said = [f"{name} {words(value)}" for name, words, value in parts if value is not None]
    return ", ".join(said) or stage.state


def _list(words: Iterable[str]) -> str:
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


def gate_numbers(gate: GateResult) -> tuple[str, str]:
    """Format a gate's value, with enough digits to tell it from the limit, and its limit."""
    if "cosine" not in gate.name:
        return estimate(gate.found), points(gate.limit)
    found = cosine(gate.found)
    if found == cosine(gate.limit) and gate.found != gate.limit:
        found = small(gate.found, 6)
    return found, small(gate.limit, 9)
