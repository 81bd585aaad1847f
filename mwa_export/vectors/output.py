"""The output folder of `embed`: job, ledger of finished shards, and leftovers of killed runs.

    OUT/job.json                    what decides the output
    OUT/images/part-00000.parquet   and texts/; or .npy and .jsonl
    OUT/.work/images-00000.json     the ledger: a shard is finished when its entry is there
    OUT/.work/...                   what sources keep
    OUT/.update/...                 see `install`
    OUT/errors.parquet, manifest.json   at the end; or errors.jsonl; .work goes

Every file appears by rename, its bytes on disk. A shard's files come first and its entry last, so a
run that was killed in between computes that shard again, to the same bytes.
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

_ERROR = ("row", "id", "code", "reason", "fingerprint")  # fields of an error that are read back


@dataclass(frozen=True, slots=True)
class Output:
    """The output folder of a job, finished or not. Can be pickled: workers get a copy."""

    folder: Path
    job: Job
    base: Path | None = field(default=None, compare=False)  # the output that this one updates

    @classmethod
    def load(cls, folder: Path) -> Output | None:
        """The output that an earlier run began; None: the folder is absent or empty.

        Raises:
            DataError: the folder holds something else.
        """
        folder = pending_update(folder) or folder
        path = folder / JOB
        if path.is_file():
            try:
                return cls(folder, Job.from_json(read_object(path)))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}: is not the file that `embed` wrote ({error}). Use another folder."
                ) from error
        if folder.exists() and not folder.is_dir():
            raise DataError(
                f"{folder}: is a file. Expected a new folder, or one that an earlier run wrote."
            )
        for name in sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ():
            if not name.startswith((".lock", WORK, UPDATE, f".{JOB}.")):
                raise DataError(
                    f"{folder}: holds {name} and no {JOB}, so it is not the output of an earlier "
                    "run. Use a new or empty folder."
                )
        return None

    @classmethod
    def claim(cls, folder: Path, job: Job) -> Output:
        """Claim a folder for a job, or go on with the same job.

        Returns the output with the job as it is recorded: a bundle that moved keeps the path it
        had.

        Raises:
            DataError: the folder holds another job, or something else.
            BundleError: the disk refuses.
        """
        recorded = cls.load(folder)
        if recorded is None:
            write_json(folder / JOB, job.to_json())
            return cls(folder, job)
        recorded.check(job)
        return recorded

    @staticmethod
    def prepare(folder: Path) -> None:
        """Make the folder with its `.work`, unless they exist.

        Raises:
            DataError: the folder holds something else than an output.
            BundleError: it cannot be made.
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
        """Raise DataError unless ``job`` makes the same output."""
        changed = differences(self.job, job)
        if changed:
            raise DataError(
                f"{self.folder}: was begun with other input or options, and continuing would mix "
                f"them. {'; '.join(changed)}. Pass the original options, or use another folder. If "
                "only the source has changed, pass `update`."
            )

    @property
    def finished(self) -> bool:
        """Whether every row is accounted for and the manifest is written."""
        return (self.folder / MANIFEST).is_file()

    def save(self, embedded: Embedded) -> Entry:
        """Write a shard and enter it into the ledger. From then on it is finished.

        Any process may do this, for a shard that no other one works on.

        Raises:
            BundleError: the disk refuses.
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
        """Keep a file once on disk that is the same in the output that this one updates."""
        if self.base is None or not file.is_in(self.base):
            return
        old, new = self.base / file.file, self.folder / file.file
        if sha256_of(old) == file.sha256:
            linked = new.with_name(f".{new.name}.linked")
            with suppress(OSError):  # no links here: then it is there twice
                linked.unlink(missing_ok=True)
                os.link(old, linked)
                linked.replace(new)

    def parts(self, kind: Kind) -> tuple[Part, ...]:
        """The finished shards of one kind.

        Raises:
            DataError: the manifest is damaged.
        """
        entries = self.job.inputs
        if self.finished:
            return contents(read_manifest(self.folder)).shards.get(FOLDERS[kind], ())
        return tuple(e.part for i in entries if i.kind == kind for e in self.ledger(shards(i)))

    def failures(self, kind: Kind) -> Iterator[RowError]:
        """Rows of one kind that failed in finished shards.

        Raises:
            DataError: the file of errors is damaged.
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
        """Compare every finished shard with its hash.

        Raises:
            OutputDamagedError: one is missing or has other bytes.
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
        """The file of the rows that failed, of a finished output.

        Raises:
            DataError: the manifest is damaged.
        """
        return self.folder / contents(read_manifest(self.folder)).errors.file

    def rows_file(self, stem: str) -> Path:
        """The file of a shard that is written last."""
        return rows_file(self.folder, self.job, stem)

    def read(self, stem: str) -> Stored:
        """Read a shard back, by the stem of its files.

        Raises:
            DataError: a file is missing or damaged.
        """
        return read_shard(self.folder, self.job, stem)

    def ledger(self, shards: Iterable[Shard]) -> list[Entry]:
        """The entries of the shards that are finished, in order."""
        return [entry for shard in shards if (entry := self._entry(shard)) is not None]

    def _entry(self, shard: Shard) -> Entry | None:
        """The ledger's entry of a shard; None: it is not finished, or its files are not there.

        Only sizes are looked at: `verify` reads every byte.
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
        """Remove what a killed run left half-written of some shards.

        Runs of other parts may be at work in the same folder.
        """
        for shard in shards:
            stem = self.folder / shard.stem
            for folder, name in ((stem.parent, stem.name), (self.folder / WORK, shard.key)):
                _remove(folder.glob(f".{name}.*"))

    def remove_work(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)

    def remove_updates(self) -> None:
        """Remove updates that were begun and given up."""
        shutil.rmtree(self.folder / UPDATE, ignore_errors=True)

    def finish(self, entries: Sequence[Entry]) -> None:
        """Check that every row is accounted for, and write the errors and manifest.json.

        Raises:
            OutputDamagedError: rows are missing.
            BundleError: the disk refuses.
        """
        totals = counts(self.job, entries)
        for kind, total in totals.items():
            if not total.exact:
                raise OutputDamagedError(
                    f"{self.folder}: of {total.rows:,} {FOLDERS[kind]}, {total.embedded:,} are "
                    f"embedded, {total.failed:,} failed and {total.skipped:,} were skipped, which "
                    "leaves some unaccounted for. This is a bug in mwa-export. Please report it."
                )
        failed = (
            (entry.shard.kind, self.job.input(entry.shard.kind).source, error)
            for entry in entries
            for error in entry.errors
        )
        errors = write_errors(self.folder, self.job.format, failed)
        write_manifest(self.folder, manifest_of(self.job, entries, totals, errors))

    def close(self) -> dict[Kind, Counts]:
        """Check a finished output's files by size, and remove what an earlier kill left.

        Returns the counts of its manifest.

        Raises:
            OutputDamagedError: a file is missing or cut.
        """
        found = contents(read_manifest(self.folder))
        for file in found.files:
            if not file.is_in(self.folder):
                raise OutputDamagedError(
                    f"{self.folder / file.file}: is missing or cut short, but {MANIFEST} says that "
                    "this output is complete. Restore the file, or embed into a new folder."
                )
        self.remove_work()
        with suppress(OSError):  # on a disk that is read only nothing need go
            _remove(self.folder.glob(f"{LOCK}-*"))
        return {KINDS[name]: total for name, total in found.counts.items()}


def clean_folder(folder: Path) -> None:
    """Remove the temporary files that a killed run left anywhere in an output."""
    for place in (folder, folder / WORK, *(folder / name for name in KINDS)):
        _remove(p for p in place.glob(".*.*") if p.is_file() and not p.name.startswith(LOCK))


def _remove(paths: Iterator[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
