"""`mwa-export refit`: another adapter in the engines of a bundle, without building them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.options import (
    device_option,
    model_options,
    model_options_from,
    source_from,
)
from mwa_export.cli.values import PATH

_EXAMPLES = """\b
Examples:
  mwa-export trt bundle --fp16 --refit
  mwa-export refit bundle --base beit3_base.pth --adapter flickr.safetensors -o bundle-flickr
  mwa-export refit bundle checkpoint-19.pth -o bundle-19
"""


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@model_options
@click.option("-o", "--out", type=PATH, required=True, help="Folder of the new bundle.")
@click.option("--force", is_flag=True, help="Replace the folder of -o if it exists.")
@device_option
@console.verbosity
def command(bundle: Path, out: Path, force: bool, device: int, **model_values: Any) -> None:
    """Make a bundle of another model of the same architecture, with BUNDLE's engines.

    The engines, built with `trt --refit`, get the merged weights of CHECKPOINT, or of --base and
    --adapter. The new bundle is verified as a whole before it appears; BUNDLE stays as it is.
    """
    from mwa_export.bundle.update import check_target
    from mwa_export.optional import check_installed
    from mwa_export.trt.install import load_tensorrt

    check_installed("tensorrt", "torch", "onnx", "torchscale")
    source = source_from(model_values)
    check_target(None, out, force=force)
    load_tensorrt()  # before anything is read
    from mwa_export.engines.refit import refit_bundle

    with console.steps() as step:
        done = refit_bundle(
            bundle,
            source,
            out,
            model_options=model_options_from(model_values),
            device=device,
            force=force,
            progress=step,
        )
    console.warn(*(f"not in the new bundle: {reason}" for reason in done.left_out))
    for engine in done.engines:
        console.say(f"  {engine.file}  weights exchanged in {engine.seconds:.1f} s")
    console.say(f"  embedding space {done.bundle.manifest.space_id[:16]}")
    click.echo(done.bundle.path)
