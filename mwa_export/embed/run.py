"""A whole run of `embed`: lock, plan, what is left to do, the engine that does it, and the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.rows import Source
from mwa_export.embed.pipeline import Channel, Clock, Line
from mwa_export.embed.plan import Plan, Slice, plan
from mwa_export.embed.progress import MaxErrors, Meter, Unwatched, Watch, failed_in
from mwa_export.embed.worker import Worker
from mwa_export.errors import BundleError, MwaExportError, OutputDamagedError
from mwa_export.inputs.content import Kind
from mwa_export.optional import require
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.vectors.job import FOLDERS, EmbedOptions, Shard
from mwa_export.vectors.lock import LOCK, locked
from mwa_export.vectors.manifest import Counts, add_indexes, counts, finish, read_manifest
from mwa_export.vectors.output import (
    MANIFEST,
    WORK,
    clean,
    ledger,
    load_job,
    remove_work,
    save_shard,
    start_job,
)
from mwa_export.vectors.shards import Embedded


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run a job. None of it changes a byte of the output, but for the indexes' files."""

    workers: int | None = None  # threads that decode; None: one per core
    part: Slice | None = None  # of several machines
    max_errors: MaxErrors | None = None
    faiss: bool = False
    engine: Engine | None = None  # None: this process


@dataclass(frozen=True, slots=True)
class Task:
    """What an engine gets: embed `shards`, write each with `save_shard`, and say so."""

    plan: Plan
    out: Path
    shards: Sequence[Shard]
    runtime: RuntimeOptions
    workers: int | None
    meter: Meter  # `advance` it, and tell its `watch` of each shard, in any order


Engine = Callable[[Task], None]
"""Does a task, or raises; what it finished until then stays."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended."""

    out: Path
    counts: dict[Kind, Counts]  # of the whole output if it is complete, else of what is finished
    complete: bool  # all shards are finished, and the manifest is written
    embedded_now: int = 0  # rows that this run did, failed ones too
    seconds: float = 0.0
    left: int = 0  # shards that other machines have not finished


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a run would do."""

    plan: Plan
    shards: int  # of this run
    todo: int  # of them, not finished
    rows: int  # not done


def run(
    bundle: Bundle,
    sources: Sequence[Source],
    out: Path,
    *,
    options: EmbedOptions | None = None,
    runtime: RuntimeOptions | None = None,
    how: RunOptions | None = None,
    watch: Watch | None = None,
) -> Summary:
    """Embed sources into a folder, or go on where an earlier run stopped.

    Args:
        bundle: an opened bundle.
        sources: at most one of each kind.
        out: a new or empty folder, or that of an earlier run of the same job.
        options: what decides the output.
        runtime: what to run on.
        how: what does not decide the output.
        watch: is told of the progress.

    Raises:
        DataError: the sources or the folder cannot be used, or belong to another job.
        OutputBusyError: another run is writing to the folder.
        TooManyErrorsError: more rows failed than allowed; the run can go on.
        BundleError: the disk refuses; the run can go on.
    """
    how, watch = how or RunOptions(), watch or Unwatched()
    out = Path(out)
    load_job(out)  # refuses a folder of something else before anything is written
    _make(out)
    with locked(out, None if how.part is None else how.part.name):
        _make(out / WORK)
        if how.part is None:
            clean(out)
        try:
            planned = plan(bundle, sources, out / WORK, options=options, runtime=runtime)
            planned = replace(planned, job=start_job(out, planned.job))
        except MwaExportError:
            if (out / MANIFEST).is_file():
                remove_work(out)  # a finished output stays as it was
            raise
        if (out / MANIFEST).is_file():
            return _finished(out, how)
        return _run(planned, out, runtime or RuntimeOptions(), how, watch)


def _run(
    planned: Plan, out: Path, runtime: RuntimeOptions, how: RunOptions, watch: Watch
) -> Summary:
    mine = list(planned.shards(how.part))
    if how.part is not None:
        clean(out, mine)
    before = list(ledger(out, mine))
    finished = {entry.shard.key for entry in before}
    todo = [shard for shard in mine if shard.key not in finished]
    total, left = _rows(mine), _rows(todo)
    watch.planned(planned, left, len(mine))
    meter = Meter(Clock(), total, total - left, failed_in(before), watch, how.max_errors)
    if todo:
        engine = how.engine or run_here
        engine(Task(planned, out, todo, runtime, how.workers, meter))
    seconds = meter.snapshot().seconds
    if how.max_errors is not None:
        how.max_errors.check(total, failed_in(list(ledger(out, mine))), last=True)
    return replace(_end(planned, out, how), embedded_now=meter.done, seconds=seconds)


def _end(planned: Plan, out: Path, how: RunOptions) -> Summary:
    """Write the manifest if all shards are finished, those of other machines too."""
    everything = list(planned.shards())
    entries = list(ledger(out, everything))
    left = len(everything) - len(entries)
    if left and not (out / MANIFEST).is_file():
        if how.part is None:
            raise OutputDamagedError(f"{out}: finished shards were lost while the run went on.")
        return Summary(out, counts(planned.job, entries), complete=False, left=left)
    with locked(out, "finish", wait=True) if how.part is not None else nullcontext():
        if not (out / MANIFEST).is_file():
            finish(out, planned.job, entries)
        return _finished(out, how)


def _finished(out: Path, how: RunOptions) -> Summary:
    """The end of a run whose manifest is there: the rest of what a kill may have interrupted."""
    manifest = read_manifest(out)
    for shards in manifest["shards"].values():
        for file in (file for shard in shards for file in shard["files"]):
            path = out / file["file"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise OutputDamagedError(
                    f"{path}: is missing or cut, and {MANIFEST} says that this output was "
                    "finished. Restore the file, or embed into a new folder."
                )
    if how.faiss:
        add_indexes(out, manifest)
    remove_work(out)
    for lock in out.glob(f"{LOCK}-*"):
        lock.unlink(missing_ok=True)
    kinds: dict[str, Kind] = {folder: kind for kind, folder in FOLDERS.items()}
    totals = {kinds[name]: Counts(**total) for name, total in manifest["counts"].items()}
    return Summary(out, totals, complete=True)


def run_here(task: Task) -> None:
    """The engine that embeds in this process: one thread writes while the others go on."""
    worker = Worker.open(
        task.plan.job, bundle=task.plan.bundle, workers=task.workers, runtime=task.runtime
    )
    meter = task.meter
    worker.clock, worker.on_rows = meter.clock, meter.advance
    meter.restart()
    with Line(worker.clock) as line:
        computed: Channel[Embedded] = Channel(line, 1, "infer", None)

        def write() -> None:
            require("pyarrow.parquet", extra="embed", why="write embeddings")  # half a second
            for embedded in computed:
                with worker.clock.working("write"):
                    entry = save_shard(task.out, task.plan.job, embedded)
                meter.watch.shard(entry)

        line.start(write, "write")
        for _kind, group in groupby(task.shards, key=lambda shard: shard.kind):
            shards = list(group)
            with closing(worker.embed(task.plan.source(shards[0]), shards)) as found:
                for embedded in found:
                    computed.put(embedded)
        computed.close()
        line.join()


def rehearse(
    bundle: Bundle,
    sources: Sequence[Source],
    out: Path,
    *,
    options: EmbedOptions | None = None,
    runtime: RuntimeOptions | None = None,
    part: Slice | None = None,
) -> Rehearsal:
    """What `run` would do. Scans the sources and writes nothing.

    Raises:
        DataError: as `run`, also for a folder that belongs to another job.
    """
    recorded = load_job(out)
    with tempfile.TemporaryDirectory() as work:
        planned = plan(bundle, sources, Path(work), options=options, runtime=runtime)
        if recorded is not None:
            start_job(out, planned.job)  # refuses; it writes only where there is no job
        mine = list(planned.shards(part))
        complete = (out / MANIFEST).is_file()
        done = mine if complete else [entry.shard for entry in ledger(out, mine)]
    return Rehearsal(planned, len(mine), len(mine) - len(done), _rows(mine) - _rows(done))


def _rows(shards: Sequence[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in shards)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"{folder}: cannot be made: {error.strerror}. Write elsewhere."
        ) from error
