"""`mwa-export trt`: TensorRT engines for a bundle, for this machine's GPU or for RTX cards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mwa_export.cli import console
from mwa_export.cli.flags import ENGINES
from mwa_export.cli.options import DataSet, claim_folder, data_options
from mwa_export.cli.values import (
    CAPABILITIES,
    PATH,
    Real,
    Whole,
    options_of,
    recall_drop_option,
    refuse,
)

if TYPE_CHECKING:
    from mwa_export.engines.best import Best, Candidate
    from mwa_export.engines.build import EnginesBuilt
    from mwa_export.engines.replay import EngineGraphs

_EXAMPLES = """\b
Examples:
  mwa-export trt bundle --fp16
  mwa-export trt bundle --int8 --batch 1,32,128 --lengths 2,16,64
  mwa-export trt bundle --best --data dataset_coco.json --images coco --split val
  mwa-export trt bundle --fp16 --batch 1 --batch 2,64,256 -o bundle-gpu
  mwa-export trt bundle --fp16 --version-compatible --timing-cache times.cache
  mwa-export trt bundle --int8 --rtx --sm 86,89,120
  mwa-export trt bundle --int8 --graphs-only graphs
"""

_RTX_CARDS = ((8, 6), (8, 9), (12, 0))  # Ampere, Ada, Blackwell
# Of TensorRT on this machine's GPU; TensorRT-RTX has no such thing.
_OF_GPU = (
    *("version_compatible", "hardware_compatible", "refit", "timing_cache", "device"),
    *("allow_slow", "no_speed_gate"),
)
_OF_ENGINES = (*_OF_GPU, "workspace", "builder_level", "rtx", "capabilities", "rebuild", "out")
_OF_BEST = ("max_recall_drop", "undecided", "held_back", "held_back_images", "held_back_split")


_PRECISIONS = {  # of engines -> their help; the flags are those of cli/flags.py
    "float16": "Build float16 engines; layers whose values overflow float16 stay in float32.",
    "bfloat16": "Build bfloat16 engines: the range of float32 and fewer digits than float16, for "
    "models with values that float16 cannot hold. Needs TensorRT 10 and Ampere, or later.",
    "int8": "INT8 where the bundle's calibration has it, float16 elsewhere. Run `quantize` first.",
    "float8": "Float8 (E4M3) instead of INT8. Needs TensorRT 10 and Ada, or later; run `quantize` "
    "first.",
    "best": "Build every precision that can be built here, measure speed and, with --data, recall; "
    "keep the fastest.",
}


def _precisions(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for each precision. Each is a parameter of its own, so that two can be refused."""
    for name, text in reversed(_PRECISIONS.items()):
        flag = ENGINES.get(name, f"--{name}")
        command = click.option(flag, name, is_flag=True, help=text)(command)
    return command


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@_precisions
@click.option(
    "--fp8-attention",
    "float8_attention",
    is_flag=True,
    help="With --int8 or --fp8: attention of images in float8, too. Needs TensorRT 10 and Ada, or "
    "later.",
)
@recall_drop_option("Budget of --best for each of TR@1/5/10 and IR@1/5/10, against float32.")
@click.option(
    "--undecided",
    type=click.Choice(["pass", "fail"]),
    help="What an undecided recall counts as for --best. Without it, 8 bits are not taken then.",
)
@click.option(
    "--allow-slow", is_flag=True, help="Add --int8 or --fp8 engines even if float16 is faster."
)
@click.option(
    "--no-speed-gate",
    is_flag=True,
    help="Do not time --int8 and --fp8 engines beside float16 ones.",
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
@data_options(
    "Pictures with captions, in any form that `parity` reads: how large values become on them "
    "decides what stays in float32. Without it, the bundle's conformance vectors are used; --bf16 "
    "needs neither. --best measures recall on those pictures that are not samples.",
    held_back="Another set for --best to measure recall on.",
)
@click.option(
    "--samples",
    type=Whole(min=16),
    default=64,
    help="Number of pictures of --data to measure on, each with one caption.",
)
@click.option(
    "--workspace",
    type=Real(min=0, min_open=True),
    metavar="GIB",
    help="Scratch memory that kernels may use; default: all that the GPU has.",
)
@click.option(
    "--timing-cache", type=PATH, help="File of measured kernel times: read if there, then written."
)
@click.option(
    "--builder-level",
    type=Whole(0, 5),
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
@click.option(
    "--refit", is_flag=True, help="Let `mwa-export refit` put another adapter into the engines."
)
@click.option(
    "--rtx",
    is_flag=True,
    help="Build with TensorRT-RTX for the cards of --sm. Needs no GPU; the engines are checked "
    "where they are loaded.",
)
@click.option(
    "--sm",
    "capabilities",
    type=CAPABILITIES,
    metavar="LIST",
    help="Compute capabilities of the RTX cards; default: 86,89,120, and 89,120 with --fp8.",
)
@click.option(
    "--graphs-only",
    type=PATH,
    metavar="DIR",
    help="Build nothing: write the graphs, inputs and a script for Polygraphy and trtexec.",
)
@click.option(
    "--for-tensorrt",
    type=click.Choice(["8", "10", "11"]),
    default="11",
    help="Major version that --graphs-only writes for.",
)
@click.option("--device", type=Whole(min=0), default=0, help="GPU number.")
@click.option("--rebuild", is_flag=True, help="Rebuild engines that are already there.")
@click.option("-o", "--out", type=PATH, help="A new bundle; by default BUNDLE itself is changed.")
@click.option(
    "--force", is_flag=True, help="Replace the folder of -o or --graphs-only if it exists."
)
@console.verbosity
def command(
    bundle: Path,
    max_recall_drop: float,
    undecided: Literal["pass", "fail"] | None,
    no_speed_gate: bool,
    batches: tuple[str, ...],
    lengths: str | None,
    data: DataSet,
    held_back: DataSet,
    workspace: float | None,
    builder_level: int | None,
    rtx: bool,
    capabilities: tuple[tuple[int, int], ...] | None,
    graphs_only: Path | None,
    for_tensorrt: str,
    out: Path | None,
    force: bool,
    **values: Any,
) -> None:
    """Add engines for the GPU of this machine to BUNDLE, with TensorRT 8.6, 10 or 11.

    With --rtx: for RTX cards of other machines, with TensorRT-RTX. With --graphs-only: nothing is
    built, and neither TensorRT nor a GPU is needed.

    Each tower's graph is made in the form that the installed version needs, checked on ONNX
    Runtime against the bundle's conformance vectors, and compiled.
    """
    asked = [name for name in _PRECISIONS if values.pop(name)]
    if len(asked) != 1:
        raise click.UsageError(
            "say which precision to build: --fp16, --bf16, --int8, --fp8, or --best of them"
            + (", and only one" if asked else "")
        )
    precision = asked[0]
    if precision == "best":
        refuse(("float8_attention",), "belongs to --int8 and --fp8; --best tries it by itself.")
    else:
        refuse(_OF_BEST, "belongs to --best, which was not given.")
    best = precision == "best"
    if graphs_only is None:
        refuse(("for_tensorrt",), "belongs to --graphs-only, which was not given.")
    else:
        refuse(_OF_ENGINES, "cannot be combined with --graphs-only, which builds no engine.")
        if best:
            raise click.UsageError("--best measures engines, and --graphs-only builds none")
        from mwa_export.engines.replay_script import SCRIPT

        claim_folder(graphs_only, marker=SCRIPT, force=force)
    if data.path is None:
        refuse(("samples",), "belongs to --data, which was not given.")
    if rtx:
        refuse(_OF_GPU, "cannot be combined with --rtx, which needs no GPU.")
        if best:
            raise click.UsageError("--best measures on the GPU of this machine; --rtx needs none")
    else:
        refuse(("capabilities",), "belongs to --rtx, which was not given.")
    from mwa_export.bundle.engine import TENSORRT, TENSORRT_RTX
    from mwa_export.bundle.update import check_target
    from mwa_export.optional import check_installed
    from mwa_export.trt.install import load_tensorrt

    if out is not None:
        check_target(None, out, force=force)
    if graphs_only is None:
        check_installed("tensorrt_rtx_bindings" if rtx else "tensorrt")
    from mwa_export.engines.best import best_engines
    from mwa_export.engines.build import build_engines
    from mwa_export.engines.options import BATCH, EngineOptions
    from mwa_export.engines.replay import write_engine_graphs
    from mwa_export.trt.build import GIB, BuildOptions
    from mwa_export.trt.profiles import Span

    float8 = precision == "float8" or values["float8_attention"]
    cards = _RTX_CARDS[1:] if float8 else _RTX_CARDS
    scratch = None if workspace is None else int(workspace * GIB)
    options = options_of(
        EngineOptions,
        values,
        precision="float16" if best else precision,
        batches=tuple(Span.parse(text, "batch") for text in batches) or (BATCH,),
        lengths=None if lengths is None else Span.parse(lengths, "length"),
        build=options_of(BuildOptions, values, workspace=scratch, level=builder_level),
        speed_gate=not no_speed_gate,
        capabilities=(capabilities or cards) if rtx else (),
    )
    if graphs_only is None:
        load_tensorrt(TENSORRT_RTX if rtx else TENSORRT)  # before anything is read
    build: Any = build_engines
    show: Any = _show_best if best else _show
    if best:
        build = partial(
            best_engines,
            held_back=held_back.read(),
            max_recall_drop=max_recall_drop,
            undecided=undecided,
        )
    elif graphs_only is not None:
        build, show = partial(write_engine_graphs, for_tensorrt=int(for_tensorrt)), _show_graphs
        out = graphs_only
    with console.steps() as step:
        done = build(bundle, data.read(), options=options, out=out, force=force, progress=step)
    show(done)
    click.echo(out or bundle)


def _show(done: EnginesBuilt) -> None:
    """Print the engines and the graphs they were built from."""
    console.warn(*done.warnings)
    for engine in done.engines:
        size = (done.bundle.path / engine.file).stat().st_size / 1e6
        state = (
            f"built in {engine.seconds:.0f} s"
            if engine.file in done.built
            else "was there already; --rebuild builds it anew"
        )
        console.say(f"  {engine.file}  {size:.0f} MB, {state}")
    _show_graphs(done)
    for speed in done.speeds:
        console.say(f"  {speed.sentence}")
    console.say(f"  {done.engines[0].made_by}")
    if done.device is None:
        console.say("  not run here: the conformance vectors are checked where engines are loaded")


def _show_graphs(done: EnginesBuilt | EngineGraphs) -> None:
    """Print the graphs and how they were checked."""
    for graph in done.graphs:
        console.say(
            f"  {graph.path.name}: least cosine with the reference {graph.cosine:.5f} on ONNX "
            f"Runtime, {len(graph.float32)} nodes in float32"
        )
        if graph.advice is not None:
            console.say(f"  {graph.path.name}: {graph.advice}")


def _show_best(done: Best) -> None:
    """Print what was measured of each precision, and which one was kept."""
    console.warn(*done.warnings)
    base = next((c for c in done.candidates if c.precision == "float16" and c.speed), None)
    shapes = []
    for tower, compared in done.winner.speed.items():
        tokens = f" of {compared.timing.length} tokens" if compared.timing.length else ""
        shapes.append(f"{tower} {compared.timing.batch} rows{tokens}")
    console.table(
        [_row(candidate, base, done.winner) for candidate in done.candidates],
        ["precision", "vision ms", "text ms", "/ float16", "worst change", "verdict"],
        title=f"Run times on the device without copies: {', '.join(shapes)}",
    )
    for candidate in done.candidates:
        if candidate.problem is not None:
            console.say(f"  {candidate.name}: {candidate.problem}")
    if done.winner.recall is None:
        console.say("  recall was not measured: no --data")
    console.say(
        f"  TensorRT {next(iter(done.winner.engines.values())).tensorrt} on {done.device.name}"
    )


def _row(candidate: Candidate, base: Candidate | None, winner: Candidate) -> list[str]:
    from mwa_export.spec import TOWERS

    times = [
        f"{candidate.speed[tower].timing.median_ms:.2f}" if tower in candidate.speed else ""
        for tower in TOWERS
    ]
    ratio = ""
    if base is not None and candidate.speed:
        ratio = f"{base.milliseconds / candidate.milliseconds:.2f}x"
    found = candidate.decision
    drop = "" if found is None else f"{found.figure} {found.change:+.2f}"
    passed = "slower" if candidate.problem is None else "no"
    return [candidate.name, *times, ratio, drop, "kept" if candidate is winner else passed]
