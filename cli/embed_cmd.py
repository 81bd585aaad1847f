"""`mwa-export embed`: images and texts to vectors, every row accounted for; also `mwa-embed`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mwa_export.cli import console
from mwa_export.cli.ending import status_of
from mwa_export.cli.flags import PATH, Command, Real, Whole, options_of, refuse
from mwa_export.cli.options import runtime_options

if TYPE_CHECKING:
    from mwa_export.embed.plan import Slice
    from mwa_export.embed.run import Executor
    from mwa_export.embed.update import Update, Vanished
    from mwa_export.runtimes.options import RuntimeOptions

_EXAMPLES = """\b
Examples:
  mwa-export embed bundle --images photos -o vectors
  mwa-export embed bundle --images a.parquet --texts captions.jsonl --dtype float16 -o vectors
  mwa-export embed bundle --texts big.csv --shard 2/4 -o /shared/vectors
  mwa-export embed bundle --images photos -o vectors --update
  mwa-export embed --verify vectors
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("bundle", type=PATH, required=False)
@click.option("--images", metavar="SOURCE", help="Images: folder, glob, file, list, table or tars.")
@click.option(
    "--texts",
    metavar="SOURCE",
    help="Texts: folder, table, file with a text per line, or - for standard input.",
)
@click.option("--columns", metavar="A,B", help="Columns of the source to copy to the output.")
@click.option(
    "--id-column",
    metavar="NAME",
    help="Column with the ids. Default: the path, or the row number.",
)
@click.option(
    "--image-column",
    metavar="NAME",
    help="Column with the images. Default: image, path, ... In tars: a file extension.",
)
@click.option(
    "--text-column",
    "--caption-column",
    "text_column",
    metavar="NAME",
    help="Column with the texts. Default: caption, text, ...",
)
@click.option(
    "--image-root", metavar="FOLDER", help="Folder that paths in a table are relative to."
)
@click.option("--split", help="Split of a Karpathy JSON or of a table. Default: all.")
@click.option(
    "--timeout",
    type=Real(min=0, min_open=True),
    default=30.0,
    metavar="SECONDS",
    help="Seconds to wait for a remote server before an attempt fails.",
)
@click.option(
    "--retries",
    type=Whole(0, 100),
    default=4,
    metavar="N",
    help="Retries when a remote file cannot be read.",
)
@click.option("--limit", type=Whole(min=1), help="Embed only the first N rows of each source.")
@click.option("-o", "--out", type=PATH, help="Folder to write or to resume.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    help="Type of the stored vectors. int8 stores a scale per row.",
)
@click.option(
    "--format",
    type=click.Choice(["parquet", "npy"]),
    default="parquet",
    help="File format. npy: vectors as .npy, the rest as JSON Lines; needs no extra package.",
)
@click.option(
    "--shard-size",
    type=Whole(min=1),
    help="Rows per file, and the most that a killed run has to redo.  [default: 2048 images, 16384 "
    "texts]",
)
@click.option("--faiss", is_flag=True, help="Also write a FAISS index (inner product).")
@runtime_options()
@click.option("--batch", type=Whole(min=1), help="Rows per model call.")
@click.option("--workers", type=Whole(min=1), help="Decoding threads. Default: one per core.")
@click.option("--shard", metavar="I/N", help="Output files to write here: every Nth, from the Ith.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="ray: run on a Ray cluster. Without an address, a local one is started.",
)
@click.option(
    "--ray-address", help="Address of a running cluster. Default: $RAY_ADDRESS, or a local one."
)
@click.option(
    "--ray-actors", metavar="N|MIN-MAX", help="Copies of the model. Default: as many as fit."
)
@click.option("--ray-cpus", type=Whole(min=1), help="Cores per copy of the model. Default: 4.")
@click.option("--ray-gpus", type=Real(min=0), help="GPUs per copy of the model.")
@click.option(
    "--max-errors",
    metavar="N|P%",
    help="Stop with exit status 1 when more rows than this fail. Default: finish, then exit with "
    "1 if more than 10% failed.",
)
@click.option(
    "--update", is_flag=True, help="Update --out from a changed source. Unchanged rows are kept."
)
@click.option("--retry-failed", is_flag=True, help="Retry the rows that failed before.")
@click.option(
    "--vanished",
    type=click.Choice(["drop", "keep"]),
    help="With --update: drop or keep rows that the source no longer has.  [default: drop]",
)
@click.option(
    "--dry-run", is_flag=True, help="Scan the sources and show what would be done. Writes nothing."
)
@click.option(
    "--log-json", metavar="FILE|-", help="Write progress as JSON lines to a file, or to stdout (-)."
)
@click.option(
    "--verify",
    type=PATH,
    metavar="OUT",
    help="Check every file of a finished output. Needs no BUNDLE.",
)
@console.verbosity
def command(
    bundle: Path | None,
    images: str | None,
    texts: str | None,
    columns: str | None,
    out: Path | None,
    runtime: RuntimeOptions,
    shard: str | None,
    engine: str,
    ray_address: str | None,
    ray_actors: str | None,
    ray_cpus: int | None,
    ray_gpus: float | None,
    max_errors: str | None,
    update: bool,
    retry_failed: bool,
    vanished: Vanished | None,
    dry_run: bool,
    log_json: str | None,
    verify: Path | None,
    **values: Any,
) -> None:
    """Embed images and texts with BUNDLE into a folder of Parquet or .npy files.

    Every row of the input becomes a vector or a row of errors.parquet (npy: errors.jsonl). Run the
    same command again to resume a run that was stopped or killed; the result is the same, byte for
    byte.

    Exit status: 1 if more rows failed than --max-errors (or 10% of the images or texts), or if
    --verify found damage.
    """
    from mwa_export.cli.embed_view import show, show_proof, show_rehearsal, watching

    if verify is not None:
        others = {p.name or "" for p in command.params} - {"verify", "verbose", "quiet"}
        refuse(others, "cannot be combined with --verify.")
        from mwa_export.vectors.verify import verify as prove

        with console.steps() as step:
            step("read every file")
            proof = prove(verify, on_rows=step.advance)
        show_proof(verify, proof)
        console.next_step("search", verify, "TEXT")
        return
    if bundle is None or out is None:
        missing = "BUNDLE" if bundle is None else "-o OUT"
        raise click.UsageError(f"Missing {missing}.")
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.data.sources import SourceOptions, open_sources
    from mwa_export.embed.progress import MaxErrors, judge
    from mwa_export.embed.rehearse import rehearse
    from mwa_export.embed.run import Execution, check_packages, run
    from mwa_export.vectors.job import EmbedOptions

    carried = tuple(name.strip() for name in columns.split(",")) if columns else ()
    if not all(carried):
        raise click.UsageError(f"--columns {columns}: expected names separated by commas.")
    limit = None if max_errors is None else MaxErrors.parse(max_errors)
    change = _update(update, retry_failed, vanished)
    execution = options_of(
        Execution,
        values,
        part=_slice(shard),
        max_errors=limit,
        update=change,
        executor=_executor(engine, ray_address, ray_actors, ray_cpus, ray_gpus),
    )
    options = options_of(EmbedOptions, values)
    check_packages(options, execution)
    how = options_of(SourceOptions, values, columns=carried)
    sources = open_sources(images, texts, how)
    opened = Bundle.open(bundle)
    if dry_run:
        more: Any = {"options": options, "runtime": runtime, "part": execution.part}
        show_rehearsal(rehearse(opened, sources, out, update=change, **more))
        console.next_step(*(word for word in sys.argv[1:] if word != "--dry-run"))
        return
    with _stoppable(out), watching(log_json) as watch:
        summary = run(
            opened, sources, out, options=options, runtime=runtime, how=execution, watch=watch
        )
        watch.finished(summary)
    show(summary, quiet=log_json == "-")
    if summary.complete:
        judge(summary.counts, limit, errors=summary.errors)
        console.next_step("search", out, "TEXT")


def main() -> NoReturn:
    """Run `mwa-embed ARGUMENTS` as `mwa-export embed ARGUMENTS`, or `mwa-embed --version`."""
    from mwa_export.cli.main import main as run_command

    if sys.argv[1:] != ["--version"]:
        sys.argv.insert(1, "embed")
    run_command()


def _slice(text: str | None) -> Slice | None:
    from mwa_export.embed.plan import Slice

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise click.UsageError(f"--shard {text}: expected I/N, such as 2/4.")
    return Slice(int(found[1]), int(found[2]))


def _update(source: bool, retry_failed: bool, vanished: Vanished | None) -> Update | None:
    from mwa_export.embed.update import Update

    if vanished is not None and not source:
        raise click.UsageError("--vanished requires --update.")
    if not (source or retry_failed):
        return None
    return Update(source, retry_failed, vanished or "drop")


def _executor(
    engine: str,
    address: str | None,
    actors: str | None,
    cpus: int | None,
    gpus: float | None,
) -> Executor | None:
    """Build the executor; None: this process."""
    given = {"address": address, "actors": actors, "cpus": cpus, "gpus": gpus}
    if engine == "local":
        for name, value in given.items():
            if value is not None:
                raise click.UsageError(f"--ray-{name} requires --engine ray.")
        return None
    from mwa_export.embed.ray_engine import RayOptions, ray_executor

    return ray_executor(RayOptions(address=address, cpus=cpus, gpus=gpus, actors=_actors(actors)))


def _actors(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if found is None:
        raise click.UsageError(f"--ray-actors {text}: expected N or MIN-MAX, such as 1-8.")
    return int(found[1]), int(found[2] or found[1])


@contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """Say how to continue if the run is interrupted."""
    try:
        yield
    except KeyboardInterrupt as stop:
        console.last_words(
            f"stopped; what is finished stays in {out}. Run the same command again to continue."
        )
        raise click.exceptions.Exit(status_of(stop)) from stop
