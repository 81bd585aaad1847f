"""A parity result on the terminal."""

from __future__ import annotations

import click

from mwa_export.cli import console
from mwa_export.errors import ParityError, UndecidedError
from mwa_export.metrics.verdict import Verdict
from mwa_export.parity.reports.words import (
    COSINE_HEAD,
    cosine_rows,
    drift,
    figures,
    has_float32,
    headline,
    layer_table,
    left_out,
    margin_sentence,
    rank_cells,
    recall_cells,
)
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import count, counted, percent
from mwa_export.report.text import printable
from mwa_export.spec import TOWERS

COLOURS: dict[Verdict, str] = {"passes": "green", "fails": "red", "undecided": "yellow"}


def show(result: Parity) -> None:
    """Print the whole result as tables, the verdict first."""
    click.echo()
    colour = COLOURS[result.verdict] if result.gates else "yellow"
    click.secho(printable(headline(result)), bold=True, fg=colour)
    data = result.data
    click.echo(printable(f"{result.candidate.name} against {result.reference.name}"))
    size = f"{counted(data.images, 'image')}, {counted(data.captions, 'caption')}"
    click.echo(printable(f"{data.name}: {size}"))
    click.echo()
    _show_recall(result)
    _show_ranks(result)
    console.table(cosine_rows(result), COSINE_HEAD)  # none if the widths differ
    cross = [
        (f"{cell.images} images, {cell.texts} texts", f"{cell.tr[0]:.2f}", f"{cell.ir[0]:.2f}")
        for cell in result.cross
    ]
    console.table(cross, ("mixed index, recall in %", "TR@1", "IR@1"))
    stages = [(s.name, drift(s), printable(s.detail)) for s in result.stages]
    console.table(stages, title="Drift by stage, each alone")
    layers = [(name, *cells) for name, cells in layer_table(result)]
    console.table(layers, ("signal to noise, dB", *TOWERS))
    console.warn(*map(printable, result.warnings))
    if data.excluded:
        first = printable(f"{data.excluded[0].picture} ({data.excluded[0].reason})")
        console.warn(f"{left_out(result)}; the first: {first}. See report.json")


def fail_unless_passed(result: Parity, undecided: str | None) -> None:
    """Raise ParityError or UndecidedError, naming every gate that does not pass.

    ``undecided``: "pass" or "fail", what an undecided verdict counts as.
    """
    if result.verdict == "fails" or (result.verdict, undecided) == ("undecided", "fail"):
        raise ParityError(f"parity failed. {_messages(result)}.")
    if result.verdict == "undecided" and undecided is None:
        raise UndecidedError(
            f"parity is undecided. {_messages(result)}. Give more pictures, allow a larger drop "
            "(`max_recall_drop`), or say what to do then (`undecided`: pass or fail)."
        )


def _messages(result: Parity) -> str:
    left = [gate for gate in result.gates if gate.verdict != "passes"]
    ordered = sorted(left, key=lambda gate: gate.verdict == "undecided")
    return "; ".join(gate.message.rstrip(". ") for gate in ordered)


def _show_recall(result: Parity) -> None:
    exact = has_float32(result)
    rows = []
    for name, n, change in figures(result):
        reference, candidate, _, margins, interval = recall_cells(change, n)
        float32 = [percent(change.float32, n)] if exact else []
        flips = f"+{change.won} -{change.lost}"
        rows.append((name, reference, candidate, *float32, flips, margins, interval))
    head = ("in %", "reference", "candidate", *(["float32"] if exact else []), "flips")
    console.table(rows, (*head, "change", f"{result.confidence * 100:g}% interval"))
    if exact:
        click.echo("float32: the candidate's graphs before their precision was reduced.")


def _show_ranks(result: Parity) -> None:
    rows = [(*rank_cells(d, "to"), count(d.margins.flipped)) for d in result.directions]
    head = ("ranks", "mean", "median", "changed", "same top 10", "flips at rank 1")
    console.table(rows, head)
    for d in result.directions:
        if d.margins.flipped:
            console.paragraph(margin_sentence(d))
