"""Run `embed`: lock, plan, find unfinished shards, pass them to an executor, and finish."""

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
    """How to run a job. Nothing here affects the content of shards."""

    workers: int | None = None  # decoding threads; None: one per core
    part: Slice | None = None  # this machine's share; None: everything
    max_errors: MaxErrors | None = None
    faiss: bool = False  # also write FAISS indexes
    executor: Executor | None = None  # None: this process
    update: Update | None = None  # update an existing output, finished or not

    def __post_init__(self) -> None:
        check_threads("workers", self.workers)


@dataclass(frozen=True, slots=True)
class Task:
    """Work for an executor: embed `shards`, save each in `output`, and report it."""

    plan: Plan
    output: Output
    shards: Sequence[Shard]
    runtime: RuntimeOptions
    workers: int | None
    meter: Meter  # call its `advance`, and `watch.shard` for each shard, in any order


Executor = Callable[[Task], None]
"""Runs a task. If it raises, the shards that it finished are kept."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of `run`."""

    out: Path
    counts: dict[Kind, Counts]  # rows of all finished shards
    complete: bool  # whether all shards are finished and the manifest is written
    errors: str  # name of the file that lists the failed rows
    embedded_now: int = 0  # rows done by this run, including failed ones
    seconds: float = 0.0
    left: int = 0  # shards that other machines have not finished
    losses: dict[str, int] = field(default_factory=dict)  # in this run: "picture: what" -> rows
    kept: int = 0  # rows that an update reused, included in `embedded_now`


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
    """Embed images, texts or both into a folder, accounting for every row. Runs can be resumed.

    Args:
        bundle: a bundle's folder, or an opened bundle.
        out: a new or empty folder, or the folder of an earlier run of this job to continue.
        images: a folder, glob, list, table or tars of images.
        texts: a table or lines of texts.
        source: columns and splits that cannot be detected.
        options: dtype, format and sizes of the output.
        runtime: runtime, precision and threads.
        update: embed changed rows of the source, or retry failed rows.

    Raises:
        MissingPackageError: `options.format` is "parquet" and pyarrow is not installed.
        UsageError: there is nothing to embed, or the bundle lacks a tower.
        DataError: the sources or the folder cannot be used, or belong to another job.
        RuntimeUnavailableError: the runtime is not installed or cannot run the bundle.
        OutputBusyError: another run is writing to the folder.
        BundleError: the bundle cannot be opened, or writing failed; run again to continue.
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
    """Embed sources into a folder, or continue an earlier run.

    Args:
        sources: at most one of each kind.
        out: a new or empty folder, or the folder of an earlier run of this job.
        options: options that determine the output.
        how: options that do not affect the content of shards.
        watch: callbacks that display the run.

    Raises:
        MissingPackageError: a package that the output needs is not installed.
        UsageError: options or sources that cannot be combined.
        DataError: the sources or the folder cannot be used, or belong to another job.
        RuntimeUnavailableError: the runtime is not installed or cannot run the bundle.
        OutputBusyError: another run is writing to the folder.
        TooManyErrorsError: more rows failed than allowed; finished shards are kept.
        BundleError: writing failed; run again to continue.
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
    Output.prepare(out)  # refuses a folder with other content before anything is written
    with locked(out, None if how.part is None else how.part.name):
        Output.prepare(out)  # another run may have finished in between
        if how.part is None:
            clean_folder(out)
        try:
            planned, output = _opened(ask(out / WORK), out, how)
        except MwaExportError:
            earlier = Output.load(out)
            if earlier is not None and earlier.finished:
                earlier.remove_work()  # leave a finished output as it was
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
    """Return the plan and the output to write; an update is a separate output."""
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
    """Report a finished output on a read-only disk."""
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
    """Write the manifest once all shards are finished, including those of other machines."""
    everything = list(planned.shards())
    entries = output.ledger(everything)
    left = len(everything) - len(entries)
    if left and not output.finished:
        if how.part is None:
            raise OutputDamagedError(
                f"{output.folder}: finished shards disappeared during the run. Run the same "
                "command again."
            )
        found = counts(planned.job, entries)
        return Summary(output.folder, found, False, ERRORS[planned.job.format], left=left)
    alone = nullcontext() if how.part is None else locked(output.folder, "finish", wait=True)
    with alone:  # only one part may finish the output
        if not output.finished:
            output.finish(entries)
        return _finished(output, how)


def _finished(output: Output, how: Execution) -> Summary:
    """Complete a run whose manifest is written, including steps that a kill interrupted."""
    found = output.close()
    if how.max_errors is not None:
        total = sum(c.embedded + c.failed for c in found.values())
        how.max_errors.check(total, sum(c.failed for c in found.values()), last=True)
    if how.faiss:
        add_indexes(output)
    return Summary(output.folder, found, True, output.errors_file.name)


def run_here(task: Task) -> None:
    """Execute a task in this process; a thread writes shards while the others continue."""
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
                require("pyarrow.parquet")  # importing it takes half a second
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
    """Count the rows of some shards."""
    return sum(shard.stop - shard.start for shard in shards)
