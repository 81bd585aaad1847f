"""`mwa-export parity`: how much recall a conversion costs on a test set."""

from __future__ import annotations

from dataclasses import replace
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
from mwa_export.cli.options import (
    DataSet,
    checkpoint_options_from,
    data_options,
    open_option,
    output_folder,
    reading_options,
    runtime_options,
)

if TYPE_CHECKING:
    from mwa_export.parity.result import Parity
    from mwa_export.runtimes.options import RuntimeOptions

_EXAMPLES = """\b
Examples:
  mwa-export parity bundle --reference checkpoint-29.pth --data dataset_coco.json --images coco
  mwa-export parity bundle --reference bundle --runtime openvino --precision int8 --data x.csv
  mwa-export parity bundle --reference checkpoint-29.pth --data test-shards/ --all
  mwa-export parity new --reference old --data test-shards/ --max-recall-drop 0.5 --confidence 0.95
  mwa-export parity --vectors old-vectors new-vectors
  mwa-export parity --vectors a-img.npy a-txt.npy b-img.npy b-txt.npy --owners owners.npy
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="BUNDLE")
@click.option("--reference", type=PATH, help="Checkpoint, or another bundle.")
@click.option("--adapter", type=PATH, help="Adapter file, if --reference is its base.")
@data_options(
    "Test set: Karpathy or COCO JSON, BEiT-3 index (.jsonl), table of captions (.csv, .tsv, "
    ".jsonl, or a folder with one), Parquet or WebDataset (.parquet, .tar, or a folder of them).",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    metavar="FILE",
    help="Graph of the bundle, or any .onnx file, to check instead of --precision. Repeatable.",
)
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="RUNTIME:PRECISION",
    help="Check this pair, such as openvino:int8, instead of --runtime and --precision. Repeat it "
    "to compare several in one run.",
)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Compare every runtime and precision that the bundle has and this machine can run.",
)
@click.option(
    "--vectors",
    is_flag=True,
    help="Compare existing vectors of any models instead of a bundle: two folders that `embed` "
    "wrote, or four .npy files (images and texts of the reference, images and texts of the "
    "candidate).",
)
@click.option(
    "--owners",
    type=PATH,
    metavar="FILE",
    help="With --vectors: .npy file with the image row of each text.",
)
@click.option("--normalize", is_flag=True, help="With --vectors: scale them to unit length.")
@runtime_options("onnxruntime", "float32")
@click.option(
    "--tokenizer",
    type=PATH,
    help="SentencePiece model (.spm) of the reference. Default: the bundle's.",
)
@click.option(
    "--any-space",
    is_flag=True,
    help="Compare even if the embedding spaces differ (weights, tokenizer, image size).",
)
@recall_drop_option("Largest drop allowed for each of TR@1/5/10 and IR@1/5/10.")
@click.option(
    "--min-cosine",
    type=Real(-1, 1),
    metavar="COSINE",
    help="Smallest cosine allowed for any row.",
)
@click.option(
    "--confidence",
    type=Real(0.5, 1, max_open=True),
    default=0.95,
    help="Confidence of the intervals that the verdict rests on.",
)
@undecided_option()
@click.option("--seed", type=Whole(min=0), default=0, help="Bootstrap seed.")
@click.option("--layers", is_flag=True, help="Also compare block by block.")
@click.option(
    "--cache",
    type=PATH,
    help="Folder to cache the reference's embeddings in. Default: ~/.cache/mwa-export.",
)
@click.option("--no-cache", is_flag=True, help="Embed with the reference again, and cache nothing.")
@click.option(
    "-o",
    "--out",
    type=PATH,
    help="Folder to create. Default: BUNDLE-parity, or BUNDLE-parity-2 and so on if that exists.",
)
@click.option("--force", is_flag=True, help="Replace an earlier report.")
@open_option
@reading_options
@console.verbosity
def command(
    paths: tuple[Path, ...],
    reference: Path | None,
    data: DataSet,
    vectors: bool,
    owners: Path | None,
    normalize: bool,
    undecided: str | None,
    candidates: tuple[str, ...],
    every: bool,
    cache: Path | None,
    no_cache: bool,
    out: Path | None,
    force: bool,
    open_page: bool,
    **values: Any,
) -> None:
    """Check the recall of BUNDLE against the checkpoint it came from, or against another bundle.

    Both embed the same images and captions. Recall, its confidence interval and cosines show what
    the conversion cost, and where. Writes report.html, report.json, report.md and junit.xml. With
    several candidates, each gets a folder with these files, and index.html is an overview.

    Exit status: 1 if a check fails, 3 if there are too few images to decide.
    """
    from mwa_export.cli.parity_view import fail_unless_passed, show, show_overview
    from mwa_export.errors import UsageError
    from mwa_export.parity.reports.write import MARKER, write_overview, write_reports

    named = paths[len(paths) // 2] if vectors else paths[0]
    out = output_folder(out, named, "parity", marker=MARKER, force=force)  # before minutes of work
    if vectors:
        result, page = _compare_vectors(paths, owners, normalize, out, values, force=force)
        console.show_page(page, open_it=open_page)
        fail_unless_passed({"": result}, undecided)
        if len(paths) == 2:
            console.next_step("search", paths[1], "TEXT")
        return
    refuse(("owners", "normalize"), "requires --vectors.")
    bundle = _only(paths)
    if reference is None or data.path is None:
        missing = "--reference" if reference is None else "--data"
        raise UsageError(f"{missing} is missing. Pass --reference and --data, or --vectors.")
    if no_cache and cache:
        raise UsageError("--cache and --no-cache were both given. Pass one of them.")
    if candidates or every:
        names = ("runtime", "precision", "graphs")
        refuse(names, "is for one candidate. Use --candidate RUNTIME:PRECISION instead.")
    if candidates and every:
        raise UsageError("--candidate and --all were both given. Pass one of them.")

    from mwa_export.encoder.cache import default_cache
    from mwa_export.parity.candidates import compare_candidates
    from mwa_export.parity.gates import Gates
    from mwa_export.parity.measure import CompareOptions
    from mwa_export.parity.run import RunOptions, check_packages, compare_models

    run = options_of(
        RunOptions,
        values,
        checkpoint=checkpoint_options_from(values),
        cache=None if no_cache else cache or default_cache(),
        max_excluded=data.how["max_excluded"],
    )
    options = options_of(CompareOptions, values, gates=options_of(Gates, values))
    chosen = [_runtime_of(name, run.runtime) for name in candidates]
    check_packages(reference, [run.runtime, *chosen], layers=run.layers)
    with console.steps() as step:
        step("read the test set")
        test_set = data.read()
        assert test_set is not None  # its path was checked
        if candidates or every:
            found = compare_candidates(
                reference, bundle, test_set, chosen, run=run, options=options, progress=step
            )
            step("write the reports")
            page = write_overview(found, out, force=force)
        else:
            done = compare_models(
                reference, bundle, test_set, run=run, options=options, progress=step
            )
            found = {"": done}
            step("write the reports")
            page = write_reports(done.result, out, pictures=done.data.pictures, force=force)
    results = {name: done.result for name, done in found.items()}
    show_overview(results) if candidates or every else show(results[""])
    console.show_page(page, open_it=open_page)
    fail_unless_passed(results, undecided)
    console.next_embed(bundle)


_FOR_VECTORS = {
    *("paths", "vectors", "owners", "normalize", "max_recall_drop", "min_cosine", "confidence"),
    *("undecided", "seed", "out", "force", "open_page", "quiet", "verbose"),
}


def _compare_vectors(
    paths: tuple[Path, ...],
    owners: Path | None,
    normalize: bool,
    out: Path,
    values: dict[str, Any],
    *,
    force: bool,
) -> tuple[Parity, Path]:
    """Compare existing vectors; returns the result and its report."""
    others = {p.name for p in click.get_current_context().command.params if p.name} - _FOR_VECTORS
    refuse(others, "cannot be combined with --vectors, which runs no bundle.")
    if len(paths) not in (2, 4):
        raise click.UsageError(
            f"--vectors: {len(paths)} paths. Expected two folders that `embed` wrote, or four .npy "
            "files: images and texts of the reference, images and texts of the candidate."
        )
    from mwa_export.cli.parity_view import show
    from mwa_export.parity.gates import Gates
    from mwa_export.parity.measure import CompareOptions
    from mwa_export.parity.reports.write import write_reports
    from mwa_export.parity.vectors import compare_vectors

    options = options_of(CompareOptions, values, gates=options_of(Gates, values))
    half = len(paths) // 2
    with console.steps() as step:
        result = compare_vectors(
            *(paths[:half], paths[half:], owners),
            normalize=normalize,
            options=options,
            progress=step,
        )
        step("write the reports")
        page = write_reports(result, out, force=force)
    show(result)
    return result, page


def _only(paths: tuple[Path, ...]) -> Path:
    """Return the only path."""
    if len(paths) != 1:
        raise click.UsageError(f"{len(paths)} paths were given. Expected one BUNDLE.")
    return paths[0]


def _runtime_of(name: str, options: RuntimeOptions) -> RuntimeOptions:
    """Parse a --candidate: its runtime and precision."""
    from mwa_export.errors import UsageError
    from mwa_export.runtimes.options import PRECISIONS

    runtime, _, precision = name.partition(":")
    if precision not in PRECISIONS.get(runtime, ()) or runtime == "torch":
        known = (f"{r}:{p}" for r, all_ in PRECISIONS.items() if r != "torch" for p in all_)
        raise UsageError(f"--candidate {name}: expected one of {', '.join(known)}.")
    return replace(options, runtime=runtime, precision=precision)
