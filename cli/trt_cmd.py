"""`mwa-export trt`: TensorRT engines for a bundle, for the GPU of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.options import PATH

_EXAMPLES = """\b
Examples:
  mwa-export trt bundle --fp16
  mwa-export trt bundle --int8 --batch 1,32,128 --lengths 2,16,64
  mwa-export trt bundle --fp16 --batch 1 --batch 2,64,256 -o bundle-gpu
  mwa-export trt bundle --fp16 --version-compatible --timing-cache times.cache
"""


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@click.option(
    "--fp16", "precision", flag_value="float16", help="Float16, but what measures too large for it."
)
@click.option(
    "--bf16",
    "precision",
    flag_value="bfloat16",
    help="Bfloat16: the range of float32 and fewer digits than float16, for models with values "
    "that float16 cannot hold. From TensorRT 10 and Ampere on.",
)
@click.option(
    "--int8",
    "precision",
    flag_value="int8",
    help="INT8 where the bundle's calibration has it, float16 elsewhere. Needs `quantize` before.",
)
@click.option(
    "--fp8",
    "precision",
    flag_value="float8",
    help="Float8 (E4M3) in the place of INT8. From TensorRT 10 and Ada on. Needs `quantize`, too.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    metavar="MIN,OPT,MAX",
    help="Rows of a batch, or one number for a fixed size; default 1,32,128. Repeatable: the "
    "engine gets an optimization profile for each.",
)
@click.option(
    "--lengths",
    metavar="MIN,OPT,MAX",
    help="Tokens of a text, BOS and EOS included; default: from 2 to the model's longest, opt 16.",
)
@click.option(
    "--data",
    type=PATH,
    help="Pictures with captions, in any form that `parity` reads: how large values become on them "
    "decides what stays in float32. Without it, the bundle's conformance vectors do; --bf16 needs "
    "neither.",
)
@click.option("--images", type=PATH, help="Folder of --data's pictures; by default beside it.")
@click.option("--split", help="Split of --data: of a Karpathy JSON (default: test) or a table.")
@click.option(
    "--samples",
    type=click.IntRange(min=16),
    default=64,
    show_default=True,
    help="Pictures of --data to measure on, and a caption of each.",
)
@click.option(
    "--workspace",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Scratch memory that kernels may use; default: all that the GPU has.",
)
@click.option(
    "--timing-cache", type=PATH, help="File of measured kernel times: read if there, then written."
)
@click.option(
    "--builder-level",
    type=click.IntRange(0, 5),
    help="0 builds fastest, 5 searches longest; default: TensorRT's own.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Later versions of the same major TensorRT may load the engines.",
)
@click.option(
    "--hardware-compatible", is_flag=True, help="Every GPU from Ampere on may load the engines."
)
@click.option("--device", type=click.IntRange(min=0), default=0, show_default=True, help="GPU.")
@click.option("--rebuild", is_flag=True, help="Build also what is there already.")
@click.option("-o", "--out", type=PATH, help="A new bundle; by default BUNDLE itself is changed.")
@click.option("--force", is_flag=True, help="Replace the folder of -o if it exists.")
@console.verbosity
def command(bundle: Path, out: Path | None, **values: Any) -> None:
    """Add TensorRT engines to BUNDLE, for the GPU of this machine: 8.6, 10 or 11.

    Each tower's graph is made in the form that the installed version wants, checked on ONNX
    Runtime against the bundle's conformance vectors, and compiled.
    """
    if values["precision"] is None:
        raise click.UsageError("say which precision to build: --fp16, --bf16, --int8 or --fp8")
    from mwa_export.bundle import MANIFEST
    from mwa_export.files import check_new_folder
    from mwa_export.trt_install import load_tensorrt

    if out is not None:
        check_new_folder(out, marker=MANIFEST, force=values["force"])
    load_tensorrt()  # before anything is read
    from mwa_export.calib.engines import build_engines
    from mwa_export.data_sources import read_data

    options = _options(values)
    with console.steps() as step:
        data = values["data"]
        done = build_engines(
            bundle,
            None
            if data is None
            else read_data(data, split=values["split"], images=values["images"]),
            options=options,
            out=out,
            force=values["force"],
            progress=step,
        )
    for warning in done.warnings:
        console.warn(warning)
    _show(done)
    click.echo(done.bundle.path)


def _options(values: dict[str, Any]) -> Any:
    from mwa_export.calib.engines import BATCH, EngineOptions
    from mwa_export.trt_build import GIB, BuildOptions
    from mwa_export.trt_profile import Span

    workspace, lengths = values["workspace"], values["lengths"]
    return EngineOptions(
        precision=values["precision"],
        batches=tuple(Span.parse(text, "batch") for text in values["batches"]) or (BATCH,),
        lengths=None if lengths is None else Span.parse(lengths, "length"),
        device=values["device"],
        build=BuildOptions(
            workspace=None if workspace is None else int(workspace * GIB),
            timing_cache=values["timing_cache"],
            level=values["builder_level"],
            version_compatible=values["version_compatible"],
            hardware_compatible=values["hardware_compatible"],
        ),
        rebuild=values["rebuild"],
        samples=values["samples"],
    )


def _show(done: Any) -> None:
    for engine in done.engines:
        size = (done.bundle.path / engine.file).stat().st_size / 1e6
        state = (
            f"built in {engine.seconds:.0f} s"
            if engine.file in done.built
            else "was there already; --rebuild builds it anew"
        )
        console.say(f"  {engine.file}  {size:.0f} MB, {state}")
    for graph in done.graphs:
        console.say(
            f"  {graph.path.name}: least cosine with the reference {graph.cosine:.5f} on ONNX "
            f"Runtime, {len(graph.float32)} nodes in float32"
        )
        if graph.advice is not None:
            console.say(f"  {graph.path.name}: {graph.advice}")
    console.say(f"  TensorRT {done.engines[0].tensorrt} on {done.device.name}")
