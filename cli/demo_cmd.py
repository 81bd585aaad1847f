"""`mwa-export demo`: the whole job on the shipped model."""

from __future__ import annotations

from pathlib import Path

import click

from mwa_export.cli import console
from mwa_export.cli.options import PATH

_LARGEST_DROP = 0.2  # percentage points; float32 round-off can swap two equal ranks


@click.command(epilog="\b\nExample:\n  mwa-export demo -o demo\n")
@click.option("-o", "--out", type=PATH, default="demo", show_default=True, help="Folder to make.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@console.verbosity
def command(out: Path, force: bool) -> None:
    """Export the small trained model that ships with the package, and measure its recall.

    A tiny BEiT-3 with MultiWay-Adapters, 500 pictures it has not seen, 2,500 captions: checkpoint,
    merge, ONNX, embeddings, and recall beside the PyTorch reference.
    """
    from mwa_export.demo import run_demo
    from mwa_export.errors import VerificationError

    with console.steps() as step:
        result = run_demo(out, force=force, on_step=step)
    rows = [
        (name, *(f"{value:.1f}" for part in (r.tr, r.ir) for value in part.values()))
        for name, r in result.recalls.items()
    ]
    header = ("recall in %", "TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10")
    console.table(rows, header)
    click.echo(f"bundle: {result.folder / 'bundle'}")
    if result.largest_drop > _LARGEST_DROP:
        raise VerificationError(
            f"the exported towers lose {result.largest_drop:.1f} points of recall against the "
            f"reference. Allowed: {_LARGEST_DROP}."
        )
