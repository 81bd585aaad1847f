"""`mwa-export inspect`: what is in a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.options import model_options, model_options_from, shape_options, source_from


@click.command(epilog="\b\nExample:\n  mwa-export inspect checkpoint-29.pth --json\n")
@model_options
@shape_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@console.verbosity
def command(as_json: bool, **model_values: Any) -> None:
    """Show what is in CHECKPOINT: model, adapters, options, parameter counts."""
    from mwa_export.model.load import load_model
    from mwa_export.model.summary import describe

    source = source_from(model_values)
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
