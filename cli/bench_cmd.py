"""`mwa-export bench`: speed of a bundle beside its peers, measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import PATH, Command, Whole, options_of, refuse
from mwa_export.cli.options import (
    READING,
    DataSet,
    checkpoint_options_from,
    data_options,
    device_option,
    open_option,
    output_folder,
    reading_options,
)

_EXAMPLES = """\b
Examples:
  mwa-export bench bundle --reference checkpoint-29.pth --data dataset_coco.json --images coco
  mwa-export bench bundle --reference checkpoint-29.pth --peers eager,compile,onnx --batch 32
  mwa-export bench bundle --peers none --runtime openvino --tower text --lengths 16
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("bundle", type=PATH)
@click.option("--reference", type=PATH, help="Checkpoint of the bundle. Peers run only with it.")
@click.option("--adapter", type=PATH, help="Adapter file, if --reference is its base.")
@data_options("Test set, in any format that `parity` reads. Default: random inputs.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="Runtime of the bundle: onnxruntime, openvino, cuda or tensorrt. Repeatable. Default: all "
    "that run on this machine.",
)
@click.option(
    "--peers",
    default="all",
    metavar="LIST",
    help="Peers to compare with: all, none, or a comma-separated list of eager, eager-bf16, "
    "compile, onnx, openvino, openvino-bf16.",
)
@click.option(
    "--tower",
    type=click.Choice(["vision", "text", "both"]),
    default="both",
    help="Towers to measure.",
)
@click.option(
    "--batch",
    "batches",
    type=Whole(min=1),
    multiple=True,
    default=(1, 8),
    help="Rows per call. Repeatable.",
)
@click.option(
    "--lengths",
    metavar="coco|N",
    help="Random captions as long as those of COCO, or of N tokens. Default: the captions of "
    "--data, or coco.",
)
@click.option(
    "--rounds",
    type=Whole(min=3),
    default=15,
    help="Number of rounds; each runs every contender once, and ratios are taken within it.",
)
@click.option(
    "--threads", type=Whole(min=1), help="Threads per contender. Default: available cores."
)
@click.option(
    "--allow-slow",
    is_flag=True,
    help="Allow precisions that are slower than float32 on this CPU, such as INT8.",
)
@device_option
@click.option(
    "-o",
    "--out",
    type=PATH,
    help="Folder to create. Default: BUNDLE-bench, or BUNDLE-bench-2 and so on if that exists.",
)
@click.option("--force", is_flag=True, help="Replace an earlier benchmark.")
@open_option
@reading_options
@console.verbosity
def command(
    bundle: Path,
    reference: Path | None,
    adapter: Path | None,
    data: DataSet,
    peers: str,
    tower: str,
    batches: tuple[int, ...],
    out: Path | None,
    force: bool,
    open_page: bool,
    **values: Any,
) -> None:
    """Compare the speed of BUNDLE with PyTorch and a plain ONNX export of its checkpoint.

    Every round runs each contender once, in shuffled order, and the results are ratios within a
    round. Contenders that cannot run are listed with the reason. Writes bench.html, bench.md,
    bench.svg and bench.json.
    """
    if reference is None:
        refuse(("adapter", *READING), "requires --reference.")
    from mwa_export.bench.write import MARKER, write_bench

    # Before the minutes of work.
    out = output_folder(out, bundle, "bench", marker=MARKER, force=force)

    from mwa_export.bench.peers import chosen_peers
    from mwa_export.bench.run import BenchOptions, reference_of, run_bench
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.optional import check_installed

    towers: Any = ("vision", "text") if tower == "both" else (tower,)
    options = options_of(BenchOptions, values, towers=towers, batches=tuple(dict.fromkeys(batches)))
    chosen = chosen_peers(name.strip() for name in peers.split(","))
    if reference is not None and chosen:
        check_installed("torch", "torchscale")
    with console.steps() as step:
        step("read the bundle")
        opened = Bundle.open(bundle)
        if data.path is not None:
            step("read the test set")
        test_set, model = data.read(), None
        if reference is not None and chosen:
            step("read the checkpoint")
            how = checkpoint_options_from({"adapter": adapter, **values})
            model = reference_of(opened, reference, how)
        result = run_bench(opened, options, model=model, data=test_set, peers=chosen, progress=step)
        step("write the results")
        page = write_bench(result, out, force=force)
    _show(result)
    console.show_page(page, open_it=open_page)
    if opened.manifest.quantization is None and len(opened.manifest.towers) == 2:
        console.next_step("quantize", bundle, "--data", data.path or "DATA")
    else:
        console.next_embed(bundle)


def _show(result: Any) -> None:
    from mwa_export.bench.chart import heading
    from mwa_export.bench.report import skipped_lines, table_of, window_sentence
    from mwa_export.report.text import printable

    for section in result.sections:
        table = table_of(section)
        fits = [column for column, name in enumerate(table[0]) if name not in ("calls", "GOP/s")]
        head, *rows = [[printable(row[column]) for column in fits] for row in table]
        console.table(rows, head, title=heading(section))
        console.paragraph(f"Baseline: {section.baseline}. {window_sentence(section)}")
        click.echo()
    for line in skipped_lines(result):
        click.echo(console.words(f"not measured: {line}"))
