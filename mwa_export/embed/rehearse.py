"""Dry run of `embed`: determine what a run would do, without writing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.rows import Source
from mwa_export.embed.plan import Plan, Slice, plan
from mwa_export.embed.rows import KnownRow
from mwa_export.embed.run import check_packages, row_count
from mwa_export.embed.update import Update, renew
from mwa_export.files import scratch_folder
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.vectors.job import EmbedOptions, Shard
from mwa_export.vectors.output import Output


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Result of `rehearse`: what a run would do."""

    plan: Plan
    shards: int  # all shards of this run
    todo: int  # unfinished shards
    rows: int  # rows that are not done


def rehearse(
    bundle: Bundle,
    sources: Sequence[Source],
    out: Path,
    *,
    options: EmbedOptions | None = None,
    runtime: RuntimeOptions | None = None,
    part: Slice | None = None,
    update: Update | None = None,
) -> Rehearsal:
    """Scan the sources and return what `run` would do. Writes nothing.

    Raises the errors that `run` raises before it embeds anything.
    """
    check_packages(options)
    earlier = Output.load(out)
    with scratch_folder() as work:
        planned = plan(bundle, sources, work, options=options, runtime=runtime)
        if earlier is not None and update is not None:
            renewal = renew(planned, earlier, update)
            if renewal is not None:
                return _rehearsed(renewal.plan)
    mine = list(planned.shards(part))
    done: list[Shard] = []
    if earlier is not None:
        if update is None:
            earlier.check(planned.job)
        done = mine if earlier.finished else [entry.shard for entry in earlier.ledger(mine)]
    return Rehearsal(planned, len(mine), len(mine) - len(done), row_count(mine) - row_count(done))


def _rehearsed(planned: Plan) -> Rehearsal:
    """Return what an update would do; reused rows do not count as rows to do."""
    every = list(planned.shards())
    rows = sum(
        row.content is not None and not isinstance(row, KnownRow)
        for entry, source in zip(planned.job.inputs, planned.sources, strict=True)
        for row in source.rows(0, entry.taken)
    )
    return Rehearsal(planned, len(every), len(every), rows)
