"""`mwa-export doctor`: what this machine can run, and what to install."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mwa_export.cli import console

if TYPE_CHECKING:
    from mwa_export.runtimes.doctor import Doctor


@click.command(epilog="\b\nExamples:\n  mwa-export doctor\n  mwa-export doctor --json\n")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@console.verbosity
def command(as_json: bool) -> None:
    """Show what this machine can run: processor, GPU, runtimes, versions, and what to install."""
    from mwa_export.runtimes.doctor import advice, examine

    found = examine()
    if as_json:
        click.echo(json.dumps({**found.to_json(), "advice": advice(found)}, indent=2))
        return
    _show(found)
    for sentence in advice(found):
        console.paragraph(sentence)


def _show(found: Doctor) -> None:
    sets = found.instruction_sets
    rows = [
        ("mwa-export", f"{found.version}, Python {found.python}, {found.system}"),
        ("processor", f"{found.cpu}, {found.cores} cores that this process may use"),
        ("instructions", "unknown" if sets is None else " ".join(sets) or "none that matter here"),
        ("INT8", _FAST[found.fast_int8]),
        ("bfloat16", _FAST[found.fast_bfloat16]),
        ("GPU", found.gpu or "none found"),
    ]
    console.table(rows, title="This machine")
    console.table([(part.what, part.version or "not installed") for part in found.parts])


_FAST = {
    True: "has instructions of its own: fast",
    False: "no instructions of its own: slower than float32",
    None: "this system does not tell",
}
