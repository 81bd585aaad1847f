"""`mwa-export demo`: the whole job on the shipped model."""

from __future__ import annotations

from pathlib import Path

import click

from mwa_export.cli import console
from mwa_export.cli.options import PATH


@click.command(epilog="\b\nExample:\n  mwa-export demo -o demo\n")
@click.option("-o", "--out", type=PATH, default="demo", show_default=True, help="Folder to make.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@console.verbosity
def command(out: Path, force: bool) -> None:
    """Export the small trained model that ships with the package, and check its recall.

    A tiny BEiT-3 with MultiWay-Adapters, 500 pictures it has not seen, 2,500 captions: checkpoint,
    merge, ONNX, embeddings, and the parity report against the PyTorch reference.
    """
    from mwa_export.cli.parity_view import fail_if_failed, show
    from mwa_export.demo import run_demo

    with console.steps() as step:
        result = run_demo(out, force=force, progress=step)
    show(result.parity)
    lost = result.without_adapters
    reference = result.parity.direction("tr").recalls[0].reference
    click.echo(
        f"An export that lost the adapters would have TR@1 {lost.tr[1]:.1f} % instead of "
        f"{reference:.1f} %: damage shows."
    )
    click.echo(f"bundle: {result.folder / 'bundle'}")
    click.echo(f"report: {result.report}")
    fail_if_failed(result.parity)
