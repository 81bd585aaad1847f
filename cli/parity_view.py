"""Print a parity result on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import click

from mwa_export.cli import console
from mwa_export.errors import ParityError, UndecidedError
from mwa_export.metrics.verdict import Verdict, whole
from mwa_export.parity.reports import tables
from mwa_export.parity.reports.facts import cost_sentence, facts
from mwa_export.parity.reports.overview import overview_headline, overview_table, total_ms
from mwa_export.parity.reports.words import headline, left_out, margin_sentence, not_passed
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import DASH, counted
from mwa_export.report.table import Table
from mwa_export.report.text import printable

COLOURS: dict[Verdict, str] = {"passes": "green", "fails": "red", "undecided": "yellow"}


def show_headline(result: Parity) -> None:
    """Print the verdict, and what was compared on what."""
    click.echo()
    colour = COLOURS[result.verdict] if result.gates else "yellow"
    click.secho(printable(headline(result)), bold=True, fg=colour)
    data = result.data
    click.echo(printable(f"{result.candidate.name} against {result.reference.name}"))
    size = f"{counted(data.images, 'image')}, {counted(data.captions, 'caption')}"
    click.echo(printable(f"{data.name}: {size}"))


def show(result: Parity) -> None:
    """Print the whole result as tables, the verdict first."""
    show_headline(result)
    data = result.data
    click.echo()
    console.table([(f.name, f.value, printable(f.detail)) for f in facts(result)])
    click.echo()
    _show(tables.recall_table(result), tables.flips_table(result), tables.cost_table(result))
    if result.costs:
        console.paragraph(cost_sentence(result))
    _show(tables.ranks_table(result))
    for d in result.directions:
        if d.margins.flipped:
            console.paragraph(margin_sentence(d))
    _show(tables.cosine_table(result), tables.cross_table(result))
    stages = [[printable(cell) for cell in row] for row in tables.stage_table(result).rows]
    console.table(stages, title="Drift by stage, each alone")
    _show(tables.layers_table(result))
    console.warn(*map(printable, result.warnings))
    if data.excluded:
        first = printable(f"{data.excluded[0].picture} ({data.excluded[0].reason})")
        console.warn(f"{left_out(result)}; the first: {first}. See report.json")


def show_overview(results: Mapping[str, Parity]) -> None:
    """Print the verdict on several candidates, and a table of them."""
    verdict = whole(result.verdict for result in results.values())
    click.secho(f"\n{overview_headline(results)}", bold=True, fg=COLOURS[verdict])
    rows = []
    for (name, result), row in zip(results.items(), overview_table(results).rows, strict=True):
        ms = total_ms(result)
        shown = [row[column] for column in (1, 2, 4, 6)]  # all of them need more than 80 characters
        rows.append((name, *shown, DASH if ms is None else f"{ms:.3g}"))
    console.table(rows, ("candidate", "change", "interval", "verdict", "MB", "ms"))
    click.echo("ms: for one image and one caption")


def fail_unless_passed(results: Mapping[str, Parity], undecided: str | None) -> None:
    """Raise ParityError or UndecidedError, naming every candidate and gate that does not pass.

    Args:
        results: by the name of the candidate, "" if there is one alone.
        undecided: "pass" or "fail", what an undecided verdict counts as.
    """
    verdict = whole(result.verdict for result in results.values())
    if verdict == "fails" or (verdict, undecided) == ("undecided", "fail"):
        raise ParityError(f"parity failed. {_messages(results)}.")
    if verdict == "undecided" and undecided is None:
        raise UndecidedError(
            f"parity is undecided. {_messages(results)}. Pass more images, allow a larger drop "
            "(`max_recall_drop`), or choose what undecided counts as (`undecided`: pass or fail)."
        )


def _messages(results: Mapping[str, Parity]) -> str:
    """Describe what does not pass: gates of one candidate, or names of several candidates."""
    if list(results) != [""]:
        left = [(name, r.verdict) for name, r in results.items() if r.verdict != "passes"]
        return "; ".join(f"{name}: {verdict}" for name, verdict in left)
    (result,) = results.values()
    return f"{headline(result).partition(': ')[2]}. {not_passed(result)}".rstrip(". ")


def _show(*shown: Table) -> None:
    for table in shown:
        console.table([[printable(cell) for cell in row] for row in table.rows], table.head)
