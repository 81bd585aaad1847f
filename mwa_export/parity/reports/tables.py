"""Tables of a parity result, shared by all reports."""

from __future__ import annotations

from mwa_export.parity.reports.facts import cost_name
from mwa_export.parity.reports.words import (
    drift,
    figures,
    gate_numbers,
    has_float32,
    layer_rows,
)
from mwa_export.parity.result import Parity, Which
from mwa_export.report.numbers import (
    DASH,
    MINUS,
    cosine,
    count,
    estimate,
    interval,
    megabytes,
    p_value,
    percent,
    points,
    share,
    small,
)
from mwa_export.report.table import MARKS, Table
from mwa_export.spec import TOWERS

SIDES: tuple[Which, ...] = ("reference", "candidate")
COST_HEAD = ("Size, MB", "Per image, ms", "Per caption, ms")
_ORDER = ("fails", "undecided", "passes")


def recall_table(result: Parity) -> Table:
    """The change of every recall figure, estimated from margins, and the recall of both sides."""
    exact = has_float32(result)
    rows = [
        (
            name,
            estimate(r.smoothed.value),
            interval(r.smoothed_low, r.smoothed_high),
            percent(r.reference, n),
            *((percent(r.float32, n),) if exact else ()),
            percent(r.candidate, n),
        )
        for name, n, r in figures(result)
    ]
    head = ["Recall", "Change", f"{_confidence(result)} interval", "Reference", "Candidate"]
    head[4:4] = ["Float32"] if exact else []
    caption = "Recall in percent; change in points, estimated from margins"
    return Table.of(caption, head, rows)


def flips_table(result: Parity) -> Table:
    """The number of queries won and lost, and the change that follows from them."""
    rows = [
        (
            name,
            points(r.difference),
            interval(r.low, r.high),
            count(r.won),
            count(r.lost),
            p_value(r.p_value),
        )
        for name, _, r in figures(result)
    ]
    head = ("Recall", "Change", f"{_confidence(result)} interval", "Won", "Lost", "McNemar p")
    return Table.of("Change in points, as a plain count of queries", head, rows)


def gates_table(result: Parity) -> Table:
    """Every gate; failed gates come first."""
    rows = [
        (gate.name, f"{MARKS[gate.verdict]} {gate.verdict}", found, limit, gate.message)
        for gate in sorted(result.gates, key=lambda gate: _ORDER.index(gate.verdict))
        for found, limit in [gate_numbers(gate)]
    ]
    head = ("Gate", "Result", "Value", "Limit", "Details")
    caption = "The value must be at least the limit"
    return Table.of(caption, head, rows, words=(1, 4), stacked=True)


def cost_table(result: Parity) -> Table:
    """Size and time of each model; a dash means that it was not timed."""
    rows = [
        (cost_name(result, cost), megabytes(cost.model_bytes), *map(_ms, times))
        for cost in result.costs
        for times in [(cost.image_ms, cost.text_ms)]
    ]
    caption = "Model size, and embedding time in this run"
    return Table.of(caption, ("Model", *COST_HEAD), rows)


def ranks_table(result: Parity) -> Table:
    """Ranks of the best right answer, and the overlap of both sides' ten best items."""
    rows = [
        (
            d.direction.upper(),
            f"{d.mean_rank[0]:.2f} → {d.mean_rank[1]:.2f}",
            f"{d.median_rank[0]:g} → {d.median_rank[1]:g}",
            f"{d.changed_ranks:,} of {d.queries:,}",
            f"{share(d.overlap)}%",
        )
        for d in result.directions
    ]
    head = ("Ranks", "Mean", "Median", "Changed", "Shared top 10")
    caption = "Rank of the best right answer (1 is best), reference → candidate"
    return Table.of(caption, head, rows)


def cosine_table(result: Parity) -> Table:
    """Cosine between the two sides' embeddings of the same input."""
    rows = [
        (
            c.tower,
            cosine(c.mean),
            cosine(c.percentile_1),
            cosine(c.minimum),
            f"{c.minimum_row:,}",
            f"{c.identical:,} of {c.rows:,}",
        )
        for c in result.cosines
    ]
    head = ("Cosine", "Mean", "1st percentile", "Minimum", "At row", "Identical")
    return Table.of("Cosine between the two sides, by tower", head, rows, stacked=True)


def histogram_tables(result: Parity) -> list[Table]:
    """Histogram of 1 - cosine, one table per tower; empty bins are left out."""
    return [
        Table.of(
            f"1 {MINUS} cosine, {c.tower} tower; empty bins are left out",
            ("From", "To (exclusive)", "Inputs"),
            [
                (small(c.edges[i]), small(c.edges[i + 1]), count(n))
                for i, n in enumerate(c.counts)
                if n
            ],
        )
        for c in result.cosines
    ]


def stage_table(result: Parity) -> Table:
    """What each stage changed when it alone was exchanged."""
    rows = [(s.name, drift(s), s.detail) for s in result.stages]
    head = ("Stage", "Drift", "Details")
    return Table.of("Change caused by each stage", head, rows, words=(1, 2), stacked=True)


def layers_table(result: Parity) -> Table:
    """Signal-to-noise ratio after every layer."""
    head = ("Layer", *(tower.capitalize() for tower in TOWERS))
    caption = "Signal-to-noise ratio in dB after every layer"
    return Table.of(caption, head, [(name, *cells) for name, cells in layer_rows(result)])


def cross_table(result: Parity) -> Table:
    """R@1 when one side embeds the images and the other the captions."""
    rows = [
        (
            f"{cell.images} images, {cell.texts} captions",
            percent(cell.tr[0], result.direction("tr").queries),
            percent(cell.ir[0], result.direction("ir").queries),
        )
        for cell in result.cross
    ]
    head = ("Mixed index", "TR@1", "IR@1")
    caption = "Recall in percent when different sides embed images and captions"
    return Table.of(caption, head, rows)


def sides_table(result: Parity) -> Table:
    """Name, source, runtime and precision of both sides."""
    rows = [
        (label, *(getattr(getattr(result, side), field) or DASH for side in SIDES))
        for label, field in (
            ("Name", "name"),
            ("Source", "source"),
            ("Runtime", "runtime"),
            ("Precision", "precision"),
        )
    ]
    head = ("", *(side.capitalize() for side in SIDES))
    return Table.of("Models compared", head, rows, words=(1, 2))


def _confidence(result: Parity) -> str:
    return f"{small(result.confidence * 100, 4)}%"


def _ms(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"
