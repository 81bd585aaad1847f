"""`mwa-export parity`: what a conversion cost, as recall on a test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mwa_export.cli import console
from mwa_export.cli.options import (
    DataSet,
    checkpoint_options_from,
    claim_folder,
    data_options,
    reading_options,
    runtime_options,
)
from mwa_export.cli.values import (
    PATH,
    Real,
    Whole,
    options_of,
    recall_drop_option,
    refuse,
    undecided_option,
)

if TYPE_CHECKING:
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


@click.command(epilog=_EXAMPLES)
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="BUNDLE")
@click.option("--reference", type=PATH, help="Checkpoint, or another bundle.")
@click.option("--adapter", type=PATH, help="Adapter file, if --reference is its base.")
@data_options(
    "Karpathy or COCO JSON, BEiT-3 index (.jsonl), table of captions (.csv, .tsv, .jsonl, or a "
    "folder with one), Parquet or WebDataset (.parquet, .tar, or a folder of such files).",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    metavar="FILE",
    help="Graph of the bundle to check, or any .onnx file, instead of --precision. Repeatable.",
)
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="RUNTIME:PRECISION",
    help="Compare several in one run, such as openvino:int8, instead of --runtime and --precision. "
    "Repeatable.",
)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Compare every runtime and precision that the bundle has and this machine runs.",
)
@click.option(
    "--vectors",
    is_flag=True,
    help="Compare vectors that are there already, of models of any kind, in place of BUNDLE: two "
    "folders that `embed` wrote, or four .npy files (images and texts of the reference, images "
    "and texts of the candidate).",
)
@click.option(
    "--owners",
    type=PATH,
    metavar="FILE",
    help="For --vectors: .npy with the row of each text's image.",
)
@click.option("--normalize", is_flag=True, help="For --vectors: scale them to unit length.")
@runtime_options("onnxruntime", "float32")
@click.option(
    "--tokenizer",
    type=PATH,
    help="The reference's own .spm (default: the bundle's), or one for a bundle without.",
)
@click.option(
    "--any-space",
    is_flag=True,
    help="Compare even if the embedding spaces differ (other weights, tokenizer, image size).",
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
    help="Confidence of the intervals, on which the verdict rests.",
)
@undecided_option()
@click.option("--seed", type=Whole(min=0), default=0, help="Bootstrap seed.")
@click.option("--layers", is_flag=True, help="Compare block by block too.")
@click.option(
    "--cache", type=PATH, help="Folder for the reference's embeddings; default: ~/.cache/mwa-export"
)
@click.option("--no-cache", is_flag=True, help="Compute the reference again and cache nothing.")
@click.option("-o", "--out", type=PATH, default="parity", help="Folder to create.")
@click.option("--force", is_flag=True, help="Replace an earlier report.")
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
    out: Path,
    force: bool,
    **values: Any,
) -> None:
    """Compare BUNDLE with the checkpoint it came from, or with another bundle.

    Both embed the same pictures and captions; recall, its confidence interval and the cosines show
    what the conversion cost, and where. Writes report.html, report.json, report.md and junit.xml;
    of several candidates a folder with these for each, and an overview as index.html.
    Exit status 1 when a gate fails, 3 when the pictures are too few to tell.
    """
    from mwa_export.errors import UsageError
    from mwa_export.parity.reports.write import MARKER, write_overview, write_reports

    claim_folder(out, marker=MARKER, force=force)  # before the minutes of work
    if vectors:
        _compare_vectors(paths, owners, normalize, out, undecided, values, force=force)
        return
    refuse(("owners", "normalize"), "belongs to --vectors, which was not given.")
    bundle = _only(paths)
    if reference is None or data.path is None:
        missing = "--reference" if reference is None else "--data"
        raise UsageError(f"{missing} is missing. Expected --reference and --data, or --vectors.")
    if no_cache and cache:
        raise UsageError("--cache and --no-cache were both given. Expected one of them.")
    if candidates or every:
        refuse(("runtime", "precision", "graphs"), "is for one candidate; see --candidate.")
    if candidates and every:
        raise UsageError("--candidate and --all were both given. Expected one of them.")

    from mwa_export.cli.parity_view import fail_unless_passed, show, show_overview
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
    click.echo(page)
    fail_unless_passed(results, undecided)


_FOR_VECTORS = {
    *("paths", "vectors", "owners", "normalize", "max_recall_drop", "min_cosine", "confidence"),
    *("undecided", "seed", "out", "force", "quiet", "verbose"),
}


def _compare_vectors(
    paths: tuple[Path, ...],
    owners: Path | None,
    normalize: bool,
    out: Path,
    undecided: str | None,
    values: dict[str, Any],
    *,
    force: bool,
) -> None:
    """Compare vectors that are there already."""
    others = {p.name for p in click.get_current_context().command.params if p.name} - _FOR_VECTORS
    refuse(others, "decides how a bundle is run, and --vectors compares vectors that are there.")
    if len(paths) not in (2, 4):
        raise click.UsageError(
            f"--vectors: {len(paths)} paths. Expected two folders that `embed` wrote, or four .npy "
            "files: images and texts of the reference, images and texts of the candidate."
        )
    from mwa_export.cli.parity_view import fail_unless_passed, show
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
    click.echo(page)
    fail_unless_passed({"": result}, undecided)


def _only(paths: tuple[Path, ...]) -> Path:
    """The bundle, where one path alone makes sense."""
    if len(paths) != 1:
        raise click.UsageError(f"{len(paths)} paths were given. Expected one BUNDLE.")
    return paths[0]


def _runtime_of(name: str, options: RuntimeOptions) -> RuntimeOptions:
    """The runtime and precision of a --candidate."""
    from mwa_export.errors import UsageError
    from mwa_export.runtimes.options import PRECISIONS

    runtime, _, precision = name.partition(":")
    if precision not in PRECISIONS.get(runtime, ()) or runtime == "torch":
        known = (f"{r}:{p}" for r, all_ in PRECISIONS.items() if r != "torch" for p in all_)
        raise UsageError(f"--candidate {name}: expected one of {', '.join(known)}.")
    return replace(options, runtime=runtime, precision=precision)
