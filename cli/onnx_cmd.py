"""`mwa-export onnx`: export a checkpoint to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import PATH, Command, given
from mwa_export.cli.options import (
    READING,
    model_options,
    model_options_from,
    shape_options,
    source_from,
)

_EXAMPLES = """\b
Examples:
  mwa-export onnx checkpoint-29.pth --tokenizer beit3.spm -o bundle
  mwa-export onnx --base beit3_base.pth --adapter coco.safetensors -o bundle
  mwa-export onnx checkpoint-29.pth -o bundle --image-size 384 --input uint8
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@model_options
@click.option("-o", "--out", type=PATH, required=True, help="Folder of the new bundle.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model (.spm) to put into the bundle.")
@shape_options
@click.option(
    "--input",
    "image_input",
    type=click.Choice(["float32", "uint8"]),
    default="float32",
    help="Vision input: float32 (NCHW in [-1, 1]), or uint8 (NHWC pixels; the graph scales them).",
)
@click.option(
    "--no-merge",
    multiple=True,
    metavar="STEP",
    help="Skip a merge step: qkv, layernorm, adapter-down, adapter-up, last-token, "
    "constants, text-mask. Repeatable.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@console.verbosity
def command(
    out: Path,
    tokenizer: Path | None,
    image_input: Any,
    no_merge: tuple[str, ...],
    force: bool,
    **model_values: Any,
) -> None:
    """Export CHECKPOINT to a verified ONNX bundle.

    Adapters, norms and scales are merged exactly into the towers. Both graphs run on ONNX Runtime
    and are compared with the PyTorch reference before the bundle is written.
    """
    from mwa_export.bundle.update import check_target
    from mwa_export.optional import check_installed
    from mwa_export.towers.steps import steps_without

    source = source_from(model_values)
    model_options = model_options_from(model_values)
    steps_without(no_merge)
    check_target(None, out, force=force)  # before the minutes that loading may take

    check_installed("torch", "onnx", "torchscale")
    from mwa_export.export.export import ExportOptions, bundle_from_model
    from mwa_export.model.load import load_model

    options = ExportOptions(image_input, no_merge, tokenizer, force)
    with console.steps() as step:
        step("read the checkpoint")
        model = load_model(source, model_options)
        for warning in model.warnings:
            console.warn(warning)
        bundle = bundle_from_model(model, out, options, on_step=step)
    worst = max(bundle.manifest.export.largest_difference_from_reference.values())
    if tokenizer is None and "text" in bundle.manifest.towers:
        console.say("no --tokenizer was given, so the bundle takes token ids, not texts")
    elif tokenizer is None and len(model.config.towers) > 1:
        console.say(
            "no --tokenizer was given, so a text bundle with one will have another embedding space"
        )
    console.say(f"largest difference from the PyTorch reference: {worst:.1e}")
    console.say(f"embedding space {bundle.manifest.space_id[:16]}")
    click.echo(bundle.path)
    if len(bundle.manifest.towers) == 2:
        how = given((*READING, "adapter"))
        if tokenizer is None:
            how += ["--tokenizer", "SPM"]
        reference = source.checkpoint or source.base
        console.next_step("parity", out, "--reference", reference, *how, "--data", "DATA")
    else:
        console.next_embed(out)
