"""`mwa-export trt`: build TensorRT engines for a bundle, for this GPU or for RTX cards."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mwa_export.cli import console
from mwa_export.cli.flags import (
    CAPABILITIES,
    ENGINE_HELP,
    PATH,
    Command,
    Real,
    Whole,
    options_of,
    precision_flags,
    recall_drop_option,
    refuse,
)
from mwa_export.cli.options import DataSet, claim_folder, data_options
from mwa_export.cli.refit_cmd import require_gpu

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

_MOST_ROWS = 16_384  # of a batch; one of 224-pixel images takes 10 GB
_RTX_CARDS = ((8, 6), (8, 9), (12, 0))  # Ampere, Ada, Blackwell
# Options that TensorRT-RTX does not have.
_OF_GPU = (
    *("version_compatible", "hardware_compatible", "refit", "timing_cache", "device"),
    *("allow_slow", "no_speed_gate"),
)
_OF_ENGINES = (*_OF_GPU, "workspace", "builder_level", "rtx", "capabilities", "rebuild", "out")
_OF_BEST = ("max_recall_drop", "undecided", "held_back", "held_back_images", "held_back_split")


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@precision_flags
@click.option(
    "--fp8-attention",
    "float8_attention",
    is_flag=True,
    help="With --int8 or --fp8: run attention of the vision tower in float8 too. Requires "
    "TensorRT 10 and Ada, or later.",
)
@recall_drop_option("With --best: largest drop allowed for each of TR@1/5/10 and IR@1/5/10.")
@click.option(
    "--undecided",
    type=click.Choice(["pass", "fail"]),
    help="With --best: what undecided recall counts as. Default: 8-bit engines are not kept.",
)
@click.option(
    "--allow-slow",
    is_flag=True,
    help="With --int8 or --fp8: add them even if float16 is faster.",
)
@click.option(
    "--no-speed-gate",
    is_flag=True,
    help="With --int8 or --fp8: do not time the engines against float16.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    metavar="MIN,OPT,MAX",
    help="Batch size: range, or one number. Default: 1,32,128. Repeatable; each becomes an "
    "optimization profile.",
)
@click.option(
    "--lengths",
    metavar="MIN,OPT,MAX",
    help="Tokens of a text, with BOS and EOS. Default: 2 to the model's maximum, optimum 16.",
)
@data_options(
    "Images with captions, in any format that `parity` reads. Layers whose values overflow float16 "
    "on them stay in float32. Default: the bundle's conformance vectors. --best measures recall on "
    "the images not used as samples.",
    held_back="With --best: separate data to measure recall on.",
)
@click.option(
    "--samples",
    type=Whole(min=16),
    default=64,
    help="Number of images of --data to measure values on, each with one caption.",
)
@click.option(
    "--workspace",
    type=Real(min=0, min_open=True),
    metavar="GIB",
    help="Maximum scratch memory per kernel. Default: all memory of the GPU.",
)
@click.option(
    "--timing-cache",
    type=PATH,
    help="File to read kernel times from, if it exists, and to write them to.",
)
@click.option(
    "--builder-level",
    type=Whole(0, 5),
    help="Effort: 0 builds fastest, 5 searches longest. Default: TensorRT's own.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Let later versions of the same major TensorRT load the engines.",
)
@click.option(
    "--hardware-compatible", is_flag=True, help="Let every GPU from Ampere on load the engines."
)
@click.option(
    "--refit", is_flag=True, help="Let `mwa-export refit` put another adapter into the engines."
)
@click.option(
    "--rtx",
    is_flag=True,
    help="Build for the RTX cards of --sm with TensorRT-RTX. Requires no GPU; the engines are "
    "checked where they are loaded.",
)
@click.option(
    "--sm",
    "capabilities",
    type=CAPABILITIES,
    metavar="LIST",
    help="Compute capabilities of RTX cards. Default: 86,89,120, or 89,120 with --fp8.",
)
@click.option(
    "--graphs-only",
    type=PATH,
    metavar="DIR",
    help="Write the graphs, inputs and a script for Polygraphy and trtexec. Builds nothing.",
)
@click.option(
    "--for-tensorrt",
    type=click.Choice(["8", "10", "11"]),
    default="11",
    help="With --graphs-only: major version of TensorRT.",
)
@click.option("--device", type=Whole(min=0), default=0, help="GPU number.")
@click.option("--rebuild", is_flag=True, help="Rebuild engines that already exist.")
@click.option("-o", "--out", type=PATH, help="Write a new bundle. Default: add to BUNDLE itself.")
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
    """Add TensorRT engines for the GPU of this machine to BUNDLE.

    Each tower's graph is converted for the installed version (8.6, 10 or 11), checked on ONNX
    Runtime against the bundle's conformance vectors, and compiled.

    Without a GPU, use --rtx to build for RTX cards, or --graphs-only to write the graphs.
    """
    asked = [name for name in ENGINE_HELP if values.pop(name)]
    if len(asked) != 1:
        raise click.UsageError(
            "Pass --fp16, --bf16, --int8, --fp8, or --best" + (", and only one" if asked else "")
        )
    precision = asked[0]
    if precision == "best":
        refuse(("float8_attention",), "requires --int8 or --fp8; --best tries it by itself.")
    else:
        refuse(_OF_BEST, "requires --best.")
    best = precision == "best"
    from mwa_export.engines.replay_script import SCRIPT

    if graphs_only is None:
        refuse(("for_tensorrt",), "requires --graphs-only.")
    else:
        refuse(_OF_ENGINES, "cannot be combined with --graphs-only, which builds no engine.")
        if best:
            raise click.UsageError("--best cannot be combined with --graphs-only.")
        claim_folder(graphs_only, marker=SCRIPT, force=force)
    if data.path is None:
        refuse(("samples",), "requires --data.")
    if rtx:
        refuse(_OF_GPU, "cannot be combined with --rtx, which needs no GPU.")
        if best:
            raise click.UsageError("--best cannot be combined with --rtx, which needs no GPU.")
    else:
        refuse(("capabilities",), "requires --rtx.")
    if not rtx and graphs_only is None:
        require_gpu(
            "Without one, pass --rtx --sm 86,89,120 to build for RTX cards, or --graphs-only DIR."
        )
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
    spans = tuple(Span.parse(text, "batch") for text in batches) or (BATCH,)
    if (most := max(span.max for span in spans)) > _MOST_ROWS:
        raise click.UsageError(f"--batch {most}: expected at most {_MOST_ROWS} rows.")
    options = options_of(
        EngineOptions,
        values,
        precision="float16" if best else precision,
        batches=spans,
        lengths=None if lengths is None else Span.parse(lengths, "length"),
        build=options_of(BuildOptions, values, workspace=scratch, level=builder_level),
        speed_gate=not no_speed_gate,
        capabilities=(capabilities or cards) if rtx else (),
    )
    if graphs_only is None:  # before anything is read
        load_tensorrt(TENSORRT_RTX if rtx else TENSORRT)
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
    if graphs_only is not None:
        console.say(f"Next: {shlex.join(['sh', str(graphs_only / SCRIPT)])}")
    elif rtx:
        console.next_step("inspect", out or bundle)
    else:
        kept = done.winner.precision if best else precision
        console.next_parity(out or bundle, bundle, "tensorrt", kept)


def _show(done: EnginesBuilt) -> None:
    """Print the engines and the graphs they were built from."""
    console.warn(*done.warnings)
    for engine in done.engines:
        size = (done.bundle.path / engine.file).stat().st_size / 1e6
        state = (
            f"built in {engine.seconds:.0f} s"
            if engine.file in done.built
            else "already exists; pass --rebuild to build it again"
        )
        console.say(f"  {engine.file}  {size:.0f} MB, {state}")
    _show_graphs(done)
    for speed in done.speeds:
        console.say(f"  {speed.sentence}")
    console.say(f"  {done.engines[0].made_by}")
    if done.device is None:
        console.say("  not run here; the engines are checked where they are loaded")


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
    """Print the measurements of each precision, and which one was kept."""
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
        console.say("  recall was not measured, because --data was not given")
    console.say(
        f"  TensorRT {next(iter(done.winner.engines.values())).tensorrt} on {done.device.name}"
    )


def _row(candidate: Candidate, base: Candidate | None, winner: Candidate) -> list[str]:
    from mwa_export.metrics.verdict import signed
    from mwa_export.spec import TOWERS

    times = [
        f"{candidate.speed[tower].timing.median_ms:.2f}" if tower in candidate.speed else ""
        for tower in TOWERS
    ]
    ratio = ""
    if base is not None and candidate.speed:
        ratio = f"{base.milliseconds / candidate.milliseconds:.2f}x"
    found = candidate.decision
    drop = "" if found is None else f"{found.figure} {signed(found.change)}"
    passed = "slower" if candidate.problem is None else "no"
    return [candidate.name, *times, ratio, drop, "kept" if candidate is winner else passed]
