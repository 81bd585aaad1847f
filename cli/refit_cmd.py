"""`mwa-export refit`: put another adapter into engines without building them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import PATH, Command, given
from mwa_export.cli.options import (
    READING,
    device_option,
    model_options,
    model_options_from,
    source_from,
)

_EXAMPLES = """\b
Examples:
  mwa-export trt bundle --fp16 --refit
  mwa-export refit bundle --base beit3_base.pth --adapter flickr.safetensors -o bundle-flickr
  mwa-export refit bundle checkpoint-19.pth -o bundle-19
"""


def require_gpu(instead: str) -> None:
    """Check that this machine has an NVIDIA GPU, before anything else is read.

    ``instead``: what can be done without one, as a sentence.

    Raises:
        RuntimeUnavailableError: there is no driver, or it finds no GPU.
    """
    from mwa_export.errors import RuntimeUnavailableError
    from mwa_export.trt.device import DRIVER, open_driver

    try:
        count = open_driver().integer("cuDeviceGetCount")
    except RuntimeUnavailableError as error:
        missing = isinstance(error.__cause__, OSError)
        reason = f"{DRIVER} cannot be loaded" if missing else str(error).partition(". ")[0]
        raise RuntimeUnavailableError(f"no NVIDIA GPU found: {reason}. {instead}") from error
    if not count:
        raise RuntimeUnavailableError(f"no NVIDIA GPU found. {instead}")


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@model_options
@click.option("-o", "--out", type=PATH, required=True, help="Folder of the new bundle.")
@click.option("--force", is_flag=True, help="Replace the folder of -o if it exists.")
@device_option
@console.verbosity
def command(bundle: Path, out: Path, force: bool, device: int, **model_values: Any) -> None:
    """Put another adapter into the engines of BUNDLE without building them again.

    The engines must have been built with `mwa-export trt --refit`. A copy of them gets the merged
    weights of CHECKPOINT, or of --base and --adapter. The new bundle is verified as a whole before
    it is written, and BUNDLE is not changed. Requires an NVIDIA GPU.
    """
    require_gpu(
        "Without one, run `mwa-export onnx` for the new model, and `mwa-export trt` with --rtx."
    )
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
    model = source.checkpoint or source.base
    how = given((*READING, "adapter"))
    console.next_parity(out, model, "tensorrt", done.engines[0].precision, *how)
