"""`mwa-export quantize`: INT8 graphs within a recall budget for a bundle, or float16 graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import (
    PATH,
    Command,
    Real,
    Whole,
    options_of,
    recall_drop_option,
    refuse,
    undecided_option,
)
from mwa_export.cli.options import DataSet, data_options
from mwa_export.errors import ParityError, UndecidedError
from mwa_export.runtimes.options import LABELS

if TYPE_CHECKING:
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.bundle.quantization import Measured
    from mwa_export.calib.quantize import Quantized
    from mwa_export.metrics.verdict import Decision

_SHOWN = 8  # kept layers; tradeoff.json has all
_OF_INT8 = (
    *("held_back", "calibration", "method", "percentile", "no_smooth", "rounding"),
    *("max_recall_drop", "no_search", "keep", "dialects", "points", "time_budget", "undecided"),
    "threads",
)
_OF_DATA = ("samples", "seed", "tokenizer")  # with --float16
_EXAMPLES = """\b
Examples:
  mwa-export quantize bundle --data dataset_coco.json --images coco --split val
  mwa-export quantize bundle --data train/ --held-back test/ --max-recall-drop 0.1
  mwa-export quantize bundle --data train/ --rounding learned --dialect all -o bundle-int8
  mwa-export quantize bundle --calibration bundle/calibration.json --dialect tensorrt
  mwa-export quantize bundle --float16
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@data_options(
    "Images with captions to calibrate with, in any format that `parity` reads. Those that are "
    "not drawn as samples are held back to measure recall on.",
    held_back="Separate data to measure recall on.",
)
@click.option(
    "--float16",
    is_flag=True,
    help="Add float16 graphs for ONNX Runtime on CUDA instead of INT8. With --data, values "
    "are measured on its samples.",
)
@click.option(
    "--calibration",
    type=PATH,
    help="Earlier calibration.json to use instead of samples.",
)
@click.option(
    "--samples",
    type=Whole(min=1),
    default=256,
    help="Number of images to calibrate with, each with one caption. At least 16.",
)
@click.option("--seed", type=Whole(min=0), default=0, help="Random seed for sampling.")
@click.option(
    "--method",
    type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
    default="auto",
    help="How ranges are chosen. auto: the method with the least output error per tensor.",
)
@click.option(
    "--percentile",
    type=Real(50, 100, min_open=True),
    default=99.99,
    help="Percentile for --method percentile.",
)
@click.option("--no-smooth", is_flag=True, help="Do not smooth activations and weights.")
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "learned"]),
    default="nearest",
    help="Rounding of weights. learned: takes some minutes longer and loses less recall.",
)
@recall_drop_option("Largest drop allowed for each of TR@1/5/10 and IR@1/5/10.")
@click.option("--no-search", is_flag=True, help="Use INT8 in all layers; only measure the drop.")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Layers to keep in high precision, such as 'blocks.0.*' or 'text:*.qkv'. Repeatable.",
)
@click.option(
    "--dialect",
    "dialects",
    multiple=True,
    type=click.Choice(["onnxruntime", "openvino", "tensorrt", "tensorrt8", "all"]),
    help="Runtimes to write graphs for. Default: the CPU runtimes installed here. Repeatable.",
)
@click.option(
    "--points",
    type=Whole(0, 20),
    default=3,
    help="Extra points of the trade-off curve. Each embeds the search images once more.",
)
@click.option(
    "--time-budget",
    type=Real(min=0, min_open=True),
    metavar="MINUTES",
    help="Time after which the search stops and takes the best mix so far.",
)
@undecided_option(
    "Default: the graphs are written, but auto does not use them. pass: auto uses them. fail: the "
    "bundle is unchanged."
)
@click.option("--threads", type=Whole(min=1), help="CPU threads. Default: all cores.")
@click.option(
    "--tokenizer", type=PATH, help="SentencePiece model (.spm), for a bundle without one."
)
@click.option("-o", "--out", type=PATH, help="Write a new bundle. Default: add to BUNDLE itself.")
@click.option("--force", is_flag=True, help="Replace the folder of -o if it exists.")
@console.verbosity
def command(
    bundle: Path,
    data: DataSet,
    held_back: DataSet,
    float16: bool,
    calibration: Path | None,
    no_smooth: bool,
    no_search: bool,
    out: Path | None,
    force: bool,
    **values: Any,
) -> None:
    """Add INT8 graphs that stay within a recall budget to BUNDLE.

    Calibrates, smooths, and searches for the fastest mix of INT8 and high precision that is
    expected to stay within the budget on each runtime. Held-back data, which the search has not
    seen, then decide the verdict once.

    With --float16, adds float16 graphs instead, checked against the conformance vectors.

    Exit status: 1 if the budget is exceeded or no mix is expected to meet it, 3 if the data cannot
    decide.
    """
    from mwa_export.bundle.update import check_target

    if float16:
        refuse(_OF_INT8, "is for INT8 and cannot be combined with --float16.")
        if data.path is None:
            refuse(_OF_DATA, "requires --data.")
    if calibration is not None:
        measures = data.path is not None or held_back.path is not None
        decided = [
            "method",
            "percentile",
            "no_smooth",
            "rounding",
            *([] if measures else ["samples"]),
        ]
        refuse(decided, "cannot be combined with --calibration, which is already computed.")
    if out is not None:
        check_target(None, out, force=force)
    if float16:
        sampling = {name: values[name] for name in _OF_DATA}
        made = _add_float16(bundle, data, **sampling, out=out, force=force)
        _show_float16(made)
        console.next_parity(made.path, bundle, "cuda", "float16")
        return

    from mwa_export.calib.calibrate import CalibrationOptions
    from mwa_export.calib.quantize import QuantizeOptions, quantize

    ranges = options_of(CalibrationOptions, values, smooth=not no_smooth)
    how = options_of(QuantizeOptions, values, calibration=ranges, search=not no_search)
    with console.steps() as step:
        step("read the data")
        done = quantize(
            bundle,
            data.read(),
            held_back=held_back.read(),
            calibration=calibration,
            options=how,
            out=out,
            force=force,
            progress=step,
        )
    console.warn(*done.warnings)
    _show(done)
    click.echo(done.bundle.path)
    if done.decision is not None:
        _fail_unless_used(done.decision, how.undecided)
    if done.decision is None:
        console.next_parity(done.bundle.path, bundle, "onnxruntime", "int8")
    else:
        console.next_embed(done.bundle.path)


def _add_float16(
    path: Path,
    data: DataSet,
    *,
    samples: int,
    seed: int,
    tokenizer: Path | None,
    out: Path | None,
    force: bool,
) -> Bundle:
    """Add float16 graphs; with data, measure the values of its samples too."""
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.calib.samples import take_samples
    from mwa_export.encoder.open import open_bundle
    from mwa_export.export.float16 import add_float16
    from mwa_export.spec import TOWERS

    batches = {}
    with console.steps() as step:
        if data.path is not None:
            step("read the data")
            given = data.read()
            assert given is not None
            bundle = Bundle.open(path)
            bundle.require(*TOWERS, what="measuring on `data`")
            encoder = open_bundle(bundle, lent_tokenizer=tokenizer)
            drawn = take_samples(encoder, given, samples, seed)
            batches = {tower: drawn.batches(tower) for tower in TOWERS}
        return add_float16(path, batches, out=out, force=force, progress=step)


def _show_float16(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs:
        if graph.precision == "float16":
            console.say(
                f"  {graph.file}: least cosine with the reference {graph.conformance:.5f} on ONNX "
                f"Runtime, {len(graph.float32 or ())} nodes in float32, values of {graph.measured} "
                "inputs measured"
            )
    console.say("  recall was not measured")
    click.echo(bundle.path)


def _fail_unless_used(decision: Decision, undecided: str | None) -> None:
    """Raise for a verdict with which `auto` does not choose the graphs."""
    if decision.takes:
        return
    if decision.verdict == "fails":  # only --no-search adds such graphs
        raise ParityError(
            f"recall drops by more than the budget: {decision.words()}. The bundle is written, but "
            "auto will not choose these graphs. Search for precisions, or keep layers (`keep`)."
        )
    why = decision.objection or f"{decision.words()} is too wide an interval"
    if decision.pictures:
        why += f", and about {decision.pictures:,} images would probably decide"
    kind = ParityError if undecided == "fail" else UndecidedError
    raise kind(
        f"recall is undecided: {why}. The bundle is written, but auto will not choose these "
        "graphs. Pass more held-back images, allow a larger drop (`max_recall_drop`), or choose "
        "what undecided counts as (`undecided`: pass or fail)."
    )


def _show(done: Quantized) -> None:
    """Print the result."""
    found = done.quantization
    layers = []
    for tower, kept in found.kept.items():
        total = sum(site.tower == tower for site in done.calibration.sites)
        layers.append((f"{tower} tower", f"{total - len(kept)} of {total}"))
    console.table(layers, title="Layers in INT8")
    if found.measured and found.held_back is not None:
        title = (
            f"Against float32 on ONNX Runtime, on {found.held_back.pictures:,} held-back images "
            f"with {found.held_back.captions:,} captions: change of recall, budget "
            f"{found.max_recall_drop:g} points, and speed"
        )
        header = ("", "worst change", "interval", "verdict", "vision", "text")
        rows = [_row(entry) for entry in found.measured]
        console.table(rows, header, title=title)
    if done.result is not None and done.result.kept:
        click.echo("Kept in high precision:")
        for layer in done.result.kept[:_SHOWN]:
            click.echo(console.printable(f"  {layer.site.tower} {layer.site.name}: {layer.reason}"))
        if len(done.result.kept) > _SHOWN:
            click.echo(f"  and {len(done.result.kept) - _SHOWN} more, see tradeoff.json")


def _row(entry: Measured) -> tuple[str, ...]:
    from mwa_export.metrics.verdict import signed

    found = entry.decision
    verdict = "FAILS" if found.verdict == "fails" else found.verdict
    return (
        f"{LABELS[entry.runtime]} {entry.precision}",
        f"{found.figure} {signed(found.change)}",
        f"{signed(found.low)} to {signed(found.high)}",
        verdict,
        f"{entry.speedup['vision']:.2f}x",
        f"{entry.speedup['text']:.2f}x",
    )
