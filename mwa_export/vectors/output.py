"""The output folder of `embed`: job, ledger of finished shards, and leftovers of killed runs.

    OUT/job.json                    everything that determines the output
    OUT/images/part-00000.parquet   and texts/; or .npy and .jsonl
    OUT/.work/images-00000.json     the ledger: a shard is finished once its entry exists
    OUT/.work/...                   indexes of the sources
    OUT/.update/...                 see `install`
    OUT/errors.parquet, manifest.json   written at the end; or errors.jsonl; .work is removed

Every file is synced to disk, then renamed into place. A shard's files are written before its entry,
so a run that was killed in between computes the shard again, with identical bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from mwa_export.errors import BundleError, DataError, OutputDamagedError
from mwa_export.files import sha256_of
from mwa_export.inputs.content import Kind
from mwa_export.typed_json import read_object
from mwa_export.vectors.entries import Entry, FileEntry, Part
from mwa_export.vectors.install import UPDATE as UPDATE
from mwa_export.vectors.install import WORK as WORK
from mwa_export.vectors.install import pending_update
from mwa_export.vectors.job import FOLDERS, KINDS, Job, RowError, Shard, differences, shards
from mwa_export.vectors.lock import LOCK
from mwa_export.vectors.manifest import (
    JOB,
    MANIFEST,
    Counts,
    contents,
    counts,
    manifest_of,
    read_manifest,
    write_json,
    write_manifest,
)
from mwa_export.vectors.shards import (
    Embedded,
    Stored,
    read_errors,
    read_shard,
    rows_file,
    write_errors,
    write_shard,
)

_ERROR = ("row", "id", "code", "reason", "fingerprint")  # fields that `failures` reads back


@dataclass(frozen=True, slots=True)
class Output:
    """The output folder of a job, finished or not. Can be pickled: workers get a copy."""

    folder: Path
    job: Job
    base: Path | None = field(default=None, compare=False)  # output that this one updates

    @classmethod
    def load(cls, folder: Path) -> Output | None:
        """Load the output of an earlier run; None if the folder does not exist or is empty.

        Raises:
            DataError: the folder contains something else, or job.json is damaged.
        """
        folder = pending_update(folder) or folder
        path = folder / JOB
        if path.is_file():
            try:
                return cls(folder, Job.from_json(read_object(path)))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}: is not a job file that `embed` wrote ({error}). Use another folder."
                ) from error
        if folder.exists() and not folder.is_dir():
            raise DataError(
                f"{folder}: is a file. Expected a new folder, or one that an earlier run wrote."
            )
        for name in sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ():
            if not name.startswith((".lock", WORK, UPDATE, f".{JOB}.")):
                raise DataError(
                    f"{folder}: contains {name} but no {JOB}, so it is not the output of an "
                    "earlier run. Use a new or empty folder."
                )
        return None

    @classmethod
    def claim(cls, folder: Path, job: Job) -> Output:
        """Claim a folder for a job, or continue the job that it contains.

        Returns the output with the recorded job: if the bundle has moved, its old path.

        Raises:
            DataError: the folder contains another job, or something else.
            BundleError: writing failed.
        """
        recorded = cls.load(folder)
        if recorded is None:
            write_json(folder / JOB, job.to_json())
            return cls(folder, job)
        recorded.check(job)
        return recorded

    @staticmethod
    def prepare(folder: Path) -> None:
        """Create the folder and its `.work`, unless they exist.

        Raises:
            DataError: the folder contains something other than an output.
            BundleError: it cannot be created.
        """
        Output.load(folder)
        work = folder / WORK
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(
                f"{work}: cannot be created: {error.strerror}. Use another folder."
            ) from error

    def check(self, job: Job) -> None:
        """Raise DataError unless ``job`` produces the same output."""
        changed = differences(self.job, job)
        if changed:
            raise DataError(
                f"{self.folder}: was started with different input or options, which cannot be "
                f"mixed. {'; '.join(changed)}. Pass the original options, or use another folder. "
                "If only the source has changed, pass `update`."
            )

    @property
    def finished(self) -> bool:
        """Whether the manifest is written, so every row is accounted for."""
        return (self.folder / MANIFEST).is_file()

    def save(self, embedded: Embedded) -> Entry:
        """Write a shard and add it to the ledger, which marks it as finished.

        Any process may call this, as long as no other works on the same shard.

        Raises:
            BundleError: writing failed.
        """
        shard = embedded.shard
        files = tuple(write_shard(self.folder, self.job, embedded))
        kept = 0 if embedded.kept is None else len(embedded.kept.at) + embedded.kept.failed
        entry = Entry(shard, len(embedded.rows), files, tuple(embedded.errors), kept)
        if entry.embedded + len(entry.errors) != shard.stop - shard.start:
            raise AssertionError(f"{shard}: {entry.embedded} + {len(entry.errors)} rows")
        for file in files:
            self._share(file)
        write_json(self.folder / WORK / f"{shard.key}.json", entry.to_json())
        return entry

    def _share(self, file: FileEntry) -> None:
        """Replace a file by a hard link if the output being updated has an identical one."""
        if self.base is None or not file.is_in(self.base):
            return
        old, new = self.base / file.file, self.folder / file.file
        if sha256_of(old) == file.sha256:
            linked = new.with_name(f".{new.name}.linked")
            with suppress(OSError):  # no hard links here: keep both copies
                linked.unlink(missing_ok=True)
                os.link(old, linked)
                linked.replace(new)

    def parts(self, kind: Kind) -> tuple[Part, ...]:
        """Return the finished shards of one kind, in order.

        Raises:
            DataError: the manifest is damaged.
        """
        entries = self.job.inputs
        if self.finished:
            return contents(read_manifest(self.folder)).shards.get(FOLDERS[kind], ())
        return tuple(e.part for i in entries if i.kind == kind for e in self.ledger(shards(i)))

    def failures(self, kind: Kind) -> Iterator[RowError]:
        """Yield the failed rows of one kind in finished shards.

        Raises:
            DataError: the manifest or the file of errors is damaged.
        """
        if self.finished:
            path = self.errors_file
            try:
                found = list(read_errors(path, ["kind", *_ERROR]))
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{path}: cannot be read ({error}).") from error
            for named, row, id, code, reason, print_ in found:
                if named == kind:
                    yield RowError(row, id, code, reason, (print_ or b"").hex())
        else:
            inputs = [entry for entry in self.job.inputs if entry.kind == kind]
            for entry in (e for i in inputs for e in self.ledger(shards(i))):
                yield from entry.errors

    def check_files(self) -> None:
        """Compare the files of every finished shard with their hashes.

        Raises:
            OutputDamagedError: a file is missing or its content changed.
        """
        files = [f for kind in FOLDERS for part in self.parts(kind) for f in part.files]
        for file in files:
            path = self.folder / file.file
            if not file.is_in(self.folder) or sha256_of(path) != file.sha256:
                raise OutputDamagedError(
                    f"{path}: is missing or damaged, so its rows cannot be kept. Restore the file, "
                    "or embed into a new folder."
                )

    @property
    def errors_file(self) -> Path:
        """Path of the file that lists the failed rows. Requires a finished output.

        Raises:
            DataError: the manifest is damaged.
        """
        return self.folder / contents(read_manifest(self.folder)).errors.file

    def rows_file(self, stem: str) -> Path:
        """Path of a shard's rows, the file that is written last."""
        return rows_file(self.folder, self.job, stem)

    def read(self, stem: str) -> Stored:
        """Read a shard, such as `images/part-00000`.

        Raises:
            DataError: a file is missing or damaged.
        """
        return read_shard(self.folder, self.job, stem)

    def ledger(self, shards: Iterable[Shard]) -> list[Entry]:
        """Return the entries of those shards that are finished, in order."""
        return [entry for shard in shards if (entry := self._entry(shard)) is not None]

    def _entry(self, shard: Shard) -> Entry | None:
        """Return a shard's entry in the ledger; None if it is unfinished or its files are missing.

        Checks file sizes only: `verify` reads every byte.
        """
        path = self.folder / WORK / f"{shard.key}.json"
        try:
            entry = Entry.from_json(read_object(path))
        except (OSError, ValueError):
            return None
        whole = all(file.is_in(self.folder) for file in entry.files)
        same = entry.shard == replace(shard, duplicates=())
        return entry if whole and same else None

    def clean(self, shards: Iterable[Shard]) -> None:
        """Remove half-written files of some shards, left by a killed run.

        Safe while other parts run in the same folder.
        """
        for shard in shards:
            stem = self.folder / shard.stem
            for folder, name in ((stem.parent, stem.name), (self.folder / WORK, shard.key)):
                _remove(folder.glob(f".{name}.*"))

    def remove_work(self) -> None:
        """Remove `.work`, which only an unfinished run needs."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)

    def remove_updates(self) -> None:
        """Remove abandoned updates."""
        shutil.rmtree(self.folder / UPDATE, ignore_errors=True)

    def finish(self, entries: Sequence[Entry]) -> None:
        """Check that every row is accounted for, and write the errors and manifest.json.

        Raises:
            OutputDamagedError: rows are missing.
            BundleError: writing failed.
        """
        totals = counts(self.job, entries)
        for kind, total in totals.items():
            if not total.exact:
                raise OutputDamagedError(
                    f"{self.folder}: {total.embedded:,} embedded + {total.failed:,} failed + "
                    f"{total.skipped:,} skipped do not add up to {total.rows:,} {FOLDERS[kind]}. "
                    "This is a bug in mwa-export. Please report it."
                )
        failed = (
            (entry.shard.kind, self.job.input(entry.shard.kind).source, error)
            for entry in entries
            for error in entry.errors
        )
        errors = write_errors(self.folder, self.job.format, failed)
        write_manifest(self.folder, manifest_of(self.job, entries, totals, errors))

    def close(self) -> dict[Kind, Counts]:
        """Check the sizes of a finished output's files, and remove leftovers of killed runs.

        Returns the counts in its manifest.

        Raises:
            DataError: the manifest is damaged.
            OutputDamagedError: a file is missing or truncated.
        """
        found = contents(read_manifest(self.folder))
        for file in found.files:
            if not file.is_in(self.folder):
                raise OutputDamagedError(
                    f"{self.folder / file.file}: is missing or truncated, but {MANIFEST} says that "
                    "this output is complete. Restore the file, or embed into a new folder."
                )
        self.remove_work()
        with suppress(OSError):  # a read-only disk is fine
            _remove(self.folder.glob(f"{LOCK}-*"))
        return {KINDS[name]: total for name, total in found.counts.items()}


def clean_folder(folder: Path) -> None:
    """Remove temporary files that a killed run left in an output."""
    for place in (folder, folder / WORK, *(folder / name for name in KINDS)):
        _remove(p for p in place.glob(".*.*") if p.is_file() and not p.name.startswith(LOCK))


def _remove(paths: Iterator[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
