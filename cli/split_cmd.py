"""`mwa-export split`: save what training added to a base as an adapter file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import PATH, Command
from mwa_export.cli.options import (
    heads_option,
    model_options,
    model_options_from,
    source_from,
)

_EXAMPLES = """\b
Example:
  mwa-export split checkpoint-29.pth --base beit3_base.pth -o coco.safetensors
  mwa-export onnx --base beit3_base.pth --adapter coco.safetensors -o bundle
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@model_options
@heads_option
@click.option("-o", "--out", type=PATH, required=True, help="Adapter file (.safetensors) to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@console.verbosity
def command(out: Path, force: bool, base: Path | None, **model_values: Any) -> None:
    """Save what training added to a base checkpoint as an adapter file.

    The file holds the tensors of CHECKPOINT that differ from the base, and the options of the
    adapter. One base then serves many adapters.
    """
    from mwa_export.errors import AdapterError
    from mwa_export.files import check_writable, disk_errors
    from mwa_export.optional import check_installed

    if base is None or model_values["checkpoint"] is None or model_values["adapter"] is not None:
        raise click.UsageError("Pass CHECKPOINT and --base BASE, without --adapter.")
    if out.suffix != ".safetensors":
        raise click.UsageError(f"{out}: expected a name that ends in .safetensors.")
    if out.exists() and not force:
        raise AdapterError(f"{out}: already exists. Choose another name, or pass --force.")
    with disk_errors(out):
        check_writable(out.parent)

    check_installed("torch", "safetensors")
    from mwa_export.model.adapters import split
    from mwa_export.model.checkpoint import read_checkpoint
    from mwa_export.model.load import load_model

    with console.steps() as step:
        step("read both checkpoints")
        source = source_from({**model_values, "base": None})
        model = load_model(source, model_options_from(model_values))
        base_file = read_checkpoint(base)
        step("compare them and write the difference")
        added = split(model.tensors, model.config, base_file, out)
    count = sum(tensor.numel() for tensor in added.values())
    total = sum(tensor.numel() for tensor in model.tensors.values())
    console.say(
        f"{len(added)} of {len(model.tensors)} tensors differ from the base: {count:,} of "
        f"{total:,} parameters ({count / total:.1%})"
    )
    if count > total / 2:
        console.warn(
            f"most of the model differs from {base}. Check that training started from this base, "
            "in the same precision"
        )
    click.echo(out)
    console.next_step(
        "onnx", "--base", base, "--adapter", out, "--tokenizer", "SPM", "-o", "bundle"
    )
