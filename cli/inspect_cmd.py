"""`mwa-export inspect`: show what is in a checkpoint or a bundle."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import Command, given, refuse
from mwa_export.cli.options import model_options, model_options_from, shape_options, source_from

_EXAMPLES = """\b
Examples:
  mwa-export inspect checkpoint-29.pth --json
  mwa-export inspect bundle
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@partial(model_options, metavar="[CHECKPOINT|BUNDLE]")
@shape_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@console.verbosity
def command(as_json: bool, **model_values: Any) -> None:
    """Show what a checkpoint or a bundle contains: model, adapters, options, parameter counts."""
    from mwa_export.bundle.manifest import MANIFEST

    checkpoint = model_values["checkpoint"]
    if checkpoint is not None and (checkpoint / MANIFEST).is_file():
        others = set(model_values) - {"checkpoint"}
        refuse(others, "is for checkpoints, and this is a bundle. Leave it out.")
        _show_bundle(checkpoint, as_json=as_json)
        return
    arguments = given(model_values)
    source = source_from(model_values)
    from mwa_export.model.load import load_model
    from mwa_export.model.summary import describe

    with console.steps() as step:
        step("read the checkpoint")
        model = load_model(source, model_options_from(model_values))
    description = describe(model)
    if as_json:
        click.echo(json.dumps(description.to_json(), indent=2))
        return
    console.table(description.rows(), title="Model")
    console.table(
        description.parameter_rows(), ("Parameters", "vision tower", "text tower", "file")
    )
    for warning in description.warnings:
        console.warn(warning)
    console.next_step("onnx", *arguments, "--tokenizer", "SPM", "-o", "bundle")


def _show_bundle(path: Path, *, as_json: bool) -> None:
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.bundle.summary import bundle_json, bundle_rows, graph_rows

    with console.steps() as step:
        step("check the bundle's files")
        bundle = Bundle.open(path)
    if as_json:
        click.echo(json.dumps(bundle_json(bundle), indent=2))
        return
    console.table(bundle_rows(bundle), title="Bundle")
    console.table(graph_rows(bundle), ("Graphs", "tower", "precision", "runtime", "MB"))
    for warning in bundle.manifest.export.warnings:
        console.warn(warning)
    console.next_embed(path)
