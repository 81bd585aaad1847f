"""`mwa-export bench`: speed of a bundle beside its peers, in one run."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.options import PATH, checkpoint_options_from, device_option, reading_options

_EXAMPLES = """\b
Examples:
  mwa-export bench bundle --reference checkpoint-29.pth --data dataset_coco.json --images coco
  mwa-export bench bundle --reference checkpoint-29.pth --peers eager,compile,nncf --batch 32
  mwa-export bench bundle --peers none --runtime openvino --tower text --lengths 16
"""


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@click.option("--reference", type=PATH, help="The checkpoint of the bundle; peers need it.")
@click.option("--adapter", type=PATH, help="Adapter file, if the reference is its base.")
@click.option("--data", type=PATH, help="Test set, as `parity` reads it; else inputs are random.")
@click.option("--images", type=PATH, help="Folder of the pictures; by default beside the data.")
@click.option("--split", help="Split of a Karpathy JSON (default: test) or of a table.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="Of ours: onnxruntime, openvino, cuda, tensorrt. Repeatable; default: all that run here.",
)
@click.option(
    "--peers",
    default="all",
    show_default=True,
    metavar="LIST",
    help="all, none, or a list with commas: eager, eager-bf16, compile, onnx, ort-dynamic, "
    "ort-static-uint8, ort-static-int8, optimum, openvino, openvino-bf16, nncf.",
)
@click.option(
    "--tower",
    type=click.Choice(["vision", "text", "both"]),
    default="both",
    show_default=True,
    help="Which half of the model.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 8),
    show_default=True,
    help="Rows of a call. Repeatable.",
)
@click.option(
    "--lengths",
    metavar="coco|N",
    help="Random captions of plausible or of N tokens; default: those of --data, else coco.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=3),
    default=15,
    show_default=True,
    help="Each runs every contender once.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of everyone; default: usable cores.")
@click.option(
    "--allow-slow", is_flag=True, help="Ours also in what this CPU runs slower than float32 (INT8)."
)
@device_option
@click.option("--no-peak", is_flag=True, help="Do not measure the machine's GEMM peak.")
@click.option("-o", "--out", type=PATH, default="bench", show_default=True, help="Folder to make.")
@click.option("--force", is_flag=True, help="Replace an earlier benchmark.")
@reading_options
@console.verbosity
def command(bundle: Path, out: Path, **values: Any) -> None:
    """Measure how fast BUNDLE embeds, and how fast others embed with the same checkpoint.

    Every round runs each contender once, in shuffled order; what counts are the ratios within a
    round. Writes bench.md, bench.svg and bench.json. What cannot run is listed with its reason.
    """
    from mwa_export.bench.report import MARKER, write_bench
    from mwa_export.errors import UsageError
    from mwa_export.files import check_new_folder

    check_new_folder(out, marker=MARKER, force=values["force"])  # before the minutes of work

    from mwa_export.bench.run import BenchOptions, reference_of, run_bench
    from mwa_export.bundle.bundle import Bundle

    towers: Any = ("vision", "text") if values["tower"] == "both" else (values["tower"],)
    options = BenchOptions(
        towers=towers,
        batches=tuple(dict.fromkeys(values["batches"])),
        rounds=values["rounds"],
        runtimes=values["runtimes"],
        peers=tuple(name.strip() for name in values["peers"].split(",") if name.strip()),
        lengths=values["lengths"],
        threads=values["threads"],
        peak=not values["no_peak"],
        allow_slow=values["allow_slow"],
        device=values["device"],
    )
    if values["data"] is None and (values["images"] or values["split"]):
        raise UsageError("--images and --split belong to --data. Expected: --data DATA")
    with console.steps() as step:
        step("read the bundle")
        opened = Bundle.open(bundle)
        model = data = None
        if values["data"] is not None:
            step("read the test set")
            data = _read_data(values)
        if values["reference"] is not None and options.peers != ("none",):
            step("read the checkpoint")
            model = reference_of(opened, values["reference"], checkpoint_options_from(values))
        result = run_bench(opened, options, model=model, data=data, progress=step)
        step("write the results")
        page = write_bench(result, out, force=values["force"])
    _show(result)
    click.echo(page)


def _read_data(values: dict[str, Any]) -> Any:
    from mwa_export.data.test_sets import read_data

    return read_data(values["data"], split=values["split"], images=values["images"])


def _show(result: Any) -> None:
    from mwa_export.bench.chart import heading
    from mwa_export.bench.report import HEAD, peak_sentence, rows_of, skipped_lines, window_sentence
    from mwa_export.report.text import printable

    fits = [column for column, name in enumerate(HEAD) if name not in ("calls", "GOP/s")]
    for section in result.sections:
        rows = [[printable(row[column]) for column in fits] for row in rows_of(section)]
        console.table(rows, [HEAD[column] for column in fits], title=heading(section))
        sentences = (f"Baseline: {section.baseline}.", window_sentence(section))
        click.echo(textwrap.fill(" ".join((*sentences, peak_sentence(section))), 80))
        click.echo()
    for line in skipped_lines(result):
        click.echo(printable(f"not measured: {line}"))
