"""The output folder of `embed`: its job, the ledger of finished shards, and what a kill leaves.

    OUT/job.json                    what decides the output
    OUT/images/part-00000.parquet   and texts/
    OUT/.work/images-00000.json     the ledger: a shard is finished when its entry is there
    OUT/.work/...                   what sources keep
    OUT/errors.parquet, manifest.json   at the end; .work goes

Every file appears by rename. A shard's files come first and its entry last, so a run that was
killed in between computes that shard again, to the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mwa_export.errors import DataError
from mwa_export.files import new_file
from mwa_export.vectors.job import FOLDERS, Job, RowError, Shard, differences
from mwa_export.vectors.shards import Embedded, FileEntry, write_shard

JOB, WORK, MANIFEST, ERRORS = "job.json", ".work", "manifest.json", "errors.parquet"


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished shard in the ledger."""

    shard: Shard
    embedded: int
    files: tuple[FileEntry, ...]
    errors: tuple[RowError, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.shard.kind,
            "shard": self.shard.number,
            "start": self.shard.start,
            "stop": self.shard.stop,
            "embedded": self.embedded,
            "files": [file.to_json() for file in self.files],
            "errors": [[e.row, e.id, e.code, e.reason] for e in self.errors],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Entry:
        return cls(
            Shard(data["kind"], data["shard"], data["start"], data["stop"]),
            data["embedded"],
            tuple(FileEntry(**file) for file in data["files"]),
            tuple(RowError(*error) for error in data["errors"]),
        )


def save_shard(out: Path, job: Job, embedded: Embedded) -> Entry:
    """Write a shard and enter it into the ledger. From then on it is finished.

    Any process may do this, for a shard that no other one works on.

    Raises:
        BundleError: the disk refuses.
    """
    shard = embedded.shard
    files = tuple(write_shard(out, job, embedded))
    entry = Entry(shard, len(embedded.rows), files, tuple(embedded.errors))
    if entry.embedded + len(entry.errors) != shard.stop - shard.start:
        raise AssertionError(f"{shard}: {entry.embedded} + {len(entry.errors)} rows")
    write_json(out / WORK / f"{shard.key}.json", entry.to_json())
    return entry


def load_entry(out: Path, shard: Shard) -> Entry | None:
    """The ledger's entry of a shard; None: it is not finished, or its files are not there.

    Only sizes are looked at: `verify` reads every byte.
    """
    path = out / WORK / f"{shard.key}.json"
    try:
        entry = Entry.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if (entry.shard.start, entry.shard.stop) != (shard.start, shard.stop):
        return None
    for file in entry.files:
        found = out / file.file
        if not found.is_file() or found.stat().st_size != file.bytes:
            return None
    return entry


def start_job(out: Path, job: Job) -> Job:
    """Claim an output for a job, or go on with the same job.

    Returns the job as it is recorded: a bundle that moved keeps the path it had.

    Raises:
        DataError: the folder holds another job, or something else.
        BundleError: the disk refuses.
    """
    recorded = load_job(out)
    if recorded is None:
        write_json(out / JOB, job.to_json())
        return job
    changed = differences(recorded, job)
    if changed:
        raise DataError(
            f"{out}: was begun with other input or options, and going on would mix them. "
            f"{'; '.join(changed)}. Give what it was begun with, or another -o."
        )
    return recorded


def load_job(out: Path) -> Job | None:
    """The job of an output folder; None: it is absent or empty.

    Raises:
        DataError: the folder holds something else.
    """
    path = out / JOB
    if path.is_file():
        try:
            return Job.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: is not the file that `embed` wrote ({error!r}). Use another -o."
            ) from error
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file. Expected a folder, new or of an earlier run.")
    if out.is_dir():
        others = sorted(p.name for p in out.iterdir() if not p.name.startswith((".lock", WORK)))
        left = [name for name in others if not name.startswith(f".{JOB}.")]
        if left:
            raise DataError(
                f"{out}: holds {left[0]} and no {JOB}, so it is not the output of an earlier run. "
                "Use a new or empty folder."
            )
    return None


def clean(out: Path, shards: Iterable[Shard] | None = None) -> None:
    """Remove what a killed run left half-written: temporary names, which new_file makes.

    ``shards``: only theirs, where runs of other parts may be at work.
    """
    if shards is None:
        folders = (out, out / WORK, *(out / folder for folder in FOLDERS.values()))
        for folder in folders:
            for path in folder.glob(".*.*"):
                if path.is_file() and not path.name.startswith(".lock"):
                    path.unlink(missing_ok=True)
        return
    for shard in shards:
        stem = out / shard.stem
        for folder, name in ((stem.parent, stem.name), (out / WORK, shard.key)):
            for path in folder.glob(f".{name}.*"):
                path.unlink(missing_ok=True)


def remove_work(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree(out / WORK, ignore_errors=True)


def ledger(out: Path, shards: Iterable[Shard]) -> Iterator[Entry]:
    """The entries of the shards that are finished, in order."""
    for shard in shards:
        entry = load_entry(out, shard)
        if entry is not None:
            yield entry


def write_json(path: Path, data: Any) -> None:
    """Write JSON as a whole file. Text that is no UTF-8 survives, as an escape."""
    text = json.dumps(data, indent=1)
    with new_file(path) as partial:
        partial.write_text(text + "\n", encoding="ascii")
