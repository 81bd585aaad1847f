"""`mwa-export demo`: the whole job on the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mwa_export.cli import console
from mwa_export.cli.values import PATH

if TYPE_CHECKING:
    from mwa_export.demo.run import DemoResult


@click.command(epilog="\b\nExample:\n  mwa-export demo -o demo\n")
@click.option("-o", "--out", type=PATH, default="demo", help="Folder to create.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@console.verbosity
def command(out: Path, force: bool) -> None:
    """Export and quantize the small trained model that ships with the package; check its recall.

    A tiny BEiT-3 with MultiWay-Adapters, 500 pictures it has not seen, 2,500 captions: checkpoint,
    merge, ONNX, INT8, embeddings, and the parity report against the PyTorch reference.
    """
    from mwa_export.cli.parity_view import fail_unless_passed, show
    from mwa_export.optional import check_installed

    check_installed("torch", "onnx", "torchscale")
    from mwa_export.demo.run import quantize_demo, run_demo

    with console.steps() as step:
        result = run_demo(out, quantize_demo, force=force, progress=step)
    show(result.parity)
    _explain(result)
    click.echo(f"bundle: {result.folder / 'bundle'}")
    click.echo(f"report: {result.report}")
    fail_unless_passed({"": result.parity}, None)


def _explain(result: DemoResult) -> None:
    """Explain the figures below the tables."""
    reference = result.parity.direction("tr").recalls[0].reference
    console.paragraph(
        "Sanity check: with the adapters dropped, TR@1 would be "
        f"{result.without_adapters.tr[1]:.1f}% instead of {reference:.1f}%, so this test would "
        "catch it."
    )
    if result.slow_int8:
        console.paragraph(
            "This CPU has no INT8 instructions (VNNI or dot product), so INT8 gains less speed "
            "here than elsewhere; its sums are exact all the same."
        )
