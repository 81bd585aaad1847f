"""Run `embed`: lock, plan, find what is left to do, hand it to an executor, and finish."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.cpu import check_threads
from mwa_export.data.rows import Source
from mwa_export.data.sources import SourceOptions, open_sources
from mwa_export.embed.pipeline import Channel, Clock, Line
from mwa_export.embed.plan import Plan, Slice, check_runtime, check_sources, plan
from mwa_export.embed.progress import MaxErrors, Meter, Unwatched, Watch, failed_in
from mwa_export.embed.update import Update, renew
from mwa_export.embed.worker import Worker
from mwa_export.errors import MwaExportError, OutputDamagedError, UsageError
from mwa_export.files import scratch_folder
from mwa_export.inputs.content import Kind
from mwa_export.optional import check_installed, require
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.vectors.indexes import add_indexes
from mwa_export.vectors.install import install_update, pending_update
from mwa_export.vectors.job import ERRORS, EmbedOptions, Shard
from mwa_export.vectors.lock import locked
from mwa_export.vectors.manifest import Counts, counts
from mwa_export.vectors.output import WORK, Output, clean_folder
from mwa_export.vectors.shards import Embedded, check_format


@dataclass(frozen=True, slots=True)
class Execution:
    """How to run a job. Nothing here changes a byte of the output, but for the indexes' files."""

    workers: int | None = None  # threads that decode; None: one per core
    part: Slice | None = None  # of several machines
    max_errors: MaxErrors | None = None
    faiss: bool = False
    executor: Executor | None = None  # None: this process
    update: Update | None = None  # of an output that is there, finished or not

    def __post_init__(self) -> None:
        check_threads("workers", self.workers)


@dataclass(frozen=True, slots=True)
class Task:
    """The work of an executor: embed `shards`, save each in `output`, and report it."""

    plan: Plan
    output: Output
    shards: Sequence[Shard]
    runtime: RuntimeOptions
    workers: int | None
    meter: Meter  # `advance` it, and tell its `watch` of each shard, in any order


Executor = Callable[[Task], None]
"""Does a task, or raises; what it finished until then stays."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of `run`."""

    out: Path
    counts: dict[Kind, Counts]  # of the whole output if it is complete, else of what is finished
    complete: bool  # all shards are finished, and the manifest is written
    errors: str  # name of the file that lists the rows that failed
    embedded_now: int = 0  # rows that this run did, failed ones too
    seconds: float = 0.0
    left: int = 0  # shards that other machines have not finished
    losses: dict[str, int] = field(default_factory=dict)  # of this run: "picture: what" -> rows
    kept: int = 0  # rows that an update took over, among `embedded_now`


def embed(
    bundle: str | os.PathLike[str] | Bundle,
    out: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    texts: str | os.PathLike[str] | None = None,
    source: SourceOptions | None = None,
    options: EmbedOptions | None = None,
    runtime: RuntimeOptions | None = None,
    update: Update | None = None,
) -> Summary:
    """Embed files of images or texts into a folder, every row accounted for and resumable.

    Args:
        bundle: its folder, or an opened bundle.
        out: a new or empty folder, or the folder of an earlier run of the same job to continue.
        images: a folder, glob, list, table or tars of images.
        texts: a table or lines of texts.
        source: columns and splits, where they cannot be detected.
        options: dtype, format and sizes of the output.
        runtime: runtime, precision and threads.
        update: continue although the source has changed, or retry rows that failed.

    Raises:
        MissingPackageError: `options.format` is "parquet" and pyarrow is not installed.
        DataError: the sources or the folder cannot be used, or belong to another job.
        OutputBusyError: another run is writing to the folder.
        BundleError: the disk refuses to write; run again to continue.
    """
    check_packages(options)
    sources = open_sources(images, texts, source or SourceOptions())
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    how = Execution(update=update)
    return run(opened, sources, Path(out), options=options, runtime=runtime, how=how)


def run(
    bundle: Bundle,
    sources: Sequence[Source],
    out: Path,
    *,
    options: EmbedOptions | None = None,
    runtime: RuntimeOptions | None = None,
    how: Execution | None = None,
    watch: Watch | None = None,
) -> Summary:
    """Embed sources into a folder, or go on where an earlier run stopped.

    Args:
        sources: at most one of each kind.
        out: a new or empty folder, or that of an earlier run of the same job.
        options: what decides the output.
        how: what does not decide the output.

    Raises:
        MissingPackageError: a package that the output needs is not installed.
        DataError: the sources or the folder cannot be used, or belong to another job.
        OutputBusyError: another run is writing to the folder.
        TooManyErrorsError: more rows failed than allowed; the run can be continued, or is complete.
        BundleError: the disk refuses to write; run again to continue.
    """
    how, watch, runtime = how or Execution(), watch or Unwatched(), runtime or RuntimeOptions()
    out = Path(out)
    check_packages(options, how)
    check_sources(bundle, sources)
    check_runtime(bundle, runtime)
    if how.update is not None and how.part is not None:
        raise UsageError(
            "`shard` and `update` cannot be combined: an update runs on one machine or on Ray."
        )
    if (made := pending_update(out)) is not None:
        with locked(out):
            install_update(out, made)
    ask = partial(plan, bundle, sources, options=options, runtime=runtime)
    if (
        (earlier := Output.load(out)) is not None
        and earlier.finished
        and not os.access(out, os.W_OK)
    ):
        return _reported(earlier, ask, how)
    Output.prepare(out)  # refuses a folder of something else before anything is written
    with locked(out, None if how.part is None else how.part.name):
        Output.prepare(out)  # another run may have finished in between
        if how.part is None:
            clean_folder(out)
        try:
            planned, output = _opened(ask(out / WORK), out, how)
        except MwaExportError:
            earlier = Output.load(out)
            if earlier is not None and earlier.finished:
                earlier.remove_work()  # a finished output stays as it was
            raise
        summary = (
            _finished(output, how)
            if output.finished
            else _run(replace(planned, job=output.job), output, runtime, how, watch)
        )
        if output.base is not None:
            install_update(out, output.folder)
        return replace(summary, out=out)


def check_packages(options: EmbedOptions | None, how: Execution | None = None) -> None:
    """Raise MissingPackageError if the output needs a package that is not installed."""
    check_format((options or EmbedOptions()).format)
    if how is not None and how.faiss:
        check_installed("faiss")


def _opened(planned: Plan, out: Path, how: Execution) -> tuple[Plan, Output]:
    """What is to be made, and the output in which: an update is an output of its own."""
    old = None if how.update is None else Output.load(out)
    if old is None or how.update is None:
        return planned, Output.claim(out, planned.job)
    renewal = renew(planned, old, how.update)
    if renewal is not None:
        return renewal.plan, renewal.output(out)
    if not old.finished:
        return planned, Output.claim(out, planned.job)
    old.remove_updates()
    return planned, old


def _reported(output: Output, ask: Callable[[Path], Plan], how: Execution) -> Summary:
    """Report a finished output on a disk that cannot be written."""
    with scratch_folder() as work:
        output.check(ask(work).job)
    return _finished(output, how)


def _run(
    planned: Plan, output: Output, runtime: RuntimeOptions, how: Execution, watch: Watch
) -> Summary:
    mine = list(planned.shards(how.part))
    if how.part is not None:
        output.clean(mine)
    before = output.ledger(mine)
    finished = {entry.shard.key for entry in before}
    todo = [shard for shard in mine if shard.key not in finished]
    total, left = row_count(mine), row_count(todo)
    watch.planned(planned, left, len(mine))
    meter = Meter(Clock(), total, total - left, failed_in(before), watch, how.max_errors)
    if todo:
        execute = how.executor or run_here
        execute(Task(planned, output, todo, runtime, how.workers, meter))
    seconds = meter.snapshot().seconds
    if how.max_errors is not None:
        how.max_errors.check(total, failed_in(output.ledger(mine)), last=True)
    kept, losses = sum(e.kept for e in output.ledger(todo)), dict(meter.clock.losses)
    ended = _end(planned, output, how)
    return replace(ended, embedded_now=meter.done, seconds=seconds, kept=kept, losses=losses)


def _end(planned: Plan, output: Output, how: Execution) -> Summary:
    """Write the manifest if all shards are finished, those of other machines too."""
    everything = list(planned.shards())
    entries = output.ledger(everything)
    left = len(everything) - len(entries)
    if left and not output.finished:
        if how.part is None:
            raise OutputDamagedError(
                f"{output.folder}: finished shards were lost while the run went on."
            )
        found = counts(planned.job, entries)
        return Summary(output.folder, found, False, ERRORS[planned.job.format], left=left)
    alone = nullcontext() if how.part is None else locked(output.folder, "finish", wait=True)
    with alone:  # no other part finishes this output
        if not output.finished:
            output.finish(entries)
        return _finished(output, how)


def _finished(output: Output, how: Execution) -> Summary:
    """End a run whose manifest is there: do the rest of what a kill may have interrupted."""
    found = output.close()
    if how.max_errors is not None:
        total = sum(c.embedded + c.failed for c in found.values())
        how.max_errors.check(total, sum(c.failed for c in found.values()), last=True)
    if how.faiss:
        add_indexes(output)
    return Summary(output.folder, found, True, output.errors_file.name)


def run_here(task: Task) -> None:
    """Execute a task in this process: one thread writes while the others go on."""
    worker = Worker.open(
        task.plan.job, bundle=task.plan.bundle, workers=task.workers, runtime=task.runtime
    )
    meter = task.meter
    worker.clock, worker.on_rows = meter.clock, meter.advance
    meter.restart()
    with Line(worker.clock) as line:
        computed: Channel[Embedded] = Channel(line, 1, "infer", None)

        def write() -> None:
            if task.plan.job.format == "parquet":
                require("pyarrow.parquet")  # half a second
            for embedded in computed:
                with worker.clock.working("write"):
                    entry = task.output.save(embedded)
                meter.watch.shard(entry)

        line.start(write, "write")
        for _kind, group in groupby(task.shards, key=lambda shard: shard.kind):
            shards = list(group)
            with closing(worker.embed(task.plan.source(shards[0]), shards)) as found:
                for embedded in found:
                    computed.put(embedded)
        computed.close()
        line.join()


def row_count(shards: Sequence[Shard]) -> int:
    """Rows of some shards."""
    return sum(shard.stop - shard.start for shard in shards)
