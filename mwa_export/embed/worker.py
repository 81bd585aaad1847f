"""A worker holds the model of a job and embeds shards with it.

    worker = Worker.open(job, ...)
    entry = worker.embed_shard(output, source, shard)  # written and added to the ledger

A shard depends only on the job, its source and its number, so workers can share the shards of a job
in any way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from mwa_export.bundle.bundle import Bundle
from mwa_export.cpu import cores
from mwa_export.data.rows import Source
from mwa_export.embed.kept import completed
from mwa_export.embed.pipeline import Clock
from mwa_export.embed.rows import OnRows, Setup, ignore
from mwa_export.errors import DataError
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.vectors.entries import Entry
from mwa_export.vectors.job import Job, Shard
from mwa_export.vectors.output import Output
from mwa_export.vectors.shards import Embedded


@dataclass
class Worker:
    """An opened model and the job that it works on."""

    bundle: Bundle
    job: Job
    backend: Backend
    workers: int  # decoding threads
    clock: Clock = field(default_factory=Clock)
    on_rows: OnRows = ignore

    @classmethod
    def open(
        cls,
        job: Job,
        *,
        bundle: Bundle | None = None,
        workers: int | None = None,
        runtime: RuntimeOptions | None = None,
    ) -> Worker:
        """Open the model of a job. ``bundle``: the job's bundle, if it is open already.

        Raises:
            DataError: the bundle is a different model than the job's.
            BundleError: the bundle cannot be opened.
            RuntimeUnavailableError, VerificationError: see `open_backend`.
        """
        bundle = bundle or Bundle.open(job.bundle)
        if bundle.manifest.space_id != job.space_id:
            raise DataError(
                f"{bundle.path}: is a different model than the one the job was started with. Pass "
                "the original bundle, or embed into a new folder."
            )
        options = replace(
            runtime or RuntimeOptions(),
            runtime=job.runtime,
            precision=job.precision,
            allow_slow=True,  # checked when the job was planned
        )
        backend = open_backend(bundle, options).backend
        return cls(bundle, job, backend, workers or cores())

    def embed(self, source: Source, shards: Iterable[Shard]) -> Generator[Embedded, None, None]:
        """Embed shards of one source in order, without a pause between them.

        Raises:
            DataError: the source has changed since its scan.
        """
        entry = self.job.input(source.kind)
        setup = Setup(
            self.backend, entry.batch, entry.columns, self.workers, self.clock, self.on_rows
        )
        if source.kind == "image":
            from mwa_export.embed.pictures import embed_picture_shards

            found = embed_picture_shards(setup, source, shards)
        else:
            from mwa_export.embed.texts import embed_text_shards

            found = embed_text_shards(setup, self.bundle.tokenizer(), source, shards)
        for shard in found:
            if not len(shard.vectors):  # every row failed: set the width of the job
                shard = replace(shard, vectors=np.empty((0, self.job.width), np.float32))
            notes = setup.notes.pop(shard.shard.key)
            shard = completed(shard, notes)
            if shard.kept is not None and notes.kept:
                setup.on_rows(len(notes.kept), shard.kept.failed)
            yield shard

    def embed_shard(self, output: Output, source: Source, shard: Shard) -> Entry:
        """Embed one shard, write it and add it to the ledger."""
        (embedded,) = self.embed(source, [shard])
        return output.save(embedded)
